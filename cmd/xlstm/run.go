package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"xlstm/format"
	"xlstm/kernels"
	"xlstm/runtime"
)

// runFlags say what is generated and how.
type runFlags struct {
	prompt, file         string
	hasPrompt            bool
	tokens               int
	special, ignoreEnd   bool
	echo, asJSON, quiet  bool
	saveState, loadState string
	stop                 []string
	sampling             runtime.Sampling
}

func newRun(a *app) *cobra.Command {
	var r runFlags
	var e engineFlags
	cmd := &cobra.Command{
		Use:   "run MODEL|demo",
		Short: "Generate text that continues a prompt",
		Long: `Generate text that continues a prompt, given by -p, -f or stdin. The text goes to stdout as it is generated, statistics to
stderr. MODEL is a converted file; demo is the small model inside the program.
Prompts are plain text: unless --special is given, <|endoftext|> in a prompt is these letters and not the end of a text. The
same seed gives the same text on the same machine, whatever the number of threads.
A saved state holds all that the model remembers of a text, in a size that does not depend on its length.`,
		Example: `  xlstm run demo -p "It was a dark and"
  xlstm run 7b.xlstm -p "The capital of France is" -n 32 --temperature 0
  xlstm run 7b.xlstm -f long.txt -n 0 --save-state long.state       read a long prompt once
  xlstm run 7b.xlstm --load-state long.state -p " In short," -n 200  go on from it`,
		Args:              arguments(1, 1),
		ValidArgsFunction: completeModels,
		RunE: func(cmd *cobra.Command, args []string) error {
			r.hasPrompt = cmd.Flags().Changed("prompt")
			if !cmd.Flags().Changed("seed") {
				r.sampling.Seed = uint64(rand.Uint32())
			}
			if err := r.check(cmd); err != nil {
				return err
			}
			if err := e.check(cmd); err != nil {
				return err
			}
			return a.generate(cmd.Context(), args[0], r, e)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&r.prompt, "prompt", "p", "", "text to continue")
	f.StringVarP(&r.file, "file", "f", "", "file with the text to continue; - is stdin")
	f.IntVarP(&r.tokens, "tokens", "n", 256, "tokens to generate at most; 0 only reads the prompt, -1 goes on to the end of the text")
	f.Float64VarP(&r.sampling.Temperature, "temperature", "t", 0.8, "0 takes the likeliest token, 1 samples as the model predicts")
	f.IntVar(&r.sampling.TopK, "top-k", 40, "sample from the k likeliest tokens; 0 is all")
	f.Float64Var(&r.sampling.TopP, "top-p", 0.95, "sample from the likeliest tokens that make up p of the probability; 1 is all")
	f.Float64Var(&r.sampling.MinP, "min-p", 0, "sample from tokens at least p times as likely as the likeliest; 0 is all")
	f.Float64Var(&r.sampling.RepetitionPenalty, "repetition-penalty", 1, "make tokens that were there less likely; 1 does nothing")
	f.IntVar(&r.sampling.RepetitionWindow, "repetition-window", 0, "last tokens that the penalty looks at; 0 is all")
	f.Uint64Var(&r.sampling.Seed, "seed", 0, "of the random numbers (default: another one each time)")
	f.StringArrayVar(&r.stop, "stop", nil, "end before this text; can be given more than once")
	f.BoolVar(&r.ignoreEnd, "ignore-end", false, "go on after the end of a text")
	f.BoolVar(&r.special, "special", false, "let texts of special tokens in the prompt be those tokens")
	f.BoolVar(&r.echo, "echo", false, "print the prompt before the text")
	f.StringVar(&r.saveState, "save-state", "", "file to write the state to, after the last token")
	f.StringVar(&r.loadState, "load-state", "", "file with the state to go on from")
	f.BoolVar(&r.asJSON, "json", false, "print text, tokens and statistics as JSON when all is done")
	f.BoolVarP(&r.quiet, "quiet", "q", false, "print no statistics")
	e.register(cmd)
	return cmd
}

func (r *runFlags) check(cmd *cobra.Command) error {
	switch {
	case r.hasPrompt && r.file != "":
		return usagef(cmd, "-p and -f both give a prompt")
	case r.tokens < -1:
		return usagef(cmd, "--tokens is %d, expected -1 or more", r.tokens)
	case r.echo && r.asJSON:
		return usagef(cmd, "--echo is for text, and --json has the prompt")
	}
	for _, s := range r.stop {
		if s == "" {
			return usagef(cmd, "--stop is empty")
		}
	}
	if err := r.sampling.Validate(); err != nil {
		return usagef(cmd, "%w", err)
	}
	return nil
}

// promptText is the prompt: of -p, of -f, or of stdin where neither is given and stdin is not a terminal.
func (a *app) promptText(ctx context.Context, r *runFlags) (string, error) {
	name := r.file
	if name == "" {
		if f, ok := a.in.(*os.File); r.hasPrompt || r.loadState != "" || ok && term.IsTerminal(int(f.Fd())) {
			return r.prompt, nil
		}
		name = "-"
	}
	b, err := a.readInput(ctx, name)
	return string(b), err
}

// openModel opens what run runs.
func (a *app) openModel(ctx context.Context, name string, e engineFlags) (*runtime.Model, error) {
	if isDemo(name) {
		path, remove, err := demoFile(ctx)
		if err != nil {
			return nil, err
		}
		defer remove()
		name = path
	} else if err := notDir(name); err != nil {
		return nil, err
	}
	return runtime.Open(name, func(f *format.File) (kernels.Engine, error) { return a.openEngine(f, e) })
}

// generation is what run did, and what --json prints.
type generation struct {
	Prompt        string         `json:"prompt"`
	PromptTokens  int            `json:"prompt_tokens"`
	PromptSeconds float64        `json:"prompt_seconds"` // to the first token
	Text          string         `json:"text"`
	Tokens        []int32        `json:"tokens"`
	Seconds       float64        `json:"seconds"` // from the first token on
	Rate          float64        `json:"tokens_per_second"`
	Finish        runtime.Finish `json:"finish"` // "" where only the prompt was read
	Seed          *uint64        `json:"seed"`   // null where nothing was drawn
}

func (a *app) generate(ctx context.Context, name string, r runFlags, e engineFlags) error {
	if r.saveState != "" { // better found out before the text than after it
		if dir := filepath.Dir(r.saveState); !isDir(dir) {
			return fmt.Errorf("--save-state %s: there is no directory %s", r.saveState, dir)
		}
		if info, err := os.Stat(r.saveState); err == nil && !info.Mode().IsRegular() {
			return fmt.Errorf("--save-state %s: it exists and is no regular file", r.saveState)
		}
	}
	m, err := a.openModel(ctx, name, e)
	if err != nil {
		return err
	}
	defer m.Close()
	state, err := a.startState(m, r.loadState)
	if err != nil {
		return err
	}
	defer state.Close()
	text, err := a.promptText(ctx, &r)
	if err != nil {
		return err
	}
	prompt, err := m.Prompt(state, text, r.special)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	g := &generation{Prompt: text, PromptTokens: len(prompt), Tokens: []int32{}}
	if r.sampling.Temperature > 0 && r.tokens != 0 {
		g.Seed = &r.sampling.Seed
	}
	if r.echo {
		a.say(text)
	}
	if r.tokens == 0 {
		err = a.onlyPrompt(ctx, m, state, prompt, g)
	} else {
		err = a.stream(ctx, m, state, prompt, r, g)
	}
	if err != nil {
		return err
	}
	if r.saveState != "" {
		if err := state.Save(r.saveState); err != nil {
			return err
		}
	}
	if r.asJSON {
		return a.printJSON(g)
	}
	if !r.quiet {
		a.logf("%s", g.statistics())
	}
	return nil
}

func (a *app) startState(m *runtime.Model, file string) (*runtime.State, error) {
	if file != "" {
		return m.LoadState(file)
	}
	return m.NewState()
}

// promptBar shows the reading of a prompt long enough to be waited for.
func (a *app) promptBar(n int) func(done, total int) {
	if n < 256 {
		return nil
	}
	bar := a.newBar("reading the prompt", int64(n), "tokens")
	return func(done, _ int) { bar.set(int64(done)) }
}

// onlyPrompt reads the prompt and generates nothing.
func (a *app) onlyPrompt(ctx context.Context, m *runtime.Model, s *runtime.State, prompt []int32, g *generation) error {
	start := time.Now()
	err := m.Feed(ctx, s, prompt, a.promptBar(len(prompt)))
	g.PromptSeconds = time.Since(start).Seconds()
	a.closeBars()
	return err
}

// stream generates and prints the text as it comes.
func (a *app) stream(ctx context.Context, m *runtime.Model, s *runtime.State, prompt []int32, r runFlags, g *generation) error {
	request := runtime.Request{Prompt: prompt, MaxTokens: max(r.tokens, 0), Stop: r.stop, IgnoreEnd: r.ignoreEnd, Sampling: r.sampling,
		Progress: a.promptBar(len(prompt))}
	var text strings.Builder
	start := time.Now()
	first := start
	var err error
	for piece, perr := range m.Generate(ctx, s, request) {
		if err = perr; err != nil {
			break
		}
		if len(g.Tokens) == 0 {
			first = time.Now()
			a.closeBars()
		}
		g.Tokens = append(g.Tokens, piece.Token)
		text.WriteString(piece.Text)
		g.Finish = piece.Finish
		if r.asJSON {
			continue
		}
		if err = a.say(piece.Text); err != nil {
			break
		}
	}
	g.Text = text.String()
	g.PromptSeconds = first.Sub(start).Seconds()
	if g.Seconds = time.Since(first).Seconds(); len(g.Tokens) > 1 {
		g.Rate = float64(len(g.Tokens)-1) / g.Seconds // the first came with the prompt
	}
	if r.asJSON || strings.HasSuffix(g.Text, "\n") || g.Text == "" && err != nil {
		return err
	}
	if end := a.say("\n"); err == nil {
		err = end
	}
	return err
}

// say prints text at once. A terminal gets no control characters, which a model may well generate.
func (a *app) say(text string) error {
	if f, ok := a.out.w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		text = strings.Map(func(r rune) rune {
			if r < ' ' && r != '\n' && r != '\t' || r >= 0x7f && r < 0xa0 {
				return '\uFFFD'
			}
			return r
		}, text)
	}
	a.printf("%s", text)
	return a.out.Flush()
}

func (g *generation) statistics() string {
	s := fmt.Sprintf("prompt: %d tokens in %.2f s", g.PromptTokens, g.PromptSeconds)
	if g.Finish == "" {
		return s
	}
	s += fmt.Sprintf("; text: %d tokens", len(g.Tokens))
	if g.Rate > 0 {
		s += fmt.Sprintf(", %s tokens/s", rate(g.Rate))
	}
	s += map[runtime.Finish]string{runtime.FinishEnd: ", to its end", runtime.FinishStop: ", to a stop text", runtime.FinishLength: ""}[g.Finish]
	if g.Seed != nil {
		s += fmt.Sprintf("; seed %d", *g.Seed)
	}
	return s
}
