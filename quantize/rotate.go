package quantize

import (
	"fmt"
	"math"
	"math/rand/v2"
)

// maxOddFactor bounds the dense factor of a Rotation.
const maxOddFactor = 1024

// Rotation is a random orthogonal matrix R of width x width that is cheap to apply: R = (H (x) Q) S, with S random signs, H the
// normalized Hadamard matrix of the largest power of two in width and Q a random orthogonal matrix of the odd factor that is
// left (1 x 1 and 1 for powers of two). It spreads outliers over all channels (QuaRot, arXiv 2404.00456). It is safe for
// concurrent use.
type Rotation struct {
	width, pow2, odd int
	signs            []float64 // width of them, 1 or -1
	q                []float64 // odd x odd, by rows; nil where odd is 1
	norm             float64   // 1/sqrt(pow2)
}

// NewRotation makes the rotation of the given width that the seed stands for: the same on every machine.
func NewRotation(width int, seed uint64) (*Rotation, error) {
	if width < 1 {
		return nil, fmt.Errorf("rotation: width is %d, expected at least 1", width)
	}
	r := &Rotation{width: width, pow2: width & -width}
	r.odd = width / r.pow2
	if r.odd > maxOddFactor {
		return nil, fmt.Errorf("rotation: width %d has an odd factor of %d, expected at most %d", width, r.odd, maxOddFactor)
	}
	r.norm = 1 / math.Sqrt(float64(r.pow2))
	rng := rand.New(rand.NewPCG(seed, uint64(width)))
	r.signs = make([]float64, width)
	for i := range r.signs {
		r.signs[i] = float64(int(rng.Uint64()>>63)*2 - 1)
	}
	if r.odd > 1 {
		r.q = randomOrthogonal(rng, r.odd)
	}
	return r, nil
}

// Width is the length of the vectors that the rotation turns.
func (r *Rotation) Width() int { return r.width }

// Apply replaces x, width long, by R x.
func (r *Rotation) Apply(x []float64) {
	for i, s := range r.signs {
		x[i] *= s
	}
	// x is a pow2 x odd matrix by rows: Hadamard along its columns, Q along its rows.
	for h := 1; h < r.pow2; h *= 2 {
		step := h * r.odd
		for i := 0; i < r.width; i += 2 * step {
			a, b := x[i:i+step], x[i+step:i+2*step]
			for j, u := range a {
				v := b[j]
				a[j], b[j] = u+v, u-v
			}
		}
	}
	for i := range x[:r.width] {
		x[i] *= r.norm
	}
	if r.q == nil {
		return
	}
	tmp := make([]float64, r.odd)
	for i := 0; i < r.width; i += r.odd {
		row := x[i : i+r.odd]
		for j := range tmp {
			sum := 0.0
			for k, v := range r.q[j*r.odd : (j+1)*r.odd] {
				sum += float64(v * row[k])
			}
			tmp[j] = sum
		}
		copy(row, tmp)
	}
}

// ApplyRight replaces w, [rows, width], by w R^T, computed in float64: what reads rotated vectors.
func (r *Rotation) ApplyRight(w []float32, rows int) {
	r.ApplyRightAt(w, rows, r.width, 0)
}

// ApplyRightAt is ApplyRight for columns [first, first+width) of w, [rows, cols].
func (r *Rotation) ApplyRightAt(w []float32, rows, cols, first int) {
	x := make([]float64, r.width)
	for i := range rows {
		row := w[i*cols+first:][:r.width]
		for j, v := range row {
			x[j] = float64(v)
		}
		r.Apply(x) // a row of w R^T is R times the row
		for j := range row {
			row[j] = float32(x[j])
		}
	}
}

// ApplyLeft replaces w, [width, cols], by R w, computed in float64: what writes rotated vectors. Columns may be worked on
// separately: w can be a strip of a wider matrix.
func (r *Rotation) ApplyLeft(w []float32, cols int) {
	x := make([]float64, r.width)
	for c := range cols {
		for i := range x {
			x[i] = float64(w[i*cols+c])
		}
		r.Apply(x)
		for i, v := range x {
			w[i*cols+c] = float32(v)
		}
	}
}

// randomOrthogonal is uniformly distributed: Gaussian vectors, orthonormalized one after the other (twice, for accuracy).
func randomOrthogonal(rng *rand.Rand, n int) []float64 {
	q := make([]float64, n*n)
	for i := range n {
		row := q[i*n : (i+1)*n]
		for norm := 0.0; norm < 1e-3; { // a draw that is nearly dependent on the others is drawn again
			for j := range row {
				row[j] = rng.NormFloat64()
			}
			for range 2 {
				for k := range i {
					subtractProjection(row, q[k*n:(k+1)*n])
				}
			}
			norm = math.Sqrt(dot(row, row))
			for j := range row {
				row[j] /= norm
			}
		}
	}
	return q
}

func subtractProjection(x, unit []float64) {
	p := dot(x, unit)
	for j, v := range unit {
		x[j] -= float64(p * v)
	}
}

func dot(a, b []float64) float64 {
	sum := 0.0
	for i, v := range a {
		sum += float64(v * b[i])
	}
	return sum
}
