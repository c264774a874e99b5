//go:build cuda

package cuda_test

import (
	"math"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"xlstm/format"
	"xlstm/internal/converted"
	"xlstm/kernels"
	"xlstm/kernels/cpu"
	"xlstm/kernels/cuda"
	"xlstm/quantize"
)

const fixtures = "../../testdata/fixtures"

// convertFixture converts a fixture with a recipe and opens the file.
func convertFixture(t testing.TB, name, recipe string) *format.File {
	t.Helper()
	return converted.Folder(t, filepath.Join(fixtures, name), recipe)
}

// memory is a model in memory.
type memory struct {
	cfg     format.Config
	tensors map[string]format.Tensor
}

func (m *memory) Config() *format.Config { return &m.cfg }
func (m *memory) Tensor(name string) (format.Tensor, bool) {
	t, ok := m.tensors[name]
	return t, ok
}

// mixed are the encodings of a model's matrices, in turn.
var mixed = []string{"int4g64", "fp16", "int8", "int4g32a", "int8g128", "int8g64", "int4g128"}

// randomModel makes a model of random weights in an encoding, or "mixed", and the same weights in float32.
func randomModel(t testing.TB, cfg format.Config, encoding string, seed uint64) (coded, plain *memory) {
	t.Helper()
	next := 0
	encodingOf := func(string) format.Encoding {
		name := encoding
		if name == "mixed" {
			name = mixed[next%len(mixed)]
			next++
		}
		enc, err := format.ParseEncoding(name)
		if err != nil {
			t.Fatal(err)
		}
		return enc
	}
	r := rand.New(rand.NewPCG(seed, 2))
	coded, plain = &memory{cfg, map[string]format.Tensor{}}, &memory{cfg, map[string]format.Tensor{}}
	for _, s := range format.Specs(&cfg, encodingOf) {
		w := make([]float32, s.Rows*s.Cols)
		for i := range w {
			w[i] = float32(r.NormFloat64()) / float32(math.Sqrt(float64(s.Cols)))
			switch {
			case strings.HasSuffix(s.Name, format.TensorGates): // tanh of it times 15 sits in an exponent
				w[i] *= 0.1
			case s.Name == format.TensorHead:
				w[i] *= 0.15
			}
			if s.Rows == 1 {
				w[i] = float32(r.NormFloat64()) * 0.1
			}
			// A long memory, as trained models have: else a head's read-out is the difference of a few large numbers.
			if strings.HasSuffix(s.Name, format.TensorGatesBias) {
				w[i] = float32(r.NormFloat64())*0.02 - 0.1
				if i >= cfg.NumHeads {
					w[i] += 0.4
				}
			}
			if strings.HasSuffix(s.Name, format.TensorHeadNorm) {
				w[i]++
			}
		}
		data := make([]byte, s.Size())
		a, err := quantize.RowsOf(data, s.Encoding, s.Rows, s.Cols)
		if err != nil {
			t.Fatal(err)
		}
		if err := quantize.EncodeRows(a, s.Encoding, w, s.Rows, s.Cols, quantize.Options{}); err != nil {
			t.Fatal(err)
		}
		coded.tensors[s.Name] = format.Tensor{Name: s.Name, Encoding: s.Encoding, Rows: s.Rows, Cols: s.Cols, Data: data}
		if err := quantize.DecodeRows(w, s.Encoding, a, s.Rows, s.Cols); err != nil {
			t.Fatal(err)
		}
		f := format.Encoding{Kind: format.FP32}
		data = make([]byte, f.Sizes(s.Rows, s.Cols).Total)
		if a, err = quantize.RowsOf(data, f, s.Rows, s.Cols); err != nil {
			t.Fatal(err)
		}
		if err := quantize.EncodeRows(a, f, w, s.Rows, s.Cols, quantize.Options{}); err != nil {
			t.Fatal(err)
		}
		plain.tensors[s.Name] = format.Tensor{Name: s.Name, Encoding: f, Rows: s.Rows, Cols: s.Cols, Data: data}
	}
	return coded, plain
}

func onGPU(t testing.TB, w cuda.Weights, o cuda.Options) *cuda.Engine {
	t.Helper()
	e, err := cuda.Open(w, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

func onCPU(t testing.TB, w cpu.Weights) *cpu.Engine {
	t.Helper()
	e, err := cpu.Open(w, cpu.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

func newState(t testing.TB, e kernels.Engine) kernels.State {
	t.Helper()
	s, err := e.NewState()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func randomTokens(n, vocab int, seed uint64) []int32 {
	r := rand.New(rand.NewPCG(seed, 3))
	out := make([]int32, n)
	for i := range out {
		out[i] = int32(r.IntN(vocab))
	}
	return out
}

// difference is the largest distance of two vectors' values, NaN if there is one.
func difference(a, b []float32) float64 {
	d := 0.0
	for i := range a {
		v := math.Abs(float64(a[i]) - float64(b[i]))
		if math.IsNaN(v) {
			return v
		}
		d = max(d, v)
	}
	return d
}

// divergence is the mean KL divergence of got's rows from want's.
func divergence(got, want []float32, vocab int) float64 {
	total := 0.0
	n := len(want) / vocab
	for i := range n {
		p, q := logSoftmax(want[i*vocab:(i+1)*vocab]), logSoftmax(got[i*vocab:(i+1)*vocab])
		for j := range p {
			total += math.Exp(p[j]) * (p[j] - q[j])
		}
	}
	return total / float64(n)
}

func logSoftmax(x []float32) []float64 {
	top, sum := math.Inf(-1), 0.0
	for _, v := range x {
		top = max(top, float64(v))
	}
	for _, v := range x {
		sum += math.Exp(float64(v) - top)
	}
	out := make([]float64, len(x))
	for i, v := range x {
		out[i] = float64(v) - top - math.Log(sum)
	}
	return out
}
