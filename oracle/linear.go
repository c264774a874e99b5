package oracle

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"

	"xlstm/checkpoints"
)

// pieceRows is how many rows of a weight a goroutine reads at a time: few enough to stay in its core's cache while all tokens
// pass over them.
const pieceRows = 32

func (o *Oracle) tensor(name string) (checkpoints.Tensor, error) {
	t, ok := o.checkpoint.Tensor(name)
	if !ok {
		return t, fmt.Errorf("the checkpoint has no tensor %s", name)
	}
	return t, nil
}

func (o *Oracle) vector(name string) ([]float32, error) {
	t, err := o.tensor(name)
	if err != nil {
		return nil, err
	}
	v := make([]float32, t.Cols())
	return v, t.ReadRows(v, 0, 1)
}

// optional is nil where the checkpoint has no such vector.
func (o *Oracle) optional(name string) ([]float32, error) {
	if _, ok := o.checkpoint.Tensor(name); !ok {
		return nil, nil
	}
	return o.vector(name)
}

// linear is y = x W^T + b for x [T, cols], y [T, rows]; the bias is used where there is one. Each row of the weight is read once
// for all tokens, and its memory let go.
func (o *Oracle) linear(ctx context.Context, name string, x []float32) ([]float32, error) {
	w, err := o.tensor(name + ".weight")
	if err != nil {
		return nil, err
	}
	bias, err := o.optional(name + ".bias")
	if err != nil {
		return nil, err
	}
	y := make([]float32, len(x)/w.Cols()*w.Rows())
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(o.options.Workers)
	for r := 0; r < w.Rows(); r += pieceRows {
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return linearRows(y, x, w, bias, r, min(r+pieceRows, w.Rows()))
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return y, nil
}

// linearRows computes outputs r0 to r1-1 for all tokens: four tokens at a time, then four rows for each token that is left.
func linearRows(y, x []float32, w checkpoints.Tensor, bias []float32, r0, r1 int) error {
	cols, rows := w.Cols(), w.Rows()
	weights := make([]float32, (r1-r0)*cols)
	if err := w.ReadRows(weights, r0, r1); err != nil {
		return err
	}
	row := func(r int) []float32 { return weights[(r-r0)*cols : (r-r0+1)*cols] }
	put := func(t, r int, sum float64) {
		if bias != nil {
			sum += float64(bias[r])
		}
		y[t*rows+r] = float32(sum)
	}
	tokens := len(x) / cols
	token := func(t int) []float32 { return x[t*cols : (t+1)*cols] }
	t := 0
	for ; t+4 <= tokens; t += 4 {
		for r := r0; r < r1; r++ {
			s0, s1, s2, s3 := dot4(row(r), token(t), token(t+1), token(t+2), token(t+3))
			put(t, r, s0)
			put(t+1, r, s1)
			put(t+2, r, s2)
			put(t+3, r, s3)
		}
	}
	for ; t < tokens; t++ {
		r := r0
		for ; r+4 <= r1; r += 4 {
			s0, s1, s2, s3 := dot4(token(t), row(r), row(r+1), row(r+2), row(r+3))
			put(t, r, s0)
			put(t, r+1, s1)
			put(t, r+2, s2)
			put(t, r+3, s3)
		}
		for ; r < r1; r++ {
			s0, _, _, _ := dot4(token(t), row(r), row(r), row(r), row(r))
			put(t, r, s0)
		}
	}
	return w.ReleaseRows(r0, r1)
}

// dot4 is the dot products of x with four others: float32 products, summed in float64 from the first to the last. Four at a time
// since each addition waits for the one before it.
func dot4(x, a, b, c, d []float32) (s0, s1, s2, s3 float64) {
	a, b, c, d = a[:len(x)], b[:len(x)], c[:len(x)], d[:len(x)]
	for i, v := range x {
		s0 += float64(v * a[i])
		s1 += float64(v * b[i])
		s2 += float64(v * c[i])
		s3 += float64(v * d[i])
	}
	return s0, s1, s2, s3
}
