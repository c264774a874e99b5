// Package calibrate encodes a model's matrices so that their products with the inputs that a text gives them change least. It
// works through the model block by block: it runs the text's samples through a block as it was, gathers the second moments of its
// products' inputs, and rounds each matrix with error compensation (quantize.Compensator). What is finished lies in a work
// directory, so that a run that was stopped goes on where it was. docs/QUANTIZATION.md says what it gains.
package calibrate

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"strconv"

	"xlstm/convert"
	"xlstm/format"
	"xlstm/quantize"
)

// Options of a calibration. Work is spread over the cores that the process may use.
type Options struct {
	// Convert says what is written and how, recipe and rotation included. Its Encode is the calibration's own; notes are added to
	// its Notes.
	Convert convert.Options
	// Text is noted in the file: the SHA-256 of the text that samples were cut from, in hexadecimal. May be empty.
	Text string
	// Source tells the source's weights from all others, by the hashes of its files: a run that goes on must have the same.
	Source string
	// Damping is what is added to the moments' diagonal, as a fraction of its mean; 0 is DefaultDamping.
	Damping float64
	// ActOrder rounds columns by falling second moment of their input.
	ActOrder bool
	// WorkDir holds what is finished. It is made where it does not exist, and removed with the calibration's success. Empty is
	// the output's name with ".calibration" added.
	WorkDir string
	// Progress, if set, is told how far the work is. It is called by one goroutine at a time.
	Progress func(Progress)
}

// DefaultDamping is quantize.CompensatorOptions' own.
const DefaultDamping = 0.01

// Progress says how far a calibration is.
type Progress struct {
	Block, Blocks int    // the block at work; Block is Blocks for the head
	Step          string // what is done with it
	Done, Total   int64  // floating-point operations, by estimate
}

// Result says what a calibration did.
type Result struct {
	Samples, Tokens int // tokens of all samples together
	Resumed         int // blocks that were finished before
	Tensors         []TensorResult
}

// TensorResult is what became of one matrix.
type TensorResult struct {
	Name     string `json:"name"`
	Encoding string `json:"encoding"`
	Rows     int    `json:"rows"`
	Cols     int    `json:"cols"`
	// OutputError is the squared error of the matrix's products with inputs of the calibration's text, over their squares.
	OutputError float64 `json:"output_error"`
	Damping     float64 `json:"damping"` // that the factorization took
}

// Run calibrates on samples and writes the file path. It needs, beside one block's weights in float32 and the moments of its inputs,
// the hidden vectors of all samples: 4*D bytes a token, 2.1 GB for 128 samples of 1024 tokens of the 7B. When it is stopped it can
// be called again with the same arguments, and goes on after the last finished block.
func Run(ctx context.Context, src *convert.Source, samples [][]int32, path string, o Options) (*Result, error) {
	r, err := run(ctx, src, samples, path, o)
	if err != nil && !errors.Is(err, context.Canceled) {
		return nil, fmt.Errorf("calibrate: %w", err)
	}
	return r, err
}

func run(ctx context.Context, src *convert.Source, samples [][]int32, path string, o Options) (*Result, error) {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return nil, fmt.Errorf("%s: is a directory, expected a file to write", path)
	}
	j, err := newJob(src, samples, path, o)
	if err != nil {
		return nil, err
	}
	defer j.close()
	if err := j.all(ctx); err != nil {
		return nil, err
	}
	if err := j.write(ctx, path); err != nil {
		return nil, err
	}
	j.close()
	if err := j.dir.remove(); err != nil {
		return nil, fmt.Errorf("%s is complete, but its work directory stays: %w", path, err)
	}
	return &j.result, nil
}

// job is one calibration.
type job struct {
	src       *convert.Source
	config    *format.Config
	samples   [][]int32
	tokens    int
	o         Options
	recipe    *quantize.Recipe
	specs     map[string]format.TensorSpec // of all tensors, as they will be stored
	dir       *workDir
	cost      cost
	done      int64
	result    Result
	records   []*record
	finished  map[string]finished // tensors that are encoded
	hidden    [][]float32         // of each sample, [tokens, D]; nil until they are needed
	hiddenFor int                 // the block that reads them
}

func newJob(src *convert.Source, samples [][]int32, path string, o Options) (*job, error) {
	rotation := "none"
	if s := o.Convert.Rotate; s != nil {
		var err error
		if src, err = src.Rotate(*s); err != nil {
			return nil, err
		}
		rotation, o.Convert.Rotate = strconv.FormatUint(*s, 10), nil
	}
	if o.Damping == 0 {
		o.Damping = DefaultDamping
	}
	if o.WorkDir == "" {
		o.WorkDir = path + ".calibration"
	}
	j := &job{src: src, config: src.Config(), samples: samples, o: o, finished: map[string]finished{}, specs: map[string]format.TensorSpec{}}
	if err := checkSamples(samples, j.config.VocabSize); err != nil {
		return nil, err
	}
	for _, s := range samples {
		j.tokens += len(s)
	}
	j.result.Samples, j.result.Tokens = len(samples), j.tokens
	if err := j.resolve(); err != nil {
		return nil, err
	}
	j.cost = j.estimate()
	id := &identity{
		Version: identityVersion, Source: o.Source, Model: fmt.Sprintf("%+v", *j.config), Recipe: j.recipe.String(), Samples: hashSamples(samples),
		Options: fmt.Sprintf("damping %v, act order %v, rotation %s", o.Damping, o.ActOrder, rotation),
	}
	var err error
	j.dir, err = openWorkDir(o.WorkDir, id)
	return j, err
}

// resolve finds every tensor's encoding.
func (j *job) resolve() error {
	var err error
	if j.recipe, err = quantize.ParseRecipe(j.o.Convert.Recipe); err != nil {
		return err
	}
	for _, text := range j.o.Convert.Overrides {
		if err := j.recipe.Override(text); err != nil {
			return err
		}
	}
	var names []string
	for _, t := range j.src.Tensors() {
		names = append(names, t.Name)
	}
	encodings, err := j.recipe.Resolve(names)
	if err != nil {
		return err
	}
	any := false
	for _, s := range format.Specs(j.config, func(name string) format.Encoding { return encodings[name] }) {
		j.specs[s.Name] = s
		any = any || s.Name == format.TensorHead && integer(s.Encoding)
	}
	for i := range j.config.NumBlocks {
		any = any || len(j.matrices(i)) > 0
	}
	if !any {
		return fmt.Errorf("recipe %s rounds no matrix to integers: there is nothing to calibrate", j.recipe)
	}
	return nil
}

func integer(e format.Encoding) bool { return e.Kind == format.Int8 || e.Kind == format.Int4 }

// matrices are the tensors of block i that are encoded with error compensation.
func (j *job) matrices(i int) (all []format.TensorSpec) {
	for _, name := range []string{format.TensorQKVO, format.TensorOut, format.TensorGateUp, format.TensorDown} {
		if s := j.specs[format.BlockTensor(i, name)]; integer(s.Encoding) {
			all = append(all, s)
		}
	}
	return all
}

// all encodes what is not encoded yet.
func (j *job) all(ctx context.Context) error {
	blocks := j.config.NumBlocks
	next := 0
	for ; next < blocks && j.dir.has(blockName(next)); next++ {
		if err := j.load(ctx, blockName(next), j.matrices(next)); err != nil {
			return err
		}
		j.add(j.cost.block)
	}
	j.result.Resumed = next
	for i := next; i < blocks; i++ {
		if err := j.block(ctx, i); err != nil {
			return fmt.Errorf("block %d: %w", i, err)
		}
	}
	head := j.specs[format.TensorHead]
	if !integer(head.Encoding) {
		return nil
	}
	if j.dir.has(headName) {
		return j.load(ctx, headName, []format.TensorSpec{head})
	}
	return j.head(ctx, head)
}

// write makes the file of what is finished.
func (j *job) write(ctx context.Context, path string) error {
	o := j.o.Convert
	o.Recipe, o.Overrides = j.recipe.String(), nil
	o.Encode = j.serve
	notes := maps.Clone(o.Notes)
	if notes == nil {
		notes = map[string]string{}
	}
	notes["calibration.samples"] = strconv.Itoa(len(j.samples))
	notes["calibration.tokens"] = strconv.Itoa(j.tokens)
	notes["calibration.damping"] = strconv.FormatFloat(j.o.Damping, 'g', -1, 64)
	if j.o.Text != "" {
		notes["calibration.text_sha256"] = j.o.Text
	}
	if j.o.ActOrder {
		notes["calibration.order"] = "falling second moments"
	}
	o.Notes = notes
	return j.src.Write(ctx, path, o)
}

// serve gives finished rows, and encodes those of tensors that calibration does not touch.
func (j *job) serve(_ context.Context, t format.TensorSpec, dst quantize.Rows, src []float32, rows int, opt quantize.Options) error {
	f, ok := j.finished[t.Name]
	if !ok {
		return quantize.EncodeRows(dst, t.Encoding, src, rows, t.Cols, opt)
	}
	return f.rows(dst, opt.FirstRow, rows)
}

func (j *job) close() {
	for _, r := range j.records {
		_ = r.close() // read only
	}
	j.records = nil
}
