//go:build cuda

package cuda

import (
	"fmt"
	"sync"
	"unsafe"

	"gorgonia.org/cu"

	"xlstm/format"
	"xlstm/kernels/cuda/internal/driver"
)

// placed is a tensor and its place in the weights' memory.
type placed struct {
	t  format.Tensor
	at int64
}

// place gives every tensor of the model a place.
func place(w Weights) ([]placed, int64, error) {
	cfg := w.Config()
	var out []placed
	var total int64
	var missing error
	specs := format.Specs(cfg, func(string) format.Encoding { return format.Encoding{Kind: format.FP32} })
	for i := range specs {
		t, ok := w.Tensor(specs[i].Name)
		if !ok || t.Rows != specs[i].Rows || t.Cols != specs[i].Cols {
			missing = fmt.Errorf("tensor %s: expected %d x %d, found %d x %d", specs[i].Name, specs[i].Rows, specs[i].Cols, t.Rows, t.Cols)
			break
		}
		out = append(out, placed{t, total})
		total += t.Encoding.Sizes(t.Rows, t.Cols).Total
	}
	return out, total, missing
}

// checkMemory says what is needed where the weights, one state and the decode buffers do not fit.
func (e *Engine) checkMemory(w Weights, weights int64) error {
	free, total, err := cu.MemInfo()
	if err != nil {
		return err
	}
	const spare = 256 << 20
	need := weights + e.shape.bytes() + spare
	if need <= free {
		return nil
	}
	fit := "none of the recipes fits"
	for _, r := range []string{"fp16", "int8", "int4"} {
		enc, err := format.ParseEncoding(r)
		if err != nil {
			return err
		}
		var n int64
		for _, s := range format.Specs(w.Config(), func(string) format.Encoding { return enc }) {
			n += s.Size()
		}
		if n < weights && n+e.shape.bytes()+spare <= free {
			fit = "a file converted with the recipe " + r + " would fit"
			break
		}
	}
	return fmt.Errorf("the model needs %.2f GB on %s, which has %.2f of %.2f GB free; %s", gb(need), e.name, gb(free), gb(total), fit)
}

// upload copies the tensors to the device: through two pinned buffers, so that reading the file and the bus overlap.
func (e *Engine) upload(_ Weights, tensors []placed) error {
	const chunk = 32 << 20
	var pinned [2][]byte
	var done [2]cu.Event
	for i := range pinned {
		var err error
		if pinned[i], err = driver.HostAlloc(chunk); err != nil {
			return err
		}
		defer driver.HostFree(pinned[i])
		if done[i], err = cu.MakeEvent(cu.DisableTiming); err != nil {
			return err
		}
		defer cu.DestroyEvent(&done[i])
	}
	defer driver.Sync(e.stream) // before the buffers go
	var sent int64
	turn := 0
	for i := range tensors {
		data := tensors[i].t.Data
		for from := 0; from < len(data); from += chunk {
			part := data[from:min(from+chunk, len(data))]
			b := turn & 1
			if turn >= 2 {
				if err := done[b].Synchronize(); err != nil {
					return err
				}
			}
			copyParallel(pinned[b], part)
			to := cu.DevicePtr(int64(e.weights) + tensors[i].at + int64(from))
			if err := cu.MemcpyHtoDAsync(to, unsafe.Pointer(unsafe.SliceData(pinned[b])), int64(len(part)), e.stream); err != nil {
				return err
			}
			if err := done[b].Record(e.stream); err != nil {
				return err
			}
			turn++
			sent += int64(len(part))
			if e.opt.Progress != nil {
				e.opt.Progress(sent, e.bytes)
			}
		}
	}
	if err := e.convertBF16(tensors); err != nil {
		return err
	}
	return driver.Sync(e.stream)
}

// copyParallel copies with several goroutines: one does not read a mapping as fast as the bus takes it.
func copyParallel(dst, src []byte) {
	const part = 1 << 20
	var wg sync.WaitGroup
	for from := 0; from < len(src); from += part {
		to := min(from+part, len(src))
		wg.Go(func() { copy(dst[from:to], src[from:to]) })
	}
	wg.Wait()
}

// convertBF16 turns bf16 tensors into fp16 where they lie. Of every value that fp16 can hold this loses nothing, but for values
// below 2^-24, where it leaves an error of at most 2^-25.
func (e *Engine) convertBF16(tensors []placed) error {
	bad, err := e.alloc(4)
	if err != nil {
		return err
	}
	defer e.release(bad)
	if err := cu.MemsetD32Async(cu.DevicePtr(bad), 0, 1, e.stream); err != nil {
		return err
	}
	any := false
	for i := range tensors {
		t := &tensors[i].t
		if t.Encoding.Kind != format.BF16 {
			continue
		}
		any = true
		a := convertArgs{p: uint64(e.weights) + uint64(tensors[i].at), bad: bad, n: int64(t.Rows) * int64(format.PaddedCols(t.Cols))}
		if err := e.launch("bf16_to_fp16", driver.Grid{X: int((a.n/8 + 255) / 256), Y: 1, Z: 1}, 256, 0, unsafe.Pointer(&a), false); err != nil {
			return err
		}
	}
	if !any {
		return nil
	}
	var count uint32
	if err := driver.Sync(e.stream); err != nil {
		return err
	}
	if err := cu.MemcpyDtoH(unsafe.Pointer(&count), cu.DevicePtr(bad), 4); err != nil {
		return err
	}
	if count > 0 {
		return fmt.Errorf("%d bf16 weights are beyond the range of fp16, in which this engine computes; convert with another recipe", count)
	}
	return nil
}

// link builds the kernels' matrices from the tensors' places.
func (e *Engine) link(tensors []placed) {
	args := map[string]matArg{}
	for i := range tensors {
		t := &tensors[i]
		args[t.t.Name] = matrixArg(&t.t, uint64(e.weights)+uint64(t.at))
	}
	linear := func(w, bias string) matArg {
		m := args[w]
		m.bias = args[bias].values
		return m
	}
	e.embed = args[format.TensorEmbed]
	e.head = linear(format.TensorHead, format.TensorHeadBias)
	e.half = chunkable(e.cfg) && e.cfg.EmbeddingDim >= e.opt.HalfFrom
	for i := range e.cfg.NumBlocks {
		n := func(name string) string { return format.BlockTensor(i, name) }
		b := blockArgs{
			qkvo: linear(n(format.TensorQKVO), n(format.TensorQKVOBias)), gates: linear(n(format.TensorGates), n(format.TensorGatesBias)),
			out:    linear(n(format.TensorOut), n(format.TensorOutBias)),
			gateUp: linear(n(format.TensorGateUp), n(format.TensorGateUpBias)), down: linear(n(format.TensorDown), n(format.TensorDownBias)),
			headNorm: args[n(format.TensorHeadNorm)].values, headNormBias: args[n(format.TensorHeadNormBias)].values,
		}
		e.half = e.half && b.qkvo.enc != encF32 && b.out.enc != encF32 && b.gateUp.enc != encF32 && b.down.enc != encF32
		e.blocks = append(e.blocks, b)
	}
	if e.half && chunkShared(e.cfg.HeadQKDim(), 1) > e.shared {
		e.half = false
	}
}

// alignGroups gives matrices whose rows have no whole number of stretches' groups other scales and minimums, with zeros behind the last
// group: so that copies to shared memory are aligned. It costs an int4 model 1 % more memory at most.
func (e *Engine) alignGroups() error {
	for _, m := range append(e.matrices(), &e.head) {
		if m.groupShift == 0 || int(m.groups)%stretchGroups(m) == 0 {
			continue
		}
		padded := gemvRoom(m) >> m.groupShift
		for _, p := range []*uint64{&m.scales, &m.mins} {
			if *p == 0 {
				continue
			}
			to, err := e.alloc(2 * int64(padded) * int64(m.rows))
			if err != nil {
				return err
			}
			a := spreadArgs{from: *p, to: to, rows: m.rows, groups: m.groups, padded: int32(padded)}
			if err := e.launch("spread_groups", driver.Grid{X: (int(m.rows)*padded + 255) / 256, Y: 1, Z: 1}, 256, 0, unsafe.Pointer(&a), false); err != nil {
				return err
			}
			*p = to
		}
		m.groups = int32(padded)
	}
	return nil
}

// Synthetic opens an engine for a model of config cfg with pseudo-random weights, made on the device: for measuring. encodingOf says
// how each tensor is stored.
func Synthetic(cfg format.Config, encodingOf func(name string) format.Encoding, o Options) (*Engine, error) {
	return open(&shapes{cfg, encodingOf}, o, (*Engine).fillRandom)
}

// shapes are Weights without values.
type shapes struct {
	cfg        format.Config
	encodingOf func(string) format.Encoding
}

func (s *shapes) Config() *format.Config { return &s.cfg }

func (s *shapes) Tensor(name string) (format.Tensor, bool) {
	for _, t := range format.Specs(&s.cfg, s.encodingOf) {
		if t.Name == name {
			return format.Tensor{Name: name, Encoding: t.Encoding, Rows: t.Rows, Cols: t.Cols}, true
		}
	}
	return format.Tensor{}, false
}

// fillRandom writes weights of magnitude near 1/64.
func (e *Engine) fillRandom(_ Weights, tensors []placed) error {
	fill := func(at, bytes int64, keep, set uint32) error {
		a := fillArgs{p: uint64(e.weights) + uint64(at), n: bytes / 4, seed: uint64(at), keep: keep, set: set}
		return e.launch("fill", driver.Grid{X: 8 * e.sms, Y: 1, Z: 1}, 512, 0, unsafe.Pointer(&a), false)
	}
	for i := range tensors {
		t := &tensors[i]
		s := t.t.Encoding.Sizes(t.t.Rows, t.t.Cols)
		keep, set := uint32(0x80ffffff), uint32(0x3c000000) // float32 in +-[2^-7, 2^-5)
		scale := uint32(0x04000400)                         // fp16 2^-14 for int8
		switch t.t.Encoding.Kind {
		case format.FP16, format.BF16:
			keep, set = 0x83ff83ff, 0x20002000
		case format.Int8:
			keep, set = 0xffffffff, 0
			if t.t.Encoding.Group == 0 {
				scale = 0x38800000 // float32 2^-14
			}
		case format.Int4:
			keep, set, scale = 0xffffffff, 0, 0x18001800 // 2^-9
		}
		end := s.Total
		if s.ScaleRow > 0 {
			end = s.ScalesOffset
		}
		if err := fill(t.at, end, keep, set); err != nil {
			return err
		}
		if s.ScaleRow > 0 {
			if err := fill(t.at+s.ScalesOffset, s.MinsOffset-s.ScalesOffset, 0, scale); err != nil {
				return err
			}
		}
		if s.MinRow > 0 {
			if err := fill(t.at+s.MinsOffset, s.Total-s.MinsOffset, 0, 0xa000a000); err != nil { // -2^-7
				return err
			}
		}
	}
	return driver.Sync(e.stream)
}
