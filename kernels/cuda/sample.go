//go:build cuda

package cuda

import (
	"context"
	"fmt"
	"math"
	"unsafe"

	"gorgonia.org/cu"

	"xlstm/kernels"
	"xlstm/kernels/cuda/internal/driver"
)

// Sampling says how Generate chooses tokens on the device.
type Sampling struct {
	TopK        int     // 1 is greedy (the lowest id among equals), at most 64
	Temperature float64 // of more than one
	Limit       int     // ids from here on are never chosen; 0: the whole vocabulary
	Uniform     func() float32
}

// maxSampled is how many tokens Generate chooses between two looks from the host.
const maxSampled = 64

// samplingKind is what a captured graph of Generate depends on.
type samplingKind struct {
	k, limit int
	invTemp  float32
}

// Generate feeds token to st and chooses n tokens, each fed in turn but for the last, without the host between them. emit gets the
// tokens in runs, in order, and ends generation by returning false: the state has then seen the tokens of the run after it stopped.
func (e *Engine) Generate(ctx context.Context, st kernels.State, token int32, n int, s Sampling, emit func([]int32) bool) error {
	if s.Limit == 0 {
		s.Limit = e.cfg.VocabSize
	}
	if s.TopK < 1 || s.TopK > 64 || s.Limit < s.TopK || s.Limit > e.cfg.VocabSize || s.TopK > 1 && (!(s.Temperature > 0) || s.Uniform == nil) {
		return fmt.Errorf("generate: top-k %d with temperature %v among %d ids", s.TopK, s.Temperature, s.Limit)
	}
	batch := []kernels.Step{{State: st, Tokens: []int32{token}}}
	if err := kernels.CheckBatch(batch, e.cfg.VocabSize); err != nil {
		return err
	}
	if o, ok := st.(*state); !ok || o.e != e || o.at == 0 {
		return fmt.Errorf("generate: a state of another engine, or a closed one")
	}
	if !e.some.ok[1] {
		return fmt.Errorf("generate: the model's rows are too long for the decode kernels of %s", e.name)
	}
	undo, err := e.bind()
	if err != nil {
		return err
	}
	defer undo()
	if err := e.generate(ctx, batch, n, s, emit); err != nil {
		return fmt.Errorf("generate on %s: %w", e.name, err)
	}
	return nil
}

func (e *Engine) generate(ctx context.Context, batch []kernels.Step, n int, s Sampling, emit func([]int32) bool) error {
	b := &e.some
	kind := samplingKind{k: s.TopK, limit: s.Limit, invTemp: 1}
	if s.TopK > 1 {
		kind.invTemp = float32(1 / math.Max(s.Temperature, 1e-6))
	}
	g, err := e.samplingGraph(kind)
	if err != nil {
		return err
	}
	p := planPasses(batch, 1, true)
	b.putFew(batch, &p[0])
	if err := cu.MemcpyHtoDAsync(cu.DevicePtr(b.in), unsafe.Pointer(&b.host[0]), fewIn, e.stream); err != nil {
		return err
	}
	uniform, ids := make([]float32, maxSampled), make([]int32, maxSampled)
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		run := min(n, maxSampled)
		if s.TopK > 1 {
			for i := range run {
				uniform[i] = s.Uniform()
			}
			if err := copyIn(e, b.uniform, uniform[:run]); err != nil {
				return err
			}
		}
		if err := cu.MemsetD32Async(cu.DevicePtr(b.step), 0, 1, e.stream); err != nil {
			return err
		}
		for range run {
			if err := g.Launch(e.stream); err != nil {
				return err
			}
		}
		if err := driver.Sync(e.stream); err != nil {
			return err
		}
		if err := cu.MemcpyDtoH(unsafe.Pointer(&ids[0]), cu.DevicePtr(b.out), int64(run)*4); err != nil {
			return err
		}
		if !emit(ids[:run]) {
			return nil
		}
		n -= run
	}
	return nil
}

func (e *Engine) samplingGraph(k samplingKind) (*driver.Graph, error) {
	b := &e.some
	if g := b.sample[k]; g != nil {
		return g, nil
	}
	if len(b.sample) >= 16 {
		for key, g := range b.sample {
			g.Close()
			delete(b.sample, key)
		}
	}
	g, err := driver.Capture(e.stream, func() error {
		if err := e.submitFew(1); err != nil {
			return err
		}
		a := sampleArgs{logits: b.logit, tokens: b.in + fewTok, out: b.out, step: b.step, uniform: b.uniform, vocab: int32(e.cfg.VocabSize),
			limit: int32(k.limit), k: int32(k.k), outLen: maxSampled, invTemp: k.invTemp}
		return e.launch("sample", driver.Grid{X: 1, Y: 1, Z: 1}, 1024, 0, unsafe.Pointer(&a), true)
	})
	if err != nil {
		return nil, err
	}
	b.sample[k] = g
	return g, nil
}
