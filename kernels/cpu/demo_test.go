package cpu_test

import (
	"math"
	"testing"

	"xlstm/checkpoints"
	"xlstm/checkpoints/demo"
	"xlstm/internal/converted"
	"xlstm/internal/feed"
	"xlstm/internal/golden"
	"xlstm/kernels/cpu"
	"xlstm/oracle"
)

// TestDemoGolden holds engine and oracle against what transformers computed for the demo model: logits within 1e-3, and the
// loss of each token of a long passage.
func TestDemoGolden(t *testing.T) {
	want, err := golden.Read("../../checkpoints/demo/testdata/golden.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	c, err := checkpoints.OpenFS(demo.FS(), "demo")
	if err != nil {
		t.Fatal(err)
	}
	f := converted.File(t, c, "fp32")
	e, v := engine(t, f, cpu.Options{}), f.Config().VocabSize
	for b := range want.Shape("input_ids")[0] {
		tokens, logits := want.Tokens("input_ids", b), want.Floats("logits", b)
		for how, size := range map[string]func(int) int{"whole": feed.Whole, "single": feed.Single} {
			demoLogits(t, "engine, "+how, feed.Tokens(t, e, newState(t, e), tokens, v, size), logits)
		}
		demoLogits(t, "oracle", oracleLogits(t, c, tokens), logits)
	}
	long := want.Tokens("ids_long", 0)
	got := feed.Tokens(t, e, newState(t, e), long, v, feed.Whole)
	for i, x := range want.Floats("nll_long", 0) {
		if d := math.Abs(nll(got[i*v:(i+1)*v], long[i+1]) - float64(x)); !(d <= 1e-3) {
			t.Fatalf("token %d of the long passage: loss differs by %.3g", i+1, d)
		}
	}
}

func oracleLogits(t *testing.T, c *checkpoints.Checkpoint, tokens []int32) []float32 {
	t.Helper()
	var all []float32
	err := oracle.New(c, oracle.Options{}).NewSession().Forward(t.Context(), tokens, func(_ int, logits []float32) error {
		all = append(all, logits...)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func demoLogits(t *testing.T, who string, got, want []float32) {
	t.Helper()
	worst := 0.0
	for i, x := range want {
		worst = max(worst, math.Abs(float64(x-got[i])))
	}
	if len(got) != len(want) || !(worst <= 1e-3) {
		t.Errorf("%s: logits differ by %.3g", who, worst)
	}
}
