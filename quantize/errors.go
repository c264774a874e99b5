package quantize

import "math"

// ErrorSum gathers how far encoded weights are from what they were.
type ErrorSum struct {
	n         int64
	sq, ref   float64 // sums of squared errors and of squared weights
	wsq, wref float64 // the same, times the column's weight
	max, top  float64 // largest error; largest magnitude
}

// Add compares rows of got with the original want, both [rows, cols]. Weights, optional, are the columns' importances.
func (s *ErrorSum) Add(want, got []float32, cols int, weights []float32) {
	for r := 0; r < len(want); r += cols {
		for j, v := range want[r : r+cols] {
			d := float64(v) - float64(got[r+j])
			v := float64(v)
			w := 1.0
			if weights != nil {
				w = float64(weights[j])
			}
			s.sq += d * d
			s.ref += v * v
			s.wsq += w * d * d
			s.wref += w * v * v
			s.max = max(s.max, math.Abs(d))
			s.top = max(s.top, math.Abs(v))
		}
	}
	s.n += int64(len(want))
}

// Merge adds the comparisons of o.
func (s *ErrorSum) Merge(o *ErrorSum) {
	s.n += o.n
	s.sq, s.ref, s.wsq, s.wref = s.sq+o.sq, s.ref+o.ref, s.wsq+o.wsq, s.wref+o.wref
	s.max, s.top = max(s.max, o.max), max(s.top, o.top)
}

// Relative is the sum of squared errors over the sum of squared weights, and 0 where both are.
func (s *ErrorSum) Relative() float64 { return ratio(s.sq, s.ref) }

// Weighted is Relative with columns weighted by their importance. With second moments of the inputs, and as far as inputs are
// uncorrelated, it is the relative squared error of the product's output.
func (s *ErrorSum) Weighted() float64 { return ratio(s.wsq, s.wref) }

// Max is the largest error.
func (s *ErrorSum) Max() float64 { return s.max }

// MaxWeight is the largest magnitude among the original weights.
func (s *ErrorSum) MaxWeight() float64 { return s.top }

// Count is the number of weights compared.
func (s *ErrorSum) Count() int64 { return s.n }

func ratio(a, b float64) float64 {
	if a == 0 {
		return 0
	}
	return a / b
}
