package main

import (
	"strings"
	"testing"

	"xlstm/runtime"
)

// TestCompare holds the order of the recipes' divergences, and their scale: half a unit of fp16's last place is an eighth of bf16's,
// and a divergence goes with the square.
func TestCompare(t *testing.T) {
	const dir = "../../testdata/fixtures/tiny-bias"
	ids, window, err := fixtureTokens(dir)
	if err != nil {
		t.Fatal(err)
	}
	c, err := compare(t.Context(), dir, ids[:window], runtime.Scoring{BOS: -1, Window: window})
	if err != nil {
		t.Fatal(err)
	}
	if c.Reference.Tokens != window-1 || len(c.Files) != len(recipes) {
		t.Fatalf("%d tokens and %d files, expected %d and %d", c.Reference.Tokens, len(c.Files), window-1, len(recipes))
	}
	fp32, fp16, bf16 := c.Files[0].MeanKL, c.Files[1].MeanKL, c.Files[2].MeanKL
	if fp32 > 1e-9 || fp16 < 10*fp32 || bf16 < 10*fp16 || bf16 > 1e-2 {
		t.Errorf("mean KL of fp32 %.2e, fp16 %.2e, bf16 %.2e", fp32, fp16, bf16)
	}
}

func TestRowNamesTheCheckpoint(t *testing.T) {
	if err := row(t.Context(), &strings.Builder{}, t.TempDir(), []int32{1, 2}, runtime.Scoring{BOS: -1, Window: 2}); err == nil || !strings.Contains(err.Error(), "config.json") {
		t.Errorf("an empty directory: %v", err)
	}
}
