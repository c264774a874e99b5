package main

import (
	"context"
	"encoding/hex"
	"fmt"
	goruntime "runtime"
	"sort"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"xlstm/format"
	"xlstm/kernels/cpu"
	"xlstm/tokenizer"
)

func newInspect(a *app) *cobra.Command {
	var asJSON, all bool
	cmd := &cobra.Command{
		Use:   "inspect MODEL",
		Short: "Show what a converted file holds and what running it needs",
		Long: `Show what a converted file holds: config, tensors and their encodings, bits a weight, where it came from; and what running
it needs: weights, the state of each sequence, working memory. Reads no weights; xlstm verify does.`,
		Example: `  xlstm inspect model.xlstm
  xlstm inspect model.xlstm --tensors
  xlstm inspect model.xlstm --json`,
		Args:              arguments(1, 1),
		ValidArgsFunction: completeModels,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.inspect(cmd.Context(), args[0], asJSON, all)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print everything as JSON")
	cmd.Flags().BoolVar(&all, "tensors", false, "list every tensor, not only the kinds that there are")
	return cmd
}

// description is everything that inspect shows; its JSON form is what --json prints.
type description struct {
	File        string                `json:"file"`
	Size        int64                 `json:"size"`
	Fingerprint string                `json:"fingerprint"`
	Config      *format.Config        `json:"config"`
	Recipe      string                `json:"recipe"`
	Provenance  format.Provenance     `json:"provenance"`
	Tokenizer   *tokenizerDescription `json:"tokenizer"` // null where the file has none
	Weights     int64                 `json:"weights"`
	Bits        float64               `json:"bits_per_weight"`
	Kinds       []*tensorKind         `json:"kinds"`
	Tensors     []tensorDescription   `json:"tensors"`
	Needs       needs                 `json:"needs"`
}

type tokenizerDescription struct {
	Tokens    int   `json:"tokens"`
	EndOfText int32 `json:"end_of_text"` // -1 where it has none
}

// tensorKind sums up the tensors of one name (without the block's) and encoding.
type tensorKind struct {
	Name     string  `json:"name"`
	Encoding string  `json:"encoding"`
	Rows     int     `json:"rows"`
	Cols     int     `json:"cols"`
	Count    int     `json:"count"`
	Weights  int64   `json:"weights"`
	Bytes    int64   `json:"bytes"`
	Bits     float64 `json:"bits_per_weight"`
}

type tensorDescription struct {
	Name     string `json:"name"`
	Encoding string `json:"encoding"`
	Rows     int    `json:"rows"`
	Cols     int    `json:"cols"`
	Bytes    int64  `json:"bytes"`
	SHA256   string `json:"sha256"`
}

// needs is the memory that running takes, in bytes.
type needs struct {
	Weights int64 `json:"weights_bytes"`
	State   int64 `json:"state_bytes"` // a sequence
	Working int64 `json:"working_bytes"`
}

func (a *app) inspect(ctx context.Context, name string, asJSON, all bool) error {
	f, err := a.openFile(ctx, name)
	if err != nil {
		return err
	}
	defer f.Close()
	d, err := describe(f)
	if err != nil {
		return err
	}
	d.File = name
	if asJSON {
		return a.printJSON(d)
	}
	a.printDescription(d, all)
	return nil
}

func describe(f *format.File) (*description, error) {
	c, sum := f.Config(), f.Fingerprint()
	d := &description{File: f.Path(), Size: f.Size(), Fingerprint: hex.EncodeToString(sum[:]), Config: c, Recipe: f.Recipe(),
		Provenance: f.Provenance()}
	if b := f.Tokenizer(); len(b) > 0 {
		t, err := tokenizer.Load(b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Path(), err)
		}
		d.Tokenizer = &tokenizerDescription{t.VocabSize(), t.EndOfText()}
	}
	kinds := map[string]*tensorKind{}
	for _, t := range f.Tensors() {
		weights, stored := int64(t.Rows)*int64(t.Cols), int64(len(t.Data))
		d.Weights += weights
		d.Needs.Weights += stored
		d.Tensors = append(d.Tensors, tensorDescription{t.Name, t.Encoding.String(), t.Rows, t.Cols, stored, hex.EncodeToString(t.SHA256[:])})
		k := kinds[kindOf(t.Name)+" "+t.Encoding.String()]
		if k == nil {
			k = &tensorKind{Name: kindOf(t.Name), Encoding: t.Encoding.String(), Rows: t.Rows, Cols: t.Cols}
			kinds[k.Name+" "+k.Encoding] = k
			d.Kinds = append(d.Kinds, k)
		}
		k.Count++
		k.Weights += weights
		k.Bytes += stored
		k.Bits = 8 * float64(k.Bytes) / float64(k.Weights)
	}
	d.Bits = 8 * float64(d.Needs.Weights) / float64(d.Weights)
	d.Needs.State = 4 * int64(c.StateFloats())
	d.Needs.Working = cpu.WorkingMemory(c, 0, goruntime.GOMAXPROCS(0))
	return d, nil
}

// kindOf is a tensor's name without its block's number.
func kindOf(name string) string {
	if rest, ok := strings.CutPrefix(name, "blocks."); ok {
		if _, kind, ok := strings.Cut(rest, "."); ok {
			return kind
		}
	}
	return name
}

func (a *app) printDescription(d *description, all bool) {
	c := d.Config
	a.printf("%s: %s weights in %s, %.3f bits a weight\n\n", d.File, grouped(d.Weights), size(d.Size), d.Bits)
	w := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
	row := func(name, form string, args ...any) {
		fmt.Fprintf(w, "%s\t"+form+"\n", append([]any{name}, args...)...)
	}
	row("recipe", "%s", oneLine(d.Recipe))
	row("model", "%d blocks, width %d, %d heads (keys %d, values %d), feed-forward %d, vocabulary %d", c.NumBlocks, c.EmbeddingDim, c.NumHeads,
		c.HeadQKDim(), c.HeadVDim(), c.FFNDim, c.VocabSize)
	row("norms", "eps %g, cell eps %g, gate soft cap %g, output soft cap %g", c.NormEps, c.CellEps, c.GateSoftCap, c.OutputSoftCap)
	row("variant", "%s", variant(c))
	if t := d.Tokenizer; t != nil {
		row("tokenizer", "%d tokens, end of text %d", t.Tokens, t.EndOfText)
	} else {
		row("tokenizer", "none")
	}
	row("source", "%s", oneLine(d.Provenance.Source))
	row("made by", "%s", oneLine(d.Provenance.Program))
	options := make([]string, 0, len(d.Provenance.Options))
	for k, v := range d.Provenance.Options {
		options = append(options, k+"="+v)
	}
	if sort.Strings(options); len(options) > 0 {
		row("options", "%s", oneLine(strings.Join(options, ", ")))
	}
	row("fingerprint", "%s", d.Fingerprint)
	row("needs", "%s of weights, %s for the state of each sequence, %s of working memory (CPU)", size(d.Needs.Weights), size(d.Needs.State),
		size(d.Needs.Working))
	w.Flush()
	a.printf("\n")
	fmt.Fprint(w, "tensor\tencoding\tshape\tcount\tsize\tbits a weight\n")
	if all {
		for _, t := range d.Tensors {
			bits := 8 * float64(t.Bytes) / (float64(t.Rows) * float64(t.Cols))
			fmt.Fprintf(w, "%s\t%s\t%d x %d\t1\t%s\t%.3f\n", t.Name, t.Encoding, t.Rows, t.Cols, size(t.Bytes), bits)
		}
	} else {
		for _, k := range d.Kinds {
			fmt.Fprintf(w, "%s\t%s\t%d x %d\t%d\t%s\t%.3f\n", k.Name, k.Encoding, k.Rows, k.Cols, k.Count, size(k.Bytes), k.Bits)
		}
	}
	w.Flush()
	if len(d.Provenance.Files) == 0 {
		return
	}
	a.printf("\n")
	fmt.Fprint(w, "checkpoint's file\tsize\tSHA-256\n")
	for _, s := range d.Provenance.Files {
		fmt.Fprintf(w, "%s\t%s\t%s\n", oneLine(s.Name), size(s.Size), oneLine(s.SHA256))
	}
	w.Flush()
}

// variant says in words what distinguishes a model from others of its size.
func variant(c *format.Config) string {
	words := []string{"no biases", "own head", "output norm"}
	if c.UseBias {
		words[0] = "biases"
	}
	if c.Tied {
		words[1] = "head from the embedding"
	}
	if !c.OutNorm {
		words[2] = "no output norm"
	}
	switch {
	case c.ForceBOS:
		words = append(words, fmt.Sprintf("texts begin with token %d", c.BOS))
	case c.BOS >= 0:
		words = append(words, fmt.Sprintf("beginning-of-text token %d, not required", c.BOS))
	}
	return strings.Join(words, ", ")
}

// grouped writes a number with commas between thousands.
func grouped(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
