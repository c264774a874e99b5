//go:build cuda

package cuda

import (
	"fmt"
	"unsafe"

	"gorgonia.org/cu"

	"xlstm/format"
	"xlstm/kernels/cuda/internal/driver"
)

// What the tests of the Hopper kernels see of the engine.

// Hopper says whether the engine has them.
func Hopper(e *Engine) bool { return e.hopper }

// WithoutHopper makes an engine, before its first pass, one of a card without them.
func WithoutHopper(e *Engine) { e.hopper = false }

// WgKernel is one of them.
type WgKernel struct {
	Name         string
	Kind         format.Kind
	Grouped      bool
	Rows, Tokens int // of a tile
	k            wgKernel
}

// WgKernels are all of them.
func WgKernels() []WgKernel {
	kinds := map[int32]format.Kind{encF16: format.FP16, encI8: format.Int8, encI8G: format.Int8, encI4: format.Int4}
	var out []WgKernel
	for _, k := range wgKernels() {
		out = append(out, WgKernel{k.name(), kinds[k.enc], k.enc == encI8G || k.enc == encI4, k.rows(), k.tokens, k})
	}
	return out
}

// WgProduct is one product: y [N, Ldy] = Alpha * x [N, Ldx] W^T + Bias, added onto y where Add is set, then soft-capped.
type WgProduct struct {
	W           format.Tensor
	Bias        []float32
	X           []uint16 // fp16
	N, Ldx, Ldy int
	Half, Add   bool // Half: y is fp16
	Alpha, Cap  float32
}

// RunWg runs a product times times, one behind the other, with a kernel shared by up to so many thread blocks, 0: as planned, and replaces
// y, fp16 or float32.
func RunWg(e *Engine, k WgKernel, p *WgProduct, blocks, times int, y []byte) (err error) {
	undo, err := e.bind()
	if err != nil {
		return err
	}
	defer undo()
	var all []cu.DevicePtr
	defer func() {
		for _, q := range all {
			cu.MemFree(q)
		}
	}()
	put := func(b []byte) uint64 {
		q, failed := cu.MemAlloc(int64(max(len(b), 256)))
		if failed != nil {
			err = failed
			return 0
		}
		all = append(all, q)
		if failed := copyIn(e, uint64(q), b); failed != nil {
			err = failed
		}
		return uint64(q)
	}
	w := matrixArg(&p.W, put(p.W.Data))
	if p.Bias != nil {
		w.bias = put(bytesOf(p.Bias))
	}
	g := gemmArgs{w: w, x: put(bytesOf(p.X)), y: put(y), n: int32(p.N), ldx: int32(p.Ldx), ldy: int32(p.Ldy), splits: 1, alpha: p.Alpha, cap: p.Cap}
	if err != nil {
		return err
	}
	if p.Half {
		g.out = outF16
	}
	if p.Add {
		g.add = 1
	}
	most := k.k.blocks(&w, p.N, e.sms, splitSpace)
	if blocks == 0 {
		blocks = most
	}
	for range times {
		if err := e.multiplyWg(g, k.k, min(blocks, most)); err != nil {
			return err
		}
	}
	if err := driver.Sync(e.stream); err != nil {
		return err
	}
	flags := make([]uint32, e.sms*32)
	if err := cu.MemcpyDtoH(unsafe.Pointer(&flags[0]), cu.DevicePtr(e.wgFlags), int64(4*len(flags))); err != nil {
		return err
	}
	for i, f := range flags {
		if f != 0 {
			return fmt.Errorf("flag %d is %d", i, f)
		}
	}
	return cu.MemcpyDtoH(unsafe.Pointer(&y[0]), cu.DevicePtr(g.y), int64(len(y)))
}

func bytesOf[T any](v []T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(v))), len(v)*int(unsafe.Sizeof(v[0])))
}
