package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"xlstm/calibrate"
	"xlstm/convert"
	"xlstm/format"
	"xlstm/quantize"
	"xlstm/report"
	"xlstm/runtime"
)

// quantizeFlags say what is encoded, how, and what is shown of it.
type quantizeFlags struct {
	out, recipe string
	tokenizer   string // of another place than the checkpoint's
	tensors     []string
	plain       bool
	noHashes    bool

	text            string // of the calibration
	samples, length int
	damping         float64
	actOrder        bool
	work            string

	rotate bool
	seed   uint64

	report, reportText string
	window, limit      int
	engine             engineFlags
}

func newQuantize(a *app) *cobra.Command {
	var q quantizeFlags
	cmd := &cobra.Command{
		Use:   "quantize CHECKPOINT_DIR|MODEL|demo",
		Short: "Encode a model's weights in fewer bits, and show what that costs",
		Long: `Encode a model's weights in fewer bits, from a checkpoint or from an fp32, fp16 or bf16 file.
Scales are searched for least squared error. --calibrate runs a text through the model and rounds each matrix so that its products
with the inputs that occur change least; it works block by block, and a run that was stopped goes on when the same command is given
again. --rotate spreads outliers over all channels first, which helps models that have some. --report compares the result with the
original over a text, as one HTML file.
Recipes: fp32, fp16, bf16, int8, int4, or an encoding such as int4g32; --tensor gives single tensors another encoding.`,
		Example: `  xlstm quantize demo -o demo-int8.xlstm --recipe int8
  xlstm quantize xLSTM-7b -o 7b-int4.xlstm --recipe int4 --calibrate books.txt --samples 128 --length 1024
  xlstm quantize 7b-fp16.xlstm -o 7b-int4.xlstm --recipe int4 --tensor 'blocks.0.*=int8' --calibrate books.txt --rotate
  xlstm quantize demo -o demo-int4.xlstm --recipe int4 --report cost.html -f text.txt --limit 4096`,
		Args:              arguments(1, 1),
		ValidArgsFunction: completeAllModels,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := q.check(cmd); err != nil {
				return err
			}
			return a.quantizeAndReport(cmd.Context(), args[0], q)
		},
	}
	q.register(cmd)
	return cmd
}

func (q *quantizeFlags) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVarP(&q.out, "output", "o", "", "file to write")
	f.StringVar(&q.recipe, "recipe", "int4", "encodings of the tensors: "+strings.Join(quantize.RecipeNames(), ", ")+" or an encoding")
	f.StringArrayVar(&q.tensors, "tensor", nil, "'pattern=encoding' for tensors by name; can be given more than once, the last that matches counts")
	f.BoolVar(&q.plain, "plain", false, "round to the nearest, with scales from the largest values alone: to see what searching gains")
	f.StringVar(&q.tokenizer, "tokenizer", "", "tokenizer.json to use in place of the checkpoint's")
	f.BoolVar(&q.noHashes, "no-hashes", false, "do not note the SHA-256 of the checkpoint's files: saves reading them once more")
	f.StringVar(&q.text, "calibrate", "", "text `file` to calibrate on; not the one to measure with")
	f.IntVar(&q.samples, "samples", defaultSamples, "samples of the calibration's text")
	f.IntVar(&q.length, "length", runtime.DefaultWindow, "tokens in a sample")
	f.Float64Var(&q.damping, "damping", calibrate.DefaultDamping, "what is added to the diagonal of the moments, as a fraction of its mean")
	f.BoolVar(&q.actOrder, "act-order", false, "round columns by falling second moment of their input")
	f.StringVar(&q.work, "work", "", "`directory` of a calibration's finished blocks (default: the output's name with .calibration added)")
	f.BoolVar(&q.rotate, "rotate", false, "rotate the residual stream, and queries and keys, by randomized Hadamard matrices")
	f.Uint64Var(&q.seed, "seed", 1, "seed of the rotation")
	f.StringVar(&q.report, "report", "", "write a comparison with the original as one HTML `file`; needs -f")
	f.StringVarP(&q.reportText, "file", "f", "", "text that the report's comparison is made over")
	f.IntVar(&q.window, "window", runtime.DefaultWindow, "tokens in a window of the report's comparison")
	f.IntVar(&q.limit, "limit", 0, "tokens of the report's text to compare over, from its beginning (default: all)")
	q.engine.register(cmd)
	mustComplete(cmd, "recipe", quantize.RecipeNames())
}

// defaultSamples of 512 tokens: twice as many bring the demo model 1 % closer to its original.
const defaultSamples = 64

func (q *quantizeFlags) check(cmd *cobra.Command) error {
	changed := cmd.Flags().Changed
	c := convertFlags{out: q.out, recipe: q.recipe, tensors: q.tensors}
	if err := c.check(cmd, 1); err != nil {
		return err
	}
	if err := q.engine.check(cmd); err != nil {
		return err
	}
	for _, name := range []string{"samples", "length", "damping", "act-order", "work"} {
		if changed(name) && q.text == "" {
			return usagef(cmd, "--%s is about calibration: expected --calibrate TEXT", name)
		}
	}
	for _, name := range []string{"file", "window", "limit"} {
		if changed(name) && q.report == "" {
			return usagef(cmd, "--%s is about the report: expected --report FILE", name)
		}
	}
	switch {
	case changed("calibrate") && q.text == "":
		return usagef(cmd, "--calibrate has no name, expected that of a text")
	case q.plain && q.text != "":
		return usagef(cmd, "--plain and --calibrate exclude each other")
	case q.samples < 1 || q.samples > 1<<20:
		return usagef(cmd, "--samples is %d, expected 1 to %d", q.samples, 1<<20)
	case q.length < 2 || q.length > 1<<20:
		return usagef(cmd, "--length is %d, expected 2 to %d", q.length, 1<<20)
	case !(q.damping > 0 && q.damping <= 1):
		return usagef(cmd, "--damping is %v, expected more than 0 and at most 1", q.damping)
	case changed("seed") && !q.rotate:
		return usagef(cmd, "--seed is that of a rotation: expected --rotate")
	case changed("report") && (q.report == "" || q.report == "-"):
		return usagef(cmd, "--report %q, expected the name of a file", q.report)
	case q.report != "" && q.reportText == "":
		return usagef(cmd, "--report needs a text to compare over: expected -f TEXT")
	case q.window < 1 || q.window > 1<<24:
		return usagef(cmd, "--window is %d, expected 1 to %d", q.window, 1<<24)
	case q.limit < 0:
		return usagef(cmd, "--limit is %d, expected 0 or more", q.limit)
	}
	return nil
}

// quantizeAndReport begins the report, if one is asked for, before the work, which may take hours: a name that cannot be written
// is an error at once.
func (a *app) quantizeAndReport(ctx context.Context, name string, q quantizeFlags) error {
	restore := useThreads(q.engine.threads)
	defer restore()
	if q.report == "" {
		return a.quantize(ctx, name, q)
	}
	if q.reportText != "-" {
		if _, err := os.Stat(q.reportText); err != nil {
			return err
		}
	}
	err := a.writeReport(q.report, func() (*report.Data, error) {
		if err := a.quantize(ctx, name, q); err != nil {
			return nil, err
		}
		return a.compareFiles(ctx, []string{q.out}, comparison{
			text: q.reportText, against: name, window: q.window, limit: q.limit, engine: q.engine,
		})
	})
	if err == nil {
		a.printf("%s: report\n", q.report)
	}
	return err
}

// quantize writes the file and prints what became of the weights.
func (a *app) quantize(ctx context.Context, name string, q quantizeFlags) error {
	src, err := a.openSource(ctx, name, q.tokenizer)
	if err != nil {
		return err
	}
	defer src.close()
	if sameFile(name, q.out) {
		return fmt.Errorf("%s: is what is read, expected another name for the output", q.out)
	}
	start := time.Now()
	o := convert.Options{Recipe: q.recipe, Overrides: q.tensors, PlainScales: q.plain, SkipHashes: q.noHashes, Notes: src.notes,
		Program: "xlstm " + version(), Workers: q.engine.threads, Progress: a.lateBar("writing", bytesUnit)}
	if q.rotate {
		o.Rotate = &q.seed
	}
	var calibrated *calibrate.Result
	if q.text == "" {
		err = src.weights.Write(ctx, q.out, o)
	} else {
		calibrated, err = a.calibrate(ctx, src, q, o)
	}
	a.closeBars()
	if err != nil {
		return err
	}
	return a.printQuantized(ctx, src, q, calibrated, time.Since(start))
}

// source is what is quantized: a checkpoint or a file.
type source struct {
	weights    *convert.Source
	provenance format.Provenance // of a file
	notes      map[string]string // for the result's provenance
	identify   func(ctx context.Context) (string, error)
	close      func() error
}

func (a *app) openSource(ctx context.Context, name, tokenizer string) (*source, error) {
	if info, err := os.Stat(name); err == nil && !info.IsDir() {
		if tokenizer != "" {
			return nil, fmt.Errorf("%s: is a file, which keeps its tokenizer: --tokenizer is for checkpoints", name)
		}
		return openSourceFile(name)
	}
	c, err := openCheckpoint(name)
	if err != nil {
		return nil, err
	}
	s := &source{close: c.Close}
	if s.notes, err = a.useTokenizer(ctx, c, tokenizer); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	s.identify = func(ctx context.Context) (string, error) {
		files, err := c.HashFiles(ctx, 0, a.lateTotal("hashing the checkpoint", c.Files()))
		h := sha256.New()
		for _, f := range files {
			fmt.Fprintf(h, "%s %d %x\n", f.Name, f.Size, f.SHA256)
		}
		return hex.EncodeToString(h.Sum(nil)), err
	}
	if s.weights, err = convert.FromCheckpoint(c); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return s, nil
}

func openSourceFile(name string) (*source, error) {
	f, err := format.Open(name)
	if err != nil {
		return nil, err
	}
	s := &source{close: f.Close, provenance: f.Provenance()}
	s.identify = func(context.Context) (string, error) {
		sum := f.Fingerprint()
		return hex.EncodeToString(sum[:]), nil
	}
	if s.weights, err = convert.FromFile(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return s, nil
}

func sameFile(a, b string) bool {
	x, err := os.Stat(a)
	y, err2 := os.Stat(b)
	return err == nil && err2 == nil && os.SameFile(x, y)
}

func (a *app) calibrate(ctx context.Context, src *source, q quantizeFlags, o convert.Options) (*calibrate.Result, error) {
	text, err := a.readInput(ctx, q.text)
	if err != nil {
		return nil, err
	}
	samples, err := calibrate.SampleText(src.weights, string(text), q.samples, q.length)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", q.text, err)
	}
	identity, err := src.identify(ctx)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(text)
	return calibrate.Run(ctx, src.weights, samples, q.out, calibrate.Options{
		Convert: o, Text: hex.EncodeToString(sum[:]), Source: identity, Damping: q.damping, ActOrder: q.actOrder, WorkDir: q.work,
		Progress: a.calibrationBar(),
	})
}

// calibrationBar shows how much of a calibration is left, counted in billions of operations.
func (a *app) calibrationBar() func(calibrate.Progress) {
	var b *bar
	return func(p calibrate.Progress) {
		const giga = 1e9
		if b == nil {
			b = a.newBar("calibrating", max(p.Total/giga, 1), "GFLOP")
		}
		where := fmt.Sprintf("block %d of %d", p.Block+1, p.Blocks)
		if p.Block == p.Blocks {
			where = "head"
		}
		b.describe("%s: %s", where, p.Step)
		b.set(p.Done / giga)
	}
}

// printQuantized prints the file's size, and errors by kinds of tensors.
func (a *app) printQuantized(ctx context.Context, src *source, q quantizeFlags, calibrated *calibrate.Result, took time.Duration) error {
	f, err := format.Open(q.out)
	if err != nil {
		return err
	}
	defer f.Close()
	d, err := describe(f)
	if err != nil {
		return err
	}
	a.printf("%s: %s weights in %s, %.3f bits a weight, %.1f s\n", q.out, grouped(d.Weights), size(d.Size), d.Bits, took.Seconds())
	if calibrated != nil {
		a.printf("calibrated on %d samples, %s tokens", calibrated.Samples, grouped(int64(calibrated.Tokens)))
		if calibrated.Resumed > 0 {
			a.printf("; %d blocks were finished before", calibrated.Resumed)
		}
		a.printf("\n")
	}
	found, err := report.WeightErrors(ctx, src.weights, []*format.File{f}, report.WeightOptions{
		Original: src.provenance, Workers: q.engine.threads, Progress: a.lateBar("comparing weights", "weights"),
	})
	a.closeBars()
	if err != nil {
		return err
	}
	return a.printKinds(found[0], calibrated)
}

// printKinds prints a table of kinds, of those that were rounded.
func (a *app) printKinds(e *report.Errors, calibrated *calibrate.Result) error {
	outputs := map[string][2]float64{} // sum and number by kind
	if calibrated != nil {
		for _, t := range calibrated.Tensors {
			kind := t.Name[strings.LastIndex(t.Name, ".")+1:]
			sum := outputs[kind+" "+t.Encoding]
			outputs[kind+" "+t.Encoding] = [2]float64{sum[0] + t.OutputError, sum[1] + 1}
		}
	}
	if e.All.Relative == 0 {
		a.printf("all weights are exact\n")
		return nil
	}
	w := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
	fmt.Fprint(w, "kind\tencoding\ttensors\tweights\tsize\tweight error")
	if calibrated != nil {
		fmt.Fprint(w, "\toutput error")
	}
	fmt.Fprintln(w)
	for _, k := range e.Kinds {
		if k.Relative == 0 {
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%.3g", k.Kind, k.Encoding, k.Count, grouped(k.Weights), size(k.Bytes), k.Relative)
		if o := outputs[k.Kind+" "+k.Encoding]; o[1] > 0 {
			fmt.Fprintf(w, "\t%.3g", o[0]/o[1])
		}
		fmt.Fprintln(w)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	a.printf("errors are relative squared errors")
	if calibrated != nil {
		a.printf(", those of outputs over the calibration's text, averaged over tensors")
	}
	_, err := io.WriteString(a.out, "\n")
	return err
}
