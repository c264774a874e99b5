package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"xlstm/convert"
	"xlstm/format"
	"xlstm/oracle"
	"xlstm/report"
	"xlstm/runtime"
)

// compareFlags ask for more than a score: a table of files beside their original, and the errors of their weights.
type compareFlags struct {
	table  bool
	report string
}

func (c *compareFlags) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&c.table, "compare", false, "with --against: print a table of sizes, scores and errors of the weights")
	f.StringVar(&c.report, "report", "", "with --against: write the comparison as one HTML `file`, with pictures")
}

func (c *compareFlags) check(cmd *cobra.Command, against string) error {
	if c.wanted() && against == "" {
		return usagef(cmd, "--compare and --report need the original: expected --against CHECKPOINT_DIR")
	}
	if c.report == "-" || cmd.Flags().Changed("report") && c.report == "" {
		return usagef(cmd, "--report %q, expected the name of a file", c.report)
	}
	return nil
}

func (c *compareFlags) wanted() bool { return c.table || c.report != "" }

// comparison says what files are compared over.
type comparison struct {
	text          string // file's name, - is stdin
	against       string // a checkpoint's directory, demo, or a converted file
	window, limit int    // as in perplexityFlags
	stream        bool
	engine        engineFlags
}

// printComparison compares files and prints the figures, as a table or as JSON.
func (a *app) printComparison(ctx context.Context, names []string, o comparison, reportName string, asJSON bool) error {
	var d *report.Data
	measure := func() (_ *report.Data, err error) {
		d, err = a.compareFiles(ctx, names, o)
		return d, err
	}
	var err error
	if reportName == "" {
		_, err = measure()
	} else {
		err = a.writeReport(reportName, measure)
	}
	if err != nil {
		return err
	}
	if asJSON {
		return a.printJSON(d)
	}
	a.printTable(d)
	return nil
}

// writeReport writes what measure finds as an HTML file. The file is begun before measuring, which may take hours: a name that
// cannot be written is an error at once.
func (a *app) writeReport(name string, measure func() (*report.Data, error)) error {
	return a.writeWhole(name, func(w io.Writer) error {
		d, err := measure()
		if err != nil {
			return err
		}
		return report.Render(w, d)
	})
}

// compareFiles measures files beside their original: one pass over the original for all of them.
func (a *app) compareFiles(ctx context.Context, names []string, o comparison) (*report.Data, error) {
	original, err := a.openOriginal(ctx, o.against, o.engine)
	if err != nil {
		return nil, err
	}
	defer original.close()
	all, closeAll, err := a.openAll(ctx, names, o.engine)
	if err != nil {
		return nil, err
	}
	defer closeAll()
	text, err := a.readInput(ctx, o.text)
	if err != nil {
		return nil, err
	}
	ids, err := sameTokens(all, string(text))
	if err != nil {
		return nil, err
	}
	d := newComparison(o, text, original)
	d.Method.TextTokens = len(ids)
	if o.limit > 0 && o.limit < len(ids) {
		ids = ids[:o.limit]
	}
	d.Method.UsedTokens = len(ids)
	for i, one := range all {
		f, err := describedFile(names[i], one.file)
		if err != nil {
			return nil, err
		}
		d.Files = append(d.Files, f)
	}
	if err := a.addWeightErrors(ctx, d, original, all, o.engine); err != nil {
		return nil, err
	}
	if err := a.addScores(ctx, d, original, all, ids, o); err != nil {
		return nil, err
	}
	return d, d.Check()
}

// original is what files are compared with.
type original struct {
	logits      follower
	logitsBy    string
	weights     *convert.Source // nil where they were encoded with loss
	provenance  format.Provenance
	fingerprint string
	closers     []func() error
}

func (o *original) close() {
	for _, c := range o.closers {
		_ = c() // read only
	}
}

// openOriginal opens a checkpoint's directory, the model inside the program, or a converted file.
func (a *app) openOriginal(ctx context.Context, name string, e engineFlags) (*original, error) {
	o := &original{}
	var err error
	if info, serr := os.Stat(name); serr == nil && !info.IsDir() {
		err = a.openOriginalFile(ctx, o, name, e)
	} else {
		err = openOriginalCheckpoint(o, name, e)
	}
	if err != nil {
		o.close()
		return nil, err
	}
	return o, nil
}

func (a *app) openOriginalFile(ctx context.Context, o *original, name string, e engineFlags) error {
	logits, closeLogits, err := a.openFollower(ctx, name, e)
	if err != nil {
		return err
	}
	f, err := a.openFile(ctx, name)
	if err != nil {
		return errors.Join(err, closeLogits())
	}
	o.closers = []func() error{closeLogits, f.Close}
	sum := f.Fingerprint()
	o.logits, o.logitsBy, o.provenance, o.fingerprint = logits, engineName(e)+", from the file", f.Provenance(), hex.EncodeToString(sum[:])
	if s, err := convert.FromFile(f); err == nil {
		o.weights = s
	}
	return nil
}

func openOriginalCheckpoint(o *original, name string, e engineFlags) error {
	c, err := openCheckpoint(name)
	if err != nil {
		return err
	}
	o.closers = []func() error{c.Close}
	o.logits, o.logitsBy = oracle.New(c, oracle.Options{Workers: e.threads}).NewSession(), "the independent implementation, from the checkpoint's own tensors"
	o.weights, err = convert.FromCheckpoint(c)
	return err
}

// engineName is what runs files, for reports.
func engineName(e engineFlags) string {
	if gpuWanted(e.where) {
		return "the CUDA engine"
	}
	return "the CPU engine"
}

func newComparison(o comparison, text []byte, original *original) *report.Data {
	sum := sha256.Sum256(text)
	name := filepath.Base(o.text)
	if o.text == "-" {
		name = "standard input"
	}
	checkpoint := filepath.Base(o.against)
	if abs, err := filepath.Abs(o.against); err == nil {
		checkpoint = filepath.Base(abs) // of "." as well
	}
	return &report.Data{
		Title: checkpoint + ": what its encodings cost",
		Method: report.Method{
			Text: name, TextSHA256: hex.EncodeToString(sum[:]), TextBytes: int64(len(text)), Original: checkpoint,
			OriginalFingerprint: original.fingerprint, OriginalBy: original.logitsBy, Engine: engineName(o.engine), Program: "xlstm " + version(),
		},
	}
}

func describedFile(name string, f *format.File) (report.File, error) {
	d, err := describe(f)
	if err != nil {
		return report.File{}, err
	}
	return report.File{
		Name: name, Recipe: d.Recipe, Fingerprint: d.Fingerprint, Provenance: d.Provenance, Size: d.Size, WeightCount: d.Weights,
		BitsPerWeight: d.Bits,
	}, nil
}

func (a *app) addWeightErrors(ctx context.Context, d *report.Data, o *original, all []opened, e engineFlags) error {
	if o.weights == nil {
		d.WeightsNote = "The original is a file whose own weights are encoded with loss: errors of weights were not computed."
		return nil
	}
	var files []*format.File
	for _, one := range all {
		files = append(files, one.file)
	}
	found, err := report.WeightErrors(ctx, o.weights, files, report.WeightOptions{
		Original: o.provenance, Workers: e.threads, Progress: a.lateBar("comparing weights", "weights"),
	})
	a.closeBars()
	if errors.Is(err, report.ErrNotComparable) {
		d.WeightsNote = "Errors of weights were not computed. " + err.Error()
		return nil
	}
	if err != nil {
		return err
	}
	for i := range d.Files {
		d.Files[i].Errors = found[i]
	}
	return nil
}

func (a *app) addScores(ctx context.Context, d *report.Data, o *original, all []opened, ids []int32, how comparison) error {
	var candidates []runtime.Candidate
	for i, one := range all {
		candidates = append(candidates, runtime.Candidate{Name: d.Files[i].Name, Engine: one.engine})
	}
	config := all[0].file.Config()
	bar := a.newBar("comparing", int64(len(ids)), "tokens")
	c, err := runtime.Compare(ctx, o.logits, candidates, ids, runtime.Scoring{
		VocabSize: config.VocabSize, BOS: config.BOS, Window: how.window, Stream: how.stream,
		Progress: func(done, _ int) { bar.set(int64(done)) },
	})
	a.closeBars()
	if err != nil {
		return err
	}
	d.Method.Sequences, d.Method.Window, d.Method.Stream, d.Method.BOS = c.Sequences, c.Window, c.Stream, c.BOS
	d.Original = reportScore(c.Reference)
	for i, s := range c.Files {
		f := &d.Files[i]
		f.Score = reportScore(s.Score)
		f.Ratio, f.RatioStdErr = s.Ratio, s.RatioStdErr
		f.MeanKL, f.MeanKLStdErr, f.KL999 = s.MeanKL, s.MeanKLStdErr, s.KL999
		f.TopAgreement, f.MaxLogitDiff = s.TopAgreement, s.MaxLogitDiff
	}
	return nil
}

func reportScore(s runtime.Score) report.Score {
	return report.Score{Tokens: s.Tokens, NLL: s.NLL, Perplexity: s.Perplexity, PerplexityStdErr: s.PerplexityStdErr}
}

// printTable prints what a report's first table has, and the errors of all weights together.
func (a *app) printTable(d *report.Data) {
	w := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
	fmt.Fprint(w, "file\trecipe\tsize\tbits\tperplexity\tratio\tmean KL\t99.9 % KL\tsame top\tlargest diff\tweight error\n")
	fmt.Fprintf(w, "%s\t\t\t\t%.4f ± %.4f\n", oneLine(d.Method.Original), d.Original.Perplexity, d.Original.PerplexityStdErr)
	for i := range d.Files {
		f := &d.Files[i]
		weights := "-"
		if f.Errors != nil {
			weights = fmt.Sprintf("%.3g", f.Errors.All.Relative)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%.3f\t%.4f ± %.4f\t%.6f ± %.6f\t%.3g ± %.1g\t%.3g\t%.3f %%\t%.4g\t%s\n", oneLine(f.Name), oneLine(f.Recipe),
			size(f.Size), f.BitsPerWeight, f.Perplexity, f.PerplexityStdErr, f.Ratio, f.RatioStdErr, f.MeanKL, f.MeanKLStdErr, f.KL999,
			100*f.TopAgreement, f.MaxLogitDiff, weights)
	}
	w.Flush()
	if d.WeightsNote != "" {
		a.printf("%s\n", oneLine(d.WeightsNote))
	}
	a.printf("%s tokens; weight error is the relative squared error of all weights\n", grouped(int64(d.Original.Tokens)))
}
