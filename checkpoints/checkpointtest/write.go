// Package checkpointtest writes small checkpoints in the layouts that package checkpoints reads, for tests.
package checkpointtest

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"

	"github.com/nlpodyssey/safetensors"

	"xlstm/checkpoints"
	"xlstm/format"
)

// Layout says how Write stores a checkpoint.
type Layout struct {
	DType    safetensors.DType                   // F32 where it is zero's value, BOOL
	DTypeOf  func(name string) safetensors.DType // of one tensor by its canonical name, instead of DType; optional
	Shards   int                                 // files; 0 and 1 are a single one
	Fused    bool
	Original bool // config.yaml and the original's names
}

// Write stores c's tensors in dir. F16 and BF16 round to nearest, ties to even.
func Write(dir string, c *checkpoints.Checkpoint, l Layout) error {
	names, views, err := collect(c, l)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	shards := max(l.Shards, 1)
	index := map[string]string{}
	total := 0
	for s := range shards {
		file := "model.safetensors"
		switch {
		case shards > 1 && l.Original:
			file = fmt.Sprintf("model_%d.safetensors", s)
		case shards > 1:
			file = fmt.Sprintf("model-%05d-of-%05d.safetensors", s+1, shards)
		}
		part := map[string]safetensors.TensorView{}
		for _, name := range names[s*len(names)/shards : (s+1)*len(names)/shards] {
			part[name] = views[name]
			index[name] = file
			total += int(views[name].DataLen())
		}
		b, err := safetensors.Serialize(part, map[string]string{"format": "pt"})
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, file), b, 0o644); err != nil {
			return err
		}
	}
	if shards > 1 && !l.Original {
		b, err := json.Marshal(map[string]any{"metadata": map[string]any{"total_size": total}, "weight_map": index})
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, "model.safetensors.index.json"), b, 0o644); err != nil {
			return err
		}
	}
	return WriteConfig(dir, c.Config(), l)
}

// ConfigValues are the keys of a config file that describes c.
func ConfigValues(c *format.Config, l Layout) map[string]any {
	// A quarter more than the width, since readers truncate what the factor gives.
	factor := func(width int) float64 { return (float64(width) + 0.25) / float64(c.EmbeddingDim) }
	v := map[string]any{
		"vocab_size": c.VocabSize, "embedding_dim": c.EmbeddingDim, "num_blocks": c.NumBlocks, "num_heads": c.NumHeads,
		"qk_dim_factor": factor(c.QKDim), "v_dim_factor": factor(c.VDim),
		"ffn_proj_factor": factor(c.FFNDim), "ffn_round_up_to_multiple_of": 1,
		"norm_eps": c.NormEps, "eps": c.CellEps, "gate_soft_cap": soft(c.GateSoftCap), "output_logit_soft_cap": soft(c.OutputSoftCap),
		"use_bias": c.UseBias, "add_out_norm": c.OutNorm, "weight_mode": "single",
	}
	if l.Fused {
		v["weight_mode"] = "fused"
	}
	if c.Tied {
		v["tie_word_embeddings"] = true
	}
	v["bos_token_id"], v["force_bos_token_insert"] = any(c.BOS), c.ForceBOS
	if c.BOS < 0 {
		v["bos_token_id"] = nil
	}
	if !l.Original {
		v["model_type"], v["hidden_size"], v["num_hidden_layers"] = "xlstm", c.EmbeddingDim, c.NumBlocks
	}
	return v
}

func soft(c float64) any {
	if c == 0 {
		return nil
	}
	return c
}

// WriteConfig writes the config file that describes c. JSON is YAML, too.
func WriteConfig(dir string, c *format.Config, l Layout) error {
	b, err := json.MarshalIndent(ConfigValues(c, l), "", "  ")
	if err != nil {
		return err
	}
	name := "config.json"
	if l.Original {
		name = "config.yaml"
	}
	return os.WriteFile(filepath.Join(dir, name), b, 0o644)
}

// collect encodes all tensors under the layout's names.
func collect(c *checkpoints.Checkpoint, l Layout) ([]string, map[string]safetensors.TensorView, error) {
	var names []string
	data, shapes, dtypes := map[string][]byte{}, map[string][]uint64{}, map[string]safetensors.DType{}
	for _, canonical := range c.Names() {
		if canonical == "lm_head.weight" && c.Config().Tied {
			continue
		}
		t, _ := c.Tensor(canonical)
		values := make([]float32, t.Rows()*t.Cols())
		if err := t.ReadRows(values, 0, t.Rows()); err != nil {
			return nil, nil, err
		}
		name := l.name(canonical)
		dtype := l.DType
		if l.DTypeOf != nil {
			dtype = l.DTypeOf(canonical)
		}
		if data[name] == nil {
			names = append(names, name)
			dtypes[name] = dtype
			shapes[name] = []uint64{0}
			if len(t.Shape()) == 2 {
				shapes[name] = []uint64{0, uint64(t.Cols())}
			}
		}
		b, err := encode(values, dtypes[name])
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", canonical, err)
		}
		data[name] = append(data[name], b...)
		shapes[name][0] += uint64(t.Shape()[0])
	}
	views := map[string]safetensors.TensorView{}
	for _, name := range names {
		dtype := dtypes[name]
		if dtype == safetensors.BOOL {
			dtype = safetensors.F32
		}
		v, err := safetensors.NewTensorView(dtype, shapes[name], data[name])
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", name, err)
		}
		views[name] = v
	}
	return names, views, nil
}

var fusedNames = strings.NewReplacer(
	"mlstm_layer.q.", "mlstm_layer.qkv_opreact.", "mlstm_layer.k.", "mlstm_layer.qkv_opreact.", "mlstm_layer.v.", "mlstm_layer.qkv_opreact.",
	"ogate_preact.", "qkv_opreact.", "igate_preact.", "ifgate_preact.", "fgate_preact.", "ifgate_preact.",
	"proj_up_gate.", "proj_up_gate_z.", "proj_up.", "proj_up_gate_z.")

func (l Layout) name(canonical string) string {
	if canonical == "lm_head.weight" {
		return canonical
	}
	if l.Original && canonical == "embeddings.weight" {
		return "embedding.weight"
	}
	if l.Fused {
		canonical = fusedNames.Replace(canonical)
	}
	return "backbone." + canonical
}

func encode(values []float32, dtype safetensors.DType) ([]byte, error) {
	var b []byte
	for _, v := range values {
		switch dtype {
		case safetensors.BOOL, safetensors.F32:
			b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
		case safetensors.BF16:
			u := math.Float32bits(v)
			b = binary.LittleEndian.AppendUint16(b, uint16((u+0x7fff+u>>16&1)>>16))
		case safetensors.F16:
			b = binary.LittleEndian.AppendUint16(b, half(v))
		default:
			return nil, fmt.Errorf("dtype %s is not written", dtype)
		}
	}
	return b, nil
}

// half rounds to the nearest half-precision number, ties to even, by way of its value: slow and obvious.
func half(v float32) uint16 {
	sign := uint16(math.Float32bits(v) >> 16 & 0x8000)
	x := math.Abs(float64(v))
	_, e := math.Frexp(x)
	e = max(e-1, -14)
	m := math.RoundToEven(math.Ldexp(x, 10-e)) // in units of the last place: 1024 to 2048, less for subnormals
	switch bits := uint64(m) + uint64(e+14)<<10; {
	case x == 0:
		return sign
	case bits >= 0x7c00:
		return sign | 0x7c00
	default:
		return sign | uint16(bits)
	}
}
