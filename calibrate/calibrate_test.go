package calibrate

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"xlstm/checkpoints"
	"xlstm/convert"
	"xlstm/format"
	"xlstm/kernels"
	"xlstm/kernels/cpu"
)

const fixtures = "../testdata/fixtures/"

func source(t testing.TB, name string) *convert.Source {
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

func randomSamples(c *format.Config, seed uint64, n, length int) [][]int32 {
	rng := rand.New(rand.NewPCG(seed, 1))
	samples := make([][]int32, n)
	for i := range samples {
		for range length {
			samples[i] = append(samples[i], int32(rng.IntN(c.VocabSize)))
		}
	}
	return samples
}

// logits of a file after each of the tokens.
func logits(t testing.TB, path string, tokens []int32) []float32 {
	t.Helper()
	f, err := format.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Verify(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	e, err := cpu.Open(f, cpu.Options{Workers: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	s, err := e.NewState()
	if err != nil {
		t.Fatal(err)
	}
	out := make([]float32, len(tokens)*f.Config().VocabSize)
	if err := e.Forward(t.Context(), []kernels.Step{{State: s, Tokens: tokens, Logits: out}}); err != nil {
		t.Fatal(err)
	}
	return out
}

func distance(a, b []float32) float64 {
	sum := 0.0
	for i := range a {
		d := float64(a[i]) - float64(b[i])
		sum += d * d
	}
	return math.Sqrt(sum / float64(len(a)))
}

// TestLessError holds calibrated files against uncalibrated ones on tokens that calibration has not seen.
func TestLessError(t *testing.T) {
	for _, c := range []struct {
		fixture, recipe string
		rotate          bool
	}{
		{"tiny-fp32", "int4", false}, {"tiny-fp32", "int4", true}, {"tiny-bias", "int8g64", false}, {"tiny-fused", "int4g32a", false}, {"tiny-fp16", "int8 head=int4g32", false},
		{"tiny-tied", "int4g32 blocks.0.*=int8g32 blocks.1.down=fp16", true},
	} {
		t.Run(strings.ReplaceAll(c.fixture+" "+c.recipe, "*", "x"), func(t *testing.T) {
			src := source(t, c.fixture)
			dir := t.TempDir()
			file := func(name string) string { return filepath.Join(dir, name+".xlstm") }
			o := convert.Options{Recipe: c.recipe}
			if c.rotate {
				o.Rotate = new(uint64)
			}
			if err := src.Write(t.Context(), file("exact"), convert.Options{Recipe: "fp32"}); err != nil {
				t.Fatal(err)
			}
			if err := src.Write(t.Context(), file("searched"), o); err != nil {
				t.Fatal(err)
			}
			r, err := Run(t.Context(), src, randomSamples(src.Config(), 1, 24, 64), file("calibrated"), Options{Convert: o})
			if err != nil {
				t.Fatal(err)
			}
			tokens := randomSamples(src.Config(), 2, 1, 200)[0]
			want := logits(t, file("exact"), tokens)
			searched, calibrated := distance(want, logits(t, file("searched"), tokens)), distance(want, logits(t, file("calibrated"), tokens))
			t.Logf("logits are off by %.4g after search, %.4g after calibration", searched, calibrated)
			if !(calibrated < 0.95*searched) {
				t.Errorf("calibration changed the error of logits from %v to %v, expected less", searched, calibrated)
			}
			for _, x := range r.Tensors {
				if !(x.OutputError > 0 && x.OutputError < 0.05) || x.Damping != DefaultDamping {
					t.Errorf("%+v: expected a small error and the damping that was asked for", x)
				}
			}
			if _, err := os.Stat(file("calibrated") + ".calibration"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the work directory is still there (%v)", err)
			}
		})
	}
}

func TestNotes(t *testing.T) {
	src := source(t, "tiny-fp32")
	path := filepath.Join(t.TempDir(), "m.xlstm")
	o := Options{Convert: convert.Options{Recipe: "int8", Rotate: new(uint64), Notes: map[string]string{"a": "b"}}, Text: "abc", ActOrder: true, Damping: 0.05}
	if _, err := Run(t.Context(), src, randomSamples(src.Config(), 1, 3, 10), path, o); err != nil {
		t.Fatal(err)
	}
	f, err := format.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := f.Provenance()
	for k, want := range map[string]string{
		"a": "b", "calibration.samples": "3", "calibration.tokens": "30", "calibration.damping": "0.05", "calibration.text_sha256": "abc",
		"calibration.order": "falling second moments",
	} {
		if p.Options[k] != want {
			t.Errorf("%s is %q, expected %q", k, p.Options[k], want)
		}
	}
	if _, ok := convert.RotationSeed(p); !ok {
		t.Error("no rotation in the provenance")
	}
}

// TestHiddenVectors holds the vectors that reach the head against an engine's logits, rotated and not.
func TestHiddenVectors(t *testing.T) {
	for _, rotate := range []bool{false, true} {
		for _, fixture := range []string{"tiny-fp32", "tiny-bias"} {
			src := source(t, fixture)
			path := filepath.Join(t.TempDir(), "m.xlstm")
			if err := src.Write(t.Context(), path, convert.Options{Recipe: "fp32"}); err != nil {
				t.Fatal(err)
			}
			samples := randomSamples(src.Config(), 5, 1, 100)
			want := logits(t, path, samples[0])
			o := Options{Convert: convert.Options{Recipe: "int8"}}
			if rotate {
				o.Convert.Rotate = new(uint64)
			}
			j, err := newJob(src, samples, path, o)
			if err != nil {
				t.Fatal(err)
			}
			if err := j.reach(t.Context(), j.config.NumBlocks); err != nil {
				t.Fatal(err)
			}
			got := headLogits(t, j)
			if d := distance(got, want); d > 1e-5 {
				t.Errorf("%s, rotated %v: logits from hidden vectors are off by %v", fixture, rotate, d)
			}
		}
	}
}

// headLogits computes logits in double precision from a job's hidden vectors.
func headLogits(t *testing.T, j *job) (out []float32) {
	read := func(name string) []float32 {
		w, ok := j.src.Tensor(name)
		if !ok {
			return make([]float32, j.config.VocabSize)
		}
		x := make([]float32, w.Rows()*w.Cols())
		if err := w.ReadRows(x, 0, w.Rows()); err != nil {
			t.Fatal(err)
		}
		return x
	}
	head, bias, d := read(format.TensorHead), read(format.TensorHeadBias), j.config.EmbeddingDim
	for x := j.hidden[0]; len(x) > 0; x = x[d:] {
		sum := 0.0
		for _, v := range x[:d] {
			sum += float64(v) * float64(v)
		}
		scale := 1 / math.Sqrt(sum/float64(d)+j.config.NormEps)
		for r := range j.config.VocabSize {
			z := float64(bias[r])
			for i, v := range x[:d] {
				z += float64(head[r*d+i]) * float64(v) * scale
			}
			out = append(out, float32(j.config.OutputSoftCap*math.Tanh(z)))
		}
	}
	return out
}

// stopAfter ends a context at the n-th report of progress.
func stopAfter(ctx context.Context, n int) (context.Context, func(Progress)) {
	ctx, cancel := context.WithCancel(ctx)
	return ctx, func(Progress) {
		if n--; n == 0 {
			cancel()
		}
	}
}

// TestResume stops a calibration again and again, at another step each time. It must end with the bytes of one that ran through.
func TestResume(t *testing.T) {
	src := source(t, "tiny-fp32")
	samples := randomSamples(src.Config(), 1, 5, 40)
	dir := t.TempDir()
	whole := filepath.Join(dir, "whole.xlstm")
	options := Options{Convert: convert.Options{Recipe: "int4", Rotate: new(uint64)}, Source: "fixture"}
	if _, err := Run(t.Context(), src, samples, whole, options); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(whole)
	if err != nil {
		t.Fatal(err)
	}
	for _, lose := range []bool{false, true} { // the hidden vectors, which then are computed anew
		path := filepath.Join(dir, "resumed.xlstm")
		work := filepath.Join(dir, "work")
		stops, resumed := 0, 0
		for n := 1; ; n += 2 {
			o := options
			o.WorkDir = work
			var ctx context.Context
			ctx, o.Progress = stopAfter(t.Context(), n)
			r, err := Run(ctx, src, samples, path, o)
			if err == nil {
				resumed = r.Resumed
				break
			}
			if !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("stopped, and yet there is an output (%v)", err)
			}
			stops++
			if lose {
				removeAll(t, filepath.Join(work, "hidden-*"))
			}
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Error("a calibration that was stopped gave another file")
		}
		if stops < 6 || resumed == 0 {
			t.Errorf("%d stops, and %d blocks that were finished before the last run", stops, resumed)
		}
		if _, err := os.Stat(work); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the work directory is still there (%v)", err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

func removeAll(t *testing.T, pattern string) {
	t.Helper()
	names, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if err := os.Remove(n); err != nil {
			t.Fatal(err)
		}
	}
}

// TestProgress holds progress to never going back, and to ending where it said it would.
func TestProgress(t *testing.T) {
	src := source(t, "tiny-fp32")
	var all []Progress
	o := Options{Convert: convert.Options{Recipe: "int4"}, Progress: func(p Progress) { all = append(all, p) }}
	if _, err := Run(t.Context(), src, randomSamples(src.Config(), 1, 4, 32), filepath.Join(t.TempDir(), "m.xlstm"), o); err != nil {
		t.Fatal(err)
	}
	for i := 1; i < len(all); i++ {
		if a, b := all[i-1], all[i]; b.Done < a.Done || b.Block < a.Block || b.Total != a.Total || b.Done > b.Total {
			t.Fatalf("%+v after %+v", b, a)
		}
	}
	if last := all[len(all)-1]; last.Done < last.Total*9/10 {
		t.Errorf("the last report was %d of %d", last.Done, last.Total)
	}
}
