package quantize

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas64"
	"gonum.org/v1/gonum/lapack/lapack64"

	"xlstm/format"
)

// Compensator encodes rows so that the error of each column's rounding is made up for by the columns that are rounded after
// it (GPTQ, arXiv 2210.17323), in the form of LDLQ (arXiv 2307.13304), which gives the same codes and needs no inverse:
// with H = M + damping and H = V D V^T, V unit upper triangular, column k of a row w becomes
//
//	q_k = round(w_k + sum_{i<k} (w_i - q_i) V_ik)
//
// and the squared error of the output is the sum of D_k times the squared error of these roundings. It is safe for concurrent
// use.
type Compensator struct {
	cols    int
	order   []int     // column at each position; positions are processed from the last to the first
	lower   []float32 // [cols, cols]: V by positions, transposed: row k is what rounding position k does to positions j < k
	d       []float32 // D by column, mean 1
	weights []float32 // mean squares by column
	natural bool      // the order is that of the columns
	damping float64
}

// CompensatorOptions tune NewCompensator.
type CompensatorOptions struct {
	// Damping is what is added to the moments' diagonal, as a fraction of its mean; 0 means 0.01. It is raised tenfold,
	// repeatedly, where the factorization fails.
	Damping float64
	// ActOrder processes columns by falling second moment instead of from the first to the last. Scales of groups are then
	// chosen before any column is rounded.
	ActOrder bool
}

// NewCompensator factors the moments, which it takes over: m must not be used afterwards. Beside them it needs 8*cols*cols
// bytes while it works: 958 MB for the widest input of the 7B.
func NewCompensator(m *Moments, opt CompensatorOptions) (*Compensator, error) {
	n := m.cols
	mean := 0.0
	for _, v := range m.diag {
		mean += v / float64(n)
	}
	if !(mean > 0) || math.IsInf(mean, 0) {
		return nil, fmt.Errorf("calibration: second moments have a mean of %v, expected a positive number", mean)
	}
	if opt.Damping == 0 {
		opt.Damping = 0.01
	}
	if !(opt.Damping > 0 && opt.Damping <= 1) {
		return nil, fmt.Errorf("calibration: damping is %v, expected more than 0 and at most 1", opt.Damping)
	}
	c := &Compensator{cols: n, weights: m.Weights(), natural: !opt.ActOrder, order: make([]int, n), d: make([]float32, n)}
	for p := range c.order {
		c.order[p] = n - 1 - p
	}
	if opt.ActOrder {
		slices.SortStableFunc(c.order, func(a, b int) int { return cmpFloat(m.diag[a], m.diag[b]) })
	}
	a := make([]float64, n*n)
	for c.damping = opt.Damping; ; c.damping *= 10 {
		if c.damping > 1 {
			return nil, errors.New("calibration: second moments cannot be factored, whatever the damping")
		}
		c.fill(a, m, c.damping*mean)
		if _, ok := lapack64.Potrf(blas64.Symmetric{Uplo: blas.Lower, N: n, Stride: n, Data: a}); ok {
			break
		}
	}
	c.store(a, m.sum)
	m.sum = nil
	return c, nil
}

func cmpFloat(a, b float64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// fill writes the lower triangle of the damped moments by positions.
func (c *Compensator) fill(a []float64, m *Moments, damping float64) {
	n := c.cols
	for p := range n {
		row := a[p*n : p*n+p+1]
		cp := c.order[p]
		for q := range p {
			cq := c.order[q]
			row[q] = float64(m.sum[min(cp, cq)*n+max(cp, cq)])
		}
		row[p] = m.diag[cp] + damping
	}
}

// store keeps the factor a = L, with unit diagonal, in the memory dst.
func (c *Compensator) store(a []float64, dst []float32) {
	n := c.cols
	inv := make([]float64, n)
	mean := 0.0
	for p := range n {
		l := a[p*n+p]
		inv[p] = 1 / l
		mean += l * l / float64(n)
	}
	for p := range n {
		row, out := a[p*n:p*n+p], dst[p*n:p*n+p]
		for q, v := range row {
			out[q] = float32(v * inv[q])
		}
		l := a[p*n+p]
		c.d[c.order[p]] = float32(l * l / mean)
	}
	c.lower = dst
}

// Damping that the factorization took, as a fraction of the mean second moment.
func (c *Compensator) Damping() float64 { return c.damping }

// Weights are the mean squares of the input's columns.
func (c *Compensator) Weights() []float32 { return c.weights }

// EncodeRows is the package's EncodeRows with error compensation, for int8 and int4 encodings. Scales are searched for, weighted
// by how much each column's rounding error counts; Options' Scale and Weights are ignored. Rows are worked on in parallel.
func (c *Compensator) EncodeRows(ctx context.Context, dst Rows, enc format.Encoding, src []float32, rows int, opt Options) error {
	if err := dst.check(enc, len(src), rows, c.cols); err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	if enc.Kind != format.Int8 && enc.Kind != format.Int4 {
		return EncodeRows(dst, enc, src, rows, c.cols, opt)
	}
	return c.encodeTiles(ctx, dst, enc, src, rows, opt.FirstRow)
}
