package quantize

import (
	"math"
	"testing"
)

func TestErrorSum(t *testing.T) {
	var a, b ErrorSum
	a.Add([]float32{1, 2, -3, 0}, []float32{1, 1, -3, 0.5}, 2, []float32{1, 4})
	b.Add([]float32{4}, []float32{2}, 1, nil)
	if a.Relative() != 1.25/14 || a.Weighted() != (4+1)/(1.0+16+9) || a.Max() != 1 || a.MaxWeight() != 3 || a.Count() != 4 {
		t.Errorf("%+v", a)
	}
	a.Merge(&b)
	if a.Relative() != 5.25/30 || a.Max() != 2 || a.MaxWeight() != 4 || a.Count() != 5 {
		t.Errorf("merged: %+v", a)
	}
	var zero ErrorSum
	zero.Add([]float32{0}, []float32{0}, 1, nil)
	if zero.Relative() != 0 || zero.Weighted() != 0 {
		t.Error("nothing but zeros has an error")
	}
	zero.Add([]float32{0}, []float32{1}, 1, nil)
	if !math.IsInf(zero.Relative(), 1) {
		t.Error("an error where all was zero is not infinite")
	}
}

// Searched scales against the best of a dense grid with the float16 rounding left out: how much is left to gain.
func TestSearchIsNearOptimal(t *testing.T) {
	enc := mustParse(t, "int4g64")
	var plain, searched, dense float64
	for seed := range uint64(200) {
		x := gaussian(seed, 64, 0.02)
		w := make([]float32, 64)
		for i := range w {
			w[i] = 1
		}
		sum := func(mode ScaleMode) float64 {
			var s ErrorSum
			s.Add(x, encodeDecode(t, enc, x, 1, 64, Options{Scale: mode}), 64, nil)
			return s.Relative()
		}
		p, s := sum(MaxOnly), sum(LeastSquares)
		if s > p*(1+1e-6) {
			t.Errorf("seed %d: search made the error %v, it was %v", seed, s, p)
		}
		best := math.Inf(1)
		for k := range 2000 {
			scale := absMax(x) / 7 * (0.4 + float32(k)*0.0004)
			best = min(best, errorSym(x, w, scale, 8, 7), errorSym(x, w, -scale, 8, 7))
		}
		ref := 0.0
		for _, v := range x {
			ref += float64(v) * float64(v)
		}
		plain, searched, dense = plain+p, searched+s, dense+best/ref
	}
	t.Logf("relative squared error: plain %.5f, searched %.5f, dense grid %.5f", plain/200, searched/200, dense/200)
	if searched > 1.005*dense || searched > 0.9*plain {
		t.Errorf("searched %v, dense grid %v, plain %v", searched, dense, plain)
	}
}

// No encoding, weighted or not, may get worse by searching, in the measure that is searched for.
func TestSearchNeverLoses(t *testing.T) {
	for _, name := range allEncodings[3:] {
		enc := mustParse(t, name)
		var plain, searched ErrorSum
		for seed := range uint64(40) {
			cols := 60 + int(seed)*7
			x := gaussian(seed, cols, 0.02)
			x[int(seed)] *= 20
			w := gaussian(seed+1000, cols, 1)
			for i := range w {
				w[i] = w[i] * w[i]
			}
			var p, s ErrorSum
			p.Add(x, encodeDecode(t, enc, x, 1, cols, Options{Weights: w}), cols, w)
			s.Add(x, encodeDecode(t, enc, x, 1, cols, Options{Weights: w, Scale: LeastSquares}), cols, w)
			if s.Weighted() > p.Weighted()*(1+1e-5) {
				t.Errorf("%s, seed %d: search made the error %v, it was %v", name, seed, s.Weighted(), p.Weighted())
			}
			plain.Merge(&p)
			searched.Merge(&s)
		}
		t.Logf("%-9s relative weighted squared error: plain %.3g, searched %.3g", name, plain.Weighted(), searched.Weighted())
		if searched.Weighted() > 0.97*plain.Weighted() {
			t.Errorf("%s: searching gains nothing", name)
		}
	}
}
