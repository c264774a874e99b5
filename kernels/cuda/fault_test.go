//go:build cuda

package cuda_test

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"xlstm/kernels"
	"xlstm/kernels/cuda"
)

// TestFault: a kernel that fails on the device, which takes the context with it as a lost device does, is an error of the pass and of
// everything after it, and nothing hangs. Each way into the device has a process of its own, since its context is gone for good.
func TestFault(t *testing.T) {
	if way := os.Getenv("XLSTM_FAULT"); way != "" {
		fault(t, way)
		return
	}
	for _, way := range []string{"decode", "prompt", "generate"} {
		t.Run(way, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, os.Args[0], "-test.run", "^TestFault$", "-test.v")
			cmd.Env = append(os.Environ(), "XLSTM_FAULT="+way)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v (%v)\n%s", err, context.Cause(ctx), out)
			}
			if !strings.Contains(string(out), "--- PASS: TestFault") {
				t.Errorf("the test did not run there:\n%s", out)
			}
			t.Logf("%s", out)
		})
	}
}

func fault(t *testing.T, way string) {
	cfg := models["odd"]
	coded, _ := randomModel(t, cfg, "fp16", 3)
	e, err := cuda.Open(coded, cuda.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s, err := e.NewState()
	if err != nil {
		t.Fatal(err)
	}
	cuda.Break(e)
	n := 1
	if way == "prompt" {
		n = 40
	}
	run := func() error {
		if way == "generate" {
			return e.Generate(t.Context(), s, 1, 4, cuda.Sampling{TopK: 1}, func([]int32) bool { return true })
		}
		return e.Forward(t.Context(), []kernels.Step{{State: s, Tokens: randomTokens(n, cfg.VocabSize, 1), Logits: make([]float32, cfg.VocabSize)}})
	}
	for i := range 2 {
		err := run()
		if err == nil {
			t.Errorf("pass %d after the fault: no error", i)
		}
		t.Logf("pass %d: %v", i, err)
	}
	for name, err := range map[string]error{"export": s.Export(make([]float32, cfg.StateFloats())), "reset": s.Reset()} {
		if err == nil {
			t.Errorf("%s of a state after the fault: no error", name)
		}
	}
	if _, err := e.NewState(); err == nil {
		t.Error("a new state after the fault: no error")
	}
	s.Close()
	t.Logf("close: %v", e.Close())
}
