//go:build cuda

package cuda

import (
	"unsafe"

	"gorgonia.org/cu"

	"xlstm/kernels/cuda/internal/driver"
)

// product is y [n, ldy] = alpha * x [n, ldx] W^T + bias, added onto y where add is set, then soft-capped; x of type inputType.
type product struct {
	w           *matArg
	x, y        uint64
	n, ldx, ldy int
	out         int32 // outF32 or outF16
	add         bool
	alpha, cap  float32
	beside      int // multiprocessors that are left to what runs beside it
}

// inputType is the form in which products of n tokens take x.
func (e *Engine) inputType(w *matArg, n int) int32 {
	switch {
	case w.enc == encF32 || !e.half:
		return xF32
	case w.enc == encF16 || e.lt != nil && n > e.packed():
		return xF16
	}
	return xPerm
}

var gemmNames = map[int32]string{encF16: "gemm_f16", encI8: "gemm_i8", encI8G: "gemm_i8g", encI4: "gemm_i4"}

// gemmFew is the number of tokens up to which it pays that no two warps take the same weights apart.
const gemmFew = 32

func (e *Engine) multiply(p *product) error {
	if p.alpha == 0 {
		p.alpha = 1
	}
	if in := e.inputType(p.w, p.n); e.lt == nil || in == xPerm || in == xF32 && p.w.enc != encF32 {
		return e.multiplyOwn(p)
	}
	var err error
	if p.w.enc == encF32 || p.w.enc == encF16 {
		err = e.multiplyLt(p, p.w.values, int(p.w.rows), p.y)
	} else {
		err = e.multiplyUnpacked(p)
	}
	if err != nil || p.w.bias == 0 && p.cap == 0 {
		return err
	}
	a := biasArgs{x: p.y, bias: p.w.bias, n: int32(p.n), cols: p.w.rows, ld: int32(p.ldy), cap: p.cap}
	if p.out == outF16 {
		a.kind = xF16
	}
	return e.launch("add_bias", driver.Grid{X: p.n, Y: min(16, (int(p.w.rows)+255)/256), Z: 1}, 256, 0, unsafe.Pointer(&a), true)
}

// multiplyLt runs a product with rows of weights in fp32 or fp16 through cuBLASLt.
func (e *Engine) multiplyLt(p *product, w uint64, rows int, y uint64) error {
	b := &e.buf
	if err := e.ltWorkspace(); err != nil {
		return err
	}
	q := driver.Product{W: w, X: p.x, Y: y, M: rows, N: p.n, K: int(p.w.cols), LdW: e.unpackedLd(p.w), LdX: p.ldx, LdY: p.ldy,
		F32: p.w.enc == encF32, Out32: p.out == outF32, Alpha: p.alpha, Add: p.add}
	if e.tunes(p.n) && !e.lt.Tuned(&q) {
		if err := e.tune(q); err != nil {
			return err
		}
	}
	return e.lt.Run(&q, b.workspace, e.stream)
}

// ltWorkspace makes cuBLASLt's scratch memory.
func (e *Engine) ltWorkspace() error {
	if e.buf.workspace != 0 {
		return nil
	}
	return e.buf.add(e, &e.buf.workspace, driver.LtWorkspace)
}

const (
	tuneFrom   = 1024 // tokens from which on it pays to measure cuBLASLt's proposals
	tuneRounds = 3
)

// tunes says whether products of n tokens are common and long enough for that.
func (e *Engine) tunes(n int) bool { return n >= tuneFrom && n == e.opt.Piece && !e.capturing }

// tune measures proposals for q, into memory of its own where q adds to what is there. Without that memory it is not done.
func (e *Engine) tune(q driver.Product) error {
	if q.Add {
		y, err := cu.MemAlloc(int64(q.N) * int64(q.LdY) * 4)
		if err != nil {
			return nil
		}
		defer cu.MemFree(y)
		q.Y = uint64(y)
	}
	return e.lt.Tune(&q, e.buf.workspace, e.stream, tuneRounds)
}

// unpackedLd is the length of a row of w, in values, as cuBLASLt gets it.
func (e *Engine) unpackedLd(w *matArg) int {
	switch w.enc {
	case encF32:
		return int(w.rowBytes) / 4
	case encF16:
		return int(w.rowBytes) / 2
	case encI4:
		return int(w.rowBytes) * 2
	}
	return int(w.rowBytes)
}

// multiplyUnpacked turns runs of rows into fp16 and multiplies by each.
func (e *Engine) multiplyUnpacked(p *product) error {
	b := &e.buf
	if b.scratch == 0 {
		if err := b.add(e, &b.scratch, scratchSpace); err != nil {
			return err
		}
	}
	ld, total := e.unpackedLd(p.w), int(p.w.rows)
	runs := (total*ld*2 + scratchSpace - 1) / scratchSpace
	per := ((total+runs-1)/runs + 127) / 128 * 128
	if per*ld*2 > scratchSpace {
		per = max(1, scratchSpace/(ld*2))
	}
	for row := 0; row < total; row += per {
		n := min(per, total-row)
		a := dequantArgs{w: *p.w, y: b.scratch, row0: int32(row), rows: int32(n), ldy: int32(ld)}
		if err := e.launch("dequant", driver.Grid{X: n, Y: 1, Z: 1}, 256, 0, unsafe.Pointer(&a), false); err != nil {
			return err
		}
		size := uint64(2)
		if p.out == outF32 {
			size = 4
		}
		if err := e.multiplyLt(p, b.scratch, n, p.y+uint64(row)*size); err != nil {
			return err
		}
	}
	return nil
}

// multiplyOwn runs a product through the own matrix kernels.
func (e *Engine) multiplyOwn(p *product) error {
	a := gemmArgs{w: *p.w, x: p.x, y: p.y, n: int32(p.n), ldx: int32(p.ldx), ldy: int32(p.ldy), out: p.out, splits: 1, alpha: p.alpha, cap: p.cap}
	if p.add {
		a.add = 1
	}
	rows := int(p.w.rows)
	if e.inputType(p.w, p.n) == xF32 {
		return e.launch("gemm_f32", driver.Grid{X: (rows + 63) / 64, Y: (p.n + 63) / 64, Z: 1}, 256, 0, unsafe.Pointer(&a), false)
	}
	if e.wgTakes(p) {
		k := wgPick(p.w, p.n, e.sms)
		return e.multiplyWg(a, k, k.blocks(p.w, p.n, max(1, e.sms-p.beside), splitSpace))
	}
	splits := splitsFor(p.w, p.n, e.sms, splitSpace)
	g := driver.Grid{X: (rows + 127) / 128, Y: (p.n + 63) / 64, Z: splits}
	if splits > 1 {
		if e.buf.splits == 0 {
			if err := e.buf.add(e, &e.buf.splits, splitSpace); err != nil {
				return err
			}
		}
		a.splits, a.y, a.ldy = int32(splits), e.buf.splits, p.w.rows
	}
	name := gemmNames[p.w.enc]
	if p.n <= gemmFew && p.w.enc != encF16 {
		name += "_few"
	}
	if err := e.launch(name, g, 256, gemmShared(p.w.enc), unsafe.Pointer(&a), false); err != nil || splits == 1 {
		return err
	}
	a.x, a.y, a.ldy = e.buf.splits, p.y, int32(p.ldy)
	return e.launch("reduce_splits", driver.Grid{X: (p.n*rows + 255) / 256, Y: 1, Z: 1}, 256, 0, unsafe.Pointer(&a), false)
}

// copyIn copies host values to the device in the order of the engine's stream; they are free again when it returns.
func copyIn[T any](e *Engine, to uint64, v []T) error {
	if len(v) == 0 {
		return nil
	}
	return cu.MemcpyHtoDAsync(cu.DevicePtr(to), unsafe.Pointer(unsafe.SliceData(v)), int64(len(v))*int64(unsafe.Sizeof(v[0])), e.stream)
}
