package main

import (
	"context"
	goruntime "runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"xlstm/format"
	"xlstm/kernels"
	"xlstm/kernels/cpu"
	"xlstm/kernels/cpu/simd"
)

// measurement makes a report's measurements.
type measurement struct {
	app     *app
	report  *benchReport
	flags   benchFlags
	engine  kernels.Engine
	vocab   int
	weights [][]byte // that a token reads, on a CPU
	sink    atomic.Uint64
	// bandwidth measures the limit, for at least the given time, in bytes a second.
	bandwidth func(ctx context.Context, least time.Duration) (float64, error)
}

// describe notes what a token reads of a model with these tensors: all but the embedding, of which it reads one row.
func (m *measurement) describe(c *format.Config, tensors []format.TensorSpec) {
	m.vocab = c.VocabSize
	m.report.StateBytes = 4 * int64(c.StateFloats())
	for _, t := range tensors {
		if t.Name != format.TensorEmbed {
			m.report.WeightBytes += t.Size()
		}
	}
}

// readPerToken lists the stored bytes that generating a token reads: every tensor but the embedding, of which it reads one row.
func readPerToken(w cpu.Weights) (parts [][]byte) {
	c := w.Config()
	for _, spec := range format.Specs(c, func(string) format.Encoding { return format.Encoding{Kind: format.FP32} }) {
		if t, ok := w.Tensor(spec.Name); ok && spec.Name != format.TensorEmbed {
			parts = append(parts, t.Data)
		}
	}
	return parts
}

func threadsOf(e engineFlags) int {
	if e.threads > 0 {
		return e.threads
	}
	return goruntime.GOMAXPROCS(0)
}

// readingTime is how long reading is measured at least, each time.
const readingTime = 300 * time.Millisecond

// run measures reading, the prompt and generating in turns, so that a machine whose speed swings treats them alike.
func (m *measurement) run(ctx context.Context) error {
	f := m.flags
	states, closeAll, err := newStates(m.engine, f.batch)
	if err != nil {
		return err
	}
	defer closeAll()
	logits := make([]float32, f.batch*m.vocab)
	bar := m.app.newBar("bench", int64(f.repeat), "rounds")
	// Once before timing, so that weights are in memory and buffers allocated.
	if _, err := m.bandwidth(ctx, 0); err != nil {
		return err
	}
	if err := feedTokens(ctx, m.engine, states, []int32{1}, logits, m.vocab); err != nil {
		return err
	}
	r := m.report
	var reading, prompt, rates, weights, share []float64
	for range f.repeat {
		before, err := m.bandwidth(ctx, readingTime)
		if err != nil {
			return err
		}
		reading = append(reading, before)
		if f.generate > 0 {
			seconds, err := m.generate(ctx, states, logits)
			if err != nil {
				return err
			}
			after, err := m.bandwidth(ctx, readingTime)
			if err != nil {
				return err
			}
			reading = append(reading, after)
			steps := float64(f.generate) / seconds
			rates = append(rates, steps*float64(f.batch))
			weights = append(weights, steps*float64(r.WeightBytes))
			share = append(share, steps*float64(r.WeightBytes)/((before+after)/2))
		}
		if f.prompt > 0 {
			seconds, err := m.prompt(ctx, states[0], logits)
			if err != nil {
				return err
			}
			prompt = append(prompt, float64(f.prompt)/seconds)
		}
		bar.add(1)
	}
	r.Bandwidth = *summary(reading)
	r.PromptRate, r.Rate, r.Weights, r.Share = summary(prompt), summary(rates), summary(weights), summary(share)
	return nil
}

// generate times generate steps of all sequences.
func (m *measurement) generate(ctx context.Context, states []kernels.State, logits []float32) (seconds float64, err error) {
	start := time.Now()
	for i := range m.flags.generate {
		if err := feedTokens(ctx, m.engine, states, []int32{int32(i*7919+1) % int32(m.vocab)}, logits, m.vocab); err != nil {
			return 0, err
		}
	}
	return time.Since(start).Seconds(), nil
}

// prompt times a prompt of one sequence, from a fresh state to the logits after its last token.
func (m *measurement) prompt(ctx context.Context, state kernels.State, logits []float32) (seconds float64, err error) {
	tokens := make([]int32, m.flags.prompt)
	for i := range tokens {
		tokens[i] = int32(i*7919+1) % int32(m.vocab)
	}
	if err := state.Reset(); err != nil {
		return 0, err
	}
	start := time.Now()
	err = feedTokens(ctx, m.engine, []kernels.State{state}, tokens, logits[:m.vocab], m.vocab)
	return time.Since(start).Seconds(), err
}

// readRate reads the weights with as many threads as the engine has, at least once and for at least the given time, and
// returns bytes a second.
func (m *measurement) readRate(ctx context.Context, least time.Duration) (float64, error) {
	const chunk = 4 << 20
	var chunks [][]byte
	for _, part := range m.weights {
		chunks = slices.AppendSeq(chunks, slices.Chunk(part, chunk))
	}
	start, bytes := time.Now(), int64(0)
	for bytes == 0 || time.Since(start) < least {
		var next atomic.Int64
		var wg sync.WaitGroup
		for range m.report.Threads {
			wg.Go(func() {
				for i := next.Add(1) - 1; int(i) < len(chunks) && ctx.Err() == nil; i = next.Add(1) - 1 {
					m.sink.Add(simd.StreamRead(chunks[i]))
				}
			})
		}
		wg.Wait()
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		bytes += m.report.WeightBytes
	}
	return float64(bytes) / time.Since(start).Seconds(), nil
}

// summary is the median of what was measured; nil of nothing.
func summary(x []float64) *series {
	if len(x) == 0 {
		return nil
	}
	sorted := slices.Sorted(slices.Values(x))
	n := len(sorted)
	return &series{Median: (sorted[(n-1)/2] + sorted[n/2]) / 2, Least: sorted[0], Most: sorted[n-1], All: x}
}
