package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/klauspost/cpuid/v2"
	"github.com/spf13/cobra"

	"xlstm/kernels"
	"xlstm/kernels/cpu"
	"xlstm/quantize"
)

// benchFlags are what bench measures.
type benchFlags struct {
	synthetic, recipe               string
	prompt, generate, repeat, batch int
	asJSON                          bool
}

func newBench(a *app) *cobra.Command {
	var b benchFlags
	var e engineFlags
	cmd := &cobra.Command{
		Use:   "bench [MODEL]",
		Short: "Measure how fast prompts are read and text is generated",
		Long: `Measure how fast prompts are read and text is generated, and beside each measurement the rate at which this machine reads
the same weights and does nothing else, before and after: generating reads every weight once a token, so that this is its
limit, and the share of it that is reached says more than a rate. Each measurement is repeated; medians count.
With --synthetic a model of a known shape and random weights, held in memory, takes the place of a file.`,
		Example: `  xlstm bench model.xlstm
  xlstm bench --synthetic 7b --recipe int8
  xlstm bench --synthetic 1b --recipe int4 --prompt 512 --generate 32 --repeat 9 --json`,
		Args:              arguments(0, 1),
		ValidArgsFunction: completeModels,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := b.check(cmd, len(args)); err != nil {
				return err
			}
			if err := e.check(cmd); err != nil {
				return err
			}
			return a.bench(cmd.Context(), append(args, "")[0], b, e)
		},
	}
	f := cmd.Flags()
	f.StringVar(&b.synthetic, "synthetic", "", "shape of a model with random weights: "+strings.Join(shapeNames(), ", "))
	f.StringVar(&b.recipe, "recipe", "int8", "recipe of the synthetic model: "+strings.Join(quantize.RecipeNames(), ", ")+" or an encoding")
	f.IntVar(&b.prompt, "prompt", 128, "tokens of the prompt; 0 leaves prompts out")
	f.IntVar(&b.generate, "generate", 16, "tokens to generate; 0 leaves generating out")
	f.IntVar(&b.repeat, "repeat", 5, "how often each measurement is made")
	f.IntVar(&b.batch, "batch", 1, "sequences that generate together")
	f.BoolVar(&b.asJSON, "json", false, "print all measurements as JSON")
	e.registerCPU(cmd)
	mustComplete(cmd, "synthetic", shapeNames())
	mustComplete(cmd, "recipe", quantize.RecipeNames())
	return cmd
}

func (b *benchFlags) check(cmd *cobra.Command, args int) error {
	if (args == 1) == (b.synthetic != "") {
		return usagef(cmd, "expected either MODEL or --synthetic SHAPE")
	}
	if args == 1 && cmd.Flags().Changed("recipe") {
		return usagef(cmd, "--recipe is for --synthetic: a file has its own")
	}
	if _, ok := shapes[b.synthetic]; b.synthetic != "" && !ok {
		return usagef(cmd, "unknown shape %q, expected %s", b.synthetic, strings.Join(shapeNames(), ", "))
	}
	if _, err := quantize.ParseRecipe(b.recipe); err != nil {
		return usagef(cmd, "%w", err)
	}
	for _, n := range []struct {
		name              string
		value, least, top int
	}{{"prompt", b.prompt, 0, 1 << 20}, {"generate", b.generate, 0, 1 << 20}, {"repeat", b.repeat, 1, 1000}, {"batch", b.batch, 1, 1024}} {
		if n.value < n.least || n.value > n.top {
			return usagef(cmd, "--%s is %d, expected %d to %d", n.name, n.value, n.least, n.top)
		}
	}
	if b.prompt == 0 && b.generate == 0 {
		return usagef(cmd, "nothing to measure: --prompt and --generate are both 0")
	}
	return nil
}

// bench measures a file, or a synthetic model.
func (a *app) bench(ctx context.Context, model string, b benchFlags, e engineFlags) (err error) {
	var w cpu.Weights
	r := benchReport{Model: model, Prompt: b.prompt, Generate: b.generate, Batch: b.batch}
	if b.synthetic != "" {
		if w, err = a.synthesize(ctx, b.synthetic, b.recipe); err != nil {
			return err
		}
		r.Model, r.Recipe = "synthetic "+b.synthetic, b.recipe
	} else {
		f, err := a.openFile(ctx, model)
		if err != nil {
			return err
		}
		defer f.Close()
		w, r.Recipe = f, f.Recipe()
	}
	engine, err := cpu.Open(w, cpu.Options{Workers: e.threads})
	if err != nil {
		return fmt.Errorf("%s: %w", r.Model, err)
	}
	defer engine.Close()
	r.CPU, r.Threads = cpuid.CPU.BrandName, threadsOf(e)
	r.StateBytes = 4 * int64(w.Config().StateFloats())
	m := &measurement{app: a, report: &r, flags: b, engine: engine, vocab: w.Config().VocabSize, weights: readPerToken(w)}
	for _, part := range m.weights {
		r.WeightBytes += int64(len(part))
	}
	if err := m.run(ctx); err != nil {
		return err
	}
	a.closeBars()
	if b.asJSON {
		return a.printJSON(&r)
	}
	a.printBench(&r)
	return nil
}

// series is one measurement's values in the order in which they were made.
type series struct {
	Median float64   `json:"median"`
	Least  float64   `json:"min"`
	Most   float64   `json:"max"`
	All    []float64 `json:"all"`
}

// benchReport is what bench prints with --json. Rates are tokens a second, of all sequences together; bandwidths bytes a second.
type benchReport struct {
	Model       string  `json:"model"`
	Recipe      string  `json:"recipe"`
	CPU         string  `json:"cpu"`
	Threads     int     `json:"threads"`
	WeightBytes int64   `json:"weight_bytes_read_per_token"`
	StateBytes  int64   `json:"state_bytes_per_sequence"` // read and written once a token
	Bandwidth   series  `json:"read_bandwidth"`
	Prompt      int     `json:"prompt_tokens"`
	PromptRate  *series `json:"prompt_rate,omitempty"`
	Generate    int     `json:"generated_tokens"`
	Batch       int     `json:"batch"`
	Rate        *series `json:"generation_rate,omitempty"`
	Weights     *series `json:"generation_weight_bandwidth,omitempty"`
	Share       *series `json:"generation_share_of_read_bandwidth,omitempty"` // the mean of those just before and after
}

func (a *app) printBench(r *benchReport) {
	a.printf("%s, %s, %d threads of %s\n", r.Model, r.Recipe, r.Threads, r.CPU)
	a.printf("%s of weights read a token, %s of state a sequence\n", size(r.WeightBytes), size(r.StateBytes))
	a.printf("%-10s %8.1f GB/s  (%.1f to %.1f)\n", "reading", r.Bandwidth.Median/1e9, r.Bandwidth.Least/1e9, r.Bandwidth.Most/1e9)
	if p := r.PromptRate; p != nil {
		a.printf("%-10s %8s tokens/s  (%s to %s), %d tokens\n", "prompt", rate(p.Median), rate(p.Least), rate(p.Most), r.Prompt)
	}
	if g := r.Rate; g != nil {
		a.printf("%-10s %8s tokens/s  (%s to %s), %d tokens", "generation", rate(g.Median), rate(g.Least), rate(g.Most), r.Generate)
		if r.Batch > 1 {
			a.printf(" of %d sequences together", r.Batch)
		}
		a.printf("; %.1f GB/s of weights, %.1f%% of reading\n", r.Weights.Median/1e9, 100*r.Share.Median)
	}
}

// rate writes tokens a second with three digits or more.
func rate(x float64) string {
	switch {
	case x < 10:
		return fmt.Sprintf("%.2f", x)
	case x < 100:
		return fmt.Sprintf("%.1f", x)
	}
	return fmt.Sprintf("%.0f", x)
}

// feedTokens feeds n tokens a sequence to every state, one step each: a prompt for many, a decode step for one.
func feedTokens(ctx context.Context, engine kernels.Engine, states []kernels.State, tokens []int32, logits []float32, vocab int) error {
	batch := make([]kernels.Step, len(states))
	for i, s := range states {
		batch[i] = kernels.Step{State: s, Tokens: tokens, Logits: logits[i*vocab : (i+1)*vocab]}
	}
	return engine.Forward(ctx, batch)
}

// newStates makes the states of n sequences.
func newStates(engine kernels.Engine, n int) ([]kernels.State, func(), error) {
	var states []kernels.State
	closeAll := func() {
		for _, s := range states {
			_ = s.Close() // memory only
		}
	}
	for range n {
		s, err := engine.NewState()
		if err != nil {
			closeAll()
			return nil, nil, errors.Join(fmt.Errorf("state %d of %d", len(states)+1, n), err)
		}
		states = append(states, s)
	}
	return states, closeAll, nil
}
