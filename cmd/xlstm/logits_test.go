package main

import (
	"bytes"
	"context"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"xlstm/internal/golden"
)

// compareLogits holds a file that logits wrote against the original's values.
func compareLogits(t *testing.T, got, want string, tolerance, nllTolerance float64) {
	t.Helper()
	g, err := golden.Read(got)
	if err != nil {
		t.Fatal(err)
	}
	w, err := golden.Read(want)
	if err != nil {
		t.Fatal(err)
	}
	for name, limit := range map[string]float64{"logits": tolerance, "nll": nllTolerance} {
		shape := w.Shape(name)
		if len(shape) != len(g.Shape(name)) {
			t.Fatalf("%s: shape %v, want %v", name, g.Shape(name), shape)
		}
		for i := range shape {
			if shape[i] != g.Shape(name)[i] {
				t.Fatalf("%s: shape %v, want %v", name, g.Shape(name), shape)
			}
		}
		worst := 0.0
		for b := range shape[0] {
			x, y := g.Floats(name, b), w.Floats(name, b)
			for i := range y {
				worst = max(worst, math.Abs(float64(x[i])-float64(y[i])))
			}
		}
		if !(worst <= limit) {
			t.Errorf("%s: largest difference %g, want at most %g", name, worst, limit)
		}
	}
}

func TestOracleLogits(t *testing.T) {
	fixture := testdata + "/fixtures/tiny-fp32"
	expected := fixture + "/expected.safetensors"
	out := filepath.Join(t.TempDir(), "out.safetensors")
	must(t, "logits", "--oracle", fixture, "--ids", expected, "-o", out)
	compareLogits(t, out, expected, 2e-4, 2e-4)
	ids, err := os.ReadFile(expected)
	if err != nil {
		t.Fatal(err)
	}
	status, piped, stderr := call(string(ids), "logits", "--oracle", fixture, "--ids", "-", "-o", "-", "--step")
	if status != 0 {
		t.Fatal(stderr)
	}
	out = filepath.Join(t.TempDir(), "piped.safetensors")
	if err := os.WriteFile(out, []byte(piped), 0o666); err != nil {
		t.Fatal(err)
	}
	compareLogits(t, out, expected, 2e-4, 2e-4)
}

// idsFile is a safetensors file with an I64 tensor of one row.
func idsFile(t testing.TB, header string, data []byte) []byte {
	t.Helper()
	n := len(header)
	return append(append([]byte{byte(n), byte(n >> 8), 0, 0, 0, 0, 0, 0}, header...), data...)
}

func TestBadIDs(t *testing.T) {
	one := `{"input_ids":{"dtype":"I64","shape":[1,2],"data_offsets":[0,16]}}`
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"empty":       {nil, "not a safetensors file"},
		"junk":        {[]byte("hello, this is no such file"), "not a safetensors file"},
		"cut off":     {idsFile(t, one, make([]byte, 15)), "not a safetensors file"},
		"other name":  {idsFile(t, strings.Replace(one, "input_ids", "ids", 1), make([]byte, 16)), `no tensor input_ids, found ["ids"]`},
		"other type":  {idsFile(t, strings.Replace(one, "I64", "F64", 1), make([]byte, 16)), "input_ids is F64"},
		"other shape": {idsFile(t, strings.Replace(one, "[1,2]", "[2]", 1), make([]byte, 16)), "input_ids is I64 [2], expected I64 [B,T]"},
		"negative":    {idsFile(t, one, bytes.Repeat([]byte{255}, 16)), "input_ids[0,0] is -1"},
		"large":       {idsFile(t, one, append(make([]byte, 8), 0, 2, 0, 0, 0, 0, 0, 0)), "input_ids[0,1] is 512, outside the vocabulary of 320"},
	} {
		out := filepath.Join(t.TempDir(), "out")
		status, _, stderr := call(string(c.data), "logits", "--oracle", testdata+"/fixtures/tiny-fp32", "--ids", "-", "-o", out)
		if status != 1 || !isLine(stderr) || !strings.Contains(stderr, c.want) {
			t.Errorf("%s: status %d, stderr %q, want %q", name, status, stderr, c.want)
		}
		if _, err := os.Stat(out); err == nil {
			t.Errorf("%s: a file was left", name)
		}
	}
}

func FuzzIDs(f *testing.F) {
	f.Add(idsFile(f, `{"input_ids":{"dtype":"I64","shape":[1,2],"data_offsets":[0,16]}}`, make([]byte, 16)))
	f.Add(idsFile(f, `{"input_ids":{"dtype":"I64","shape":[4611686018427387904,4],"data_offsets":[0,0]}}`, nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		rows, err := readIDs(data)
		if err == nil && (len(rows) == 0 || len(rows[0]) == 0 || 8*len(rows)*len(rows[0]) > len(data)) {
			t.Fatalf("%d rows of %d ids from %d bytes", len(rows), len(rows[0]), len(data))
		}
	})
}

// stuck is a follower that waits for its context.
type stuck struct{ begun chan struct{} }

func (s *stuck) VocabSize() int              { return 8 }
func (s *stuck) Reset(context.Context) error { return nil }
func (s *stuck) Forward(ctx context.Context, _ []int32, yield func(int, []float32) error) error {
	if err := yield(0, make([]float32, 8)); err != nil {
		return err
	}
	close(s.begun)
	<-ctx.Done()
	return context.Cause(ctx)
}

// TestNoFileLeft interrupts the writing of a file, and lets it fail: nothing is left, and what was there before stays.
func TestNoFileLeft(t *testing.T) {
	dir := t.TempDir()
	out := filepath.Join(dir, "out")
	if err := os.WriteFile(out, []byte("before"), 0o666); err != nil {
		t.Fatal(err)
	}
	a := &app{out: &output{w: io.Discard}, errs: io.Discard}
	ctx, cancel := context.WithCancel(context.Background())
	f := &stuck{begun: make(chan struct{})}
	go func() {
		<-f.begun
		cancel()
	}()
	err := a.writeWhole(out, func(w io.Writer) error {
		return writeLogits(ctx, w, f, [][]int32{{1, 2, 3}}, false, &bar{})
	})
	if err == nil {
		t.Error("no error")
	}
	entries, _ := os.ReadDir(dir)
	if b, err := os.ReadFile(out); len(entries) != 1 || err != nil || string(b) != "before" {
		t.Errorf("left %v, the file holds %q", entries, b)
	}
	if status, _, stderr := call("", "logits", "--oracle", testdata+"/fixtures/tiny-fp32", "--ids",
		testdata+"/fixtures/tiny-fp32/expected.safetensors", "-o", filepath.Join(dir, "no", "out")); status != 1 || !isLine(stderr) {
		t.Errorf("status %d, stderr %q", status, stderr)
	}
	if status, _, stderr := call("", "logits", "--oracle", testdata+"/fixtures/tiny-fp32", "--ids",
		testdata+"/fixtures/tiny-fp32/expected.safetensors", "-o", "/dev/full"); status != 1 || !strings.Contains(stderr, "no space left") {
		t.Errorf("/dev/full: status %d, stderr %q", status, stderr)
	}
}
