package report

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"xlstm/checkpoints"
	"xlstm/convert"
	"xlstm/format"
	"xlstm/quantize"
)

const fixtures = "../testdata/fixtures/"

func openFixture(t *testing.T, name string) *convert.Source {
	t.Helper()
	c, err := checkpoints.Open(fixtures + name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	s, err := convert.FromCheckpoint(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// encoded writes a source to a file and opens it.
func encoded(t *testing.T, s *convert.Source, recipe string, rotate *uint64) *format.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "model.xlstm")
	if err := s.Write(t.Context(), path, convert.Options{Recipe: recipe, Rotate: rotate, SkipHashes: true}); err != nil {
		t.Fatal(err)
	}
	return open(t, path)
}

func open(t *testing.T, path string) *format.File {
	t.Helper()
	f, err := format.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// plainError is a tensor's error, obviously: whole tensors, no pieces.
func plainError(t *testing.T, s *convert.Source, f *format.File, name string) Error {
	t.Helper()
	w, _ := s.Tensor(name)
	stored, ok := f.Tensor(name)
	if !ok {
		t.Fatalf("no tensor %s", name)
	}
	want, got := make([]float32, w.Rows()*w.Cols()), make([]float32, w.Rows()*w.Cols())
	rows, err := quantize.RowsOf(stored.Data, stored.Encoding, w.Rows(), w.Cols())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.ReadRows(want, 0, w.Rows()), quantize.DecodeRows(got, stored.Encoding, rows, w.Rows(), w.Cols())); err != nil {
		t.Fatal(err)
	}
	var e Error
	var sq, ref float64
	for i := range want {
		d := float64(got[i]) - float64(want[i])
		sq, ref = sq+d*d, ref+float64(want[i])*float64(want[i])
		e.Max, e.MaxWeight = max(e.Max, math.Abs(d)), max(e.MaxWeight, math.Abs(float64(want[i])))
	}
	if sq > 0 {
		e.Relative = sq / ref
	}
	return e
}

// TestWeightErrors holds files of several recipes and rotations against the plain sums, all compared at once.
func TestWeightErrors(t *testing.T) {
	for _, fixture := range []string{"tiny-fp32", "tiny-bias", "tiny-tied"} {
		t.Run(fixture, func(t *testing.T) {
			src := openFixture(t, fixture)
			seeds := []*uint64{nil, new(uint64), nil, new(uint64), new(uint64)}
			*seeds[1], *seeds[3], *seeds[4] = 5, 5, 6
			recipes := []string{"int4", "int8", "fp16 blocks.0.*=fp32", "fp32", "int4g32a"}
			if fixture == "tiny-bias" { // biases of norms do not rotate
				seeds = make([]*uint64, len(recipes))
			}
			var files []*format.File
			for i, r := range recipes {
				files = append(files, encoded(t, src, r, seeds[i]))
			}
			var last, total atomic.Int64
			all, err := WeightErrors(t.Context(), src, files, WeightOptions{Progress: func(done, n int64) {
				total.Store(n)
				for old := last.Load(); done > old && !last.CompareAndSwap(old, done); old = last.Load() {
				}
			}})
			if err != nil {
				t.Fatal(err)
			}
			if last.Load() != total.Load() || total.Load() == 0 {
				t.Errorf("progress ended at %d of %d", last.Load(), total.Load())
			}
			for i, e := range all {
				base := src
				if seeds[i] != nil {
					if base, err = src.Rotate(*seeds[i]); err != nil {
						t.Fatal(err)
					}
				}
				checkErrors(t, recipes[i], base, files[i], e)
				if e.Rotated != (seeds[i] != nil) || (e.All.Max == 0) != (recipes[i] == "fp32") {
					t.Errorf("%s: rotated %v, all %+v", recipes[i], e.Rotated, e.All)
				}
			}
			again, err := WeightErrors(t.Context(), src, files, WeightOptions{Workers: 7})
			if err != nil {
				t.Fatal(err)
			}
			a, _ := json.Marshal(all)
			if b, _ := json.Marshal(again); !bytes.Equal(a, b) {
				t.Error("the errors depend on the number of workers")
			}
		})
	}
}

func near(a, b Error) bool {
	return math.Abs(a.Relative-b.Relative) <= 1e-9*b.Relative && a.Max == b.Max && a.MaxWeight == b.MaxWeight
}

func checkErrors(t *testing.T, what string, s *convert.Source, f *format.File, e *Errors) {
	t.Helper()
	if len(e.Tensors) != len(f.Tensors()) || len(e.Blocks) != f.Config().NumBlocks {
		t.Fatalf("%s: %d tensors, %d blocks", what, len(e.Tensors), len(e.Blocks))
	}
	worst := make([]float64, len(e.Blocks))
	for i, got := range e.Tensors {
		stored := f.Tensors()[i]
		if want := plainError(t, s, f, got.Name); !near(got.Error, want) {
			t.Errorf("%s: %s has error %+v, expected %+v", what, got.Name, got.Error, want)
		}
		if got.Name != stored.Name || got.Encoding != stored.Encoding.String() || got.Rows != stored.Rows || got.Cols != stored.Cols {
			t.Errorf("%s: tensor %d is %+v", what, i, got)
		}
		if got.Block >= 0 {
			worst[got.Block] = max(worst[got.Block], got.Max)
			if got.Name != format.BlockTensor(got.Block, got.Kind) {
				t.Errorf("%s: %s is %s of block %d", what, got.Name, got.Kind, got.Block)
			}
		} else if got.Kind != got.Name {
			t.Errorf("%s: %s is a %s", what, got.Name, got.Kind)
		}
	}
	for i, b := range e.Blocks {
		if b.Block != i || b.Max != worst[i] {
			t.Errorf("%s: block %d: %+v, expected a largest error of %v", what, i, b, worst[i])
		}
	}
	count, weights, stored := 0, int64(0), int64(0)
	for _, k := range e.Kinds {
		count, weights, stored = count+k.Count, weights+k.Weights, stored+k.Bytes
	}
	var wantWeights, wantStored int64
	for _, x := range f.Tensors() {
		wantWeights, wantStored = wantWeights+int64(x.Rows)*int64(x.Cols), wantStored+int64(len(x.Data))
	}
	if count != len(e.Tensors) || weights != wantWeights || stored != wantStored {
		t.Errorf("%s: kinds have %d tensors, %d weights, %d bytes", what, count, weights, stored)
	}
}

// TestPieces: a tensor of many pieces gives the sums of the whole.
func TestPieces(t *testing.T) {
	c := checkpoints.Config7B()
	c.VocabSize, c.NumBlocks, c.EmbeddingDim, c.QKDim, c.VDim, c.NumHeads, c.FFNDim, c.BOS, c.ForceBOS = 20011, 1, 256, 128, 256, 2, 700, -1, false
	src, err := convert.FromCheckpoint(checkpoints.Synthetic(c, 1))
	if err != nil {
		t.Fatal(err)
	}
	f := encoded(t, src, "int8", nil)
	all, err := WeightErrors(t.Context(), src, []*format.File{f}, WeightOptions{Workers: 3})
	if err != nil {
		t.Fatal(err)
	}
	checkErrors(t, "int8", src, f, all[0])
}

// TestRotatedOriginal compares with a file that is rotated itself.
func TestRotatedOriginal(t *testing.T) {
	src := openFixture(t, "tiny-fp32")
	five, six := uint64(5), uint64(6)
	original := encoded(t, src, "fp32", &five)
	base, err := convert.FromFile(original)
	if err != nil {
		t.Fatal(err)
	}
	o := WeightOptions{Original: original.Provenance()}
	all, err := WeightErrors(t.Context(), base, []*format.File{encoded(t, src, "fp32", &five), encoded(t, src, "int8", &five)}, o)
	if err != nil {
		t.Fatal(err)
	}
	if all[0].All.Max != 0 || all[1].All.Relative == 0 || all[1].All.Relative > 1e-3 {
		t.Errorf("fp32 %+v, int8 %+v", all[0].All, all[1].All)
	}
	for _, seed := range []*uint64{nil, &six} {
		if _, err := WeightErrors(t.Context(), base, []*format.File{encoded(t, src, "int8", seed)}, o); !errors.Is(err, ErrNotComparable) {
			t.Errorf("another rotation: %v", err)
		}
	}
}

func TestWeightErrorsRefused(t *testing.T) {
	src := openFixture(t, "tiny-fp32")
	good := encoded(t, src, "int8", nil)
	fails := func(name string, f *format.File, words ...string) {
		t.Helper()
		_, err := WeightErrors(t.Context(), src, []*format.File{good, f}, WeightOptions{})
		if err == nil {
			t.Errorf("%s: no error", name)
			return
		}
		for _, w := range append(words, f.Path()) {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %v, expected %q", name, err, w)
			}
		}
	}
	fails("another model", encoded(t, openFixture(t, "tiny-long"), "int8", nil), "expected the original's")
	fails("more tensors", encoded(t, openFixture(t, "tiny-bias"), "int8", nil), "tensors, expected the original's")
	fails("broken weights", withNaN(t, good), "embed", "the weights are broken")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := WeightErrors(ctx, src, []*format.File{good}, WeightOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// withNaN is a file like f whose embedding has a scale that is not a number.
func withNaN(t *testing.T, f *format.File) *format.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "broken.xlstm")
	h := format.Header{Config: *f.Config(), Recipe: f.Recipe(), Provenance: f.Provenance(), Tokenizer: f.Tokenizer()}
	for _, x := range f.Tensors() {
		h.Tensors = append(h.Tensors, format.TensorSpec{Name: x.Name, Encoding: x.Encoding, Rows: x.Rows, Cols: x.Cols})
	}
	w, err := format.Create(path, h)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range f.Tensors() {
		scales := bytes.Clone(x.Scales())
		if x.Name == format.TensorEmbed {
			copy(scales, []byte{0, 0, 0xc0, 0x7f})
		}
		tw, err := w.Tensor(x.Name)
		if err == nil {
			err = tw.WriteRows(x.Values(), scales, x.Mins())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	return open(t, path)
}
