// Program divergence measures how far files in fp32, fp16 and bf16 are from the checkpoints in this repository, and prints the
// table of docs/BENCHMARKS.md: go run ./scripts/divergence, in the repository's root.
//
// Fixtures are fed the token ids of their golden values, each row as a sequence of its own without a beginning-of-text token; the
// demo model is fed the beginning of testdata/books-valid.txt. The original's side is the oracle.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"xlstm/checkpoints"
	"xlstm/convert"
	"xlstm/format"
	"xlstm/internal/golden"
	"xlstm/kernels/cpu"
	"xlstm/oracle"
	"xlstm/runtime"
	"xlstm/tokenizer"
)

var recipes = []string{"fp32", "fp16", "bf16"}

func main() {
	tokens := flag.Int("tokens", 2048, "tokens of books-valid.txt that the demo model is fed")
	flag.Parse()
	if err := run(context.Background(), os.Stdout, ".", *tokens); err != nil {
		fmt.Fprintln(os.Stderr, "divergence:", err)
		os.Exit(1)
	}
}

// run prints the table of the repository at root. The demo model is left out where tokens is 0.
func run(ctx context.Context, out io.Writer, root string, tokens int) error {
	fixtures, err := filepath.Glob(filepath.Join(root, "testdata", "fixtures", "*"))
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "| checkpoint | tokens | %s |\n| --- | --- |%s\n", strings.Join(recipes, " | "), strings.Repeat(" --- |", len(recipes)))
	for _, dir := range fixtures {
		ids, window, err := fixtureTokens(dir)
		if err != nil {
			return err
		}
		if err := row(ctx, out, dir, ids, runtime.Scoring{BOS: -1, Window: window}); err != nil {
			return err
		}
	}
	if tokens == 0 {
		return nil
	}
	dir := filepath.Join(root, "checkpoints", "demo")
	ids, bos, err := demoTokens(dir, filepath.Join(root, "testdata", "books-valid.txt"), tokens)
	if err != nil {
		return err
	}
	return row(ctx, out, dir, ids, runtime.Scoring{BOS: bos, Window: runtime.DefaultWindow})
}

// fixtureTokens are a fixture's input_ids [B,T], one row after another, and T.
func fixtureTokens(dir string) (ids []int32, window int, err error) {
	want, err := golden.Read(filepath.Join(dir, "expected.safetensors"))
	if err != nil {
		return nil, 0, err
	}
	shape := want.Shape("input_ids")
	if len(shape) != 2 {
		return nil, 0, fmt.Errorf("%s: input_ids has shape %v, expected [B,T]", dir, shape)
	}
	for b := range shape[0] {
		ids = append(ids, want.Tokens("input_ids", b)...)
	}
	return ids, shape[1], nil
}

func demoTokens(dir, text string, n int) (ids []int32, bos int, err error) {
	c, err := checkpoints.Open(dir)
	if err != nil {
		return nil, 0, err
	}
	defer c.Close()
	t, err := tokenizer.FromJSON(c.Tokenizer())
	if err != nil {
		return nil, 0, err
	}
	b, err := os.ReadFile(text)
	if err != nil {
		return nil, 0, err
	}
	ids = t.Encode(string(b), tokenizer.Options{Special: true})
	return ids[:min(n, len(ids))], c.Config().BOS, nil
}

// row converts one checkpoint by every recipe and prints its line: mean KL divergence and standard error, in nats.
func row(ctx context.Context, out io.Writer, dir string, ids []int32, s runtime.Scoring) error {
	c, err := compare(ctx, dir, ids, s)
	if err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	fmt.Fprintf(out, "| %s | %d |", filepath.Base(dir), c.Reference.Tokens)
	for _, f := range c.Files {
		fmt.Fprintf(out, " %.2e ± %.1e |", f.MeanKL, f.MeanKLStdErr)
	}
	fmt.Fprintln(out)
	return nil
}

// compare converts one checkpoint by every recipe and compares the files with it.
func compare(ctx context.Context, dir string, ids []int32, s runtime.Scoring) (*runtime.Comparison, error) {
	checkpoint, err := checkpoints.Open(dir)
	if err != nil {
		return nil, err
	}
	defer checkpoint.Close()
	s.VocabSize = checkpoint.Config().VocabSize
	temporary, err := os.MkdirTemp("", "divergence")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(temporary)
	var candidates []runtime.Candidate
	for _, recipe := range recipes {
		path := filepath.Join(temporary, recipe)
		if err := convert.Convert(ctx, checkpoint, path, convert.Options{Recipe: recipe, SkipHashes: true}); err != nil {
			return nil, err
		}
		f, err := format.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		engine, err := cpu.Open(f, cpu.Options{})
		if err != nil {
			return nil, err
		}
		defer engine.Close()
		candidates = append(candidates, runtime.Candidate{Name: recipe, Engine: engine})
	}
	return runtime.Compare(ctx, oracle.New(checkpoint, oracle.Options{}).NewSession(), candidates, ids, s)
}
