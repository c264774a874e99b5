package cpu_test

import (
	"math"
	"testing"

	"xlstm/format"
	"xlstm/internal/converted"
	"xlstm/internal/feed"
	"xlstm/internal/golden"
	"xlstm/kernels/cpu"
	"xlstm/quantize"
)

// decoded is a file's weights in float32.
type decoded struct {
	t testing.TB
	f *format.File
}

func (d decoded) Config() *format.Config { return d.f.Config() }

func (d decoded) Tensor(name string) (format.Tensor, bool) {
	d.t.Helper()
	x, ok := d.f.Tensor(name)
	if !ok {
		return x, false
	}
	w := make([]float32, x.Rows*x.Cols)
	plain := format.Tensor{Name: name, Encoding: format.Encoding{Kind: format.FP32}, Rows: x.Rows, Cols: x.Cols}
	plain.Data = make([]byte, plain.Encoding.Sizes(x.Rows, x.Cols).Total)
	from, err := quantize.RowsOf(x.Data, x.Encoding, x.Rows, x.Cols)
	if err == nil {
		err = quantize.DecodeRows(w, x.Encoding, from, x.Rows, x.Cols)
	}
	if err == nil {
		from, err = quantize.RowsOf(plain.Data, plain.Encoding, x.Rows, x.Cols)
	}
	if err == nil {
		err = quantize.EncodeRows(from, plain.Encoding, w, x.Rows, x.Cols, quantize.Options{})
	}
	if err != nil {
		d.t.Fatal(err)
	}
	return plain, true
}

// TestActivations bounds what rounding activations costs: the mean divergence of the engine from the same weights in float32, as a
// part of the mean divergence of those from the original. Where all blocks of activations had one outlier it would be 1 to 2 % for
// int4, whose activations have 8 bits: an outlier's step is a 127th of it. Over the passage it is 1.3 % in groups of 64 and 1.7 % in
// groups of 128, and 0.005 % for int8, whose activations have 16. The bounds leave half as much again.
func TestActivations(t *testing.T) {
	want, err := golden.Read("../../checkpoints/demo/testdata/golden.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	tokens := want.Tokens("ids_long", 0)[:256]
	original := converted.Demo(t, "fp32")
	v := original.Config().VocabSize
	run := func(w cpu.Weights, size func(int) int) []float32 {
		e := engine(t, w, cpu.Options{})
		return feed.Tokens(t, e, newState(t, e), tokens, v, size)
	}
	first := run(original, feed.Whole)
	for recipe, limit := range map[string]float64{"int4": 0.02, "int4g128": 0.026, "int8": 1e-4} {
		f := converted.Demo(t, recipe)
		exact := run(decoded{t, f}, feed.Whole)
		weights := divergence(first, exact, v)
		for how, size := range map[string]func(int) int{"whole": feed.Whole, "single": feed.Single} {
			part := divergence(exact, run(f, size), v) / weights
			t.Logf("%s, %s: weights cost %.3g nats, activations %.3g of that", recipe, how, weights, part)
			if !(part <= limit) {
				t.Errorf("%s, %s: rounding activations costs %.3g of what the weights cost, more than %g", recipe, how, part, limit)
			}
		}
	}
}

// divergence is the mean of KL(p || q) over rows of vocab logits.
func divergence(p, q []float32, vocab int) float64 {
	sum := 0.0
	for i := 0; i < len(p); i += vocab {
		x, y := p[i:i+vocab], q[i:i+vocab]
		a, b := float64(x[0])+nll(x, 0), float64(y[0])+nll(y, 0) // what logits exceed log probabilities by
		for j := range x {
			log := float64(x[j]) - a
			sum += math.Exp(log) * (log - float64(y[j]) + b)
		}
	}
	return sum * float64(vocab) / float64(len(p))
}
