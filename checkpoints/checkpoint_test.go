package checkpoints_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/nlpodyssey/safetensors"

	"xlstm/checkpoints"
	"xlstm/checkpoints/checkpointtest"
	"xlstm/format"
)

const fixtures = "../testdata/fixtures"

// small is a model with an odd size in every dimension that may be odd.
func small() format.Config {
	return format.Config{
		VocabSize: 37, EmbeddingDim: 24, NumBlocks: 3, NumHeads: 3, QKDim: 12, VDim: 27, FFNDim: 41,
		NormEps: 1e-6, CellEps: 1e-5, GateSoftCap: 15, OutputSoftCap: 30, OutNorm: true, BOS: 0,
	}
}

func write(t *testing.T, cfg format.Config, l checkpointtest.Layout) string {
	t.Helper()
	dir := t.TempDir()
	if err := checkpointtest.Write(dir, checkpoints.Synthetic(cfg, 7), l); err != nil {
		t.Fatal(err)
	}
	return dir
}

func values(t *testing.T, c *checkpoints.Checkpoint, name string) []float32 {
	t.Helper()
	x, ok := c.Tensor(name)
	if !ok {
		t.Fatalf("no tensor %s", name)
	}
	v := make([]float32, x.Rows()*x.Cols())
	if err := x.ReadRows(v, 0, x.Rows()); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestFixturesOpen(t *testing.T) {
	base := format.Config{NormEps: 1e-6, CellEps: 1e-6, GateSoftCap: 15, OutputSoftCap: 30, OutNorm: true}
	for name, want := range map[string]format.Config{
		"tiny-fp32":         {VocabSize: 320, EmbeddingDim: 128, NumBlocks: 3, NumHeads: 4, QKDim: 64, VDim: 128, FFNDim: 384},
		"tiny-bf16-sharded": {VocabSize: 512, EmbeddingDim: 128, NumBlocks: 4, NumHeads: 2, QKDim: 64, VDim: 128, FFNDim: 384},
		"tiny-fp16":         {VocabSize: 384, EmbeddingDim: 192, NumBlocks: 2, NumHeads: 2, QKDim: 96, VDim: 192, FFNDim: 512},
		"tiny-fused":        {VocabSize: 256, EmbeddingDim: 128, NumBlocks: 2, NumHeads: 4, QKDim: 64, VDim: 128, FFNDim: 384},
		"tiny-bias":         {VocabSize: 256, EmbeddingDim: 64, NumBlocks: 2, NumHeads: 2, QKDim: 32, VDim: 64, FFNDim: 192, UseBias: true},
		"tiny-tied":         {VocabSize: 300, EmbeddingDim: 64, NumBlocks: 2, NumHeads: 1, QKDim: 32, VDim: 64, FFNDim: 192, Tied: true},
		"tiny-long":         {VocabSize: 256, EmbeddingDim: 64, NumBlocks: 2, NumHeads: 2, QKDim: 32, VDim: 64, FFNDim: 192},
		"tiny-nxai-layout":  {VocabSize: 256, EmbeddingDim: 64, NumBlocks: 2, NumHeads: 2, QKDim: 32, VDim: 64, FFNDim: 192, BOS: -1},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := checkpoints.Open(filepath.Join(fixtures, name))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			want.NormEps, want.CellEps, want.GateSoftCap, want.OutputSoftCap, want.OutNorm = base.NormEps, base.CellEps, base.GateSoftCap, base.OutputSoftCap, true
			if *c.Config() != want {
				t.Errorf("config %+v, expected %+v", *c.Config(), want)
			}
			synthetic := checkpoints.Synthetic(want, 0).Names()
			if got := without(c.Names(), "out_norm.bias"); !sameSet(got, without(synthetic, "out_norm.bias")) {
				t.Errorf("names %v\nexpected %v", got, synthetic)
			}
		})
	}
}

func without(names []string, name string) []string {
	return slices.DeleteFunc(names, func(n string) bool { return n == name })
}

func sameSet(a, b []string) bool {
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(a, b)
}

// TestLayouts writes one model in every layout and reads the same values from each.
func TestLayouts(t *testing.T) {
	set := func(f func(*format.Config)) format.Config { c := small(); f(&c); return c }
	configs := map[string]format.Config{
		"plain":       small(),
		"bias":        set(func(c *format.Config) { c.UseBias = true }),
		"tied":        set(func(c *format.Config) { c.Tied = true }),
		"no out norm": set(func(c *format.Config) { c.OutNorm = false; c.UseBias = true }),
		"no caps":     set(func(c *format.Config) { c.GateSoftCap, c.OutputSoftCap = 0, 0 }),
		"bos":         set(func(c *format.Config) { c.BOS, c.ForceBOS = 5, true }),
		"no bos":      set(func(c *format.Config) { c.BOS = -1 }),
	}
	mixed := func(name string) safetensors.DType {
		switch {
		case strings.Contains(name, "gate_preact"):
			return safetensors.F32
		case strings.Contains(name, "norm"):
			return safetensors.F16
		}
		return safetensors.BF16
	}
	layouts := map[string]checkpointtest.Layout{
		"single":           {},
		"sharded":          {Shards: 4},
		"fused":            {Fused: true},
		"fused sharded":    {Fused: true, Shards: 3, DType: safetensors.BF16},
		"original":         {Original: true},
		"original sharded": {Original: true, Shards: 2, DType: safetensors.F16},
		"original fused":   {Original: true, Fused: true},
		"fp16":             {DType: safetensors.F16},
		"bf16":             {DType: safetensors.BF16},
		"mixed":            {DTypeOf: mixed, Shards: 2},
	}
	for cname, cfg := range configs {
		for lname, l := range layouts {
			t.Run(cname+"/"+lname, func(t *testing.T) {
				c, err := checkpoints.Open(write(t, cfg, l))
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				if *c.Config() != cfg {
					t.Errorf("config %+v, expected %+v", *c.Config(), cfg)
				}
				original := checkpoints.Synthetic(cfg, 7)
				if !sameSet(c.Names(), original.Names()) {
					t.Fatalf("names %v, expected %v", c.Names(), original.Names())
				}
				for _, name := range c.Names() {
					got, want := values(t, c, name), values(t, original, name)
					x, _ := c.Tensor(name)
					y, _ := original.Tensor(name)
					if !slices.Equal(x.Shape(), y.Shape()) || x.Name() != name {
						t.Fatalf("%s: %s %v, expected %v", name, x.Name(), x.Shape(), y.Shape())
					}
					compare(t, x, got, want)
				}
			})
		}
	}
}

// compare holds values to what rounding to the tensor's element type may change.
func compare(t *testing.T, x checkpoints.Tensor, got, want []float32) {
	t.Helper()
	bound := map[string]float64{"F32": 0, "F16": 0x1p-11, "BF16": 0x1p-8}[x.DType()]
	for i := range got {
		if d := math.Abs(float64(got[i]) - float64(want[i])); !(d <= bound*math.Abs(float64(want[i]))+bound*0x1p-14) {
			t.Fatalf("%s %s: value %d is %v, expected %v", x.Name(), x.DType(), i, got[i], want[i])
		}
	}
}

func TestReadRowsBounds(t *testing.T) {
	c, err := checkpoints.Open(write(t, small(), checkpointtest.Layout{Fused: true}))
	if err != nil {
		t.Fatal(err)
	}
	x, _ := c.Tensor("blocks.1.mlstm_layer.v.weight")
	all := values(t, c, x.Name())
	rows := make([]float32, 2*x.Cols())
	if err := x.ReadRows(rows, 5, 7); err != nil || !slices.Equal(rows, all[5*x.Cols():7*x.Cols()]) {
		t.Errorf("rows 5 and 6: %v", err)
	}
	for _, r := range [][3]int{{-1, 0, 1}, {0, 28, 28}, {2, 1, 0}, {0, 1, 2}} {
		if err := x.ReadRows(make([]float32, r[2]*x.Cols()), r[0], r[1]); err == nil || !strings.Contains(err.Error(), x.Name()) {
			t.Errorf("rows %d to %d: error %v", r[0], r[1], err)
		}
	}
	if err := x.Release(); err != nil {
		t.Error(err)
	}
	if !slices.Equal(values(t, c, x.Name()), all) {
		t.Error("values differ after Release")
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := x.ReadRows(rows, 0, 2); err == nil || !strings.Contains(err.Error(), "closed") {
		t.Errorf("read after close: %v", err)
	}
	if err := x.Release(); err != nil {
		t.Error(err)
	}
	if err := c.Close(); err != nil {
		t.Error("second close:", err)
	}
}

func TestOpenFS(t *testing.T) {
	dir := write(t, small(), checkpointtest.Layout{Shards: 2})
	if err := os.WriteFile(filepath.Join(dir, "tokenizer.json"), []byte(`{"a":1}`), 0o644); err != nil {
		t.Fatal(err)
	}
	c, err := checkpoints.OpenFS(os.DirFS(dir), "demo")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	compare(t, tensor(t, c, "lm_head.weight"), values(t, c, "lm_head.weight"), values(t, checkpoints.Synthetic(small(), 7), "lm_head.weight"))
	if string(c.Tokenizer()) != `{"a":1}` || c.Source() != "demo" {
		t.Errorf("tokenizer %q of %s", c.Tokenizer(), c.Source())
	}
	if _, err := checkpoints.OpenFS(fstest.MapFS{}, "empty"); err == nil || err.Error() != "open checkpoint empty: expected config.json or config.yaml, found neither" {
		t.Errorf("empty: %v", err)
	}
}

func tensor(t *testing.T, c *checkpoints.Checkpoint, name string) checkpoints.Tensor {
	t.Helper()
	x, ok := c.Tensor(name)
	if !ok {
		t.Fatalf("no tensor %s", name)
	}
	return x
}

func TestHashFiles(t *testing.T) {
	dir := write(t, small(), checkpointtest.Layout{Shards: 3})
	c, err := checkpoints.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var last int64
	files, err := c.HashFiles(context.Background(), 1, func(n int64) { last = n })
	if err != nil {
		t.Fatal(err)
	}
	total := int64(0)
	var names []string
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(dir, f.Name))
		if err != nil {
			t.Fatal(err)
		}
		if f.SHA256 != sha256.Sum256(b) || f.Size != int64(len(b)) {
			t.Errorf("%s: wrong hash or size", f.Name)
		}
		total += f.Size
		names = append(names, f.Name)
	}
	want := []string{"config.json", "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors", "model.safetensors.index.json"}
	if last != total || !sameSet(names, want) {
		t.Errorf("progress %d of %d, files %v", last, total, names)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := c.HashFiles(ctx, 2, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := c.HashFiles(context.Background(), 2, nil); err == nil || !strings.Contains(err.Error(), "config.json: it has 2 bytes") {
		t.Errorf("changed file: %v", err)
	}
}

// TestConfig7B holds the built-in description to the released config, and the tensors that it implies to the released index.
func TestConfig7B(t *testing.T) {
	const dir = "../testdata/xlstm-7b"
	text, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	cfg, _, err := checkpoints.HFConfig("config.json", text)
	if err != nil {
		t.Fatal(err)
	}
	if cfg != checkpoints.Config7B() {
		t.Errorf("released config %+v, built in %+v", cfg, checkpoints.Config7B())
	}
	if text, err = os.ReadFile(filepath.Join(dir, "model.safetensors.index.json")); err != nil {
		t.Fatal(err)
	}
	index, err := checkpoints.ParseIndex(text)
	if err != nil {
		t.Fatal(err)
	}
	c := checkpoints.Synthetic(checkpoints.Config7B(), 1)
	total := 0
	for _, name := range c.Names() {
		file := "backbone." + name
		if name == "lm_head.weight" {
			file = name
		}
		if index[file] == "" {
			t.Errorf("%s is not in the released index", file)
		}
		x := tensor(t, c, name)
		total += 4 * x.Rows() * x.Cols()
	}
	if len(index) != len(c.Names()) || total != 27461699584 || !strings.Contains(string(text), fmt.Sprintf(`"total_size": %d`, total)) {
		t.Errorf("%d tensors of %d bytes, the released index has %d", len(c.Names()), total, len(index))
	}
}

func TestSyntheticIsDeterministic(t *testing.T) {
	cfg := small()
	cfg.UseBias = true
	a, b, other := checkpoints.Synthetic(cfg, 3), checkpoints.Synthetic(cfg, 3), checkpoints.Synthetic(cfg, 4)
	seen := map[string]string{}
	for _, name := range a.Names() {
		x, all := tensor(t, a, name), values(t, a, name)
		row := make([]float32, x.Cols())
		for r := x.Rows() - 1; r >= 0; r-- {
			if err := tensor(t, b, name).ReadRows(row, r, r+1); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(row, all[r*x.Cols():(r+1)*x.Cols()]) {
				t.Fatalf("%s: row %d depends on how it is read", name, r)
			}
		}
		forget := strings.HasSuffix(name, "fgate_preact.bias") // the same in all models
		if !forget && reflect.DeepEqual(all, values(t, other, name)) {
			t.Errorf("%s does not depend on the seed", name)
		}
		key := fmt.Sprint(all[:min(len(all), 3)])
		if seen[key] != "" && !forget {
			t.Errorf("%s equals %s", name, seen[key])
		}
		seen[key] = name
	}
	// The values are part of what benchmarks and golden results rest on.
	got := values(t, checkpoints.Synthetic(checkpoints.Config7B(), 1), "blocks.31.mlstm_layer.igate_preact.bias")[:3]
	if want := []float32{-1.9189748, -2.8926454, -3.9902945}; !slices.Equal(got, want) {
		t.Errorf("first values %v, expected %v", got, want)
	}
}

// TestSyntheticScale checks mean and spread of each kind of tensor.
func TestSyntheticScale(t *testing.T) {
	cfg := small()
	cfg.EmbeddingDim, cfg.NumBlocks, cfg.VocabSize = 256, 8, 300
	c := checkpoints.Synthetic(cfg, 11)
	for name, want := range map[string][2]float64{
		"embeddings.weight":                      {0, 1},
		"blocks.0.mlstm_layer.q.weight":          {0, 1. / 16},
		"blocks.7.ffn.proj_up.weight":            {0, 1. / 16},
		"blocks.2.ffn.proj_down.weight":          {0, 2 / math.Sqrt(41*16)},
		"blocks.2.norm_ffn.weight":               {1, 0.25},
		"lm_head.weight":                         {0, 1. / 8},
		"blocks.3.mlstm_layer.fgate_preact.bias": {4.5, math.Sqrt(1.5)},
	} {
		v := values(t, c, name)
		mean, square := 0., 0.
		for _, x := range v {
			mean += float64(x) / float64(len(v))
			square += float64(x) * float64(x) / float64(len(v))
		}
		std := math.Sqrt(square - mean*mean)
		if tolerance := 5 * want[1] / math.Sqrt(float64(len(v))); math.Abs(mean-want[0]) > tolerance || math.Abs(std-want[1]) > tolerance {
			t.Errorf("%s: mean %.4f and deviation %.4f of %d values, expected %.4f and %.4f", name, mean, std, len(v), want[0], want[1])
		}
	}
}
