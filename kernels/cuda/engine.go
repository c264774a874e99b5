//go:build cuda

package cuda

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"unsafe"

	"gorgonia.org/cu"

	"xlstm/format"
	"xlstm/kernels"
	"xlstm/kernels/cuda/internal/driver"
)

// Options of an engine. The zero value is what most want.
type Options struct {
	Device int
	State  StateType
	// Piece is how many tokens pass through the blocks together, 0 is DefaultPiece. It bounds the working memory, and is where
	// a cancelled context is noticed.
	Piece int
	// Progress, if set, is called while weights load, with the bytes that are on the device and their total.
	Progress func(done, total int64)
	// HalfFrom is the embedding width from which on prompts are computed with fp16 activations on tensor cores, 0 is
	// DefaultHalfFrom. Narrower models, and those with fp32 matrices, are computed in float32 throughout. Decode always is.
	HalfFrom int
	// NoLibrary keeps the engine from using cuBLASLt where it is found.
	NoLibrary bool
	// Prompts is the arithmetic of prompts with int8 weights of one scale a row.
	Prompts PromptMath
}

// DefaultPiece is how many tokens pass through the blocks together.
const DefaultPiece = 2048

// DefaultHalfFrom is the embedding width from which on fp16 activations pay.
const DefaultHalfFrom = 1024

// Engine implements kernels.Engine on one GPU.
type Engine struct {
	cfg       *format.Config
	opt       Options
	dev       cu.Device
	ctx       cu.CUContext
	mod       cu.Module
	fn        map[string]cu.Function
	stream    cu.Stream
	copies    cu.Stream // of states, beside a running Forward
	side      cu.Stream // of the gates, beside the product that computes q, k, v and o
	ready     cu.Event  // the residual stream is
	gated     cu.Event  // the gates are done
	lt        *driver.Lt
	name      string
	sms       int
	shared    int // bytes of shared memory that a block can have
	early     bool
	hopper    bool         // compute capability 9.0, with the kernels of wgmma.cu
	half      bool         // activations of prompts are fp16, else float32
	ints      blockProduct // of prompts, that are computed in int8
	due       *matArg      // whose product in buf.wide is still to be added to the residual stream
	capturing bool         // nothing may wait for the device
	shape     stateShape

	weights cu.DevicePtr
	embed   matArg
	head    matArg
	blocks  []blockArgs
	bytes   int64 // of the weights

	wgFlags uint64 // of wgmma.cu

	buf   buffers
	some  fewBuffers
	mu    sync.Mutex // of what NewState and states share with each other
	fixed []cu.DevicePtr
}

// blockArgs are one block's matrices, biases in them. headNorm and headNormBias are 0 where the norm is folded into out.
type blockArgs struct {
	qkvo, gates, out, gateUp, down matArg
	headNorm, headNormBias         uint64
}

// Open makes an engine that runs w on a GPU. w is not needed any more once it returns.
func Open(w Weights, o Options) (*Engine, error) { return open(w, o, (*Engine).upload) }

// Device is a GPU.
type Device struct {
	Index               int
	Name                string
	Total, Free         int64 // bytes of memory
	Major, Minor        int   // compute capability
	Multiprocessors     int
	SharedMemoryPerUnit int
}

// Devices lists the GPUs.
func Devices() ([]Device, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	n, err := cu.NumDevices()
	if err != nil {
		return nil, fmt.Errorf("count devices: %w", err)
	}
	out := make([]Device, n)
	for i := range out {
		if out[i], err = describe(i); err != nil {
			return nil, fmt.Errorf("device %d: %w", i, err)
		}
	}
	return out, nil
}

func describe(i int) (Device, error) {
	d := Device{Index: i}
	dev, err := cu.GetDevice(i)
	if err != nil {
		return d, err
	}
	if d.Name, err = dev.Name(); err != nil {
		return d, err
	}
	for _, a := range []struct {
		to   *int
		attr cu.DeviceAttribute
	}{{&d.Major, cu.ComputeCapabilityMajor}, {&d.Minor, cu.ComputeCapabilityMinor}, {&d.Multiprocessors, cu.MultiprocessorCount},
		{&d.SharedMemoryPerUnit, cu.DeviceAttribute(97)}} { // 97: the most that a block can opt in to
		if *a.to, err = dev.Attribute(a.attr); err != nil {
			return d, err
		}
	}
	ctx, err := dev.RetainPrimaryCtx()
	if err != nil {
		return d, err
	}
	defer dev.ReleasePrimaryCtx()
	if err := cu.SetCurrentContext(ctx); err != nil {
		return d, err
	}
	d.Free, d.Total, err = cu.MemInfo()
	return d, err
}

func open(w Weights, o Options, fill func(*Engine, Weights, []placed) error) (e *Engine, err error) {
	cfg := w.Config()
	if err := supported(cfg); err != nil {
		return nil, err
	}
	if o.Piece == 0 {
		o.Piece = DefaultPiece
	}
	if o.HalfFrom == 0 {
		o.HalfFrom = DefaultHalfFrom
	}
	if o.Piece < 1 {
		return nil, fmt.Errorf("piece of %d tokens, expected at least 1", o.Piece)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	e = &Engine{cfg: cfg, opt: o, fn: map[string]cu.Function{}, shape: newStateShape(cfg, o.State)}
	defer func() {
		if err != nil {
			e.Close()
			e = nil
		}
	}()
	if err := e.start(); err != nil {
		return e, err
	}
	tensors, total, err := place(w)
	if err != nil {
		return e, err
	}
	if err := e.checkMemory(w, total); err != nil {
		return e, err
	}
	if e.weights, err = cu.MemAlloc(total); err != nil {
		return e, fmt.Errorf("%d bytes for weights on %s: %w", total, e.name, err)
	}
	e.bytes = total
	if err := fill(e, w, tensors); err != nil {
		return e, fmt.Errorf("load weights onto %s: %w", e.name, err)
	}
	e.link(tensors)
	if err := e.alignGroups(); err != nil {
		return e, err
	}
	e.chooseInts()
	if err := e.wgReset(); err != nil {
		return e, err
	}
	return e, e.few()
}

// start opens the device and loads the kernels.
func (e *Engine) start() error {
	n, err := cu.NumDevices()
	if err != nil {
		return fmt.Errorf("count devices: %w", err)
	}
	if e.opt.Device < 0 || e.opt.Device >= n {
		return fmt.Errorf("no device cuda:%d, there are %d", e.opt.Device, n)
	}
	d, err := describe(e.opt.Device)
	if err != nil {
		return fmt.Errorf("device cuda:%d: %w", e.opt.Device, err)
	}
	if d.Major < 8 {
		return fmt.Errorf("cuda:%d is a %s of compute capability %d.%d, expected 8.0 or above", d.Index, d.Name, d.Major, d.Minor)
	}
	e.name, e.sms, e.shared, e.early, e.hopper = d.Name, d.Multiprocessors, d.SharedMemoryPerUnit, d.Major >= 9, d.Major == 9 && d.Minor == 0
	if e.dev, err = cu.GetDevice(e.opt.Device); err != nil {
		return err
	}
	if e.ctx, err = e.dev.RetainPrimaryCtx(); err != nil {
		return fmt.Errorf("context on %s: %w", e.name, err)
	}
	if err := cu.SetCurrentContext(e.ctx); err != nil {
		return err
	}
	if e.mod, err = cu.LoadFatBinary(fatbin + "\x00"); err != nil {
		return fmt.Errorf("load kernels onto %s: %w", e.name, err)
	}
	if err := e.loadKernels(); err != nil {
		return err
	}
	for _, s := range []*cu.Stream{&e.stream, &e.copies, &e.side} {
		if *s, err = cu.MakeStream(cu.NonBlocking); err != nil {
			return err
		}
	}
	for _, v := range []*cu.Event{&e.ready, &e.gated} {
		if *v, err = cu.MakeEvent(cu.DisableTiming); err != nil {
			return err
		}
	}
	if !e.opt.NoLibrary {
		if e.lt, err = driver.NewLt(); err != nil && !errors.Is(err, driver.ErrNoLt) {
			return err
		}
	}
	return nil
}

// Name is the device's.
func (e *Engine) Name() string { return e.name }

// WeightBytes is the device memory that the weights take.
func (e *Engine) WeightBytes() int64 { return e.bytes }

// StateBytes is the device memory that one state takes.
func (e *Engine) StateBytes() int64 { return e.shape.bytes() }

// Library is cuBLASLt's version, 0 where it is not used.
func (e *Engine) Library() int {
	if e.lt == nil {
		return 0
	}
	return e.lt.Version()
}

// kernelNames are the kernels that a device has.
func kernelNames(hopper bool) []string {
	names := []string{"gemv_f32", "gemv_f16", "gemv_i8", "gemm_f32", "gemm_f16", "gemm_i8", "gemm_i8g", "gemm_i4", "gemm_i8_few", "gemm_i8g_few", "gemm_i4_few",
		"reduce_splits", "gate_scan", "scores", "embed", "rms_norm", "head_gate", "swiglu", "gates_many", "add_bias", "log_prob", "state_copy",
		"dequant", "spread_groups", "add_norm", "head_gate_i8", "swiglu_i8", "rescale", "bf16_to_fp16", "fill", "sample"}
	names = append(names, "one_f16", "one_i8")
	for _, g := range []string{"32", "64", "128"} {
		names = append(names, "gemv_i8g"+g, "gemv_i4g"+g, "gemv_i4g"+g+"a", "one_i8g"+g, "one_i4g"+g, "one_i4g"+g+"a")
	}
	for _, t := range []string{"f32", "bf16", "f16"} {
		names = append(names, "recur_f32_"+t, "recur_f16_"+t, "recur512_f32_"+t, "recur512_f16_"+t, "chunk1_"+t, "chunk2_"+t)
	}
	if hopper {
		for _, k := range wgKernels() {
			names = append(names, k.name())
		}
	}
	return names
}

// loadKernels finds the kernels and lets each use as much shared memory as a block can have.
func (e *Engine) loadKernels() error {
	for _, name := range kernelNames(e.hopper) {
		f, err := e.mod.Function(name)
		if err != nil {
			return fmt.Errorf("kernel %s: %w", name, err)
		}
		static, err := f.Attribute(cu.SharedSizeBytes)
		if err != nil {
			return fmt.Errorf("kernel %s: %w", name, err)
		}
		if err := driver.AllowShared(f, e.shared-static); err != nil {
			return fmt.Errorf("kernel %s: %w", name, err)
		}
		if err := driver.PreferShared(f); err != nil {
			return fmt.Errorf("kernel %s: %w", name, err)
		}
		e.fn[name] = f
	}
	return nil
}

// launch submits a kernel on the engine's stream.
func (e *Engine) launch(name string, g driver.Grid, threads, shared int, args unsafe.Pointer, early bool) error {
	return e.launchOn(e.stream, name, g, threads, shared, args, early)
}

func (e *Engine) launchOn(s cu.Stream, name string, g driver.Grid, threads, shared int, args unsafe.Pointer, early bool) error {
	if err := driver.Launch(e.fn[name], g, threads, shared, s, args, early && e.early); err != nil {
		return fmt.Errorf("kernel %s: %w", name, err)
	}
	return nil
}

// bind makes the calling goroutine's thread one of the engine's context; the returned function undoes it.
func (e *Engine) bind() (func(), error) {
	runtime.LockOSThread()
	if err := cu.SetCurrentContext(e.ctx); err != nil {
		runtime.UnlockOSThread()
		return nil, err
	}
	return runtime.UnlockOSThread, nil
}

// alloc gives n bytes that live as long as the engine.
func (e *Engine) alloc(n int64) (uint64, error) {
	p, err := cu.MemAlloc(max(n, 256))
	if err != nil {
		free, total, _ := cu.MemInfo()
		return 0, fmt.Errorf("%s has %.2f of %.2f GB free, %.2f GB are needed: %w", e.name, gb(free), gb(total), gb(n), err)
	}
	e.fixed = append(e.fixed, p)
	return uint64(p), nil
}

// release gives back what alloc gave.
func (e *Engine) release(p uint64) {
	for i, q := range e.fixed {
		if uint64(q) == p {
			e.fixed = append(e.fixed[:i], e.fixed[i+1:]...)
			cu.MemFree(q)
			return
		}
	}
}

func gb(n int64) float64 { return float64(n) / 1e9 }

// Forward implements kernels.Engine. A cancelled context is noticed between pieces of Options.Piece tokens.
func (e *Engine) Forward(ctx context.Context, batch []kernels.Step) error {
	if err := kernels.CheckBatch(batch, e.cfg.VocabSize); err != nil {
		return err
	}
	for i := range batch {
		if s, ok := batch[i].State.(*state); !ok || s.e != e || s.at == 0 {
			return fmt.Errorf("forward: step %d has a state of another engine, or a closed one", i)
		}
	}
	undo, err := e.bind()
	if err != nil {
		return fmt.Errorf("forward on %s: %w", e.name, err)
	}
	defer undo()
	passes := planPasses(batch, e.opt.Piece, e.half)
	for i := range passes {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := e.pass(batch, &passes[i]); err != nil {
			return fmt.Errorf("forward on %s: %w", e.name, err)
		}
	}
	return nil
}

func (e *Engine) pass(batch []kernels.Step, p *pass) error {
	if p.tokens <= fewTokens && p.recurrent == len(p.pieces) && len(p.pieces) == p.tokens && e.some.ok[p.tokens] {
		return e.decode(batch, p)
	}
	return e.prompt(batch, p)
}

// Close implements kernels.Engine.
func (e *Engine) Close() error {
	undo, err := e.bind()
	if err != nil {
		return err
	}
	defer undo()
	var zero cu.Stream
	if e.stream != zero {
		err = driver.Sync(e.stream)
	}
	e.some.close()
	e.buf.dropGraphs()
	if e.lt != nil {
		e.lt.Close()
	}
	for _, p := range append(e.fixed, e.weights) {
		if p != 0 {
			cu.MemFree(p)
		}
	}
	for _, s := range []*cu.Stream{&e.stream, &e.copies, &e.side} {
		if *s != zero {
			s.Destroy()
		}
	}
	for _, v := range []*cu.Event{&e.ready, &e.gated} {
		if *v != (cu.Event{}) {
			cu.DestroyEvent(v)
		}
	}
	if e.mod != (cu.Module{}) {
		e.mod.Unload()
	}
	if e.ctx != (cu.CUContext{}) {
		e.dev.ReleasePrimaryCtx()
	}
	e.fixed, e.weights, e.lt = nil, 0, nil
	e.stream, e.copies, e.side, e.mod, e.ctx = zero, zero, zero, cu.Module{}, cu.CUContext{}
	if err != nil {
		return fmt.Errorf("close engine on %s: %w", e.name, err)
	}
	return nil
}
