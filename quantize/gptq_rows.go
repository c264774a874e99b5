package quantize

import (
	"context"
	"fmt"
	"runtime"

	"golang.org/x/sync/errgroup"
	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas32"

	"xlstm/format"
)

const (
	tileRows  = 64  // rows that one worker takes at a time
	tileBlock = 128 // columns between passes over all that follow; a multiple of every group
)

func (c *Compensator) encodeTiles(ctx context.Context, dst Rows, enc format.Encoding, src []float32, rows, firstRow int) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for r := 0; r < rows; r += tileRows {
		end := min(r+tileRows, rows)
		g.Go(func() error {
			t := newTile(c, enc, dst.Slice(enc, c.cols, r, end), src[r*c.cols:end*c.cols], end-r)
			if err := t.run(ctx); err != nil {
				if v, ok := err.(*ValueError); ok {
					v.Row += firstRow + r
					return fmt.Errorf("encode %s: %w", enc, v)
				}
				return err
			}
			return nil
		})
	}
	return g.Wait()
}

// tile is the work on a few rows. Matrices are by positions, not by columns.
type tile struct {
	c     *Compensator
	enc   format.Encoding
	dst   Rows
	src   []float32 // [rows, cols], by columns
	rows  int
	group int
	fit   fitter
	acc   []float32 // [rows, cols]: the compensation that each position has received
	err   []float32 // [rows, tileBlock]: errors of the block's positions
	codes []uint8   // [rows, padded cols], by columns
	param []params  // [rows, groups]
	px    []float32 // a group's values
}

func newTile(c *Compensator, enc format.Encoding, dst Rows, src []float32, rows int) *tile {
	t := &tile{c: c, enc: enc, dst: dst, src: src, rows: rows, group: groupOf(enc, c.cols)}
	t.fit = fitter{enc: enc, search: true}
	t.acc = make([]float32, rows*c.cols)
	t.err = make([]float32, rows*tileBlock)
	t.codes = make([]uint8, rows*format.PaddedCols(c.cols))
	t.param = make([]params, rows*enc.Groups(c.cols))
	t.px = make([]float32, t.group)
	return t
}

// dynamic reports whether groups' scales are chosen when their first column comes, from compensated weights.
func (t *tile) dynamic() bool { return t.c.natural && t.enc.Group > 0 }

func (t *tile) run(ctx context.Context) error {
	n := t.c.cols
	for r := range t.rows {
		row := t.src[r*n : (r+1)*n]
		if !finite(row) {
			for i := range row {
				if !finite(row[i : i+1]) {
					e := notFinite(row, i)
					e.Row = r
					return e
				}
			}
		}
		if !t.dynamic() {
			if err := t.static(r, row); err != nil {
				return err
			}
		}
	}
	for hi := n; hi > 0; hi -= tileBlock {
		if err := ctx.Err(); err != nil {
			return err
		}
		lo := max(hi-tileBlock, 0)
		for r := range t.rows {
			if err := t.block(r, lo, hi); err != nil {
				return err
			}
		}
		if lo > 0 {
			t.spread(lo, hi)
		}
	}
	t.store()
	return nil
}

// static chooses all of a row's scales from its original weights.
func (t *tile) static(r int, row []float32) error {
	groups := t.enc.Groups(t.c.cols)
	for g := range groups {
		from, to := g*t.group, min((g+1)*t.group, t.c.cols)
		p, err := t.fit.params(row[from:to], t.c.weights[from:to])
		if err != nil {
			err.Row, err.FirstCol, err.LastCol = r, err.FirstCol+from, err.LastCol+from
			return err
		}
		t.param[r*groups+g] = p
	}
	return nil
}

// choose chooses the scale of the group that begins at column from, from its compensated weights.
func (t *tile) choose(r, from int) error {
	n := t.c.cols
	to := min(from+t.group, n)
	x := t.px[:to-from]
	for i := range x {
		x[i] = t.src[r*n+from+i] + t.acc[r*n+n-1-from-i]
	}
	p, err := t.fit.params(x, t.c.d[from:to])
	if err != nil {
		err.Row, err.FirstCol, err.LastCol = r, err.FirstCol+from, err.LastCol+from
		return err
	}
	t.param[r*t.enc.Groups(n)+from/t.group] = p
	return nil
}

// block rounds row r at positions [lo, hi), from the last to the first.
func (t *tile) block(r, lo, hi int) error {
	n, groups, padded := t.c.cols, t.enc.Groups(t.c.cols), format.PaddedCols(t.c.cols)
	acc := t.acc[r*n : (r+1)*n]
	errs := t.err[r*tileBlock : (r+1)*tileBlock]
	for p := hi - 1; p >= lo; p-- {
		col := t.c.order[p]
		if t.dynamic() && col%t.group == 0 {
			if err := t.choose(r, col); err != nil {
				return err
			}
		}
		w := t.src[r*n+col]
		code, value := roundOne(t.enc, w+acc[p], t.param[r*groups+col/t.group])
		t.codes[r*padded+col] = code
		e := w - value
		errs[p-lo] = e
		row := t.c.lower[p*n+lo : p*n+p]
		a := acc[lo:p]
		for j, v := range row {
			a[j] += float32(e * v)
		}
	}
	return nil
}

// spread adds what the errors of positions [lo, hi) do to all positions below lo.
func (t *tile) spread(lo, hi int) {
	n := t.c.cols
	blas32.Gemm(blas.NoTrans, blas.NoTrans, 1,
		blas32.General{Rows: t.rows, Cols: hi - lo, Stride: tileBlock, Data: t.err},
		blas32.General{Rows: hi - lo, Cols: lo, Stride: n, Data: t.c.lower[lo*n:]},
		1, blas32.General{Rows: t.rows, Cols: lo, Stride: n, Data: t.acc})
}

// roundOne is a value's nearest code, as group codes are, and what that decodes to.
func roundOne(enc format.Encoding, v float32, p params) (uint8, float32) {
	if enc.Kind == format.Int8 {
		q := int32(0)
		if p.scale >= tinyScale {
			q = min(max(roundInt(clampSteps(v/p.scale)), -127), 127)
		}
		return uint8(int8(q)), float32(q) * p.scale
	}
	if enc.Asymmetric {
		q := min(max(roundInt(clampSteps(float32((v-p.min)*inverse(p.scale)))), 0), 15)
		return uint8(q), float32(float32(q)*p.scale) + p.min
	}
	q := min(max(roundInt(clampSteps(float32(v*inverse(p.scale)))), -8), 7)
	return uint8(q + 8), float32(q) * p.scale
}

// clampSteps keeps compensated weights, which scales were not chosen for, in roundInt's range.
func clampSteps(v float32) float32 { return min(max(v, -1<<20), 1<<20) }

// store writes codes and scales.
func (t *tile) store() {
	n, groups, padded := t.c.cols, t.enc.Groups(t.c.cols), format.PaddedCols(t.c.cols)
	for r := range t.rows {
		out := t.dst.Slice(t.enc, n, r, r+1)
		codes := t.codes[r*padded : (r+1)*padded]
		if t.enc.Kind == format.Int8 {
			copy(out.Values, codes) // padding is zero
		} else {
			for i := n; i < padded; i++ {
				codes[i] = 8
			}
			packInt4(out.Values, codes)
		}
		for g := range groups {
			storeParams(t.enc, out, g, t.param[r*groups+g])
		}
	}
}
