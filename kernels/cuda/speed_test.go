//go:build cuda

package cuda_test

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"xlstm/checkpoints"
	"xlstm/format"
	"xlstm/kernels"
	"xlstm/kernels/cuda"
)

// TestSpeed measures a synthetic 7B. XLSTM_SPEED lists what: recipes, and of prompts, long, batch or batchN, nodecode, nolib; it runs only where that is
// set, and asserts nothing. XLSTM_SPEED_MATH and XLSTM_SPEED_PIECE set options of the same names.
func TestSpeed(t *testing.T) {
	what := strings.Split(os.Getenv("XLSTM_SPEED"), ",")
	if what[0] == "" {
		t.Skip("XLSTM_SPEED is not set")
	}
	for _, recipe := range []string{"fp16", "int8", "int4"} {
		if slices.Contains(what, recipe) {
			measure(t, recipe, what)
		}
	}
}

func measure(t *testing.T, recipe string, what []string) {
	enc, err := format.ParseEncoding(recipe)
	if err != nil {
		t.Fatal(err)
	}
	before := free(t)
	cfg := checkpoints.Config7B()
	cfg.BOS, cfg.ForceBOS = -1, false
	math, err := cuda.ParsePromptMath(cmp.Or(os.Getenv("XLSTM_SPEED_MATH"), "auto"))
	if err != nil {
		t.Fatal(err)
	}
	piece, err := strconv.Atoi(cmp.Or(os.Getenv("XLSTM_SPEED_PIECE"), "0"))
	if err != nil {
		t.Fatal(err)
	}
	e, err := cuda.Synthetic(cfg, func(string) format.Encoding { return enc }, cuda.Options{NoLibrary: slices.Contains(what, "nolib"), Prompts: math, Piece: piece})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	say := func(f string, a ...any) { fmt.Printf("%s %s: %s\n", e.Name(), recipe, fmt.Sprintf(f, a...)) }
	say("weights %.2f GB, a state %.3f GB, cuBLASLt %d", float64(e.WeightBytes())/1e9, float64(e.StateBytes())/1e9, e.Library())
	s, err := e.NewState()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	logits := make([]float32, cfg.VocabSize)
	forward := func(batch ...kernels.Step) float64 {
		start := time.Now()
		if err := e.Forward(t.Context(), batch); err != nil {
			t.Fatal(err)
		}
		return time.Since(start).Seconds()
	}
	decode := func(label string) {
		forward(kernels.Step{State: s, Tokens: []int32{5}, Logits: logits})
		var times []float64
		for i := range 100 {
			times = append(times, forward(kernels.Step{State: s, Tokens: []int32{int32(i)}, Logits: logits}))
		}
		n := 0
		e.Generate(t.Context(), s, 5, 64, cuda.Sampling{TopK: 1}, func(ids []int32) bool { return true })
		start := time.Now()
		if err := e.Generate(t.Context(), s, 5, 320, cuda.Sampling{TopK: 1}, func(ids []int32) bool { n += len(ids); return true }); err != nil {
			t.Fatal(err)
		}
		took := time.Since(start).Seconds()
		say("decode %s: %.3f ms with logits on the host, %.1f tok/s greedy on the device", label, 1e3*median(times), float64(n)/took)
	}
	if !slices.Contains(what, "nodecode") {
		decode("at the start")
	}
	say("memory while decoding %.2f GB", float64(before-free(t))/1e9)
	if slices.Contains(what, "prompts") {
		for _, n := range []int{128, 512, 2048, 16384} {
			tokens := randomTokens(n, cfg.VocabSize, 3)
			var times []float64
			for range 4 {
				if err := s.Reset(); err != nil {
					t.Fatal(err)
				}
				times = append(times, forward(kernels.Step{State: s, Tokens: tokens, Logits: logits}))
			}
			say("prompt of %d: first %.1f ms, then %.1f ms, %.0f tok/s", n, 1e3*times[0], 1e3*median(times[1:]), float64(n)/median(times[1:]))
		}
		if !slices.Contains(what, "nodecode") {
			decode("after 16384")
		}
	}
	if slices.Contains(what, "long") {
		tokens := randomTokens(65536, cfg.VocabSize, 3)
		took := forward(kernels.Step{State: s, Tokens: tokens, Logits: logits})
		say("prefill of 65536: %.0f tok/s", 65536/took)
		if !slices.Contains(what, "nodecode") {
			forward(kernels.Step{State: s, Tokens: tokens[:20000]})
			decode("after 102000")
		}
	}
	if i := slices.IndexFunc(what, func(s string) bool { return strings.HasPrefix(s, "batch") }); i >= 0 {
		sizes := []int{4, 5, 6, 8, 9, 16, 64, 256}
		if n, err := strconv.Atoi(strings.TrimPrefix(what[i], "batch")); err == nil {
			sizes = []int{n}
		}
		for _, n := range sizes {
			var batch []kernels.Step
			for i := range n {
				st, err := e.NewState()
				if err != nil {
					t.Fatal(err)
				}
				defer st.Close()
				batch = append(batch, kernels.Step{State: st, Tokens: []int32{int32(i)}, Logits: make([]float32, cfg.VocabSize)})
			}
			var times []float64
			for range 12 {
				times = append(times, forward(batch...))
			}
			for i := range batch {
				batch[i].Logits = nil
			}
			var bare []float64
			for range 12 {
				bare = append(bare, forward(batch...))
			}
			bytes := float64(e.WeightBytes()) + 2*float64(n)*float64(e.StateBytes())
			say("batch of %d: %.2f ms (%.2f without logits), %.0f tok/s, %.2f TB/s of weights and states", n, 1e3*median(times[2:]), 1e3*median(bare[2:]),
				float64(n)/median(times[2:]), bytes/median(bare[2:])/1e12)
			for i := range batch {
				batch[i].State.Close()
			}
		}
	}
	say("memory at the end %.2f GB", float64(before-free(t))/1e9)
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

func free(t *testing.T) int64 {
	d, err := cuda.Devices()
	if err != nil {
		t.Fatal(err)
	}
	return d[0].Free
}
