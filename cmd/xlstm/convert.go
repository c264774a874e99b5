package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"xlstm/checkpoints"
	"xlstm/convert"
	"xlstm/format"
	"xlstm/quantize"
	"xlstm/tokenizer"
)

// convertFlags say what is converted into what.
type convertFlags struct {
	out, recipe, synthetic string
	tokenizer              string // of another place than the checkpoint's
	tensors                []string
	noHashes               bool
	threads                int
}

func newConvert(a *app) *cobra.Command {
	var c convertFlags
	cmd := &cobra.Command{
		Use:   "convert CHECKPOINT_DIR|demo",
		Short: "Convert a checkpoint into one file",
		Long: `Convert a checkpoint, as it was downloaded, into one file that holds all that running needs: config, weights in the layout
that is computed with, tokenizer. Weights stream through: memory does not depend on the model's size. The file appears whole or
not at all.
Recipes: fp32, fp16, bf16, int8, int4, or an encoding such as int4g32; --tensor gives single tensors another encoding.`,
		Example: `  xlstm convert xLSTM-7b -o 7b.xlstm --recipe fp16
  xlstm convert xLSTM-7b -o 7b-int8.xlstm --recipe int8 --tensor 'head=fp16'
  xlstm convert original -o 7b.xlstm --tokenizer tokenizer.json       a checkpoint that came without one
  xlstm convert --synthetic 7b -o 7b-random.xlstm --recipe fp16       random weights, to try a machine`,
		Args:              arguments(0, 1),
		ValidArgsFunction: completeDirs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.check(cmd, len(args)); err != nil {
				return err
			}
			return a.convert(cmd.Context(), append(args, "")[0], c)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&c.out, "output", "o", "", "file to write")
	f.StringVar(&c.recipe, "recipe", "fp16", "encodings of the tensors: "+strings.Join(quantize.RecipeNames(), ", ")+" or an encoding")
	f.StringArrayVar(&c.tensors, "tensor", nil, "'pattern=encoding' for tensors by name; can be given more than once, the last that matches counts")
	f.StringVar(&c.synthetic, "synthetic", "", "convert a model of this shape with random weights: "+strings.Join(shapeNames(), ", "))
	f.StringVar(&c.tokenizer, "tokenizer", "", "tokenizer.json to use in place of the checkpoint's")
	f.BoolVar(&c.noHashes, "no-hashes", false, "do not note the SHA-256 of the checkpoint's files: saves reading them once more")
	f.IntVar(&c.threads, "threads", 0, "threads that convert (default: one a core)")
	mustComplete(cmd, "recipe", quantize.RecipeNames())
	mustComplete(cmd, "synthetic", shapeNames())
	return cmd
}

func (c *convertFlags) check(cmd *cobra.Command, args int) error {
	if (args == 1) == (c.synthetic != "") {
		return usagef(cmd, "expected either CHECKPOINT_DIR or --synthetic SHAPE")
	}
	if _, ok := shapes[c.synthetic]; c.synthetic != "" && !ok {
		return usagef(cmd, "unknown shape %q, expected %s", c.synthetic, strings.Join(shapeNames(), ", "))
	}
	if c.out == "" || c.out == "-" {
		return usagef(cmd, "expected -o and the name of a file")
	}
	if c.threads < 0 || c.threads > 4096 {
		return usagef(cmd, "--threads is %d, expected 1 to 4096", c.threads)
	}
	recipe, err := quantize.ParseRecipe(c.recipe)
	if err != nil {
		return usagef(cmd, "%w", err)
	}
	for _, t := range c.tensors {
		if err := recipe.Override(t); err != nil {
			return usagef(cmd, "--tensor: %w", err)
		}
	}
	return nil
}

// openCheckpoint opens a checkpoint's directory, or the one inside the program.
func openCheckpoint(name string) (*checkpoints.Checkpoint, error) {
	if isDemo(name) {
		return demoCheckpoint()
	}
	if info, err := os.Stat(name); err == nil && !info.IsDir() {
		return nil, fmt.Errorf("%s: is a file, expected the directory of a checkpoint", name)
	}
	return checkpoints.Open(name)
}

func (a *app) convert(ctx context.Context, name string, c convertFlags) error {
	var src *checkpoints.Checkpoint
	var err error
	if c.synthetic != "" {
		src = checkpoints.Synthetic(shapes[c.synthetic](), 1)
	} else if src, err = openCheckpoint(name); err != nil {
		return err
	}
	defer src.Close()
	notes, err := a.useTokenizer(ctx, src, c.tokenizer)
	if err != nil {
		return err
	}
	start := time.Now()
	err = convert.Convert(ctx, src, c.out, convert.Options{Recipe: c.recipe, Overrides: c.tensors, SkipHashes: c.noHashes, Notes: notes,
		Program: "xlstm " + version(), Workers: c.threads, Progress: a.lateBar("converting", bytesUnit)})
	if err != nil {
		return err
	}
	a.closeBars()
	f, err := format.Open(c.out)
	if err != nil {
		return err
	}
	defer f.Close()
	d, err := describe(f)
	if err != nil {
		return err
	}
	seconds := time.Since(start).Seconds()
	a.printf("%s: %s weights in %s, %.3f bits a weight, %.1f s (%s of float32 a second)\n", c.out, grouped(d.Weights), size(d.Size), d.Bits,
		seconds, size(int64(4*float64(d.Weights)/seconds)))
	return nil
}

// useTokenizer gives the checkpoint the tokenizer of a file, if one is named, and says which it was for the provenance.
func (a *app) useTokenizer(ctx context.Context, c *checkpoints.Checkpoint, name string) (notes map[string]string, err error) {
	if name == "" {
		return nil, nil
	}
	definition, err := a.readInput(ctx, name)
	if err != nil {
		return nil, err
	}
	if _, err := tokenizer.FromJSON(definition); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	c.UseTokenizer(definition)
	sum := sha256.Sum256(definition)
	return map[string]string{"tokenizer": "sha256:" + hex.EncodeToString(sum[:])}, nil
}
