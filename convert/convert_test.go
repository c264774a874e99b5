package convert_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"xlstm/checkpoints"
	"xlstm/checkpoints/checkpointtest"
	"xlstm/convert"
	"xlstm/format"
	"xlstm/quantize"
)

func writeCheckpoint(t testing.TB, src *checkpoints.Checkpoint, files map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	if err := checkpointtest.Write(dir, src, checkpointtest.Layout{}); err != nil {
		t.Fatal(err)
	}
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// leftovers lists what is in a directory that should be empty.
func leftovers(t testing.TB, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		t.Errorf("%s was left behind", e.Name())
	}
}

// TestDeterministic converts with different numbers of workers, which must not show.
func TestDeterministic(t *testing.T) {
	for _, recipe := range []string{"bf16", "int8 embed=fp16 blocks.*.qkvo=int4g32a"} {
		var want []byte
		for _, workers := range []int{1, 2, 7} {
			path := filepath.Join(t.TempDir(), "model.xlstm")
			seed := uint64(3)
			o := convert.Options{Recipe: recipe, Workers: workers, Rotate: &seed}
			if err := convert.Convert(t.Context(), openCheckpoint(t, "tiny-fp16"), path, o); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if want == nil {
				want = got
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s: the file depends on the number of workers", recipe)
			}
		}
	}
}

func TestProvenance(t *testing.T) {
	src := openCheckpoint(t, "tiny-bf16-sharded")
	seed := uint64(1 << 63)
	f := convertTo(t, src, convert.Options{
		Recipe: "int4", Overrides: []string{"blocks.1.*=fp16"}, Rotate: &seed, PlainScales: true, Program: "xlstm 1.2",
		Notes: map[string]string{"calibrated": "text"},
	})
	p := f.Provenance()
	if p.Program != "xlstm 1.2" || p.Source != "tiny-bf16-sharded" || f.Recipe() != "int4 blocks.1.*=fp16" {
		t.Errorf("provenance %+v, recipe %q", p, f.Recipe())
	}
	if fmt.Sprint(p.Options) != "map[calibrated:text rotate:9223372036854775808 scales:plain]" {
		t.Errorf("options %v", p.Options)
	}
	if got, ok := convert.RotationSeed(p); !ok || got != seed {
		t.Errorf("seed %d, %v", got, ok)
	}
	if len(p.Files) != 5 {
		t.Errorf("%d files, expected config, index and three shards", len(p.Files))
	}
	for _, s := range p.Files {
		b, err := os.ReadFile(filepath.Join(src.Source(), s.Name))
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(b)
		if s.Size != int64(len(b)) || s.SHA256 != hex.EncodeToString(sum[:]) {
			t.Errorf("%s: size %d, SHA-256 %s", s.Name, s.Size, s.SHA256)
		}
	}
	x, _ := f.Tensor("blocks.1.down")
	y, _ := f.Tensor("blocks.0.down")
	if x.Encoding.String() != "fp16" || y.Encoding.String() != "int4g64" {
		t.Errorf("down is %s and %s", x.Encoding, y.Encoding)
	}
	skipped := convertTo(t, src, convert.Options{Recipe: "fp16", SkipHashes: true}).Provenance()
	for _, s := range skipped.Files {
		if s.SHA256 != "" {
			t.Errorf("%s has a SHA-256 that was to be skipped", s.Name)
		}
	}
}

func TestProgress(t *testing.T) {
	src := openCheckpoint(t, "tiny-bf16-sharded")
	var most, total atomic.Int64
	convertTo(t, src, convert.Options{Recipe: "fp32", Progress: func(done, of int64) {
		total.Store(of)
		for old := most.Load(); done > old && !most.CompareAndSwap(old, done); old = most.Load() {
		}
	}})
	if most.Load() != total.Load() || total.Load() == 0 {
		t.Errorf("progress up to %d of %d", most.Load(), total.Load())
	}
}

// TestCancel interrupts at every piece of progress that there is.
func TestCancel(t *testing.T) {
	src := openCheckpoint(t, "tiny-fp32")
	dir := t.TempDir()
	for n := int64(0); ; n++ {
		ctx, cancel := context.WithCancel(t.Context())
		var seen atomic.Int64
		if n == 0 {
			cancel()
		}
		path := filepath.Join(dir, "model.xlstm")
		err := convert.Convert(ctx, src, path, convert.Options{Recipe: "fp16", SkipHashes: true, Progress: func(int64, int64) {
			if seen.Add(1) == n {
				cancel()
			}
		}})
		cancel()
		if seen.Load() < n {
			break // it was through before the nth
		}
		if err == nil {
			if err := os.Remove(path); err != nil { // cancelled after the last piece
				t.Fatal(err)
			}
		} else if !errors.Is(err, context.Canceled) {
			t.Fatalf("cancelled at %d: %v", n, err)
		}
		leftovers(t, dir)
	}
}

// TestValuesThatDoNotFit puts a value that fp16, or nothing, can hold into each of some tensors.
func TestValuesThatDoNotFit(t *testing.T) {
	c := syntheticConfig()
	for _, test := range []struct {
		tensor string
		row    int
		value  float32
		recipe string
		want   []string
	}{
		{"blocks.1.mlstm_layer.k.weight", 5, 1e6, "fp16", []string{"tensor blocks.1.qkvo", "blocks.1.mlstm_layer.k.weight, row 5", "column 7", "does not fit fp16"}},
		{"blocks.0.ffn.proj_up.weight", 199, float32(math.Inf(-1)), "bf16", []string{"tensor blocks.0.gate_up", "blocks.0.ffn.proj_up.weight, row 199", "-Inf"}},
		{"embeddings.weight", 299, float32(math.NaN()), "fp32", []string{"tensor embed", "embeddings.weight, row 299", "NaN"}},
		{"lm_head.weight", 0, float32(math.NaN()), "int8", []string{"tensor head", "lm_head.weight", "row 0"}},
		{"blocks.0.mlstm_layer.igate_preact.weight", 2, float32(math.Inf(1)), "int4", []string{"tensor blocks.0.gates", "igate_preact.weight, row 2", "+Inf"}},
		{"blocks.1.norm_ffn.weight", 0, float32(math.NaN()), "fp16", []string{"tensor blocks.1.norm_ffn.weight", "value 7 is NaN"}},
		{"blocks.1.mlstm_layer.igate_preact.bias", 0, float32(math.Inf(1)), "fp16", []string{"tensor blocks.1.gates.bias", "+Inf"}},
	} {
		dir := writeCheckpoint(t, checkpoints.Synthetic(c, 1), nil)
		poke(t, dir, test.tensor, test.row, test.value)
		src, err := checkpoints.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer src.Close()
		out := t.TempDir()
		err = convert.Convert(t.Context(), src, filepath.Join(out, "model.xlstm"), convert.Options{Recipe: test.recipe})
		if err == nil {
			t.Errorf("%s of %v: converted", test.tensor, test.value)
			continue
		}
		for _, want := range test.want {
			if !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s of %v: error %q, expected one line with %q", test.tensor, test.value, err, want)
			}
		}
		leftovers(t, out)
	}
}

// poke changes one value (column 7, or 1 of a short row) of a written checkpoint's tensor. The values before it are known, and where
// they are is found by them.
func poke(t *testing.T, dir, tensor string, row int, value float32) {
	t.Helper()
	src, err := checkpoints.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	x, ok := src.Tensor(tensor)
	if !ok {
		t.Fatalf("no tensor %s", tensor)
	}
	v := make([]float32, x.Cols())
	if err := x.ReadRows(v, row, row+1); err != nil {
		t.Fatal(err)
	}
	col := min(7, len(v)-2)
	find := make([]byte, 0, 12)
	for i := range 3 {
		find = appendFloat(find, v[max(col-1, 0)+i])
	}
	path := filepath.Join(dir, "model.safetensors")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Count(b, find) != 1 {
		t.Fatalf("%s: its values occur %d times", tensor, bytes.Count(b, find))
	}
	at := bytes.Index(b, find) + 4*min(col, 1)
	copy(b[at:], appendFloat(nil, value))
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func appendFloat(b []byte, v float32) []byte {
	u := math.Float32bits(v)
	return append(b, byte(u), byte(u>>8), byte(u>>16), byte(u>>24))
}

func TestOptionErrors(t *testing.T) {
	src := openCheckpoint(t, "tiny-fp32")
	for want, o := range map[string]convert.Options{
		"empty recipe":             {},
		"unknown encoding":         {Recipe: "fp8"},
		"expected pattern=":        {Recipe: "fp16", Overrides: []string{"head"}},
		"matches no tensor":        {Recipe: "fp16", Overrides: []string{"haed=fp32"}},
		"matches only tensors":     {Recipe: "fp16", Overrides: []string{"blocks.*.gates=int8"}},
		"section recipe has 65542": {Recipe: "fp16", Overrides: repeated("embed=fp16", 5958)},
	} {
		dir := t.TempDir()
		err := convert.Convert(t.Context(), src, filepath.Join(dir, "model.xlstm"), o)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, expected %q", err, want)
		}
		leftovers(t, dir)
	}
}

func repeated(s string, n int) []string {
	var out []string
	for range n {
		out = append(out, s)
	}
	return out
}

// TestRequantize encodes files anew: from fp32 it must give what the checkpoint gives.
func TestRequantize(t *testing.T) {
	for _, name := range []string{"tiny-bias", "tiny-tied"} {
		src := openCheckpoint(t, name)
		seed := uint64(11)
		direct := convertTo(t, src, convert.Options{Recipe: "int4", Rotate: &seed})
		again := filepath.Join(t.TempDir(), "again.xlstm")
		if err := convert.Requantize(t.Context(), convertTo(t, src, convert.Options{Recipe: "fp32"}), again, convert.Options{Recipe: "int4", Rotate: &seed}); err != nil {
			t.Fatal(err)
		}
		f := openFile(t, again)
		if f.Fingerprint() != direct.Fingerprint() {
			t.Errorf("%s: by way of a file it is another model", name)
		}
		if got, want := fmt.Sprint(f.Provenance()), fmt.Sprint(direct.Provenance()); got != want {
			t.Errorf("%s: provenance %s, expected %s", name, got, want)
		}
		refused := filepath.Join(t.TempDir(), "refused.xlstm")
		if err := convert.Requantize(t.Context(), f, refused, convert.Options{Recipe: "int8"}); err == nil || !strings.Contains(err.Error(), "encode the original") {
			t.Errorf("%s: from int4: %v", name, err)
		}
		rotated := convertTo(t, src, convert.Options{Recipe: "fp32", Rotate: &seed})
		if err := convert.Requantize(t.Context(), rotated, refused, convert.Options{Recipe: "int8", Rotate: &seed}); err == nil || !strings.Contains(err.Error(), "rotate") {
			t.Errorf("%s: rotated twice: %v", name, err)
		}
	}
}

// TestEncodeHook sees every row of every tensor that is not a floating-point one, once.
func TestEncodeHook(t *testing.T) {
	src := openCheckpoint(t, "tiny-fp32")
	var rows atomic.Int64
	want := int64(0)
	o := convert.Options{Recipe: "int8", Encode: func(_ context.Context, s format.TensorSpec, dst quantize.Rows, x []float32, n int, opt quantize.Options) error {
		rows.Add(int64(n))
		return quantize.EncodeRows(dst, s.Encoding, x, n, s.Cols, opt)
	}}
	f := convertTo(t, src, o)
	for _, x := range f.Tensors() {
		if x.Encoding.Kind == format.Int8 {
			want += int64(x.Rows)
		}
	}
	o.Encode = nil
	if rows.Load() != want || f.Fingerprint() != convertTo(t, src, o).Fingerprint() {
		t.Errorf("%d rows, expected %d", rows.Load(), want)
	}
}
