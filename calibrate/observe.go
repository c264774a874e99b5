package calibrate

import (
	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas32"

	"xlstm/quantize"
)

// keptInputs is how many of a product's inputs are kept to measure the error of its outputs: 2.8 MB of the widest of the 7B.
const keptInputs = 64

// watcher gathers the moments of inputs, and keeps inputs at even distances.
type watcher struct {
	moments *quantize.Collector
	kept    map[string]*sieve
}

// sieve keeps every stride-th input.
type sieve struct {
	cols, stride, next int // next is how many inputs to skip
	x                  []float32
}

// newWatcher watches the products with the tensors in cols, given the widths of their inputs, over tokens inputs each.
func newWatcher(cols map[string]int, tokens int) *watcher {
	w := &watcher{moments: quantize.NewCollector(cols), kept: map[string]*sieve{}}
	for name, n := range cols {
		w.kept[name] = &sieve{cols: n, stride: max(tokens/keptInputs, 1)}
	}
	return w
}

func (w *watcher) observe(tensor string, x []float32, n, cols int) {
	s := w.kept[tensor]
	if s == nil {
		return
	}
	w.moments.Observe(tensor, x, n, cols)
	for ; s.next < n; s.next += s.stride {
		s.x = append(s.x, x[s.next*cols:(s.next+1)*cols]...)
	}
	s.next -= n
}

// outputError sums up how far outputs are from what they were.
type outputError struct{ diff, whole float64 }

// add compares the products of rows w and their decoded encodings got, both [rows, cols], with the kept inputs. It overwrites got.
func (e *outputError) add(w, got []float32, rows int, inputs *sieve) {
	for i, v := range w {
		got[i] -= v
	}
	e.diff += squares(got, rows, inputs)
	e.whole += squares(w, rows, inputs)
}

// squares is the sum of squares of the products of m, [rows, cols], with all kept inputs.
func squares(m []float32, rows int, inputs *sieve) float64 {
	n := len(inputs.x) / inputs.cols
	out := make([]float32, rows*n)
	blas32.Gemm(blas.NoTrans, blas.Trans, 1,
		blas32.General{Rows: rows, Cols: inputs.cols, Stride: inputs.cols, Data: m},
		blas32.General{Rows: n, Cols: inputs.cols, Stride: inputs.cols, Data: inputs.x},
		0, blas32.General{Rows: rows, Cols: n, Stride: n, Data: out})
	sum := 0.0
	for _, v := range out {
		sum += float64(v) * float64(v)
	}
	return sum
}

// relative is the squared error of the outputs over their squares.
func (e *outputError) relative() float64 {
	if e.whole == 0 {
		return 0
	}
	return e.diff / e.whole
}
