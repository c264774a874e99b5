package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	goruntime "runtime"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"xlstm/checkpoints"
	"xlstm/format"
	"xlstm/kernels/cpu"
	"xlstm/quantize"
)

func newPlan(a *app) *cobra.Command {
	var memory string
	var sequences int
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "plan CHECKPOINT|MODEL|7b --memory SIZE",
		Short: "Say which recipe fits into a machine's memory",
		Long: `Say which recipe fits into a given memory: weights, the states of the sequences that run at the same time, and working
memory, each computed from the model's config as the engine computes it. The model is a checkpoint's directory, a converted file
or the name of a known shape. Exit status 1 if nothing fits.`,
		Example: `  xlstm plan xLSTM-7b --memory 8GiB
  xlstm plan xLSTM-7b --memory 16GB --sequences 16
  xlstm plan 7b --memory 6GiB --json`,
		Args:              arguments(1, 1),
		ValidArgsFunction: completeModels,
		RunE: func(cmd *cobra.Command, args []string) error {
			if memory == "" {
				return usagef(cmd, "expected --memory SIZE, such as 8GiB")
			}
			budget, err := parseSize(memory)
			if err != nil {
				return usagef(cmd, "--memory: %w", err)
			}
			if sequences < 1 || sequences > 1<<20 {
				return usagef(cmd, "--sequences is %d, expected 1 to %d", sequences, 1<<20)
			}
			return a.plan(cmd.Context(), args[0], budget, sequences, asJSON)
		},
	}
	cmd.Flags().StringVar(&memory, "memory", "", "memory that there is, such as 8GiB or 24GB")
	cmd.Flags().IntVar(&sequences, "sequences", 1, "sequences that run at the same time, each with a state of its own")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the plan as JSON")
	return cmd
}

// memoryPlan is what running a model takes by each recipe, in bytes.
type memoryPlan struct {
	Model     string      `json:"model"`
	Memory    int64       `json:"memory_bytes"`
	Sequences int         `json:"sequences"`
	States    int64       `json:"states_bytes"` // of all sequences
	Working   int64       `json:"working_bytes"`
	Recipes   []recipeFit `json:"recipes"`
}

type recipeFit struct {
	Recipe  string  `json:"recipe"`
	Weights int64   `json:"weights_bytes"`
	Bits    float64 `json:"bits_per_weight"`
	Total   int64   `json:"total_bytes"`
	Fits    bool    `json:"fits"`
}

func (a *app) plan(ctx context.Context, name string, budget int64, sequences int, asJSON bool) error {
	config, err := a.configOf(ctx, name)
	if err != nil {
		return err
	}
	p, err := planMemory(name, config, budget, sequences)
	if err != nil {
		return err
	}
	if asJSON {
		err = a.printJSON(p)
	} else {
		a.printPlan(p)
	}
	if err != nil {
		return err
	}
	for _, r := range p.Recipes {
		if r.Fits {
			return nil
		}
	}
	least := p.Recipes[len(p.Recipes)-1]
	return fmt.Errorf("%s: no recipe fits into %s; the smallest, %s, needs %s", name, size(budget), least.Recipe, size(least.Total))
}

// configOf is the config of a checkpoint, a file or a known shape.
func (a *app) configOf(ctx context.Context, name string) (*format.Config, error) {
	info, err := os.Stat(name)
	if shape, ok := shapes[name]; ok && errors.Is(err, os.ErrNotExist) {
		c := shape()
		return &c, nil
	}
	if err == nil && info.IsDir() {
		c, err := checkpoints.Open(name)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		config := *c.Config()
		return &config, nil
	}
	f, err := a.openFile(ctx, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	config := *f.Config()
	return &config, nil
}

// planMemory adds up what each recipe takes, from the largest to the smallest.
func planMemory(name string, c *format.Config, budget int64, sequences int) (*memoryPlan, error) {
	p := &memoryPlan{Model: name, Memory: budget, Sequences: sequences,
		States: int64(sequences) * 4 * int64(c.StateFloats()), Working: cpu.WorkingMemory(c, 0, goruntime.GOMAXPROCS(0))}
	for _, recipe := range quantize.RecipeNames() {
		r, err := quantize.ParseRecipe(recipe)
		if err != nil {
			return nil, err
		}
		fit := recipeFit{Recipe: recipe}
		weights := int64(0)
		for _, s := range format.Specs(c, r.Encoding) {
			fit.Weights += s.Size()
			weights += int64(s.Rows) * int64(s.Cols)
		}
		fit.Bits = 8 * float64(fit.Weights) / float64(weights)
		fit.Total = fit.Weights + p.States + p.Working
		fit.Fits = fit.Total <= budget
		p.Recipes = append(p.Recipes, fit)
	}
	return p, nil
}

func (a *app) printPlan(p *memoryPlan) {
	each := p.States / int64(p.Sequences)
	together := fmt.Sprintf("%d sequences", p.Sequences)
	if p.Sequences == 1 {
		together = "one sequence"
	}
	a.printf("%s in %s, %s at a time, on the CPU\n\n", p.Model, size(p.Memory), together)
	w := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
	fmt.Fprintf(w, "states\t%s\t(%s a sequence, whatever its length)\n", size(p.States), size(each))
	fmt.Fprintf(w, "working memory\t%s\t\n", size(p.Working))
	w.Flush()
	a.printf("\n")
	fmt.Fprint(w, "recipe\tbits a weight\tweights\tin all\tfits\n")
	for _, r := range p.Recipes {
		verdict := "yes, " + size(p.Memory-r.Total) + " to spare"
		if !r.Fits {
			verdict = "no, " + size(r.Total-p.Memory) + " too much"
		}
		fmt.Fprintf(w, "%s\t%.3f\t%s\t%s\t%s\n", r.Recipe, r.Bits, size(r.Weights), size(r.Total), verdict)
	}
	w.Flush()
}

// sizeUnits are the units that parseSize takes, longest first where one ends another.
var sizeUnits = []struct {
	suffix string
	bytes  float64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"B", 1},
}

// parseSize reads a size in bytes with a unit: 8GiB, 1.5 TB, 800MB.
func parseSize(s string) (int64, error) {
	for _, u := range sizeUnits {
		number, ok := strings.CutSuffix(strings.TrimSpace(s), u.suffix)
		if !ok {
			continue
		}
		x, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
		if err != nil || !(x > 0) || x*u.bytes >= math.MaxInt64/2 {
			break
		}
		return int64(x * u.bytes), nil
	}
	return 0, fmt.Errorf("%q, expected a size with its unit, such as 8GiB or 24GB", s)
}
