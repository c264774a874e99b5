package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"xlstm/format"
	"xlstm/kernels"
	"xlstm/runtime"
	"xlstm/tokenizer"
)

// perplexityFlags say what is scored and against what.
type perplexityFlags struct {
	text, against  string
	window, limit  int
	stream, asJSON bool
}

func newPerplexity(a *app) *cobra.Command {
	var p perplexityFlags
	var e engineFlags
	var c compareFlags
	cmd := &cobra.Command{
		Use:   "perplexity MODEL... -f TEXT",
		Short: "Measure how well models predict a text, and how far they are from the original",
		Long: `Measure how well models predict a text. The text is cut into windows, each of which starts from a fresh state and the
beginning-of-text token; --stream carries the state through the whole text instead. With --against, the logits are also
compared with those of the original checkpoint, computed by a second, independent implementation: ratio of perplexities,
KL divergence, agreement of the most likely token. That one is slow: --limit scores the beginning of a text only.`,
		Example: `  xlstm perplexity model.xlstm -f wiki.test.raw
  xlstm perplexity model.xlstm -f book.txt --stream --json
  xlstm perplexity int8.xlstm int4.xlstm -f text.txt --against xLSTM-7b --limit 2048
  xlstm perplexity --compare fp16.xlstm int4.xlstm -f text.txt --against xLSTM-7b --report cost.html`,
		Args:              arguments(1, -1),
		ValidArgsFunction: completeAllModels,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := p.check(cmd); err != nil {
				return err
			}
			if err := e.check(cmd); err != nil {
				return err
			}
			if err := c.check(cmd, p.against); err != nil {
				return err
			}
			if c.wanted() {
				o := comparison{text: p.text, against: p.against, window: p.window, limit: p.limit, stream: p.stream, engine: e}
				return a.printComparison(cmd.Context(), args, o, c.report, p.asJSON)
			}
			return a.perplexity(cmd.Context(), args, p, e)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&p.text, "file", "f", "", "text to score; - is stdin")
	f.IntVar(&p.window, "window", runtime.DefaultWindow, "tokens in a window")
	f.BoolVar(&p.stream, "stream", false, "score the whole text as one sequence")
	f.IntVar(&p.limit, "limit", 0, "score only this many tokens from the text's beginning (default: all)")
	f.StringVar(&p.against, "against", "", "directory of the original checkpoint, or another converted file, to compare with")
	f.BoolVar(&p.asJSON, "json", false, "print the figures as JSON")
	c.register(cmd)
	e.register(cmd)
	return cmd
}

func (p *perplexityFlags) check(cmd *cobra.Command) error {
	switch {
	case p.text == "":
		return usagef(cmd, "expected -f TEXT")
	case p.stream && cmd.Flags().Changed("window"):
		return usagef(cmd, "--stream has no windows: leave out --window")
	case p.window < 1 || p.window > 1<<24:
		return usagef(cmd, "--window is %d, expected 1 to %d", p.window, 1<<24)
	case p.limit < 0:
		return usagef(cmd, "--limit is %d, expected 0 or more", p.limit)
	}
	return nil
}

// opened is a file with its engine.
type opened struct {
	file   *format.File
	engine kernels.Engine
}

func (a *app) openAll(ctx context.Context, names []string, e engineFlags) (all []opened, closeAll func(), err error) {
	closeAll = func() {
		for _, o := range all {
			_ = errors.Join(o.engine.Close(), o.file.Close()) // read only
		}
	}
	for _, name := range names {
		f, err := a.openFile(ctx, name)
		if err != nil {
			closeAll()
			return nil, nil, err
		}
		engine, err := a.openEngine(f, e)
		if err != nil {
			f.Close()
			closeAll()
			return nil, nil, err
		}
		all = append(all, opened{f, engine})
	}
	return all, closeAll, nil
}

func (a *app) perplexity(ctx context.Context, names []string, p perplexityFlags, e engineFlags) error {
	all, closeAll, err := a.openAll(ctx, names, e)
	if err != nil {
		return err
	}
	defer closeAll()
	text, err := a.readInput(ctx, p.text)
	if err != nil {
		return err
	}
	ids, err := sameTokens(all, string(text))
	if err != nil {
		return err
	}
	if p.limit > 0 && p.limit < len(ids) {
		ids = ids[:p.limit]
	}
	config := all[0].file.Config()
	scoring := runtime.Scoring{VocabSize: config.VocabSize, BOS: config.BOS, Window: p.window, Stream: p.stream}
	if p.against != "" {
		return a.compare(ctx, names, all, ids, scoring, p, e)
	}
	var results []namedResult
	for i, o := range all {
		bar := a.newBar("perplexity of "+oneLine(names[i]), int64(len(ids)), "tokens")
		scoring.Progress = func(done, _ int) { bar.set(int64(done)) }
		r, err := runtime.Perplexity(ctx, o.engine, ids, scoring)
		if err != nil {
			return fmt.Errorf("%s: %w", names[i], err)
		}
		a.closeBars()
		results = append(results, namedResult{names[i], r})
	}
	if p.asJSON && len(results) == 1 {
		return a.printJSON(results[0])
	} else if p.asJSON {
		return a.printJSON(results)
	}
	for _, r := range results {
		a.printf("%s: %s, %s tokens/s\n", r.Name, scoreText(r.Score, r.Run), rate(r.TokensPerSecond))
	}
	return nil
}

// namedResult is a file's perplexity as --json prints it.
type namedResult struct {
	Name string `json:"name"`
	*runtime.PerplexityResult
}

// sameTokens encodes a text with the files' tokenizer, which has to be the same for all.
func sameTokens(all []opened, text string) ([]int32, error) {
	first := all[0].file
	for _, o := range all[1:] {
		if string(o.file.Tokenizer()) != string(first.Tokenizer()) || o.file.Config().VocabSize != first.Config().VocabSize ||
			o.file.Config().BOS != first.Config().BOS {
			return nil, fmt.Errorf("%s and %s have different tokenizers: their perplexities cannot be compared", first.Path(), o.file.Path())
		}
	}
	t, err := loadTokenizer(first)
	if err != nil {
		return nil, err
	}
	return t.Encode(text, tokenizer.Options{Special: true}), nil
}

// compare scores files beside the original.
func (a *app) compare(ctx context.Context, names []string, all []opened, ids []int32, s runtime.Scoring, p perplexityFlags, e engineFlags) error {
	var ref follower
	var closeRef func() error
	var err error
	if info, serr := os.Stat(p.against); serr == nil && !info.IsDir() {
		ref, closeRef, err = a.openFollower(ctx, p.against, e)
	} else {
		ref, closeRef, err = a.openOracle(p.against, e)
	}
	if err != nil {
		return err
	}
	defer closeRef()
	var candidates []runtime.Candidate
	for i, o := range all {
		candidates = append(candidates, runtime.Candidate{Name: names[i], Engine: o.engine})
	}
	bar := a.newBar("comparing", int64(len(ids)), "tokens")
	s.Progress = func(done, _ int) { bar.set(int64(done)) }
	c, err := runtime.Compare(ctx, ref, candidates, ids, s)
	if err != nil {
		return err
	}
	a.closeBars()
	if p.asJSON {
		return a.printJSON(c)
	}
	a.printf("%s: %s\n", p.against, scoreText(c.Reference, c.Run))
	for _, f := range c.Files {
		a.printf("%s: perplexity %.4f ± %.4f, %s tokens/s\n", f.Name, f.Perplexity, f.PerplexityStdErr, rate(f.TokensPerSecond))
		a.printf("  ratio          %.6f ± %.6f\n", f.Ratio, f.RatioStdErr)
		a.printf("  KL divergence  %.3g ± %.2g nats, 99.9%% of tokens below %.3g\n", f.MeanKL, f.MeanKLStdErr, f.KL999)
		a.printf("  same top token %.3f%%\n", 100*f.TopAgreement)
		a.printf("  largest logit difference %.4g\n", f.MaxLogitDiff)
	}
	return nil
}

func scoreText(s runtime.Score, r runtime.Run) string {
	how := fmt.Sprintf("%d windows of %d", r.Sequences, r.Window)
	if r.Sequences == 1 {
		how = fmt.Sprintf("one window of %d", r.Window)
	}
	if r.Stream {
		how = "one stream"
	}
	return fmt.Sprintf("perplexity %.4f ± %.4f (%.5f nats a token), %s tokens in %s", s.Perplexity, s.PerplexityStdErr, s.NLL,
		grouped(int64(s.Tokens)), how)
}

// completeAllModels offers .xlstm files for any number of arguments.
func completeAllModels(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return []string{"xlstm"}, cobra.ShellCompDirectiveFilterFileExt
}
