//go:build cuda

package cuda

import (
	"unsafe"

	"gorgonia.org/cu"

	"xlstm/kernels/cuda/internal/driver"
)

// What the tests of the int8 arithmetic see of the engine.

// Products that can be computed in int8.
const (
	ForQKVO   = int(forQKVO)
	ForOut    = int(forOut)
	ForGateUp = int(forGateUp)
	ForDown   = int(forDown)
)

// SetInts chooses the products that are computed in int8, before the first pass.
func SetInts(e *Engine, set int) { e.ints = blockProduct(set) }

// Ints are the products that are computed in int8.
func Ints(e *Engine) int { return int(e.ints) }

// Steps are the values of the feed-forward of a first block, all of whose products are computed in int8.
type Steps struct {
	X              []float32 // [n, D] after out's product has been added
	In             []int8    // [n, padded D]
	InScales       []float32
	Sums           []int32 // [n, 2F]
	Hidden         []int8  // [n, padded F]
	HiddenScales   []float32
	DownSums       []int32 // [n, D]
	QKVOSums       []int32
	QKVO           []uint16 // fp16 [n, rows]
	PadD, PadF, Ld int
}

// RunSteps runs x [n, D] through norm, gate and up, SwiGLU, down, the sum, and then norm, q, k, v, o, and returns what came between.
func RunSteps(e *Engine, x []float32, n int) (*Steps, error) {
	undo, err := e.bind()
	if err != nil {
		return nil, err
	}
	defer undo()
	if err := e.grow(&pass{pieces: make([]piece, 1), tokens: n}); err != nil {
		return nil, err
	}
	b, c, bl := &e.buf, e.cfg, &e.blocks[0]
	s := &Steps{PadD: b.padD, PadF: b.padF, Ld: b.ld}
	d, f := c.EmbeddingDim, c.FFNDim
	e.due = nil
	for _, step := range []func() error{
		func() error { return copyIn(e, b.x, x) },
		func() error { return e.norm(e.takes(forGateUp, &bl.gateUp, n), n) },
		func() error { return copyBack(e, &s.In, b.xn, n*b.padD) },
		func() error { return copyBack(e, &s.InScales, b.scalesX, n) },
		func() error { return e.multiplyInt(&bl.gateUp, b.xn, n) },
		func() error { return copyBack(e, &s.Sums, b.wide, n*2*f) },
		func() error { return e.feedBack(bl, n, true) },
		func() error { return copyBack(e, &s.Hidden, b.xn, n*b.padF) },
		func() error { return copyBack(e, &s.HiddenScales, b.scalesH, n) },
		func() error { return copyBack(e, &s.DownSums, b.wide, n*d) },
		func() error { return e.norm(xI8, n) },
		func() error { return copyBack(e, &s.X, b.x, n*d) },
		func() error { return e.project(bl, n) },
		func() error { return copyBack(e, &s.QKVOSums, b.wide, n*b.ld) },
		func() error { return copyBack(e, &s.QKVO, b.qkvo, n*b.ld) },
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func copyBack[T any](e *Engine, to *[]T, from uint64, n int) error {
	if err := driver.Sync(e.stream); err != nil {
		return err
	}
	*to = make([]T, n)
	return cu.MemcpyDtoH(unsafe.Pointer(unsafe.SliceData(*to)), cu.DevicePtr(from), int64(n)*int64(unsafe.Sizeof((*to)[0])))
}
