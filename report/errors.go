package report

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"xlstm/convert"
	"xlstm/format"
	"xlstm/quantize"
)

// ErrNotComparable is why the weights of a file say nothing beside those of an original: they are in different bases.
var ErrNotComparable = errors.New("the weights cannot be compared")

// WeightOptions of WeightErrors; all may be zero.
type WeightOptions struct {
	// Original is the provenance of the file that the original's weights come from, where they come from a file.
	Original format.Provenance
	Workers  int // goroutines, 0 is one a core that the process may use. They do not change results.
	// Progress, if set, is told how many weights are compared and how many there are. Several goroutines call it at once.
	Progress func(done, total int64)
}

// Memory that pieces of weights may take in all, and the size of one, in bytes. A rotated matrix that writes to the residual
// stream is one piece of its own size.
const (
	memoryBudget = 768 << 20
	pieceBytes   = 4 << 20
)

// WeightErrors compares the weights of files with those of their original. Weights stream through in pieces, and those of the
// original are read once for all files of the same rotation: rotated files are compared with the original after their rotation. It
// gives one Errors a file. Where an original was rotated otherwise than a file, it ends with ErrNotComparable.
func WeightErrors(ctx context.Context, original *convert.Source, files []*format.File, o WeightOptions) ([]*Errors, error) {
	w := &weighing{options: &o, files: files, memory: semaphore.NewWeighted(memoryBudget), specs: original.Tensors()}
	for _, f := range files {
		if err := w.checkShapes(f); err != nil {
			return nil, fmt.Errorf("weight errors: %w", err)
		}
	}
	bases, err := w.bases(original)
	if err != nil {
		return nil, fmt.Errorf("weight errors: %w", err)
	}
	if err := w.all(ctx, bases); err != nil {
		return nil, fmt.Errorf("weight errors: %w", err)
	}
	result := make([]*Errors, len(files))
	for i, f := range files {
		if result[i], err = w.sumUp(i); err != nil {
			return nil, fmt.Errorf("weight errors: %s: %w", f.Path(), err)
		}
		_, result[i].Rotated = convert.RotationSeed(f.Provenance())
	}
	return result, nil
}

// weighing is one comparison under way.
type weighing struct {
	options     *WeightOptions
	specs       []format.TensorSpec
	files       []*format.File
	sums        [][]quantize.ErrorSum // of each file's tensors
	memory      *semaphore.Weighted
	done, total atomic.Int64
}

// basis is the original in the basis of some of the files.
type basis struct {
	source *convert.Source
	files  []int
}

func (w *weighing) checkShapes(f *format.File) error {
	if n := len(f.Tensors()); n != len(w.specs) {
		return fmt.Errorf("%s has %d tensors, expected the original's %d", f.Path(), n, len(w.specs))
	}
	for _, s := range w.specs {
		t, ok := f.Tensor(s.Name)
		if !ok {
			return fmt.Errorf("%s has no tensor %s, which the original has", f.Path(), s.Name)
		}
		if t.Rows != s.Rows || t.Cols != s.Cols {
			return fmt.Errorf("%s: tensor %s is %d x %d, expected the original's %d x %d", f.Path(), s.Name, t.Rows, t.Cols, s.Rows, s.Cols)
		}
	}
	return nil
}

// bases gathers the files of each rotation.
func (w *weighing) bases(original *convert.Source) ([]*basis, error) {
	type key struct {
		seed    uint64
		rotated bool
	}
	var have key
	have.seed, have.rotated = convert.RotationSeed(w.options.Original)
	byKey := map[key]*basis{}
	var all []*basis
	for i, f := range w.files {
		var k key
		k.seed, k.rotated = convert.RotationSeed(f.Provenance())
		b := byKey[k]
		if b == nil {
			b = &basis{source: original}
			if k != have && have.rotated {
				return nil, fmt.Errorf("%s: %w: the original was rotated, with seed %d, and this file was not", f.Path(), ErrNotComparable, have.seed)
			}
			if k != have {
				var err error
				if b.source, err = original.Rotate(k.seed); err != nil {
					return nil, fmt.Errorf("%s: %w", f.Path(), err)
				}
			}
			byKey[k] = b
			all = append(all, b)
		}
		b.files = append(b.files, i)
	}
	return all, nil
}

// all compares all tensors in pieces. Each piece has sums of its own, which are merged in order, so that figures do not depend on
// which goroutine is faster.
func (w *weighing) all(ctx context.Context, bases []*basis) error {
	workers := w.options.Workers
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	for _, s := range w.specs {
		w.total.Add(int64(len(w.files)) * int64(s.Rows) * int64(s.Cols))
	}
	w.sums = make([][]quantize.ErrorSum, len(w.files))
	for i := range w.sums {
		w.sums[i] = make([]quantize.ErrorSum, len(w.specs))
	}
	pieces := make([][][]quantize.ErrorSum, 0, len(bases)*len(w.specs)) // [tensor of a basis][piece][file of the basis]
	g, inner := errgroup.WithContext(ctx)
	g.SetLimit(workers)
	for _, b := range bases {
		for _, s := range w.specs {
			t, _ := b.source.Tensor(s.Name) // specs are its own
			rows := min(max(pieceBytes/(4*s.Cols*t.Step()), 1)*t.Step(), s.Rows)
			list := make([][]quantize.ErrorSum, (s.Rows+rows-1)/rows)
			pieces = append(pieces, list)
			for i := range list {
				g.Go(func() (err error) { // after an error they end at once
					list[i], err = w.piece(inner, b, s.Name, t, i*rows, min((i+1)*rows, s.Rows))
					return err
				})
			}
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for i, list := range pieces {
		for _, piece := range list {
			for j, file := range bases[i/len(w.specs)].files {
				w.sums[file][i%len(w.specs)].Merge(&piece[j])
			}
		}
	}
	return nil
}

// piece compares rows r0 to r1-1 of one tensor.
func (w *weighing) piece(ctx context.Context, b *basis, name string, t convert.Tensor, r0, r1 int) ([]quantize.ErrorSum, error) {
	n := r1 - r0
	values := n * t.Cols()
	need := min(3*4*int64(values), memoryBudget) // the original's, the file's, and as much again as scratch of rotations
	if err := w.memory.Acquire(ctx, need); err != nil {
		return nil, err
	}
	defer w.memory.Release(need)
	want, got := make([]float32, values), make([]float32, values)
	if err := t.ReadRows(want, r0, r1); err != nil {
		return nil, err
	}
	sums := make([]quantize.ErrorSum, len(b.files))
	for i, file := range b.files {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		f := w.files[file]
		if err := decode(got, f, name, r0, r1); err != nil {
			return nil, fmt.Errorf("%s: tensor %s: %w", f.Path(), name, err)
		}
		sums[i].Add(want, got, t.Cols(), nil)
		if done := w.done.Add(int64(values)); w.options.Progress != nil {
			w.options.Progress(done, w.total.Load())
		}
	}
	return sums, nil
}

// decode reads rows of a file's tensor and lets their memory go.
func decode(dst []float32, f *format.File, name string, r0, r1 int) error {
	t, _ := f.Tensor(name) // checkShapes found it
	all, err := quantize.RowsOf(t.Data, t.Encoding, t.Rows, t.Cols)
	if err != nil {
		return err
	}
	rows := all.Slice(t.Encoding, t.Cols, r0, r1)
	if err := quantize.DecodeRows(dst, t.Encoding, rows, r1-r0, t.Cols); err != nil {
		return err
	}
	return f.Release(rows.Values)
}

// sumUp makes a file's Errors of its tensors' sums.
func (w *weighing) sumUp(file int) (*Errors, error) {
	e := &Errors{}
	var all quantize.ErrorSum
	kinds, blocks := map[string]*quantize.ErrorSum{}, map[int]*quantize.ErrorSum{}
	index := map[string]int{} // into e.Kinds
	for i, t := range w.files[file].Tensors() {
		sum := &w.sums[file][i]
		block, kind := splitName(t.Name)
		te := TensorError{t.Name, kind, block, t.Encoding.String(), t.Rows, t.Cols, errorOf(sum)}
		if err := te.check(); err != nil {
			return nil, fmt.Errorf("tensor %s: the weights are broken: %w", t.Name, err)
		}
		e.Tensors = append(e.Tensors, te)
		all.Merge(sum)
		key := kind + " " + te.Encoding
		if kinds[key] == nil {
			kinds[key] = &quantize.ErrorSum{}
			index[key] = len(e.Kinds)
			e.Kinds = append(e.Kinds, KindError{Kind: kind, Encoding: te.Encoding})
		}
		kinds[key].Merge(sum)
		k := &e.Kinds[index[key]]
		k.Count++
		k.Weights += sum.Count()
		k.Bytes += int64(len(t.Data))
		k.Error = errorOf(kinds[key])
		if block < 0 {
			continue
		}
		if blocks[block] == nil {
			blocks[block] = &quantize.ErrorSum{}
			e.Blocks = append(e.Blocks, BlockError{Block: block})
		}
		blocks[block].Merge(sum)
		e.Blocks[len(e.Blocks)-1].Error = errorOf(blocks[block]) // a file holds block after block
	}
	e.All = errorOf(&all)
	return e, nil
}

func errorOf(s *quantize.ErrorSum) Error { return Error{s.Relative(), s.Max(), s.MaxWeight()} }

// splitName splits the name of a block's tensor. block is -1 for others.
func splitName(name string) (block int, kind string) {
	if rest, ok := strings.CutPrefix(name, "blocks."); ok {
		number, kind, _ := strings.Cut(rest, ".")
		if i, err := strconv.Atoi(number); err == nil {
			return i, kind
		}
	}
	return -1, name
}
