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
	"xlstm/checkpoints/checkpointtest"
)

// openFails opens dir and checks that the error is one line with all of the parts.
func openFails(t *testing.T, dir string, parts ...string) {
	t.Helper()
	c, err := checkpoints.Open(dir)
	if err == nil {
		t.Fatalf("opened %v, expected an error with %q", c.Source(), parts)
	}
	for _, p := range append(parts, dir) {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q lacks %q", err, p)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("error has several lines: %q", err)
	}
}

func TestConfigErrors(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"empty", ``, "config.json: invalid JSON: unexpected EOF"},
		{"not an object", `[1]`, "expected {, found ["},
		{"rest", `{"model_type":"xlstm"} x`, "invalid JSON"},
		{"twice", `{"model_type":"xlstm","use_bias":true,"use_bias":false}`, `"use_bias" appears twice`},
		{"other model", `{"model_type":"mamba"}`, `model_type is "mamba", expected "xlstm"`},
		{"no model type", `{"vocab_size":10}`, `model_type is "", expected "xlstm"`},
		{"text for a number", `{"model_type":"xlstm","vocab_size":"a"}`, `vocab_size is "a", expected a whole number`},
		{"fraction", `{"model_type":"xlstm","vocab_size":10.5}`, `vocab_size is 10.5, expected a whole number`},
		{"null", `{"model_type":"xlstm","num_heads":null}`, `num_heads is null, expected a whole number`},
		{"huge", `{"model_type":"xlstm","vocab_size":99999999999999999999}`, "vocab_size is 99999999999999999999, expected a whole number"},
		{"negative", `{"model_type":"xlstm","vocab_size":-4}`, "vocab_size is -4"},
		{"disagree", `{"model_type":"xlstm","embedding_dim":64,"hidden_size":128}`, "embedding_dim is 64 and hidden_size is 128, expected the same"},
		{"blocks disagree", `{"model_type":"xlstm","num_blocks":2,"num_hidden_layers":3}`, "num_blocks is 2 and num_hidden_layers is 3"},
		{"heads", `{"model_type":"xlstm","num_heads":7}`, "not multiples of num_heads 7"},
		{"zero heads", `{"model_type":"xlstm","num_heads":0}`, "num_heads is 0"},
		{"factor", `{"model_type":"xlstm","qk_dim_factor":0}`, "qk_dim_factor is 0, expected one that gives a width of at least 1"},
		{"infinite factor", `{"model_type":"xlstm","v_dim_factor":1e999}`, "v_dim_factor is 1e999, expected a number"},
		{"multiple", `{"model_type":"xlstm","ffn_round_up_to_multiple_of":0}`, "ffn_round_up_to_multiple_of is 0, expected 1 or more"},
		{"flag", `{"model_type":"xlstm","use_bias":1}`, "use_bias is 1, expected true or false"},
		{"weight mode", `{"model_type":"xlstm","weight_mode":"double"}`, `weight_mode is "double", expected "single" or "fused"`},
		{"cap", `{"model_type":"xlstm","gate_soft_cap":0}`, "gate_soft_cap is 0, expected a positive number, or null for none"},
		{"eps", `{"model_type":"xlstm","norm_eps":-1}`, "norm_eps is -1"},
		{"bos", `{"model_type":"xlstm","bos_token_id":70000}`, "bos_token is 70000, outside the vocabulary of 50304"},
		{"bos list", `{"model_type":"xlstm","bos_token_id":[1]}`, "bos_token_id is a list, expected a whole number"},
		{"bos forced", `{"model_type":"xlstm","bos_token_id":null,"force_bos_token_insert":true}`, "force_bos is set and there is no bos_token"},
		{"qk norm", `{"model_type":"xlstm","add_qk_norm":true}`, "add_qk_norm is true, expected false"},
		{"post norm", `{"model_type":"xlstm","add_post_norm":true}`, "add_post_norm is true, expected false"},
		{"norm type", `{"model_type":"xlstm","norm_type":"layernorm"}`, `norm_type is "layernorm", expected "rmsnorm"`},
		{"activation", `{"model_type":"xlstm","hidden_act":"gelu"}`, `hidden_act is "gelu", expected "silu"`},
		{"quantized", `{"model_type":"xlstm","quantization_config":{"bits":4}}`, "quantization_config"},
		{"slstm", `{"model_type":"xlstm","slstm_at":[1]}`, "slstm_at"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			save(t, dir, "config.json", []byte(c.text))
			openFails(t, dir, "config.json: ", c.want)
		})
	}
	for _, c := range []struct{ name, text, want string }{
		{"empty", ``, "config.yaml: embedding_dim is missing"},
		{"invalid", "a: [", "config.yaml: yaml: "},
		{"list", "- 1", "config.yaml: yaml: "},
		{"ill-typed", "embedding_dim: [1]\nnum_heads: 1\nnum_blocks: 1\nvocab_size: 4", "embedding_dim is a list, expected a whole number"},
		{"nan", "embedding_dim: 4\nnum_heads: 1\nnum_blocks: 1\nvocab_size: 4\nnorm_eps: .nan", "norm_eps is NaN, expected a number"},
	} {
		t.Run("yaml "+c.name, func(t *testing.T) {
			dir := t.TempDir()
			save(t, dir, "config.yaml", []byte(c.text))
			openFails(t, dir, c.want)
		})
	}
}

// TestConfigDefaults checks what absent keys mean, and that keys which nothing reads are not read.
func TestConfigDefaults(t *testing.T) {
	want := checkpoints.Config7B()
	want.ForceBOS = false
	for _, text := range []string{
		`{"model_type":"xlstm"}`,
		`{"architectures":["xLSTMForCausalLM"]}`,
		`{"model_type":"xlstm","hidden_size":4096,"embedding_dim":null,"head_dim":99,"cell_norm_eps":0.5,"add_post_blocks_norm":true,"add_qk_norm":false,"eos_token_id":2}`,
	} {
		got, fused, err := checkpoints.HFConfig("config.json", []byte(text))
		if err != nil || fused || got != want {
			t.Errorf("%s: %+v, fused %v, %v", text, got, fused, err)
		}
	}
	got, _, err := checkpoints.YAMLConfig("config.yaml", []byte("embedding_dim: 1024\nnum_heads: 4\nnum_blocks: 2\nvocab_size: 100"))
	if err != nil || got.FFNDim != 2752 || got.QKDim != 512 || got.VDim != 1024 || got.BOS != -1 || !got.OutNorm {
		t.Errorf("original's defaults: %+v, %v", got, err)
	}
}

// TestFFNDim holds the rounding to what Python computes: int(((x + m - 1) // m) * m) for x = D*factor.
func TestFFNDim(t *testing.T) {
	for _, c := range []struct {
		d, multiple int
		factor      string
		want        int
	}{
		{4096, 64, "2.667", 10944}, {192, 64, "2.6667", 512}, {128, 64, "2.6667", 384}, {64, 64, "2.6667", 192}, {100, 1, "2.5", 250},
		{100, 1, "2.509", 250}, {96, 64, "2.6667", 256}, {1024, 64, "2.6667", 2752}, {1000, 32, "2.0001", 2016}, {1024, 64, "2", 2048},
		{1024, 64, "2.001", 2112}, {1024, 64, "2.0009", 2048},
	} {
		text := fmt.Sprintf(`{"model_type":"xlstm","hidden_size":%d,"num_heads":1,"ffn_proj_factor":%s,"ffn_round_up_to_multiple_of":%d}`, c.d, c.factor, c.multiple)
		got, _, err := checkpoints.HFConfig("config.json", []byte(text))
		if err != nil || got.FFNDim != c.want {
			t.Errorf("%d * %s to a multiple of %d: %d, expected %d (%v)", c.d, c.factor, c.multiple, got.FFNDim, c.want, err)
		}
	}
}

func TestGenerationConfigBOS(t *testing.T) {
	for _, c := range []struct {
		config, generation string
		want               int
	}{
		{`{"bos_token_id":3}`, `{"bos_token_id":4}`, 3}, {`{}`, `{"bos_token_id":4}`, 4}, {`{}`, `{"bos_token_id":null}`, -1}, {`{}`, `{}`, 0},
	} {
		dir := write(t, small(), checkpointtest.Layout{})
		edit(t, dir, func(v map[string]any) {
			delete(v, "bos_token_id")
			if err := json.Unmarshal([]byte(c.config), &v); err != nil {
				t.Fatal(err)
			}
		})
		save(t, dir, "generation_config.json", []byte(c.generation))
		got, err := checkpoints.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		if got.Config().BOS != c.want {
			t.Errorf("%s with %s: %d, expected %d", c.config, c.generation, got.Config().BOS, c.want)
		}
		got.Close()
	}
	dir := write(t, small(), checkpointtest.Layout{Original: true})
	save(t, dir, "generation_config.json", []byte("{"))
	openFails(t, dir, "generation_config.json: invalid JSON")
}

func save(t *testing.T, dir, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// edit changes the JSON config of a checkpoint.
func edit(t *testing.T, dir string, change func(map[string]any)) {
	t.Helper()
	editJSON(t, dir, "config.json", change)
}

func editJSON(t *testing.T, dir, name string, change func(map[string]any)) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	v := map[string]any{}
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	change(v)
	if b, err = json.Marshal(v); err != nil {
		t.Fatal(err)
	}
	save(t, dir, name, b)
}

// header changes the header of a safetensors file, as text; the data stays.
func header(t *testing.T, dir, name string, change func(string) string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	n := binary.LittleEndian.Uint64(b)
	h := change(string(b[8 : 8+n]))
	out := binary.LittleEndian.AppendUint64(nil, uint64(len(h)))
	save(t, dir, name, append(append(out, h...), b[8+n:]...))
}

func TestTensorErrors(t *testing.T) {
	replace := func(old, new string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			header(t, dir, "model.safetensors", func(h string) string {
				if !strings.Contains(h, old) {
					t.Fatalf("header lacks %q: %s", old, h)
				}
				return strings.Replace(h, old, new, 1)
			})
		}
	}
	set := func(key string, value any) func(*testing.T, string) {
		return func(t *testing.T, dir string) { edit(t, dir, func(v map[string]any) { v[key] = value }) }
	}
	const embedding = `"backbone.embeddings.weight":{"dtype":"F32","shape":[37,24]`
	for _, c := range []struct {
		name   string
		damage func(*testing.T, string)
		want   string
	}{
		{"no weights", func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, "model.safetensors")) }, "expected model.safetensors or model.safetensors.index.json, found neither"},
		{"empty file", func(t *testing.T, dir string) { save(t, dir, "model.safetensors", nil) }, "model.safetensors: the file is empty"},
		{"short file", func(t *testing.T, dir string) { save(t, dir, "model.safetensors", []byte("abc")) }, "expected a safetensors header, found a file of 3 bytes"},
		{"huge header", func(t *testing.T, dir string) {
			save(t, dir, "model.safetensors", binary.LittleEndian.AppendUint64(nil, math.MaxUint64))
		}, "header's length is 18446744073709551615, expected at most 16777216"},
		{"header out of file", func(t *testing.T, dir string) {
			save(t, dir, "model.safetensors", binary.LittleEndian.AppendUint64(nil, 1000))
		}, "header's length is 1000, found only 0 bytes after it"},
		{"a directory", func(t *testing.T, dir string) {
			os.Remove(filepath.Join(dir, "model.safetensors"))
			os.Mkdir(filepath.Join(dir, "model.safetensors"), 0o755)
		}, "model.safetensors: expected a regular file, found d"},
		{"truncated", func(t *testing.T, dir string) {
			if err := os.Truncate(filepath.Join(dir, "model.safetensors"), 20000); err != nil {
				t.Fatal(err)
			}
		}, "outside the file's"},
		{"longer than its header says", func(t *testing.T, dir string) {
			info, _ := os.Stat(filepath.Join(dir, "model.safetensors"))
			if err := os.Truncate(filepath.Join(dir, "model.safetensors"), info.Size()+8); err != nil {
				t.Fatal(err)
			}
		}, "model.safetensors: "},
		{"missing", replace(`"lm_head.weight"`, `"lm_tail.weight"`), "model.safetensors: tensor lm_head.weight is missing, expected [37 24]"},
		{"surplus", set("num_blocks", 2), "num_blocks is 2 and num_hidden_layers is 3"},
		{"surplus block", func(t *testing.T, dir string) {
			edit(t, dir, func(v map[string]any) { v["num_blocks"], v["num_hidden_layers"] = 2, 2 })
		}, "tensor backbone.blocks.2.ffn.proj_down.weight [24 41] is surplus"},
		{"missing block", func(t *testing.T, dir string) {
			edit(t, dir, func(v map[string]any) { v["num_blocks"], v["num_hidden_layers"] = 4, 4 })
		}, "tensor backbone.blocks.3.norm_mlstm.weight is missing, expected [24]"},
		{"misshapen", set("vocab_size", 38), "model.safetensors: tensor backbone.embeddings.weight has shape [37 24], expected [38 24]"},
		{"transposed", replace(embedding, `"backbone.embeddings.weight":{"dtype":"F32","shape":[24,37]`), "has shape [24 37], expected [37 24]"},
		{"dtype", replace(embedding, `"backbone.embeddings.weight":{"dtype":"I32","shape":[37,24]`), `tensor backbone.embeddings.weight: dtype is "I32", expected F32, F16 or BF16`},
		{"fp8", replace(embedding, `"backbone.embeddings.weight":{"dtype":"F8_E4M3","shape":[37,24]`), `dtype is "F8_E4M3"`},
		{"dtype of another size", replace(embedding, `"backbone.embeddings.weight":{"dtype":"F16","shape":[37,24]`), "data_offsets span 3552 bytes, expected 1776 for F16 [37 24]"},
		{"overflow", replace(embedding, `"backbone.embeddings.weight":{"dtype":"F32","shape":[9223372036854775807,24]`), "expected a size that a file can have"},
		{"negative", replace(embedding, `"backbone.embeddings.weight":{"dtype":"F32","shape":[-37,24]`), "tensor backbone.embeddings.weight: shape: "},
		{"dimensions", replace(embedding, `"backbone.embeddings.weight":{"dtype":"F32","shape":[37,4,6]`), "shape has 3 dimensions, expected 1 or 2"},
		{"duplicate", replace(`"lm_head.weight"`, `"backbone.out_norm.weight"`), `"backbone.out_norm.weight" appears twice`},
		{"key twice", replace(`{"dtype":"F32"`, `{"dtype":"F32","dtype":"F32"`), `"dtype" appears twice`},
		{"other key", replace(`{"dtype":"F32"`, `{"x":1,"dtype":"F32"`), "expected dtype, shape and data_offsets, found x"},
		{"offsets backwards", replace(`"data_offsets":[0,`, `"data_offsets":[99999999,`), "expected a begin and an end"},
		{"overlap", overlap, "invalid metadata offset"},
		{"fused in single", set("weight_mode", "fused"), "tensor backbone.blocks.0.mlstm_layer.qkv_opreact.weight is missing, expected [78 24]"},
		{"no bias", set("use_bias", true), "tensor backbone.blocks.0.norm_mlstm.bias is missing, expected [24]"},
		{"no out norm", set("add_out_norm", false), "tensor backbone.out_norm.weight [24] is surplus"},
		{"tied", set("tie_word_embeddings", true), "tensor lm_head.weight is surplus: the config says tie_word_embeddings, and it differs"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := write(t, small(), checkpointtest.Layout{})
			c.damage(t, dir)
			openFails(t, dir, c.want)
		})
	}
}

// overlap makes the second of two neighbours of the same size begin where the first does.
func overlap(t *testing.T, dir string) {
	t.Helper()
	header(t, dir, "model.safetensors", func(h string) string {
		var m map[string]struct {
			DType   string `json:"dtype"`
			Shape   []int  `json:"shape"`
			Offsets []int  `json:"data_offsets"`
		}
		if err := json.Unmarshal([]byte(strings.Replace(h, `"__metadata__":{"format":"pt"},`, "", 1)), &m); err != nil {
			t.Fatal(err)
		}
		k, q := m["backbone.blocks.0.mlstm_layer.k.weight"], m["backbone.blocks.0.mlstm_layer.q.weight"]
		copy(q.Offsets, k.Offsets)
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	})
}

func TestIndexErrors(t *testing.T) {
	const index = "model.safetensors.index.json"
	weightMap := func(change func(m map[string]any)) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			editJSON(t, dir, index, func(v map[string]any) { change(v["weight_map"].(map[string]any)) })
		}
	}
	const first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
	for _, c := range []struct {
		name   string
		damage func(*testing.T, string)
		want   []string
	}{
		{"no map", func(t *testing.T, dir string) { save(t, dir, index, []byte(`{"metadata":{}}`)) }, []string{index, "weight_map is missing"}},
		{"empty map", func(t *testing.T, dir string) { save(t, dir, index, []byte(`{"weight_map":{}}`)) }, []string{index, "weight_map is empty"}},
		{"twice", func(t *testing.T, dir string) { save(t, dir, index, []byte(`{"weight_map":{"a":"b","a":"c"}}`)) }, []string{index, `"a" appears twice`}},
		{"ill-typed", func(t *testing.T, dir string) { save(t, dir, index, []byte(`{"weight_map":{"a":1}}`)) }, []string{index, "invalid index"}},
		{"outside", weightMap(func(m map[string]any) { m["lm_head.weight"] = "../x.safetensors" }), []string{index, "tensor lm_head.weight", `"../x.safetensors"`, "same directory"}},
		{"absolute", weightMap(func(m map[string]any) { m["lm_head.weight"] = "/etc/passwd" }), []string{"same directory"}},
		{"absent shard", weightMap(func(m map[string]any) { m["lm_head.weight"] = "model-9.safetensors" }), []string{index, "tensor lm_head.weight is in model-9.safetensors, which does not exist"}},
		{"wrong shard", weightMap(func(m map[string]any) { m["lm_head.weight"] = first }), []string{second, "tensor lm_head.weight is here, expected it in " + first}},
		{"not in index", weightMap(func(m map[string]any) { delete(m, "lm_head.weight") }), []string{second, "tensor lm_head.weight is not in " + index}},
		{"not in shard", weightMap(func(m map[string]any) { m["x"] = first }), []string{first, "tensor x is missing, " + index + " says"}},
		{"in both", func(t *testing.T, dir string) {
			b, err := os.ReadFile(filepath.Join(dir, first))
			if err != nil {
				t.Fatal(err)
			}
			save(t, dir, second, b)
		}, []string{second, "is in " + first + ", too"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := write(t, small(), checkpointtest.Layout{Shards: 2})
			c.damage(t, dir)
			openFails(t, dir, c.want...)
		})
	}
}

func TestOpenErrors(t *testing.T) {
	openFails(t, filepath.Join(t.TempDir(), "none"), "no such file")
	openFails(t, t.TempDir(), "expected config.json or config.yaml, found neither")
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	openFails(t, file, "is a file, expected a directory")
	dir := t.TempDir()
	save(t, dir, "config.json", make([]byte, 2<<20))
	openFails(t, dir, "config.json: larger than 1048576 bytes")
}

// TestTiedHeadStored accepts a head that is stored beside the embedding that it is tied to, where it is the same.
func TestTiedHeadStored(t *testing.T) {
	cfg := small()
	dir := write(t, cfg, checkpointtest.Layout{})
	edit(t, dir, func(v map[string]any) { v["tie_word_embeddings"] = true })
	b, err := os.ReadFile(filepath.Join(dir, "model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]json.RawMessage
	n := binary.LittleEndian.Uint64(b)
	if err := json.Unmarshal(b[8:8+n], &m); err != nil {
		t.Fatal(err)
	}
	at := func(name string) []byte {
		var info struct {
			Offsets []int `json:"data_offsets"`
		}
		if err := json.Unmarshal(m[name], &info); err != nil {
			t.Fatal(err)
		}
		return b[8+int(n):][info.Offsets[0]:info.Offsets[1]]
	}
	copy(at("lm_head.weight"), at("backbone.embeddings.weight"))
	save(t, dir, "model.safetensors", b)
	c, err := checkpoints.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	compare(t, tensor(t, c, "lm_head.weight"), values(t, c, "lm_head.weight"), values(t, c, "embeddings.weight"))
}
