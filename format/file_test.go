package format

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

func openFile(t testing.TB, path string) *File {
	t.Helper()
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestRoundTrip(t *testing.T) {
	for name, c := range map[string]Config{"plain": smallConfig(), "bias": biasConfig()} {
		t.Run(name, func(t *testing.T) {
			path, stored := smallFile(t, c)
			f := openFile(t, path)
			h := smallHeader(c)
			if *f.Config() != c || f.Recipe() != h.Recipe || !bytes.Equal(f.Tokenizer(), h.Tokenizer) || !reflect.DeepEqual(f.Provenance(), h.Provenance) {
				t.Errorf("config %+v, recipe %q, tokenizer %q, provenance %+v", *f.Config(), f.Recipe(), f.Tokenizer(), f.Provenance())
			}
			if len(f.Tensors()) != len(h.Tensors) {
				t.Fatalf("%d tensors, expected %d", len(f.Tensors()), len(h.Tensors))
			}
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for i, s := range h.Tensors {
				got, ok := f.Tensor(s.Name)
				if !ok || got.Encoding != s.Encoding || got.Rows != s.Rows || got.Cols != s.Cols || !bytes.Equal(got.Data, stored[i]) {
					t.Errorf("tensor %s: %v, %s %d x %d", s.Name, ok, got.Encoding, got.Rows, got.Cols)
				}
				if at := bytes.Index(raw, stored[i]); at < 0 || at%PartAlign != 0 {
					t.Errorf("tensor %s is at %d", s.Name, at)
				}
				if got.SHA256 != sha256.Sum256(got.Data) {
					t.Errorf("tensor %s: checksum", s.Name)
				}
				z := s.Encoding.Sizes(s.Rows, s.Cols)
				if n := int64(s.Rows); int64(len(got.Values())) != n*z.ValueRow || int64(len(got.Scales())) != n*z.ScaleRow || int64(len(got.Mins())) != n*z.MinRow {
					t.Errorf("tensor %s: parts of %d, %d, %d bytes", s.Name, len(got.Values()), len(got.Scales()), len(got.Mins()))
				}
			}
			if _, ok := f.Tensor("nothing"); ok {
				t.Error("found a tensor that is not there")
			}
			var total, largest atomic.Int64
			if err := f.Verify(t.Context(), func(done, of int64) { total.Store(of); largest.Store(max(largest.Load(), done)) }); err != nil {
				t.Error(err)
			}
			if total.Load() != f.Size() {
				t.Errorf("progress up to %d of %d, file of %d", largest.Load(), total.Load(), f.Size())
			}
		})
	}
}

// TestConcurrentWriters writes every tensor from a goroutine of its own; the file must not depend on their order.
func TestConcurrentWriters(t *testing.T) {
	c := biasConfig()
	path, stored := smallFile(t, c)
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	h := smallHeader(c)
	again := filepath.Join(t.TempDir(), "again.xlstm")
	w, err := Create(again, h)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	var wg sync.WaitGroup
	for i, s := range h.Tensors {
		wg.Go(func() {
			tw, err := w.Tensor(s.Name)
			if err != nil {
				t.Error(err)
				return
			}
			all := Tensor{Encoding: s.Encoding, Rows: s.Rows, Cols: s.Cols, Data: stored[i]}
			if err := tw.WriteRows(all.Values(), all.Scales(), all.Mins()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(again)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("the file depends on the order of writing")
	}
}

func TestFingerprint(t *testing.T) {
	base := func() Header { return smallHeader(smallConfig()) }
	print := func(change func(*Header)) [32]byte {
		h := base()
		change(&h)
		path := filepath.Join(t.TempDir(), "f.xlstm")
		w, err := Create(path, h)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Abort()
		fill(t, w, h.Tensors)
		if err := w.Commit(); err != nil {
			t.Fatal(err)
		}
		f := openFile(t, path)
		return f.Fingerprint()
	}
	want := print(func(*Header) {})
	if print(func(h *Header) { h.Provenance.Source, h.Recipe = "elsewhere", "other" }) != want {
		t.Error("the fingerprint depends on where the model came from")
	}
	for name, change := range map[string]func(*Header){
		"config":    func(h *Header) { h.Config.BOS = 1 },
		"tokenizer": func(h *Header) { h.Tokenizer = []byte("another") },
		"encoding":  func(h *Header) { h.Tensors[0].Encoding = Encoding{Kind: FP16} },
	} {
		if print(change) == want {
			t.Errorf("the fingerprint does not depend on the %s", name)
		}
	}
}

func TestCreateErrors(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*Header)
		want   string
	}{
		"config":   {func(h *Header) { h.Config.NumHeads = 0 }, "num_heads is 0"},
		"missing":  {func(h *Header) { h.Tensors = h.Tensors[1:] }, "tensors, expected the"},
		"order":    {func(h *Header) { h.Tensors[0], h.Tensors[1] = h.Tensors[1], h.Tensors[0] }, "tensor 0 is blocks.0.qkvo"},
		"shape":    {func(h *Header) { h.Tensors[0].Rows++ }, "tensor 0 is embed, 42 x 40"},
		"encoding": {func(h *Header) { h.Tensors[0].Encoding = Encoding{Kind: Int4} }, "no such encoding"},
		"gates":    {func(h *Header) { h.Tensors[2].Encoding = Encoding{Kind: FP16} }, "expected blocks.0.gates, 4 x 40, fp32"},
		"recipe":   {func(h *Header) { h.Recipe = strings.Repeat("x", 1<<17) }, "section recipe has 131072 bytes"},
		"disk":     {func(h *Header) { h.Config = hugeConfig(); h.Tensors = Specs(&h.Config, mixed()) }, "not enough free space"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			h := smallHeader(smallConfig())
			test.change(&h)
			w, err := Create(filepath.Join(dir, "x.xlstm"), h)
			if err == nil {
				w.Abort()
				t.Fatal("created")
			}
			if !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "x.xlstm") || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %q, expected one line with %q", err, test.want)
			}
			empty(t, dir)
		})
	}
}

// hugeConfig needs some petabytes, more than any disk of a machine that runs tests.
func hugeConfig() Config {
	c := smallConfig()
	c.VocabSize, c.EmbeddingDim, c.NumBlocks, c.QKDim, c.VDim, c.FFNDim = 1<<24, 1<<18, 1<<12, 1<<18, 1<<18, 1<<18
	return c
}

func empty(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		t.Errorf("%s was left behind", e.Name())
	}
}

func TestCreateRefusesWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{dir, dir + "/", os.DevNull, filepath.Join(dir, "no", "x.xlstm"), ""} {
		w, err := Create(path, smallHeader(smallConfig()))
		if err == nil {
			w.Abort()
			t.Errorf("created %q", path)
		}
	}
	empty(t, dir)
}

func TestWriterMisuse(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x.xlstm")
	if err := os.WriteFile(path, []byte("what was there"), 0o600); err != nil {
		t.Fatal(err)
	}
	h := smallHeader(smallConfig())
	w, err := Create(path, h)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if entries, err := filepath.Glob(filepath.Join(dir, ".x.xlstm.tmp-*")); err != nil || len(entries) != 1 {
		t.Errorf("temporary files %v, %v", entries, err)
	}
	if _, err := w.Tensor("nothing"); err == nil {
		t.Error("a writer for a tensor that is not there")
	}
	tw, err := w.Tensor("embed")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Tensor("embed"); err == nil {
		t.Error("two writers for one tensor")
	}
	row := make([]byte, tw.Spec().Encoding.ValueRowBytes(tw.Spec().Cols))
	if err := tw.WriteRows(row, nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err == nil || !strings.Contains(err.Error(), "tensor embed has 1 rows of 41") {
		t.Errorf("commit of an incomplete tensor: %v", err)
	}
	if err := w.Commit(); err == nil {
		t.Error("commit after a failed one")
	}
	if err := w.Abort(); err != nil {
		t.Errorf("abort after a failed commit: %v", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "what was there" {
		t.Errorf("the file that was there became %q, %v", b, err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestWriteRowsErrors(t *testing.T) {
	h := smallHeader(smallConfig())
	for name, rows := range map[string]int{"part of a row": 0, "too many": 42} {
		w, err := Create(filepath.Join(t.TempDir(), "x.xlstm"), h)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Abort()
		tw, err := w.Tensor("embed")
		if err != nil {
			t.Fatal(err)
		}
		size := tw.Spec().Encoding.ValueRowBytes(tw.Spec().Cols)
		b := make([]byte, int64(rows)*size)
		if rows == 0 {
			b = make([]byte, size-1)
		}
		if err := tw.WriteRows(b, nil, nil); err == nil || !strings.Contains(err.Error(), "tensor embed") {
			t.Errorf("%s: %v", name, err)
		}
		if err := tw.WriteRows(make([]byte, 41*size), nil, nil); err == nil {
			t.Errorf("%s: written after an error", name)
		}
	}
}

// TestWriteFailure closes the file under the writer, which stands for any error of the system.
func TestWriteFailure(t *testing.T) {
	dir := t.TempDir()
	w, err := Create(filepath.Join(dir, "x.xlstm"), smallHeader(smallConfig()))
	if err != nil {
		t.Fatal(err)
	}
	tw, err := w.Tensor("embed")
	if err != nil {
		t.Fatal(err)
	}
	w.file.Close()
	if err := tw.WriteRows(make([]byte, tw.sizes.ValueRow), nil, nil); !errors.Is(err, os.ErrClosed) {
		t.Errorf("write: %v", err)
	}
	if err := w.Commit(); err == nil {
		t.Error("committed")
	}
	empty(t, dir)
}

func TestOpenErrors(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for path, want := range map[string]string{
		filepath.Join(dir, "absent"): "no such file",
		dir:                          "expected a regular file, found a directory",
		write("empty", ""):           "the file is empty",
		write("text", "hello world"): "not an .xlstm file",
		write("short", magic):        "truncated: 8 bytes",
	} {
		_, err := Open(path)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, expected %q", path, err, want)
		}
	}
}

func TestRelease(t *testing.T) {
	path, stored := smallFile(t, smallConfig())
	f := openFile(t, path)
	for i, x := range f.Tensors() {
		if err := f.Release(x.Data[:len(x.Data)/2]); err != nil {
			t.Errorf("%s: %v", x.Name, err)
		}
		if !bytes.Equal(x.Data, stored[i]) {
			t.Errorf("%s: changed", x.Name)
		}
	}
	if err := f.Release(make([]byte, 10)); err == nil {
		t.Error("released memory that is not the file's")
	}
}

func TestSpecsMatchTheirCount(t *testing.T) {
	for _, c := range []Config{smallConfig(), biasConfig()} {
		specs := Specs(&c, mixed())
		if len(specs) != tensorCount(&c) || cap(specs) != len(specs) {
			t.Errorf("%d specs, expected %d", len(specs), tensorCount(&c))
		}
		seen := map[string]bool{}
		for _, s := range specs {
			if seen[s.Name] || len(s.Name) > entryNameLen {
				t.Errorf("name %s", s.Name)
			}
			seen[s.Name] = true
			if AlwaysFP32(s.Name) && s.Encoding.Kind != FP32 {
				t.Errorf("%s is %s", s.Name, s.Encoding)
			}
		}
	}
	// The largest model that a config can describe must not overflow.
	c := hugeConfig()
	total := 0.0
	sum := int64(0)
	for _, s := range Specs(&c, func(string) Encoding { return Encoding{Kind: FP32} }) {
		total += float64(s.Size())
		sum += s.Size()
	}
	if math.Abs(total-float64(sum)) > 1e-9*total {
		t.Errorf("sizes sum to %d, expected about %g", sum, total)
	}
}

func BenchmarkOpen(b *testing.B) {
	c := smallConfig()
	c.NumBlocks = 64 // 386 tensors
	path, _ := smallFile(b, c)
	for b.Loop() {
		f, err := Open(path)
		if err != nil {
			b.Fatal(err)
		}
		f.Close()
	}
}
