package cpu_test

import (
	"fmt"
	"math"
	"testing"

	"xlstm/checkpoints"
	"xlstm/format"
	"xlstm/internal/converted"
	"xlstm/internal/feed"
	"xlstm/kernels/cpu"
)

// TestOddShapes holds the engine against the oracle on synthetic checkpoints whose widths are multiples of nothing, with and
// without biases, caps, tied embeddings and an output norm.
func TestOddShapes(t *testing.T) {
	base := format.Config{VocabSize: 101, EmbeddingDim: 64, NumBlocks: 2, NumHeads: 2, QKDim: 32, VDim: 64, FFNDim: 96, NormEps: 1e-6,
		CellEps: 1e-6, GateSoftCap: 15, OutputSoftCap: 30, OutNorm: true, BOS: 0}
	for name, change := range map[string]func(c *format.Config){
		"plain":         func(*format.Config) {},
		"prime":         func(c *format.Config) { c.EmbeddingDim, c.NumHeads, c.QKDim, c.VDim, c.FFNDim = 37, 1, 7, 13, 41 },
		"three heads":   func(c *format.Config) { c.EmbeddingDim, c.NumHeads, c.QKDim, c.VDim, c.FFNDim = 48, 3, 27, 51, 130 },
		"wide values":   func(c *format.Config) { c.QKDim, c.VDim = 6, 300 },
		"wide keys":     func(c *format.Config) { c.QKDim, c.VDim = 270, 34 },
		"bias":          func(c *format.Config) { c.UseBias = true },
		"tied":          func(c *format.Config) { c.Tied = true },
		"no out norm":   func(c *format.Config) { c.OutNorm = false },
		"no output cap": func(c *format.Config) { c.OutputSoftCap = 0 },
		"no gate cap":   func(c *format.Config) { c.GateSoftCap = 0 },
		"large eps":     func(c *format.Config) { c.NormEps, c.CellEps = 1e-3, 1e-2 },
		"one token":     func(c *format.Config) { c.VocabSize = 1 },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := base
			change(&cfg)
			for seed := range uint64(2) {
				checkShape(t, checkpoints.Synthetic(cfg, seed), fmt.Sprint("seed ", seed))
			}
		})
	}
}

func checkShape(t *testing.T, c *checkpoints.Checkpoint, what string) {
	t.Helper()
	f := converted.File(t, c, "fp32")
	v := f.Config().VocabSize
	tokens := make([]int32, 140)
	for i := range tokens {
		tokens[i] = int32(i * i % v)
	}
	want := oracleLogits(t, c, tokens)
	for _, workers := range []int{1, 4} {
		e := engine(t, f, cpu.Options{Workers: workers})
		for how, size := range map[string]func(int) int{"whole": feed.Whole, "single": feed.Single, "random": feed.Random(5)} {
			got := feed.Tokens(t, e, newState(t, e), tokens, v, size)
			worst := 0.0
			for i, x := range want {
				worst = max(worst, math.Abs(float64(x-got[i])))
			}
			if !(worst <= 2e-4) {
				t.Errorf("%s, %s, %d workers: logits differ by %.3g", what, how, workers, worst)
			}
		}
	}
}
