package quantize

import "math"

// searchBuffers are what a fitter reuses from group to group.
type searchBuffers struct {
	ones []float32 // weights where there are none
	w    []float32 // weights, the largest being 1
	wx   []float32 // weight times value
	tail []float32 // magnitudes, weights alternating
}

// weighted is w scaled to at most 1, or ones, and that times x.
func (b *searchBuffers) weighted(x, w []float32) (ws, wx []float32) {
	if w == nil {
		for len(b.ones) < len(x) {
			b.ones = append(b.ones, 1)
		}
		return b.ones[:len(x)], x
	}
	top := absMax(w)
	b.w, b.wx = b.w[:0], b.wx[:0]
	for i, v := range x {
		u := w[i] / top
		b.w, b.wx = append(b.w, u), append(b.wx, u*v)
	}
	return b.w, b.wx
}

// int8Fractions of the scale that holds all are tried for int8.
var int8Fractions = [...]float32{0.98, 0.96, 0.94, 0.92, 0.9, 0.875, 0.85, 0.825, 0.8, 0.77, 0.74, 0.71, 0.68, 0.64, 0.6, 0.55, 0.5}

// searchInt8 looks for a better scale than s, by whose 127 steps reach is held. Clipping few values far out pays where the steps
// of all others become finer for it. The candidate that the model likes best is taken only if it measures better.
func (f *fitter) searchInt8(x, w []float32, s, reach float32) float32 {
	ws, _ := f.buf.weighted(x, w)
	tail := f.buf.tail[:0]
	total := float64(0)
	from := reach * int8Fractions[len(int8Fractions)-1]
	for i, v := range x {
		total += float64(ws[i])
		if a := math.Float32frombits(math.Float32bits(v) & 0x7fffffff); a > from {
			tail = append(tail, a, ws[i])
		}
	}
	f.buf.tail = tail
	best, bestCost := s, float64(s)*float64(s)/12*total
	for _, frac := range int8Fractions {
		c := s * frac
		if cost := clipCost(tail, c, total); cost < bestCost {
			best, bestCost = c, cost
		} else if cost > 1.5*bestCost {
			break
		}
	}
	if f.enc.Group > 0 {
		best = FromFP16(ToFP16(best))
	}
	if best < s && errorSym(x, ws, best, 127, 127) < errorSym(x, ws, s, 127, 127) {
		return best
	}
	return s
}

// clipCost models the squared error of scale s: s*s/12 for each value within 127.5 steps, the excess squared beyond.
func clipCost(tail []float32, s float32, total float64) float64 {
	step := float64(s) * float64(s) / 12
	cost := step * total
	limit, edge := s*127.5, s*127
	for i := 0; i+1 < len(tail); i += 2 {
		if a := tail[i]; a > limit {
			d := float64(a - edge)
			cost += float64(tail[i+1]) * (d*d - step)
		}
	}
	return cost
}

// errorSym is the squared error of x, weighted by w, in codes from -lo to hi times s.
func errorSym(x, w []float32, s float32, lo, hi int32) float64 {
	r := inverse(s)
	sum := float64(0)
	w = w[:len(x)]
	for i, v := range x {
		q := min(max(roundInt(float32(v*r)), -lo), hi)
		d := v - float32(float32(q)*s)
		sum += float64(float32(float32(d*d) * w[i]))
	}
	return sum
}

// int4Fractions of the scale that holds all are tried for int4, each with the scale refined for the codes that it gives.
var int4Fractions = [...]float32{1.05, 1, 0.96, 0.92, 0.88, 0.84, 0.8, 0.76, 0.72, 0.68, 0.64, 0.6, 0.55, 0.5}

// searchSym looks for a better scale than s, of either sign; plus and minus are the smallest magnitudes of a positive and a
// negative scale that hold all values.
func (f *fitter) searchSym(x, w []float32, s, plus, minus float32) float32 {
	if plus < tinyScale || minus < tinyScale {
		return s
	}
	ws, wx := f.buf.weighted(x, w)
	least := absMax(x) / maxSteps
	var cand, gain float32
	for _, frac := range int4Fractions {
		for _, c := range [2]float32{plus * frac, -minus * frac} {
			sxq, sqq := sumsSym(x, ws, wx, 1/c)
			if sqq > 0 && sxq*sxq > gain*sqq {
				cand, gain = sxq/sqq, sxq*sxq/sqq
			}
		}
	}
	best, bestErr := s, errorSym(x, ws, s, 8, 7)
	for range 3 {
		c := FromFP16(ToFP16(cand))
		if c == 0 || math.Abs(float64(c)) < float64(least) || math.IsInf(float64(c), 0) {
			break
		}
		e := errorSym(x, ws, c, 8, 7)
		if e >= bestErr {
			break
		}
		best, bestErr = c, e
		if sxq, sqq := sumsSym(x, ws, wx, 1/c); sqq > 0 {
			cand = sxq / sqq
		}
	}
	return best
}

// sumsSym rounds x*r to codes q in [-8, 7] and returns the sums of w*x*q and w*q*q: the scale of least squared error for these
// codes is the first over the second, and it explains first*first/second of the sum of w*x*x.
func sumsSym(x, w, wx []float32, r float32) (sxq, sqq float32) {
	w, wx = w[:len(x)], wx[:len(x)]
	for i, v := range x {
		q := float32(min(max(roundInt(float32(v*r)), -8), 7))
		sxq += float32(wx[i] * q)
		sqq += float32(float32(w[i]*q) * q)
	}
	return sxq, sqq
}

// searchAsym looks for a better scale and minimum than p, which holds all of [lo, hi].
func (f *fitter) searchAsym(x, w []float32, p params, lo, hi float32) params {
	ws, wx := f.buf.weighted(x, w)
	var sw, sx float64
	for i := range x {
		sw += float64(ws[i])
		sx += float64(wx[i])
	}
	span := hi - lo
	least := max(span, absMax(x)*(1.0/1024)) / maxSteps
	var cand params
	gain := math.Inf(-1)
	try := func(c params) {
		if c.scale <= least {
			return
		}
		s, m, g := solveAsym(sw, sx, sumsAsym(x, ws, wx, c))
		if g > gain {
			cand, gain = params{s, m}, g
		}
	}
	for _, frac := range int4Fractions {
		spare := span * (1 - frac)
		try(params{span * frac / 15, lo})
		try(params{span * frac / 15, lo + spare/2})
		try(params{span * frac / 15, lo + spare})
	}
	best, bestErr := p, errorAsym(x, ws, p)
	for range 3 {
		c := params{FromFP16(ToFP16(cand.scale)), FromFP16(ToFP16(cand.min))}
		if c.scale <= least || math.IsInf(float64(c.scale), 0) || math.IsInf(float64(c.min), 0) {
			break
		}
		e := errorAsym(x, ws, c)
		if e >= bestErr {
			break
		}
		best, bestErr = c, e
		s, m, _ := solveAsym(sw, sx, sumsAsym(x, ws, wx, c))
		cand = params{s, m}
	}
	return best
}

// asymSums are the sums of w*q, w*q*q and w*x*q.
type asymSums struct{ q, qq, xq float64 }

func sumsAsym(x, w, wx []float32, p params) asymSums {
	r := inverse(p.scale)
	w, wx = w[:len(x)], wx[:len(x)]
	var sq, sqq, sxq float32
	for i, v := range x {
		q := float32(min(max(roundInt(float32((v-p.min)*r)), 0), 15))
		wq := float32(w[i] * q)
		sq += wq
		sqq += float32(wq * q)
		sxq += float32(wx[i] * q)
	}
	return asymSums{float64(sq), float64(sqq), float64(sxq)}
}

// solveAsym finds the scale and minimum of least squared error for codes with the sums s, and how much of the sum of w*x*x they
// explain; sw and sx are the sums of w and w*x.
func solveAsym(sw, sx float64, s asymSums) (scale, min float32, gain float64) {
	det := sw*s.qq - s.q*s.q
	if det <= 1e-6*sw*s.qq {
		return 0, 0, math.Inf(-1)
	}
	a := (sw*s.xq - sx*s.q) / det
	m := (sx - a*s.q) / sw
	return float32(a), float32(m), a*s.xq + m*sx
}

func errorAsym(x, w []float32, p params) float64 {
	r := inverse(p.scale)
	sum := float64(0)
	w = w[:len(x)]
	for i, v := range x {
		q := min(max(roundInt(float32((v-p.min)*r)), 0), 15)
		d := v - (float32(float32(q)*p.scale) + p.min)
		sum += float64(float32(float32(d*d) * w[i]))
	}
	return sum
}
