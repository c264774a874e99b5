//go:build cuda

package cuda

import (
	"unsafe"

	"gorgonia.org/cu"

	"xlstm/format"
	"xlstm/kernels/cuda/internal/driver"
)

// Products through wgmma.cu, on devices of compute capability 9.0.

// wgReset makes the flags by which thread blocks tell each other that their sums are there; a product leaves them zero.
func (e *Engine) wgReset() error {
	if !e.hopper {
		return nil
	}
	n := e.sms * 32
	var err error
	if e.wgFlags, err = e.alloc(int64(n) * 4); err != nil {
		return err
	}
	return cu.MemsetD32Async(cu.DevicePtr(e.wgFlags), 0, int64(n), e.stream)
}

// wgTakes says whether the kernels can take a product: what they copy is described to the device in multiples of 16 bytes.
func (e *Engine) wgTakes(p *product) bool {
	return e.hopper && p.ldx%8 == 0 && p.x%16 == 0 && p.w.values%16 == 0
}

// multiplyWg runs a product with kernel k, shared by so many thread blocks.
func (e *Engine) multiplyWg(g gemmArgs, k wgKernel, blocks int) error {
	if e.buf.splits == 0 {
		if err := e.buf.add(e, &e.buf.splits, splitSpace); err != nil {
			return err
		}
	}
	a := wgArgs{g: g, parts: e.buf.splits, flags: e.wgFlags}
	var err error
	w := driver.Map{At: g.w.values, Cols: int(g.w.rowBytes), Rows: int(g.w.rows), RowBytes: int(g.w.rowBytes), BoxCols: k.box(), BoxRows: k.rows()}
	if a.w, err = w.Encode(); err != nil {
		return err
	}
	x := driver.Map{At: g.x, Half: true, Cols: format.PaddedCols(int(g.w.cols)), Rows: int(g.n), RowBytes: 2 * int(g.ldx), BoxCols: 64, BoxRows: k.tokens}
	if a.x, err = x.Encode(); err != nil {
		return err
	}
	return e.launch(k.name(), driver.Grid{X: blocks, Y: 1, Z: 1}, k.threads(), k.shared(), unsafe.Pointer(&a), true)
}
