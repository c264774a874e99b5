package checkpoints

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"xlstm/format"
)

// keys are a config file's values with the typed access that collects the first error. JSON numbers are json.Number; YAML's are
// int, uint64 or float64.
type keys struct {
	file   string
	values map[string]any
	err    error
}

// hfConfig reads transformers' config.json. Defaults of absent keys are xLSTMConfig's. It returns whether weights are fused.
func hfConfig(file string, text []byte) (format.Config, bool, error) {
	values, err := parseJSONObject(text)
	if err != nil {
		return format.Config{}, false, fmt.Errorf("%s: %w", file, err)
	}
	k := &keys{file: file, values: values}
	if t := k.text("model_type", ""); t != "xlstm" && (t != "" || !k.names("architectures", "xLSTMForCausalLM")) {
		k.fail("model_type", t, `"xlstm"`)
	}
	c := format.Config{
		VocabSize:    k.integer("vocab_size", 50304),
		EmbeddingDim: k.either("embedding_dim", "hidden_size", 4096),
		NumBlocks:    k.either("num_blocks", "num_hidden_layers", 32),
		NumHeads:     k.integer("num_heads", 8),
		BOS:          k.id("bos_token_id", 0),
		ForceBOS:     k.flag("force_bos_token_insert", false),
	}
	fused := k.shared(&c, 2.667)
	return c, fused, k.check(&c)
}

// yamlConfig reads the original's config.yaml. Defaults of absent keys are xLSTMLargeConfig's; the four widths have none.
func yamlConfig(file string, text []byte) (format.Config, bool, error) {
	values := map[string]any{}
	if err := unmarshalYAML(text, &values); err != nil {
		return format.Config{}, false, fmt.Errorf("%s: %w", file, err)
	}
	k := &keys{file: file, values: values}
	if t := k.text("model_type", "xlstm"); t != "xlstm" {
		k.fail("model_type", t, `"xlstm"`)
	}
	for _, name := range []string{"embedding_dim", "num_heads", "num_blocks", "vocab_size"} {
		if _, ok := values[name]; !ok && k.err == nil {
			k.err = fmt.Errorf("%s: %s is missing", file, name)
		}
	}
	c := format.Config{
		VocabSize:    k.integer("vocab_size", 0),
		EmbeddingDim: k.integer("embedding_dim", 0),
		NumBlocks:    k.integer("num_blocks", 0),
		NumHeads:     k.integer("num_heads", 0),
		BOS:          k.id("bos_token_id", -1),
		ForceBOS:     k.flag("force_bos_token_insert", false),
	}
	fused := k.shared(&c, 2.6667)
	return c, fused, k.check(&c)
}

// unmarshalYAML turns a panic of the parser, should a hostile file cause one, into an error.
func unmarshalYAML(text []byte, values *map[string]any) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("invalid YAML: %v", r)
		}
	}()
	if err := yaml.Unmarshal(text, values); err != nil {
		return errors.New(strings.Join(strings.Fields(err.Error()), " "))
	}
	return nil
}

// shared fills in what both kinds of config have. It returns whether weights are fused.
func (k *keys) shared(c *format.Config, ffnFactor float64) bool {
	k.refuse()
	d := float64(c.EmbeddingDim)
	c.QKDim = k.width("qk_dim_factor", d*k.real("qk_dim_factor", 0.5))
	c.VDim = k.width("v_dim_factor", d*k.real("v_dim_factor", 1))
	multiple := k.integer("ffn_round_up_to_multiple_of", 64)
	if multiple < 1 && k.err == nil {
		k.fail("ffn_round_up_to_multiple_of", multiple, "1 or more")
	}
	c.FFNDim = k.width("ffn_proj_factor", roundUp(d*k.real("ffn_proj_factor", ffnFactor), float64(max(multiple, 1))))
	c.NormEps = k.real("norm_eps", 1e-6)
	c.CellEps = k.real("eps", 1e-6)
	c.GateSoftCap = k.cap("gate_soft_cap", 15)
	c.OutputSoftCap = k.cap("output_logit_soft_cap", 30)
	c.UseBias = k.flag("use_bias", false)
	c.Tied = k.flag("tie_word_embeddings", false)
	c.OutNorm = k.flag("add_out_norm", true)
	mode := k.text("weight_mode", "single")
	if mode != "single" && mode != "fused" {
		k.fail("weight_mode", mode, `"single" or "fused"`)
	}
	return mode == "fused"
}

// roundUp is both implementations' round_up_to_next_multiple_of: floor((x + m - 1) / m) * m in floating point. For an x less
// than 1 above a multiple it is that multiple (192 * 2.6667 = 512.0064 -> 512), where a true ceiling would give the next one.
func roundUp(x, m float64) float64 {
	x += m - 1
	return (x - math.Mod(x, m)) / m * m
}

// refuse rejects what would change the model in a way that this program does not implement. Neither implementation reads these
// keys today; they come from training code, and where they ask for what is not there the weights are not this model's.
func (k *keys) refuse() {
	for _, name := range []string{"add_qk_norm", "add_post_norm", "gate_linear_headwise", "add_ffn_norm"} {
		if k.flag(name, false) {
			k.fail(name, true, "false: it is not implemented")
		}
	}
	for _, t := range []struct {
		name    string
		allowed []string
	}{
		{"norm_type", []string{"rmsnorm", "rms_norm"}}, {"multihead_norm_type", []string{"layernorm", "layer_norm"}},
		{"hidden_act", []string{"silu", "swish"}}, {"act_fn", []string{"silu", "swish"}}, {"ffn_act_fn", []string{"silu", "swish"}},
	} {
		if s := k.text(t.name, t.allowed[0]); !slices.Contains(t.allowed, strings.ToLower(s)) {
			k.fail(t.name, s, fmt.Sprintf("%q: nothing else is implemented", t.allowed[0]))
		}
	}
	if q := k.values["quantization_config"]; q != nil {
		k.fail("quantization_config", words("given"), "none: weights have to be F32, F16 or BF16")
	}
	if s, ok := k.values["slstm_at"].([]any); ok && len(s) > 0 {
		k.fail("slstm_at", words("given"), "none: sLSTM blocks are not implemented")
	}
}

func (k *keys) check(c *format.Config) error {
	if k.err != nil {
		return k.err
	}
	if err := c.Validate(); err != nil {
		return fmt.Errorf("%s: %w", k.file, err)
	}
	if c.NormEps == 0 {
		return fmt.Errorf("%s: norm_eps is 0, expected a positive number", k.file)
	}
	return nil
}

// fail records the first error.
func (k *keys) fail(name string, found any, expected string) {
	if k.err != nil {
		return
	}
	if s, ok := found.(string); ok {
		found = fmt.Sprintf("%q", s)
	}
	k.err = fmt.Errorf("%s: %s is %v, expected %s", k.file, name, found, expected)
}

// words are put in an error as they are, where a file's own text is quoted.
type words string

func describe(v any) any {
	switch v := v.(type) {
	case nil:
		return words("null")
	case string, bool, json.Number, int, uint64, float64:
		return v
	case []any:
		return words("a list")
	}
	return words("an object")
}

func (k *keys) integer(name string, absent int) int {
	v, ok := k.values[name]
	if !ok {
		return absent
	}
	n, ok := asInt(v)
	if !ok {
		k.fail(name, describe(v), "a whole number")
		return max(absent, 1)
	}
	return n
}

func asInt(v any) (int, bool) {
	switch v := v.(type) {
	case json.Number:
		n, err := v.Int64()
		return int(n), err == nil
	case int:
		return v, true
	}
	return 0, false
}

// either reads a value that goes by two names: they must agree where both are given. null is the same as absent.
func (k *keys) either(a, b string, absent int) int {
	av, bv := k.values[a], k.values[b]
	switch {
	case av == nil && bv == nil:
		return absent
	case av == nil:
		return k.integer(b, absent)
	case bv == nil:
		return k.integer(a, absent)
	}
	n, m := k.integer(a, absent), k.integer(b, absent)
	if n != m && k.err == nil {
		k.err = fmt.Errorf("%s: %s is %d and %s is %d, expected the same number", k.file, a, n, b, m)
	}
	return n
}

// id reads a token id: -1 where it is null.
func (k *keys) id(name string, absent int) int {
	if v, ok := k.values[name]; ok && v == nil {
		return -1
	}
	n := k.integer(name, absent)
	if n < 0 && n != absent {
		k.fail(name, n, "0 or more")
	}
	return n
}

func (k *keys) real(name string, absent float64) float64 {
	v, ok := k.values[name]
	if !ok {
		return absent
	}
	var x float64
	var err error
	switch v := v.(type) {
	case json.Number:
		x, err = v.Float64()
	case int:
		x = float64(v)
	case float64:
		x = v
	default:
		err = errors.New("not a number")
	}
	if err != nil || math.IsNaN(x) || math.IsInf(x, 0) {
		k.fail(name, describe(v), "a number")
		return absent
	}
	return x
}

// width is a dimension from its real value, which Python's int() truncates.
func (k *keys) width(name string, x float64) int {
	if !(x >= 1) || x > 1<<30 {
		k.fail(name, k.real(name, 0), "one that gives a width of at least 1")
		return 1
	}
	return int(x)
}

// cap reads a soft cap: 0 (none) where it is null.
func (k *keys) cap(name string, absent float64) float64 {
	if v, ok := k.values[name]; ok && v == nil {
		return 0
	}
	x := k.real(name, absent)
	if x <= 0 {
		k.fail(name, x, "a positive number, or null for none")
	}
	return x
}

// flag reads a boolean. null is the same as absent.
func (k *keys) flag(name string, absent bool) bool {
	v := k.values[name]
	if v == nil {
		return absent
	}
	b, ok := v.(bool)
	if !ok {
		k.fail(name, describe(v), "true or false")
	}
	return b
}

// text reads a string. null is the same as absent.
func (k *keys) text(name, absent string) string {
	v := k.values[name]
	if v == nil {
		return absent
	}
	s, ok := v.(string)
	if !ok {
		k.fail(name, describe(v), "text")
		return absent
	}
	return s
}

// names reports whether the list of that name contains value.
func (k *keys) names(name, value string) bool {
	list, _ := k.values[name].([]any)
	return slices.Contains(list, any(value))
}
