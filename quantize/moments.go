package quantize

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"sync"
	"sync/atomic"

	"gonum.org/v1/gonum/blas/blas32"
)

// Observer is told what a model multiplies its matrices with. Implementations do not keep x, and are called by one goroutine
// at a time.
type Observer interface {
	// Observe gets n inputs x, [n, cols], of the product with the named tensor, as in y = W x.
	Observe(tensor string, x []float32, n, cols int)
}

// Moments are the uncentered second moments of a product's input: the sum of x x^T over observed inputs x, cols wide. They
// take 4*cols*cols bytes, 479 MB for the widest input of the 7B.
type Moments struct {
	cols  int
	count int64
	sum   []float32 // [cols, cols], upper triangle only
	diag  []float64 // the diagonal, in double precision
}

// NewMoments allocates moments, all zero.
func NewMoments(cols int) *Moments {
	return &Moments{cols: cols, sum: make([]float32, cols*cols), diag: make([]float64, cols)}
}

// Cols is the width of the inputs.
func (m *Moments) Cols() int { return m.cols }

// Count is the number of inputs so far.
func (m *Moments) Count() int64 { return m.count }

// Tiles of Add: rows of the triangle that one worker takes at a time, and columns that stay in the first-level cache.
const (
	momentRows = 16
	momentCols = 2048
	momentDeep = 64 // inputs between passes over the triangle
)

// Add adds the inputs x, [n, cols]. Values that are not finite are an error; the moments are then unchanged.
func (m *Moments) Add(x []float32, n int) error {
	if len(x) != n*m.cols {
		return fmt.Errorf("moments: %d values, expected %d inputs of %d", len(x), n, m.cols)
	}
	if !finite(x) {
		return errors.New("moments: an input is not finite")
	}
	for i := range n {
		for j, v := range x[i*m.cols : (i+1)*m.cols] {
			m.diag[j] += float64(v) * float64(v)
		}
	}
	for i := 0; i < n; i += momentDeep {
		d := min(momentDeep, n-i)
		m.addPanel(x[i*m.cols:(i+d)*m.cols], d)
	}
	m.count += int64(n)
	return nil
}

func (m *Moments) addPanel(x []float32, n int) {
	var next atomic.Int64
	var wg sync.WaitGroup
	bands := (m.cols + momentRows - 1) / momentRows
	for range min(runtime.GOMAXPROCS(0), bands) {
		wg.Go(func() {
			for b := int(next.Add(1)) - 1; b < bands; b = int(next.Add(1)) - 1 {
				m.addBand(x, n, b*momentRows, min((b+1)*momentRows, m.cols))
			}
		})
	}
	wg.Wait()
}

// addBand updates rows [from, to) of the triangle.
func (m *Moments) addBand(x []float32, n, from, to int) {
	for c := from; c < m.cols; c += momentCols {
		end := min(c+momentCols, m.cols)
		for i := from; i < to; i++ {
			first := max(i, c)
			if first >= end {
				continue
			}
			sum := blas32.Vector{N: end - first, Inc: 1, Data: m.sum[i*m.cols+first : i*m.cols+end]}
			for l := range n {
				row := x[l*m.cols : (l+1)*m.cols]
				blas32.Axpy(row[i], blas32.Vector{N: end - first, Inc: 1, Data: row[first:end]}, sum)
			}
		}
	}
}

// Weights are the mean squares of each column: what Options.Weights asks for.
func (m *Moments) Weights() []float32 {
	w := make([]float32, m.cols)
	for i, v := range m.diag {
		w[i] = float32(min(v/float64(max(m.count, 1)), math.MaxFloat32))
	}
	return w
}

// Quadratic is e^T M e / count for a row e: the mean square of its product with the inputs. Where e is a row's error, that is
// the error of the output.
func (m *Moments) Quadratic(e []float32) float64 {
	total := 0.0
	for i, v := range e {
		off := 0.0
		row := m.sum[i*m.cols : (i+1)*m.cols]
		for j := i + 1; j < m.cols; j++ {
			off += float64(row[j]) * float64(e[j])
		}
		total += float64(v) * (float64(v)*m.diag[i] + 2*off)
	}
	return total / float64(max(m.count, 1))
}

// Collector is an Observer that keeps the moments of the tensors it was made for and ignores all others: for bounded memory,
// one block's tensors at a time.
type Collector struct {
	moments map[string]*Moments
	err     error
}

// NewCollector makes a Collector of the tensors in cols, with the widths of their inputs.
func NewCollector(cols map[string]int) *Collector {
	c := &Collector{moments: make(map[string]*Moments, len(cols))}
	for name, n := range cols {
		c.moments[name] = NewMoments(n)
	}
	return c
}

// Observe implements Observer. The first error stays; Take reports it.
func (c *Collector) Observe(tensor string, x []float32, n, cols int) {
	m := c.moments[tensor]
	if m == nil || c.err != nil {
		return
	}
	err := error(nil)
	if cols != m.cols {
		err = fmt.Errorf("inputs are %d wide, expected %d", cols, m.cols)
	} else {
		err = m.Add(x, n)
	}
	if err != nil {
		c.err = fmt.Errorf("calibration of %s: %w", tensor, err)
	}
}

// Take gives a tensor's moments away, so that their memory can go when the caller is done. Too few inputs say nothing about a
// matrix: fewer than minCount are an error.
func (c *Collector) Take(tensor string, minCount int64) (*Moments, error) {
	if c.err != nil {
		return nil, c.err
	}
	m := c.moments[tensor]
	if m == nil {
		return nil, fmt.Errorf("calibration of %s: not collected", tensor)
	}
	if m.count < minCount {
		return nil, fmt.Errorf("calibration of %s: %d inputs, expected at least %d: the calibration text is too short", tensor, m.count, minCount)
	}
	delete(c.moments, tensor)
	return m, nil
}
