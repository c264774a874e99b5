package quantize

import (
	"fmt"
	"math"

	"xlstm/format"
)

// fitter chooses the scale and minimum of rows or groups of one integer encoding.
type fitter struct {
	enc    format.Encoding
	search bool
	buf    searchBuffers
}

// params chooses for x, with column weights w or nil. Columns of an error count from x's first.
func (f *fitter) params(x, w []float32) (params, *ValueError) {
	if !finite(x) {
		for i, v := range x {
			if math.Float32bits(v)&f32Inf == f32Inf {
				return params{}, notFinite(x, i)
			}
		}
	}
	w = usable(w)
	if f.enc.Kind == format.Int8 {
		return f.int8(x, w)
	}
	if f.enc.Asymmetric {
		return f.asym(x, w)
	}
	return f.sym(x, w)
}

func (f *fitter) int8(x, w []float32) (params, *ValueError) {
	reach := absMax(x)
	if reach == 0 {
		return params{}, nil
	}
	if f.enc.Group > 0 {
		s, err := holdFP16(reach/127, reach, 127, len(x))
		if err == nil && f.search {
			s = f.searchInt8(x, w, s, reach)
		}
		return params{scale: s}, err
	}
	s := reach / 127
	for float64(s)*127.5 < float64(reach) { // a subnormal quotient may have lost bits
		s = math.Nextafter32(s, math.MaxFloat32)
	}
	if math.IsInf(float64(s*127), 0) {
		s = math.Nextafter32(s, 0)
	}
	if f.search && s >= tinyScale {
		s = f.searchInt8(x, w, s, reach)
	}
	return params{scale: s}, nil
}

// sym takes the sign of the scale that needs the smaller one: codes reach from -8 to 7.
func (f *fitter) sym(x, w []float32) (params, *ValueError) {
	pos, neg := signedMax(x)
	if pos == 0 && neg == 0 {
		return params{}, nil
	}
	plus, minus := max(pos/7, neg/8), max(neg/7, pos/8)
	var s float32
	var err *ValueError
	if plus <= minus {
		s, err = holdFP16(plus, max(pos, neg*(7.5/8.5)), 7, len(x))
	} else {
		s, err = holdFP16(minus, max(neg, pos*(7.5/8.5)), 7, len(x))
		s = -s
	}
	if err == nil && f.search {
		s = f.searchSym(x, w, s, plus, minus)
	}
	return params{scale: s}, err
}

// asym takes the largest float16 that is not above the values as their minimum.
func (f *fitter) asym(x, w []float32) (params, *ValueError) {
	lo, hi := minMax(x)
	m := floorFP16(lo)
	if math.IsInf(float64(m), 0) {
		return params{}, &ValueError{LastCol: len(x) - 1, What: fmt.Sprintf("minimum %v does not fit fp16, whose least value is -%d", lo, MaxFP16)}
	}
	reach := hi - m
	if reach == 0 {
		return params{min: m}, nil
	}
	s, err := holdFP16(reach/15, reach, 15, len(x))
	p := params{s, m}
	if err == nil && f.search {
		p = f.searchAsym(x, w, p, lo, hi)
	}
	return p, err
}

// holdFP16 rounds scale to a float16 whose codes up to levels come within half a step of reach. Only the relative error of
// subnormal float16 is so large that the nearest one may not.
func holdFP16(scale, reach, levels float32, n int) (float32, *ValueError) {
	h := ToFP16(scale)
	for h < 0x7c00 && FromFP16(h)*(levels+0.5) < reach {
		h++
	}
	if h >= 0x7c00 {
		return 0, &ValueError{LastCol: n - 1, What: fmt.Sprintf("scale %v does not fit fp16, whose largest value is %d", scale, MaxFP16)}
	}
	return FromFP16(h), nil
}

// floorFP16 is the largest float16 that is not above v, or minus infinity.
func floorFP16(v float32) float32 {
	h := ToFP16(v)
	switch {
	case FromFP16(h) <= v:
	case h&0x8000 != 0:
		h++
	case h == 0:
		h = 0x8001
	default:
		h--
	}
	if h == 0x8000 {
		h = 0
	}
	return FromFP16(h)
}

// finite reports whether all of x are.
func finite(x []float32) bool {
	m := uint32(0)
	for _, v := range x {
		m = max(m, math.Float32bits(v)&0x7fffffff)
	}
	return m < f32Inf
}

// absMax is the largest magnitude in x, all finite. Floats without their sign order like integers.
func absMax(x []float32) float32 {
	m := uint32(0)
	for _, v := range x {
		m = max(m, math.Float32bits(v)&0x7fffffff)
	}
	return math.Float32frombits(m)
}

// signedMax is the largest value and the largest negated value of x, neither below 0.
func signedMax(x []float32) (pos, neg float32) {
	p, n := int32(0), uint32(1<<31)
	for _, v := range x {
		b := math.Float32bits(v)
		p, n = max(p, int32(b)), max(n, b)
	}
	return math.Float32frombits(uint32(p)), math.Float32frombits(n &^ (1 << 31))
}

func minMax(x []float32) (lo, hi float32) {
	lo, hi = x[0], x[0]
	for _, v := range x {
		if v < lo {
			lo = v
		}
		if v > hi {
			hi = v
		}
	}
	return lo, hi
}

// usable is w, or nil if all of it is zero.
func usable(w []float32) []float32 {
	for _, v := range w {
		if v > 0 {
			return w
		}
	}
	return nil
}
