package checkpoints_test

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"xlstm/checkpoints"
)

// TestDecodeAll converts every 16-bit pattern and compares with the formats' definitions.
func TestDecodeAll(t *testing.T) {
	src := make([]byte, 2<<16)
	for i := range 1 << 16 {
		binary.LittleEndian.PutUint16(src[2*i:], uint16(i))
	}
	dst := make([]float32, 1<<16)
	define := func(u, mantissa, bias int) float64 {
		sign := 1 - 2*float64(u>>15)
		e, m := u>>mantissa&(1<<(15-mantissa)-1), float64(u&(1<<mantissa-1))/float64(int(1)<<mantissa)
		switch {
		case e == 1<<(15-mantissa)-1 && m != 0:
			return math.NaN()
		case e == 1<<(15-mantissa)-1:
			return math.Inf(int(sign))
		case e == 0:
			return sign * math.Ldexp(m, 1-bias)
		}
		return sign * math.Ldexp(1+m, e-bias)
	}
	for _, f := range []struct {
		name           string
		decode         func([]float32, []byte)
		mantissa, bias int
	}{{"F16", checkpoints.DecodeF16, 10, 15}, {"BF16", checkpoints.DecodeBF16, 7, 127}} {
		f.decode(dst, src)
		for i, x := range dst {
			want := define(i, f.mantissa, f.bias)
			if float64(x) != want && !(math.IsNaN(want) && x != x) || math.Signbit(float64(x)) != (i>>15 == 1) {
				t.Fatalf("%s %#04x is %v, expected %v", f.name, i, x, want)
			}
		}
	}
}

func FuzzShard(f *testing.F) {
	header := func(h string, data int) []byte {
		b := binary.LittleEndian.AppendUint64(nil, uint64(len(h)))
		return append(append(b, h...), make([]byte, data)...)
	}
	f.Add(header(`{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"BF16","shape":[3],"data_offsets":[24,30]}}`, 30))
	f.Add(header(`{"a":{"dtype":"F16","shape":[4294967296,4294967296],"data_offsets":[0,0]}}`, 0))
	f.Add(header(`{"a":{"dtype":"F16","shape":[1],"data_offsets":[18446744073709551615,1]}}`, 2))
	f.Add(binary.LittleEndian.AppendUint64(nil, 1<<63))
	f.Add(header(strings.Repeat("[", 5000), 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		names, err := checkpoints.ParseShard(b) // reads all values: a place outside the file would panic
		if err == nil && len(b) < 8+2*len(names) {
			t.Errorf("%d tensors in %d bytes", len(names), len(b))
		}
	})
}

func FuzzConfig(f *testing.F) {
	for _, name := range []string{"../testdata/xlstm-7b/config.json", "../testdata/fixtures/tiny-nxai-layout/config.yaml", "../testdata/fixtures/tiny-tied/config.json"} {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"model_type":"xlstm","embedding_dim":1e300}`))
	f.Add([]byte("a: &a [*a]"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, parse := range []func(string, []byte) (err error){
			func(file string, b []byte) error {
				c, _, err := checkpoints.HFConfig(file, b)
				return invalid(c.Validate(), err)
			},
			func(file string, b []byte) error {
				c, _, err := checkpoints.YAMLConfig(file, b)
				return invalid(c.Validate(), err)
			},
			func(file string, b []byte) error { _, err := checkpoints.ParseIndex(b); return invalid(nil, err) },
		} {
			if err := parse("config", b); err != nil {
				t.Error(err)
			}
		}
	})
}

// invalid is an error where a parser accepted a config that no model can have, or its error is not one line.
func invalid(validate, err error) error {
	if err == nil {
		return validate
	}
	if strings.Contains(err.Error(), "\n") {
		return fmt.Errorf("error of several lines: %q", err)
	}
	return nil
}

func BenchmarkSynthetic(b *testing.B) {
	c := checkpoints.Synthetic(checkpoints.Config7B(), 1)
	x, _ := c.Tensor("blocks.0.ffn.proj_up.weight")
	dst := make([]float32, 64*x.Cols())
	b.SetBytes(int64(4 * len(dst)))
	for i := range b.N {
		r := 64 * i % (x.Rows() - 64)
		if err := x.ReadRows(dst, r, r+64); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	src := make([]byte, 2<<18)
	for i := range src {
		src[i] = byte(i * 7 % 120)
	}
	dst := make([]float32, 1<<18)
	for _, f := range []struct {
		name   string
		decode func([]float32, []byte)
	}{{"F16", checkpoints.DecodeF16}, {"BF16", checkpoints.DecodeBF16}} {
		b.Run(f.name, func(b *testing.B) {
			b.SetBytes(int64(4 * len(dst))) // of float32
			for range b.N {
				f.decode(dst, src)
			}
		})
	}
}

// BenchmarkOpen7B opens six shards of the 7B's size, made of holes.
func BenchmarkOpen7B(b *testing.B) {
	dir := b.TempDir()
	if err := sparse7B(dir); err != nil {
		b.Skip("no sparse files here: ", err)
	}
	for range b.N {
		c, err := checkpoints.Open(dir)
		if err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
}

// sparse7B writes the released config and index, and shards with headers and holes for data.
func sparse7B(dir string) error {
	const released = "../testdata/xlstm-7b"
	for _, name := range []string{"config.json", "model.safetensors.index.json"} {
		b, err := os.ReadFile(filepath.Join(released, name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			return err
		}
	}
	text, err := os.ReadFile(filepath.Join(dir, "model.safetensors.index.json"))
	if err != nil {
		return err
	}
	index, err := checkpoints.ParseIndex(text)
	if err != nil {
		return err
	}
	headers, sizes := map[string]map[string]any{}, map[string]int{}
	c := checkpoints.Synthetic(checkpoints.Config7B(), 0)
	for _, name := range c.Names() {
		x, _ := c.Tensor(name)
		if name != "lm_head.weight" {
			name = "backbone." + name
		}
		shard := index[name]
		if headers[shard] == nil {
			headers[shard] = map[string]any{}
		}
		n := 4 * x.Rows() * x.Cols()
		headers[shard][name] = map[string]any{"dtype": "F32", "shape": x.Shape(), "data_offsets": []int{sizes[shard], sizes[shard] + n}}
		sizes[shard] += n
	}
	for shard, h := range headers {
		b, err := json.Marshal(h)
		if err != nil {
			return err
		}
		path := filepath.Join(dir, shard)
		if err := os.WriteFile(path, append(binary.LittleEndian.AppendUint64(nil, uint64(len(b))), b...), 0o644); err != nil {
			return err
		}
		if err := os.Truncate(path, int64(8+len(b)+sizes[shard])); err != nil {
			return err
		}
	}
	return nil
}
