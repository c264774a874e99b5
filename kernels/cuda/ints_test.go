//go:build cuda

package cuda_test

import (
	"fmt"
	"math"
	"os"
	"testing"

	"xlstm/format"
	"xlstm/internal/converted"
	"xlstm/internal/feed"
	"xlstm/kernels/cuda"
	"xlstm/tokenizer"
)

const everything = cuda.ForQKVO | cuda.ForOut | cuda.ForGateUp | cuda.ForDown

func intEngine(t *testing.T, w cuda.Weights, o cuda.Options) *cuda.Engine {
	t.Helper()
	o.HalfFrom = 1
	e := onGPU(t, w, o)
	if e.Library() == 0 {
		t.Skip("no cuBLASLt")
	}
	return e
}

// rowsOf is a matrix of codes with its scales.
type rowsOf struct {
	codes      []int8
	scales     []float32
	rows, cols int // padded
}

func int8Rows(t *testing.T, w *memory, name string) rowsOf {
	t.Helper()
	x, ok := w.Tensor(name)
	if !ok {
		t.Fatalf("no tensor %s", name)
	}
	r := rowsOf{rows: x.Rows, cols: format.PaddedCols(x.Cols)}
	for _, b := range x.Values() {
		r.codes = append(r.codes, int8(b))
	}
	s := x.Scales()
	for i := range x.Rows {
		r.scales = append(r.scales, math.Float32frombits(uint32(s[4*i])|uint32(s[4*i+1])<<8|uint32(s[4*i+2])<<16|uint32(s[4*i+3])<<24))
	}
	return r
}

// checkSums holds a product of codes against the sums computed here: they are integers, so every one has to be the same.
func checkSums(t *testing.T, what string, w rowsOf, x []int8, got []int32, n int) {
	t.Helper()
	for i := range n {
		for r := range w.rows {
			var want int32
			for k := range w.cols {
				want += int32(x[i*w.cols+k]) * int32(w.codes[r*w.cols+k])
			}
			if got[i*w.rows+r] != want {
				t.Fatalf("%s: token %d, row %d: %d, expected %d", what, i, r, got[i*w.rows+r], want)
			}
		}
	}
}

// checkCodes holds codes and scales against the values they stand for; padding has to be 0.
func checkCodes(t *testing.T, what string, want []float64, cols, padded int, codes []int8, scales []float32, n int) {
	t.Helper()
	for i := range n {
		top := 0.0
		for _, v := range want[i*cols : (i+1)*cols] {
			top = max(top, math.Abs(v))
		}
		if d := math.Abs(float64(scales[i])*127 - top); !(d <= 1e-5*top) {
			t.Fatalf("%s: token %d: scale %g, expected %g", what, i, scales[i], top/127)
		}
		for k := range padded {
			q := float64(codes[i*padded+k])
			if k >= cols {
				if q != 0 {
					t.Fatalf("%s: token %d: padding holds %g", what, i, q)
				}
			} else if d := math.Abs(q - want[i*cols+k]*127/top); !(d <= 0.5+2e-3) {
				t.Fatalf("%s: token %d, value %d: code %g, expected %g", what, i, k, q, want[i*cols+k]*127/top)
			}
		}
	}
}

func half(u uint16) float64 {
	e, m := int(u>>10&31), float64(u&1023)
	v := math.Ldexp(1+m/1024, e-15)
	if e == 0 {
		v = math.Ldexp(m/1024, -14)
	}
	if u&0x8000 != 0 {
		return -v
	}
	return v
}

// TestIntSteps holds every step of the int8 arithmetic against the same computed here, for odd sizes and numbers of tokens.
func TestIntSteps(t *testing.T) {
	for name, n := range map[string]int{"odd": 77, "wide": 130, "bias": 16} {
		t.Run(name, func(t *testing.T) {
			cfg := models[name]
			coded, _ := randomModel(t, cfg, "int8", 11)
			e := intEngine(t, coded, cuda.Options{Prompts: cuda.PromptInt8})
			if cuda.Ints(e) != everything {
				t.Fatalf("products %b in int8", cuda.Ints(e))
			}
			d, f := cfg.EmbeddingDim, cfg.FFNDim
			x := make([]float32, n*d)
			for i, v := range randomTokens(n*d, 2001, 5) {
				x[i] = (float32(v) - 1000) / 300
			}
			for k := range d { // a token of zeros
				x[3*d+k] = 0
			}
			x[5*d+7] = 900 // an outlier
			s, err := cuda.RunSteps(e, x, n)
			if err != nil {
				t.Fatal(err)
			}
			tensor := func(name string) rowsOf { return int8Rows(t, coded, format.BlockTensor(0, name)) }
			bias := func(name string, i int) float64 {
				if x, ok := coded.Tensor(format.BlockTensor(0, name)); ok {
					b := x.Values()[4*i:]
					return float64(math.Float32frombits(uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24))
				}
				return 0
			}
			gateUp, down, qkvo := tensor(format.TensorGateUp), tensor(format.TensorDown), tensor(format.TensorQKVO)
			normed := func(x []float32) []float64 {
				out := make([]float64, n*d)
				for i := range n {
					sum := 0.0
					for _, v := range x[i*d : (i+1)*d] {
						sum += float64(v) * float64(v)
					}
					for k := range d {
						out[i*d+k] = float64(x[i*d+k]) / math.Sqrt(sum/float64(d)+cfg.NormEps)
					}
				}
				return out
			}
			checkNonZero := func(i int) bool { return i != 3 }
			in := normed(x)
			for i := range n {
				if checkNonZero(i) {
					checkCodes(t, "norm", in[i*d:(i+1)*d], d, s.PadD, s.In[i*s.PadD:], s.InScales[i:], 1)
				} else if s.InScales[i] != 0 || s.In[i*s.PadD] != 0 {
					t.Errorf("zeros have scale %g", s.InScales[i])
				}
			}
			checkSums(t, "gate and up", gateUp, s.In, s.Sums, n)
			hidden := make([]float64, n*f)
			for i := range n {
				for k := range f {
					v := func(r int) float64 {
						return float64(s.Sums[i*2*f+r])*float64(s.InScales[i])*float64(gateUp.scales[r]) + bias(format.TensorGateUpBias, r)
					}
					g := v(k)
					hidden[i*f+k] = g / (1 + math.Exp(-g)) * v(f+k)
				}
				if checkNonZero(i) || cfg.UseBias {
					checkCodes(t, fmt.Sprintf("hidden of token %d", i), hidden[i*f:(i+1)*f], f, s.PadF, s.Hidden[i*s.PadF:], s.HiddenScales[i:], 1)
				}
			}
			checkSums(t, "down", down, s.Hidden, s.DownSums, n)
			for i := range n {
				for k := range d {
					want := float64(x[i*d+k]) + float64(s.DownSums[i*d+k])*float64(s.HiddenScales[i])*float64(down.scales[k]) + bias(format.TensorDownBias, k)
					if got := float64(s.X[i*d+k]); !(math.Abs(got-want) <= 1e-5*(1+math.Abs(want))) {
						t.Fatalf("sum: token %d, value %d: %g, expected %g", i, k, got, want)
					}
				}
			}
			// The inputs of q, k, v and o are not kept: their scale follows from the sums' values.
			again := normed(s.X)
			for i := range n {
				top := 0.0
				for _, v := range again[i*d : (i+1)*d] {
					top = max(top, math.Abs(v))
				}
				for r := range s.Ld {
					want := float64(s.QKVOSums[i*s.Ld+r])*top/127*float64(qkvo.scales[r]) + bias(format.TensorQKVOBias, r)
					if got := half(s.QKVO[i*s.Ld+r]); !(math.Abs(got-want) <= 1e-3*math.Abs(want)+1e-4) {
						t.Fatalf("q, k, v, o: token %d, row %d: %g, expected %g", i, r, got, want)
					}
				}
			}
		})
	}
}

// TestIntPrompts holds prompts in int8 arithmetic against the CPU engine on the same weights in float32: in every split, odd sizes, mixed
// with short pieces, twice the same bits.
func TestIntPrompts(t *testing.T) {
	for _, name := range []string{"odd", "bias", "wide"} {
		cfg := models[name]
		coded, plain := randomModel(t, cfg, "int8", 12)
		ref := onCPU(t, plain)
		tokens := randomTokens(200, cfg.VocabSize, 9)
		want := feed.Tokens(t, ref, newState(t, ref), tokens, cfg.VocabSize, feed.Whole)
		for _, set := range []int{0, cuda.ForQKVO, cuda.ForOut, cuda.ForGateUp, cuda.ForDown, everything} {
			e := intEngine(t, coded, cuda.Options{Piece: 130})
			cuda.SetInts(e, set)
			for how, size := range ways {
				if how == "single" {
					continue
				}
				got := feed.Tokens(t, e, newState(t, e), tokens, cfg.VocabSize, size())
				d, kl := difference(got, want), divergence(got, want, cfg.VocabSize)
				t.Logf("%s, products %04b, %s: max |d| %.2e  KL %.2e", name, set, how, d, kl)
				if limit := intLimit(set); !(kl <= limit) {
					t.Errorf("%s, products %04b, %s: mean KL %g, expected at most %g", name, set, how, kl, limit)
				}
				if again := feed.Tokens(t, e, newState(t, e), tokens, cfg.VocabSize, size()); how == "whole" && difference(got, again) != 0 {
					t.Errorf("%s: not the same bits twice", name)
				}
			}
		}
		checkFallback(t, coded, tokens)
	}
}

// intLimit is the mean KL allowed: random models' heads are badly conditioned, see compare. TestIntDemo has a trained model's.
func intLimit(set int) float64 {
	switch set {
	case 0:
		return 1e-4
	case everything:
		return 1.5e-2
	}
	return 5e-3
}

// checkFallback: without cuBLASLt, and where fp16 is asked for, nothing is computed in int8.
func checkFallback(t *testing.T, w *memory, tokens []int32) {
	t.Helper()
	var want []float32
	for i, o := range []cuda.Options{{NoLibrary: true, HalfFrom: 1, Prompts: cuda.PromptFP16}, {NoLibrary: true, HalfFrom: 1, Prompts: cuda.PromptInt8}} {
		e := onGPU(t, w, o)
		if cuda.Ints(e) != 0 {
			t.Errorf("%+v: products %b in int8", o, cuda.Ints(e))
		}
		got := feed.Tokens(t, e, newState(t, e), tokens, w.cfg.VocabSize, feed.Whole)
		if i > 0 && difference(got, want) != 0 {
			t.Errorf("%+v: differs by %g from fp16", o, difference(got, want))
		}
		want = got
	}
}

// demoText is the first n tokens of a book and the demo model as a file.
func demoText(t *testing.T, recipe string, n int) (*format.File, []int32) {
	t.Helper()
	f := converted.Demo(t, recipe)
	definition, err := os.ReadFile("../../checkpoints/demo/tokenizer.json")
	if err != nil {
		t.Fatal(err)
	}
	tok, err := tokenizer.FromJSON(definition)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("../../testdata/books-valid.txt")
	if err != nil {
		t.Fatal(err)
	}
	ids := tok.Encode(string(text[:8*n]), tokenizer.Options{})
	if len(ids) < n {
		t.Fatalf("%d tokens", len(ids))
	}
	return f, ids[:n]
}

// TestIntDemo measures on a trained model what int8 activations cost, product by product: perplexity and mean divergence from the CPU
// engine on the same file.
func TestIntDemo(t *testing.T) {
	f, ids := demoText(t, "int8", 4096)
	v := f.Config().VocabSize
	ref := onCPU(t, f)
	want := feed.Tokens(t, ref, newState(t, ref), ids, v, feed.Whole)
	perplexity := func(logits []float32) float64 {
		sum := 0.0
		for i := range len(ids) - 1 {
			sum -= logSoftmax(logits[i*v : (i+1)*v])[ids[i+1]]
		}
		return math.Exp(sum / float64(len(ids)-1))
	}
	base := perplexity(want)
	t.Logf("CPU: perplexity %.4f", base)
	for _, c := range []struct {
		name string
		set  int
	}{{"fp16", 0}, {"q, k, v, o", cuda.ForQKVO}, {"out", cuda.ForOut}, {"gate and up", cuda.ForGateUp}, {"down", cuda.ForDown},
		{"all but down", everything &^ cuda.ForDown}, {"all but q, k, v, o", everything &^ cuda.ForQKVO}, {"all", everything}, {"default", -1}} {
		e := intEngine(t, f, cuda.Options{})
		if c.set >= 0 {
			cuda.SetInts(e, c.set)
		}
		got := feed.Tokens(t, e, newState(t, e), ids, v, feed.Whole)
		p, kl := perplexity(got), divergence(got, want, v)
		t.Logf("%-20s perplexity %.4f (%+.3f %%)  KL %.2e", c.name, p, 100*(p/base-1), kl)
		if !(kl <= 1e-3) || !(math.Abs(p/base-1) <= 1e-3) { // the rule of what is computed in int8
			t.Errorf("%s: perplexity %g, %g on the CPU, mean KL %g", c.name, p, base, kl)
		}
	}
}
