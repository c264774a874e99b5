package convert_test

import (
	"math"
	"slices"
	"strings"
	"testing"

	"xlstm/checkpoints"
	"xlstm/convert"
	"xlstm/format"
	"xlstm/kernels"
	"xlstm/kernels/cpu"
	"xlstm/quantize"
)

// dense is a rotation as a matrix: column j is what becomes of unit vector j.
func dense(t *testing.T, width int, seed uint64) [][]float64 {
	t.Helper()
	r, err := quantize.NewRotation(width, seed)
	if err != nil {
		t.Fatal(err)
	}
	m := make([][]float64, width)
	for i := range m {
		m[i] = make([]float64, width)
	}
	for j := range width {
		x := make([]float64, width)
		x[j] = 1
		r.Apply(x)
		for i, v := range x {
			m[i][j] = v
		}
	}
	return m
}

func identity(n int) [][]float64 {
	m := make([][]float64, n)
	for i := range m {
		m[i] = make([]float64, n)
		m[i][i] = 1
	}
	return m
}

// perHead has r once for each of count heads on its diagonal, and ones behind, n rows in all.
func perHead(r [][]float64, count, n int) [][]float64 {
	m := identity(n)
	for h := range count {
		at := h * len(r)
		for i := range r {
			copy(m[at+i][at:], r[i])
		}
	}
	return m
}

// product is l w r^T.
func product(l [][]float64, w []float32, r [][]float64) []float64 {
	rows, cols := len(l), len(r)
	half := make([]float64, rows*cols)
	for i := range rows {
		for k, f := range l[i] {
			if f == 0 {
				continue
			}
			for j := range cols {
				half[i*cols+j] += f * float64(w[k*cols+j])
			}
		}
	}
	out := make([]float64, rows*cols)
	for i := range rows {
		for j := range cols {
			for k, f := range r[j] {
				out[i*cols+j] += half[i*cols+k] * f
			}
		}
	}
	return out
}

// TestRotate holds every rotated tensor against products with the rotation's matrix.
func TestRotate(t *testing.T) {
	c := syntheticConfig()
	c.UseBias = true
	sources := map[string]*checkpoints.Checkpoint{"synthetic": checkpoints.Synthetic(c, 3)}
	for _, name := range []string{"tiny-tied", "tiny-bias", "tiny-nxai-layout"} {
		sources[name] = openCheckpoint(t, name)
	}
	for name, src := range sources {
		t.Run(name, func(t *testing.T) {
			seed := uint64(42)
			f := convertTo(t, src, convert.Options{Recipe: "fp32"})
			r := convertTo(t, src, convert.Options{Recipe: "fp32", Rotate: &seed})
			c := f.Config()
			residual, head := dense(t, c.EmbeddingDim, seed), dense(t, c.HeadQKDim(), seed)
			for _, x := range f.Tensors() {
				left, right := identity(x.Rows), identity(x.Cols)
				switch shortName(x.Name) {
				case "embed", "head", "gates", "gate_up", "out.bias", "down.bias":
					right = residual
				case "qkvo":
					left, right = perHead(head, 2*c.NumHeads, x.Rows), residual
				case "out", "down":
					left = residual
				case "qkvo.bias":
					right = perHead(head, 2*c.NumHeads, x.Cols)
				}
				got, want := decode(t, r, x.Name), product(left, decode(t, f, x.Name), right)
				for i := range got {
					if d := math.Abs(float64(got[i]) - want[i]); !(d < 1e-5) {
						t.Errorf("%s: value %d is %v, expected %v", x.Name, i, got[i], want[i])
						break
					}
				}
			}
		})
	}
}

// shortName is a name without its block's.
func shortName(name string) string {
	if rest, ok := strings.CutPrefix(name, "blocks."); ok {
		_, name, _ = strings.Cut(rest, ".")
	}
	return name
}

func TestRotateErrors(t *testing.T) {
	c := syntheticConfig()
	c.EmbeddingDim = 2 * 1031 // a large prime has no cheap rotation
	s, err := convert.FromCheckpoint(checkpoints.Synthetic(c, 1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Rotate(1); err == nil {
		t.Error("rotated a width of 2062")
	}
}

// logits runs a file over some tokens.
func logits(t *testing.T, f *format.File, tokens []int32) []float32 {
	t.Helper()
	e, err := cpu.Open(f, cpu.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	s, err := e.NewState()
	if err != nil {
		t.Fatal(err)
	}
	out := make([]float32, len(tokens)*f.Config().VocabSize)
	if err := e.Forward(t.Context(), []kernels.Step{{State: s, Tokens: tokens, Logits: out}}); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestRotatedModelIsTheSame runs rotated and unrotated fp32 files of every fixture: they must differ by rounding alone.
func TestRotatedModelIsTheSame(t *testing.T) {
	for _, name := range fixtures {
		t.Run(name, func(t *testing.T) {
			src := openCheckpoint(t, name)
			seed := uint64(7)
			f := convertTo(t, src, convert.Options{Recipe: "fp32"})
			r := convertTo(t, src, convert.Options{Recipe: "fp32", Rotate: &seed})
			if f.Fingerprint() == r.Fingerprint() {
				t.Fatal("nothing was rotated")
			}
			tokens := make([]int32, 200)
			for i := range tokens {
				tokens[i] = int32(i * i % f.Config().VocabSize)
			}
			most := 0.0
			want := logits(t, f, tokens)
			for i, v := range logits(t, r, tokens) {
				most = max(most, math.Abs(float64(v-want[i])))
			}
			t.Logf("%s: logits differ by %.2g of %.3g", name, most, slices.Max(want))
			if !(most <= 5e-4) {
				t.Errorf("logits differ by %g", most)
			}
		})
	}
}
