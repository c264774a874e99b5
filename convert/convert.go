package convert

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"xlstm/checkpoints"
	"xlstm/format"
	"xlstm/quantize"
)

// Options of a conversion. The zero value with a recipe is what most want.
type Options struct {
	Recipe    string   // as quantize.ParseRecipe reads it
	Overrides []string // more of the recipe's 'pattern=encoding'

	// Rotate, if set, is the seed of a rotation; see Source.Rotate.
	Rotate *uint64

	// PlainScales takes the smallest scales of integer encodings that hold every value, instead of those with the least squared
	// error.
	PlainScales bool
	// Encode, if set, encodes rows instead of quantize.EncodeRows, for tensors that are not fp32, fp16 or bf16: calibrated
	// encoders. It is called by several goroutines at once, for runs of rows of any tensor in any order.
	Encode func(ctx context.Context, t format.TensorSpec, dst quantize.Rows, src []float32, rows int, opt quantize.Options) error
	// Notes are further options for the file's provenance, which tell how Encode works.
	Notes map[string]string

	SkipHashes bool   // leave the checkpoint's SHA-256 out of the provenance: reads half as much
	Program    string // name and version for the provenance, "xlstm" where it is empty
	Workers    int    // goroutines, 0 is one a core that the process may use
	// Progress, if set, is told how many bytes are done and how many there are: those of the weights as float32, and those of
	// the checkpoint's files that are hashed. It is called by several goroutines at once.
	Progress func(done, total int64)
}

// Convert writes the file path from a checkpoint. The file appears whole or not at all; the same checkpoint and options give the
// same bytes. Weights stream through in pieces, so that memory does not depend on the model's size.
func Convert(ctx context.Context, src *checkpoints.Checkpoint, path string, o Options) error {
	s, err := FromCheckpoint(src)
	if err == nil {
		err = s.Write(ctx, path, o)
	}
	if err != nil {
		return fmt.Errorf("convert: %w", err)
	}
	return nil
}

// Requantize writes the file path from another one, whose tensors are fp32, fp16 or bf16.
func Requantize(ctx context.Context, f *format.File, path string, o Options) error {
	s, err := FromFile(f)
	if err == nil {
		err = s.Write(ctx, path, o)
	}
	if err != nil {
		return fmt.Errorf("quantize: %w", err)
	}
	return nil
}

// Write encodes the source's tensors into the file path.
func (s *Source) Write(ctx context.Context, path string, o Options) error {
	if o.Rotate != nil {
		var err error
		if s, err = s.Rotate(*o.Rotate); err != nil {
			return err
		}
	}
	recipe, err := o.recipe()
	if err != nil {
		return err
	}
	var names []string
	for _, t := range s.Tensors() {
		names = append(names, t.Name)
	}
	encodings, err := recipe.Resolve(names)
	if err != nil {
		return err
	}
	specs := format.Specs(&s.config, func(name string) format.Encoding { return encodings[name] })
	w, err := format.Create(path, format.Header{
		Config: s.config, Recipe: recipe.String(), Provenance: s.described(&o, false), Tokenizer: s.tokenizer, Tensors: specs,
	})
	if err != nil {
		return err
	}
	r := &run{source: s, options: &o, writer: w, memory: semaphore.NewWeighted(memoryBudget)}
	if err := r.all(ctx, specs); err != nil {
		if aerr := w.Abort(); aerr != nil {
			return fmt.Errorf("%w; then %w", err, aerr)
		}
		return err
	}
	return w.Commit()
}

func (o *Options) recipe() (*quantize.Recipe, error) {
	recipe, err := quantize.ParseRecipe(o.Recipe)
	if err != nil {
		return nil, err
	}
	for _, text := range o.Overrides {
		if err := recipe.Override(text); err != nil {
			return nil, err
		}
	}
	return recipe, nil
}

// described is the source's provenance with the options that made the file.
func (s *Source) described(o *Options, complete bool) format.Provenance {
	p := s.provenance
	p.Program = o.Program
	if p.Program == "" {
		p.Program = "xlstm"
	}
	options := map[string]string{}
	for _, m := range []map[string]string{s.provenance.Options, o.Notes} {
		for k, v := range m {
			options[k] = v
		}
	}
	if o.PlainScales {
		options["scales"] = "plain"
	}
	p.Options = nil
	if len(options) > 0 {
		p.Options = options
	}
	if !complete && s.hash != nil && !o.SkipHashes {
		// Room for what is not known yet.
		p.Files = slices.Clone(p.Files)
		for i := range p.Files {
			p.Files[i].SHA256 = strings.Repeat("0", 64)
		}
	}
	return p
}

// Memory that pieces of weights may take in all, and the size of one, in bytes. A rotated matrix that writes to the residual
// stream is one piece of its own size.
const (
	memoryBudget = 768 << 20
	pieceBytes   = 4 << 20
)

// blockRows is how many rows of cols float32 values a piece has: a multiple of step, and at least one.
func blockRows(cols, step int) int {
	return max(pieceBytes/(4*cols*step), 1) * step
}

// run is one file being written.
type run struct {
	source      *Source
	options     *Options
	writer      *format.Writer
	memory      *semaphore.Weighted
	done, total atomic.Int64
}

// all writes the tensors, largest first so that no worker is left alone with one at the end, while a goroutine of its own hashes
// the checkpoint's files.
func (r *run) all(ctx context.Context, specs []format.TensorSpec) error {
	workers := r.options.Workers
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	for _, s := range specs {
		r.total.Add(floatBytes(s))
	}
	hashing := r.source.hash != nil && !r.options.SkipHashes
	if hashing {
		for _, f := range r.source.provenance.Files {
			r.total.Add(f.Size)
		}
	}
	outer, ctx := errgroup.WithContext(ctx)
	if hashing {
		outer.Go(func() error { return r.hash(ctx) })
	}
	outer.Go(func() error {
		specs := slices.Clone(specs)
		slices.SortStableFunc(specs, func(a, b format.TensorSpec) int { return int(min(max(floatBytes(b)-floatBytes(a), -1), 1)) })
		g, ctx := errgroup.WithContext(ctx)
		g.SetLimit(workers)
		for _, s := range specs {
			g.Go(func() error { return r.tensor(ctx, s) }) // after an error they end at once
		}
		return g.Wait()
	})
	return outer.Wait()
}

func floatBytes(s format.TensorSpec) int64 { return 4 * int64(s.Rows) * int64(s.Cols) }

func (r *run) progress(n int64) {
	if done := r.done.Add(n); r.options.Progress != nil {
		r.options.Progress(done, r.total.Load())
	}
}

func (r *run) hash(ctx context.Context) error {
	last := int64(0)
	files, err := r.source.hash(ctx, func(done int64) { // one worker: never two calls at once
		r.progress(done - last)
		last = done
	})
	if err != nil {
		return err
	}
	p := r.source.described(r.options, true)
	p.Files = files
	r.writer.SetProvenance(p)
	return nil
}

// tensor encodes one tensor, piece by piece.
func (r *run) tensor(ctx context.Context, spec format.TensorSpec) error {
	t := r.source.tensors[spec.Name]
	block := min(blockRows(spec.Cols, t.step()), spec.Rows)
	// Beside the piece itself its encoded form, and as much again as scratch of rotations.
	need := min(3*4*int64(block)*int64(spec.Cols), memoryBudget)
	if err := r.memory.Acquire(ctx, need); err != nil {
		return err
	}
	defer r.memory.Release(need)
	w, err := r.writer.Tensor(spec.Name)
	if err != nil {
		return err
	}
	src := make([]float32, block*spec.Cols)
	dst := quantize.MakeRows(spec.Encoding, block, spec.Cols)
	for r0 := 0; r0 < spec.Rows; r0 += block {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(block, spec.Rows-r0)
		src, dst := src[:n*spec.Cols], dst.Slice(spec.Encoding, spec.Cols, 0, n)
		if err := t.read(src, r0, r0+n); err != nil {
			return fmt.Errorf("tensor %s: %w", spec.Name, err)
		}
		if err := t.release(r0, r0+n); err != nil {
			return fmt.Errorf("tensor %s: %w", spec.Name, err)
		}
		if err := r.encode(ctx, spec, dst, src, r0, n); err != nil {
			return blame(spec.Name, t, err)
		}
		if err := w.WriteRows(dst.Values, dst.Scales, dst.Mins); err != nil {
			return err
		}
		r.progress(4 * int64(len(src)))
	}
	return nil
}

func (r *run) encode(ctx context.Context, spec format.TensorSpec, dst quantize.Rows, src []float32, first, rows int) error {
	opt := quantize.Options{Scale: quantize.LeastSquares, FirstRow: first}
	if r.options.PlainScales {
		opt.Scale = quantize.MaxOnly
	}
	if k := spec.Encoding.Kind; r.options.Encode != nil && (k == format.Int8 || k == format.Int4) {
		return r.options.Encode(ctx, spec, dst, src, rows, opt)
	}
	return quantize.EncodeRows(dst, spec.Encoding, src, rows, spec.Cols, opt)
}

// blame names the tensor, and the row of the checkpoint's tensor that a value came from.
func blame(name string, t tensor, err error) error {
	var v *quantize.ValueError
	if errors.As(err, &v) {
		if from := t.origin(v.Row); from != "" {
			return fmt.Errorf("tensor %s, from %s: %w", name, from, err)
		}
	}
	return fmt.Errorf("tensor %s: %w", name, err)
}

// RotationSeed is the seed of the rotation that a file was made with. ok is false where it was not rotated.
func RotationSeed(p format.Provenance) (seed uint64, ok bool) {
	text, found := p.Options[optionRotate]
	seed, err := strconv.ParseUint(text, 10, 64)
	return seed, found && err == nil
}
