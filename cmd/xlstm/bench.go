package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/klauspost/cpuid/v2"
	"github.com/spf13/cobra"

	"xlstm/format"
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
limit, and the share of it that is reached says more than a rate. On a GPU the rate is that at which it copies its own memory.
Each measurement is repeated; medians count.
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
	e.register(cmd)
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
func (a *app) bench(ctx context.Context, model string, b benchFlags, e engineFlags) error {
	r := benchReport{Model: model, Prompt: b.prompt, Generate: b.generate, Batch: b.batch}
	m := &measurement{app: a, report: &r, flags: b}
	var f *format.File
	var err error
	if b.synthetic != "" {
		recipe, err := quantize.ParseRecipe(b.recipe)
		if err != nil {
			return err
		}
		r.Model, r.Recipe = "synthetic "+b.synthetic, b.recipe
		c := shapes[b.synthetic]()
		m.describe(&c, format.Specs(&c, recipe.Encoding))
	} else {
		if f, err = a.openFile(ctx, model); err != nil {
			return err
		}
		defer f.Close()
		r.Recipe = f.Recipe()
		m.describe(f.Config(), tensorSpecs(f))
	}
	if gpuWanted(e.where) {
		err = a.benchGPU(m, f, e)
	} else {
		err = a.benchCPU(ctx, m, f, e)
	}
	if err != nil {
		return err
	}
	defer m.engine.Close()
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

// tensorSpecs are the tensors of a file without their values.
func tensorSpecs(f *format.File) (specs []format.TensorSpec) {
	for _, t := range f.Tensors() {
		specs = append(specs, format.TensorSpec{Name: t.Name, Encoding: t.Encoding, Rows: t.Rows, Cols: t.Cols})
	}
	return specs
}

// benchCPU makes the CPU's engine of f, or of a synthetic model where f is nil.
func (a *app) benchCPU(ctx context.Context, m *measurement, f *format.File, e engineFlags) error {
	var w cpu.Weights = f
	if f == nil {
		synthetic, err := a.synthesize(ctx, m.flags.synthetic, m.flags.recipe)
		if err != nil {
			return err
		}
		w = synthetic
	}
	engine, err := cpu.Open(w, cpu.Options{Workers: e.threads})
	if err != nil {
		return fmt.Errorf("%s: %w", m.report.Model, err)
	}
	m.report.Device, m.report.Threads = cpuid.CPU.BrandName, threadsOf(e)
	m.report.Limit = "reading"
	m.engine, m.weights, m.bandwidth = engine, readPerToken(w), m.readRate
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
	Device      string  `json:"device"`
	Threads     int     `json:"threads,omitempty"` // of a CPU
	Limit       string  `json:"limit"`             // what the bandwidth is of: reading the weights, or copying on a GPU
	WeightBytes int64   `json:"weight_bytes_read_per_token"`
	StateBytes  int64   `json:"state_bytes_per_sequence"` // read and written once a token
	Bandwidth   series  `json:"bandwidth"`
	Prompt      int     `json:"prompt_tokens"`
	PromptRate  *series `json:"prompt_rate,omitempty"`
	Generate    int     `json:"generated_tokens"`
	Batch       int     `json:"batch"`
	Rate        *series `json:"generation_rate,omitempty"`
	Weights     *series `json:"generation_weight_bandwidth,omitempty"`
	Share       *series `json:"generation_share_of_bandwidth,omitempty"` // the mean of those just before and after
}

func (a *app) printBench(r *benchReport) {
	device := r.Device
	if r.Threads > 0 {
		device = fmt.Sprintf("%d threads of %s", r.Threads, device)
	}
	a.printf("%s, %s, %s\n", r.Model, r.Recipe, device)
	a.printf("%s of weights read a token, %s of state a sequence\n", size(r.WeightBytes), size(r.StateBytes))
	a.printf("%-10s %8.1f GB/s  (%.1f to %.1f)\n", r.Limit, r.Bandwidth.Median/1e9, r.Bandwidth.Least/1e9, r.Bandwidth.Most/1e9)
	if p := r.PromptRate; p != nil {
		a.printf("%-10s %8s tokens/s  (%s to %s), %d tokens\n", "prompt", rate(p.Median), rate(p.Least), rate(p.Most), r.Prompt)
	}
	if g := r.Rate; g != nil {
		a.printf("%-10s %8s tokens/s  (%s to %s), %d tokens", "generation", rate(g.Median), rate(g.Least), rate(g.Most), r.Generate)
		if r.Batch > 1 {
			a.printf(" of %d sequences together", r.Batch)
		}
		a.printf("; %.1f GB/s of weights, %.1f%% of %s\n", r.Weights.Median/1e9, 100*r.Share.Median, r.Limit)
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
