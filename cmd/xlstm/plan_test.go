package main

import (
	"testing"

	"xlstm/checkpoints"
)

func TestParseSize(t *testing.T) {
	for s, want := range map[string]int64{"8GiB": 8 << 30, "24GB": 24e9, "1.5 TiB": 3 << 39, "800MB": 8e8, " 5 B ": 5, "2KiB": 2048} {
		if got, err := parseSize(s); err != nil || got != want {
			t.Errorf("parseSize(%q) = %d, %v, expected %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "8", "GiB", "-1GB", "0GB", "NaNGB", "InfGB", "1e30GB", "8GiBs", "1 2GB"} {
		if got, err := parseSize(s); err == nil {
			t.Errorf("parseSize(%q) = %d, expected an error", s, got)
		}
	}
}

// TestPlanOf7B checks the plan against what is known of the 7B: 6,865,424,896 parameters, and states of 134.5 MB.
func TestPlanOf7B(t *testing.T) {
	c := checkpoints.Config7B()
	p, err := planMemory("7b", &c, 8<<30, 16)
	if err != nil {
		t.Fatal(err)
	}
	if p.States != 16*4*32*8*(256*512+256+1) {
		t.Errorf("16 states take %d bytes", p.States)
	}
	// Norm weights are folded away: V*D twice, and the matrices of 32 blocks.
	weights := int64(2*50304*4096 + 32*(12288*4096+16*4096+16+4096*4096+21888*4096+4096*10944))
	for _, r := range p.Recipes {
		switch r.Recipe {
		case "fp32", "fp16", "bf16":
			least := map[string]int64{"fp32": 4, "fp16": 2, "bf16": 2}[r.Recipe] * weights
			if r.Weights < least || r.Weights > least+least/100 || r.Fits {
				t.Errorf("%s takes %d bytes, expected about %d, and not to fit: %v", r.Recipe, r.Weights, least, r.Fits)
			}
		case "int4":
			if !r.Fits {
				t.Errorf("int4 takes %d bytes in all and does not fit", r.Total)
			}
		}
		if r.Total != r.Weights+p.States+p.Working {
			t.Errorf("%s: %d is not the sum of its parts", r.Recipe, r.Total)
		}
	}
}
