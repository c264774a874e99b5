//go:build cuda

package cuda

import (
	"unsafe"

	"xlstm/format"
	"xlstm/kernels/cuda/internal/driver"
)

// Prompts of int8 files multiply codes by codes on int8 tensor cores: every token's activations become int8 with one scale, in the kernel
// that makes them, and the int32 result meets its scales in the kernel that takes it.

// takes is the form in which product k takes its n tokens.
func (e *Engine) takes(k blockProduct, w *matArg, n int) int32 {
	if e.ints&k != 0 && w.enc == encI8 && w.rows%4 == 0 && n >= intFrom && e.lt.Can(e.intProduct(w, 0, n)) {
		return xI8
	}
	return e.inputType(w, n)
}

// chooseInts decides which products of prompts are computed in int8.
func (e *Engine) chooseInts() {
	c := e.cfg
	widest := format.PaddedCols(max(c.EmbeddingDim, c.VDim, c.FFNDim))
	if e.lt == nil || !e.half || c.FFNDim%2 != 0 || rowShared(widest)+1024 > e.shared {
		return
	}
	e.ints = e.opt.Prompts.products()
	for _, m := range e.matrices() {
		if m.enc == encI8 {
			return
		}
	}
	e.ints = 0
}

// intProduct is acc [n, rows] = x W^T in int32.
func (e *Engine) intProduct(w *matArg, x uint64, n int) *driver.Product {
	k := int(w.rowBytes) // beyond cols both are 0
	return &driver.Product{W: w.values, X: x, Y: e.buf.wide, M: int(w.rows), N: n, K: k, LdW: k, LdX: k, LdY: int(w.rows), Int8: true, Alpha: 1}
}

// multiplyInt leaves the product of int8 activations and weights, without their scales, in wide.
func (e *Engine) multiplyInt(w *matArg, x uint64, n int) error {
	q := e.intProduct(w, x, n)
	if err := e.ltWorkspace(); err != nil {
		return err
	}
	if e.tunes(n) && !e.lt.Tuned(q) {
		if err := e.lt.Tune(q, e.buf.workspace, e.stream, tuneRounds); err != nil {
			return err
		}
	}
	return e.lt.Run(q, e.buf.workspace, e.stream)
}

// addNorm adds the product that is due to the residual stream and leaves its norm in xn in form out; out < 0: the sum alone.
func (e *Engine) addNorm(n int, out int32) error {
	b, c := &e.buf, e.cfg
	a := intArgs{x: b.x, n: int32(n), cols: int32(c.EmbeddingDim), ldx: int32(c.EmbeddingDim), ldy: int32(b.padD), width: int32(b.padD), out: out, eps: float32(c.NormEps)}
	if out >= 0 {
		a.y, a.ys = b.xn, b.scalesX
	}
	if e.due != nil {
		a.w, a.acc, a.ts, e.due = *e.due, b.wide, b.scalesH, nil
	}
	return e.launch("add_norm", driver.Grid{X: n, Y: 1, Z: 1}, 256, rowShared(b.padD), unsafe.Pointer(&a), true)
}

// headGateInt is head_gate with int8 results.
func (e *Engine) headGateInt(bl *blockArgs, n int) error {
	b, c := &e.buf, e.cfg
	a := intArgs{x: b.h, y: b.xn, ys: b.scalesH, o: b.qkvo + 2*uint64(2*c.QKDim+c.VDim), hw: bl.headNorm, hb: bl.headNormBias, n: int32(n), cols: int32(c.VDim),
		ldx: int32(c.VDim), ldy: int32(b.padV), width: int32(b.padV), ldo: int32(b.ld), heads: int32(c.NumHeads), out: xI8, eps: float32(c.NormEps)}
	return e.launch("head_gate_i8", driver.Grid{X: n, Y: 1, Z: 1}, 256, rowShared(b.padV), unsafe.Pointer(&a), true)
}

// rescale turns q, k, v and o in wide into fp16.
func (e *Engine) rescale(w *matArg, n int) error {
	b := &e.buf
	a := intArgs{w: *w, acc: b.wide, ts: b.scalesX, y: b.qkvo, n: int32(n), cols: int32(b.ld), ldy: int32(b.ld), width: int32(b.ld), out: xF16}
	return e.launch("rescale", driver.Grid{X: n, Y: min(4, (b.ld+2047)/2048), Z: 1}, 256, 0, unsafe.Pointer(&a), true)
}

// swigluInt is swiglu from int32 (acc set) or to int8.
func (e *Engine) swigluInt(w *matArg, n int, acc bool, y uint64, ldy int, out int32, scale float32) error {
	b, c := &e.buf, e.cfg
	a := intArgs{w: *w, x: b.wide, y: y, ys: b.scalesH, n: int32(n), cols: int32(c.FFNDim), ldx: int32(2 * c.FFNDim), ldy: int32(ldy), width: int32(b.padF), out: out, scale: scale}
	if acc {
		a.acc, a.ts = b.wide, b.scalesX
	}
	return e.launch("swiglu_i8", driver.Grid{X: n, Y: 1, Z: 1}, 256, rowShared(b.padF), unsafe.Pointer(&a), true)
}

// rowShared is the shared memory of a kernel that keeps a row of n values in float32.
func rowShared(n int) int { return 4 * n }
