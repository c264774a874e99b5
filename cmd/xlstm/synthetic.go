package main

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"xlstm/checkpoints"
	"xlstm/format"
	"xlstm/quantize"
)

// shapes are the models that bench makes up. All but the 7B's have its proportions: keys half as wide as values, feed-forward
// 2.67 times the width.
var shapes = map[string]func() format.Config{
	"7b":   checkpoints.Config7B,
	"1b":   func() format.Config { return shape(2048, 24, 4, 5504) },
	"100m": func() format.Config { return shape(768, 12, 4, 2112) },
	"5m":   func() format.Config { c := shape(256, 4, 4, 704); c.VocabSize = 4096; return c },
}

func shape(width, blocks, heads, feedForward int) format.Config {
	c := checkpoints.Config7B()
	c.EmbeddingDim, c.NumBlocks, c.NumHeads, c.QKDim, c.VDim, c.FFNDim = width, blocks, heads, width/2, width, feedForward
	return c
}

func shapeNames() []string { return []string{"7b", "1b", "100m", "5m"} }

// memoryWeights is a model whose tensors are in memory.
type memoryWeights struct {
	config  format.Config
	tensors map[string]format.Tensor
}

func (m *memoryWeights) Config() *format.Config { return &m.config }

func (m *memoryWeights) Tensor(name string) (format.Tensor, bool) {
	t, ok := m.tensors[name]
	return t, ok
}

// patternRows is how many rows of a tensor are made up and encoded; they are repeated to fill it.
const patternRows = 64

// synthesize makes a model of random weights.
func (a *app) synthesize(ctx context.Context, name, recipe string) (*memoryWeights, error) {
	r, err := quantize.ParseRecipe(recipe)
	if err != nil {
		return nil, err
	}
	m := &memoryWeights{config: shapes[name](), tensors: map[string]format.Tensor{}}
	specs := format.Specs(&m.config, r.Encoding)
	var total int64
	for i := range specs {
		total += specs[i].Size()
	}
	bar := a.newBar("making weights", total, bytesUnit)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(threadsOf(engineFlags{}))
	tensors := make([]format.Tensor, len(specs))
	for i, s := range specs {
		g.Go(func() (err error) {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			tensors[i], err = randomTensor(s, uint64(i))
			bar.add(s.Size())
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	bar.done()
	for _, t := range tensors {
		m.tensors[t.Name] = t
	}
	return m, nil
}

// randomTensor makes a tensor whose products keep the magnitude of their input.
func randomTensor(s format.TensorSpec, seed uint64) (format.Tensor, error) {
	t := format.Tensor{Name: s.Name, Encoding: s.Encoding, Rows: s.Rows, Cols: s.Cols, Data: make([]byte, s.Size())}
	rows := min(s.Rows, patternRows)
	rng := rand.New(rand.NewPCG(seed, 7))
	x := make([]float32, rows*s.Cols)
	for i := range x {
		x[i] = float32(rng.NormFloat64() / math.Sqrt(float64(s.Cols)))
	}
	whole, err := quantize.RowsOf(t.Data, s.Encoding, s.Rows, s.Cols)
	if err != nil {
		return t, err
	}
	if err := quantize.EncodeRows(whole.Slice(s.Encoding, s.Cols, 0, rows), s.Encoding, x, rows, s.Cols, quantize.Options{}); err != nil {
		return t, err
	}
	sizes := s.Encoding.Sizes(s.Rows, s.Cols)
	repeat(whole.Values, int(sizes.ValueRow)*rows)
	repeat(whole.Scales, int(sizes.ScaleRow)*rows)
	repeat(whole.Mins, int(sizes.MinRow)*rows)
	return t, nil
}

// repeat fills b with its first n bytes.
func repeat(b []byte, n int) {
	for ; n > 0 && n < len(b); n *= 2 {
		copy(b[n:], b[:n])
	}
}

// mustComplete offers values for a flag. The flag exists, so that registering cannot fail.
func mustComplete(cmd *cobra.Command, flag string, values []string) {
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(slices.Clone(values), cobra.ShellCompDirectiveNoFileComp))
}
