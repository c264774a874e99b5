package convert_test

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"

	"xlstm/checkpoints"
	"xlstm/convert"
	"xlstm/format"
	"xlstm/quantize"
	"xlstm/tokenizer"
)

const testdata = "../testdata"

var fixtures = []string{
	"tiny-bf16-sharded", "tiny-bias", "tiny-fp16", "tiny-fp32", "tiny-fused", "tiny-long", "tiny-nxai-layout", "tiny-tied",
}

func openCheckpoint(t testing.TB, name string) *checkpoints.Checkpoint {
	t.Helper()
	src, err := checkpoints.Open(filepath.Join(testdata, "fixtures", name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return src
}

func openFile(t testing.TB, path string) *format.File {
	t.Helper()
	f, err := format.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func convertTo(t testing.TB, src *checkpoints.Checkpoint, o convert.Options) *format.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "model.xlstm")
	if err := convert.Convert(t.Context(), src, path, o); err != nil {
		t.Fatal(err)
	}
	return openFile(t, path)
}

// decode reads a whole tensor of a file.
func decode(t testing.TB, f *format.File, name string) []float32 {
	t.Helper()
	x, ok := f.Tensor(name)
	if !ok {
		t.Fatalf("the file has no tensor %s", name)
	}
	rows, err := quantize.RowsOf(x.Data, x.Encoding, x.Rows, x.Cols)
	if err != nil {
		t.Fatal(err)
	}
	out := make([]float32, x.Rows*x.Cols)
	if err := quantize.DecodeRows(out, x.Encoding, rows, x.Rows, x.Cols); err != nil {
		t.Fatal(err)
	}
	return out
}

// plain computes the tensors of a file as the formulas say: everything in memory, everything in float64.
type plain struct {
	t   testing.TB
	src *checkpoints.Checkpoint
}

// get reads a tensor of the checkpoint, nil where there is none.
func (p *plain) get(name string) []float64 {
	p.t.Helper()
	x, ok := p.src.Tensor(name)
	if !ok {
		return nil
	}
	v := make([]float32, x.Rows()*x.Cols())
	if err := x.ReadRows(v, 0, x.Rows()); err != nil {
		p.t.Fatal(err)
	}
	out := make([]float64, len(v))
	for i := range v {
		out[i] = float64(v[i])
	}
	return out
}

// linear is scale * W diag(gain), and scale * (b + W shift); b and shift may be nil.
func (p *plain) linear(w, b, gain, shift []float64, scale float64) (matrix, bias []float64) {
	var cols int
	if gain != nil {
		cols = len(gain)
	} else {
		cols = len(w) // one row, of which nothing depends
	}
	for r := 0; r*cols < len(w); r++ {
		sum := 0.0
		if b != nil {
			sum = b[r]
		}
		for c := range cols {
			x := w[r*cols+c]
			if shift != nil {
				sum += x * shift[c]
			}
			if gain != nil {
				x *= gain[c]
			}
			matrix = append(matrix, x*scale)
		}
		bias = append(bias, sum*scale)
	}
	return matrix, bias
}

func (p *plain) tensors() map[string][]float64 {
	c := p.src.Config()
	out := map[string][]float64{"embed": p.get("embeddings.weight")}
	capped := func(limit float64) float64 {
		if limit == 0 {
			return 1
		}
		return 1 / limit
	}
	for i := range c.NumBlocks {
		from, to := fmt.Sprintf("blocks.%d.", i), fmt.Sprintf("blocks.%d.", i)
		fused := func(name, norm string, scales map[string]float64, parts ...string) {
			var matrix, bias []float64
			gain, shift := p.get(from+norm+".weight"), p.get(from+norm+".bias")
			for _, part := range parts {
				scale := 1.0
				if s, ok := scales[part]; ok {
					scale = s
				}
				m, b := p.linear(p.get(from+part+".weight"), p.get(from+part+".bias"), gain, shift, scale)
				matrix, bias = append(matrix, m...), append(bias, b...)
			}
			out[to+name] = matrix
			if c.UseBias || name == "gates" {
				out[to+name+".bias"] = bias
			}
		}
		gate := capped(c.GateSoftCap)
		fused("qkvo", "norm_mlstm", map[string]float64{"mlstm_layer.q": math.Pow(float64(c.QKDim/c.NumHeads), -0.5)},
			"mlstm_layer.q", "mlstm_layer.k", "mlstm_layer.v", "mlstm_layer.ogate_preact")
		fused("gates", "norm_mlstm", map[string]float64{"mlstm_layer.igate_preact": gate, "mlstm_layer.fgate_preact": gate},
			"mlstm_layer.igate_preact", "mlstm_layer.fgate_preact")
		fused("gate_up", "norm_ffn", nil, "ffn.proj_up_gate", "ffn.proj_up")
		out[to+"down"] = p.get(from + "ffn.proj_down.weight")
		if c.UseBias {
			out[to+"head_norm"] = p.get(from + "mlstm_layer.multihead_norm.weight")
			out[to+"head_norm.bias"] = p.get(from + "mlstm_layer.multihead_norm.bias")
			out[to+"out"] = p.get(from + "mlstm_layer.out_proj.weight")
			out[to+"out.bias"] = p.get(from + "mlstm_layer.out_proj.bias")
			out[to+"down.bias"] = p.get(from + "ffn.proj_down.bias")
		} else {
			fused("out", "mlstm_layer.multihead_norm", nil, "mlstm_layer.out_proj")
		}
	}
	head := p.get("lm_head.weight")
	if c.Tied {
		head = p.get("embeddings.weight")
	}
	matrix, bias := p.linear(head, nil, p.get("out_norm.weight"), p.get("out_norm.bias"), capped(c.OutputSoftCap))
	out["head"] = matrix
	if p.get("out_norm.bias") != nil {
		out["head.bias"] = bias
	}
	return out
}

// TestFold converts every fixture, and synthetic models with what no fixture has, to fp32, and compares each tensor with what
// the formulas say. Two roundings of float32 are allowed: sums and products of scales may be ordered differently.
func TestFold(t *testing.T) {
	sources := map[string]*checkpoints.Checkpoint{}
	for _, name := range fixtures {
		sources[name] = openCheckpoint(t, name)
	}
	c := syntheticConfig()
	sources["synthetic"] = checkpoints.Synthetic(c, 1)
	c.UseBias, c.Tied = true, true
	sources["synthetic, biased, tied"] = checkpoints.Synthetic(c, 2)
	c.OutNorm, c.GateSoftCap, c.OutputSoftCap = false, 0, 0
	sources["synthetic, biased, tied, no output norm, no caps"] = checkpoints.Synthetic(c, 3)
	headBias := 0
	for name, src := range sources {
		t.Run(name, func(t *testing.T) {
			f := convertTo(t, src, convert.Options{Recipe: "fp32"})
			want := (&plain{t, src}).tensors()
			if len(f.Tensors()) != len(want) {
				t.Errorf("%d tensors, expected %d", len(f.Tensors()), len(want))
			}
			if _, ok := want["head.bias"]; ok {
				headBias++
			}
			for _, x := range f.Tensors() {
				compare(t, x.Name, decode(t, f, x.Name), want[x.Name])
			}
			if err := f.Verify(t.Context(), nil); err != nil {
				t.Error(err)
			}
			config := *src.Config()
			config.HeadBias = want["head.bias"] != nil
			if *f.Config() != config {
				t.Errorf("config %+v, expected %+v", *f.Config(), config)
			}
		})
	}
	if headBias == 0 {
		t.Error("no model had a biased output norm")
	}
}

func compare(t *testing.T, name string, got []float32, want []float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%s: %d values, expected %d", name, len(got), len(want))
		return
	}
	// Sums cancel: what they are made of bounds their error.
	scale := 0.0
	if filepath.Ext(name) == ".bias" {
		for _, v := range want {
			scale = max(scale, math.Abs(v))
		}
	}
	for i := range got {
		if d := math.Abs(float64(got[i]) - want[i]); d > 0x1p-23*max(math.Abs(want[i]), scale) {
			t.Errorf("%s: value %d is %v, expected %v", name, i, got[i], want[i])
			return
		}
	}
}

// syntheticConfig has widths that are not powers of two nor multiples of 32.
func syntheticConfig() format.Config {
	return format.Config{
		VocabSize: 300, EmbeddingDim: 72, NumBlocks: 2, NumHeads: 3, QKDim: 36, VDim: 72, FFNDim: 200,
		NormEps: 1e-6, CellEps: 1e-6, GateSoftCap: 15, OutputSoftCap: 30, OutNorm: true, BOS: 0, ForceBOS: true,
	}
}

// TestHalfRecipes holds the other floating-point recipes against fp32, rounded.
func TestHalfRecipes(t *testing.T) {
	round := map[string]func(float32) float32{
		"fp16": func(v float32) float32 { return quantize.FromFP16(quantize.ToFP16(v)) },
		"bf16": func(v float32) float32 { return quantize.FromBF16(quantize.ToBF16(v)) },
	}
	for _, name := range []string{"tiny-bias", "tiny-fp32", "tiny-tied"} {
		src := openCheckpoint(t, name)
		exact := convertTo(t, src, convert.Options{Recipe: "fp32"})
		for recipe, to := range round {
			f := convertTo(t, src, convert.Options{Recipe: recipe})
			if f.Recipe() != recipe {
				t.Errorf("recipe %q, expected %q", f.Recipe(), recipe)
			}
			for _, x := range f.Tensors() {
				got, want := decode(t, f, x.Name), decode(t, exact, x.Name)
				for i := range got {
					w := want[i]
					if !format.AlwaysFP32(x.Name) {
						w = to(w)
					}
					if got[i] != w {
						t.Errorf("%s %s %s: value %d is %v, expected %v", name, recipe, x.Name, i, got[i], w)
						break
					}
				}
			}
		}
	}
}

// TestReadRows reads a Source's tensors in pieces that begin and end anywhere.
func TestReadRows(t *testing.T) {
	c := syntheticConfig()
	c.UseBias = true
	s, err := convert.FromCheckpoint(checkpoints.Synthetic(c, 4))
	if err != nil {
		t.Fatal(err)
	}
	rotated, err := s.Rotate(5)
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]*convert.Source{"plain": s, "rotated": rotated} {
		for _, spec := range s.Tensors() {
			x, ok := s.Tensor(spec.Name)
			if !ok || x.Rows() != spec.Rows || x.Cols() != spec.Cols || x.Step() < 1 {
				t.Fatalf("%s: tensor %s: %v, %d x %d", name, spec.Name, ok, x.Rows(), x.Cols())
			}
			whole := make([]float32, spec.Rows*spec.Cols)
			if err := x.ReadRows(whole, 0, spec.Rows); err != nil {
				t.Fatal(err)
			}
			for r0 := 0; r0 < spec.Rows; {
				r1 := min(r0+1+r0*7%13, spec.Rows)
				piece := make([]float32, (r1-r0)*spec.Cols)
				if err := x.ReadRows(piece, r0, r1); err != nil {
					t.Fatal(err)
				}
				for i, v := range piece {
					if v != whole[r0*spec.Cols+i] {
						t.Fatalf("%s %s: rows %d to %d differ from the whole at %d", name, spec.Name, r0, r1, i)
					}
				}
				r0 = r1
			}
			if err := x.ReadRows(whole, 0, spec.Rows+1); err == nil {
				t.Errorf("%s: read more rows than there are", spec.Name)
			}
		}
		if _, ok := s.Tensor("nothing"); ok {
			t.Error("found a tensor that is not there")
		}
	}
}

// TestTokenizer stores a tokenizer beside a model whose vocabulary has room for it, and refuses one that has not.
func TestTokenizer(t *testing.T) {
	def, err := os.ReadFile(filepath.Join(testdata, "xlstm-7b", "tokenizer.json"))
	if err != nil {
		t.Fatal(err)
	}
	c := syntheticConfig()
	c.VocabSize = 50304
	dir := writeCheckpoint(t, checkpoints.Synthetic(c, 1), map[string][]byte{"tokenizer.json": def})
	src, err := checkpoints.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	f := convertTo(t, src, convert.Options{Recipe: "fp16"})
	want, err := tokenizer.FromJSON(def)
	if err != nil {
		t.Fatal(err)
	}
	section, err := want.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(f.Tokenizer(), section) {
		t.Errorf("tokenizer of %d bytes, expected %d", len(f.Tokenizer()), len(section))
	}
	c.VocabSize = 50276
	dir = writeCheckpoint(t, checkpoints.Synthetic(c, 1), map[string][]byte{"tokenizer.json": def})
	small, err := checkpoints.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer small.Close()
	if _, err := convert.FromCheckpoint(small); err == nil {
		t.Error("converted a model whose vocabulary is smaller than its tokenizer's")
	}
}
