package checkpoints

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"xlstm/format"
)

// Limits on the sizes of the small files, in bytes. The 7B's are 1.3 KB, 42 KB and 2.5 MB.
const (
	maxConfig    = 1 << 20
	maxIndex     = 64 << 20
	maxTokenizer = 256 << 20
)

// layout is what a checkpoint's small files say.
type layout struct {
	config    format.Config
	original  bool              // the original's layout and names, not transformers'
	fused     bool              // weights of the projections that read the same input are one tensor
	weights   []string          // files
	indexFile string            // the index's name, "" where there is none
	index     map[string]string // tensor -> file
}

// readLayout reads the config and finds the weights' files. note is called for each file that it reads.
func readLayout(dir files, note func(string, int64)) (*layout, error) {
	l := &layout{}
	hf, yaml := dir.exists("config.json"), dir.exists("config.yaml")
	// A directory may hold both configs; then the weights' names tell which of them they were written with.
	if hf && yaml && !dir.exists("model.safetensors") && !dir.exists("model.safetensors.index.json") {
		hf = false
	}
	name, parse := "config.json", hfConfig
	if !hf {
		if !yaml {
			return nil, errors.New("expected config.json or config.yaml, found neither")
		}
		l.original = true
		name, parse = "config.yaml", yamlConfig
	}
	text, err := dir.read(name, maxConfig)
	if err != nil {
		return nil, err
	}
	note(name, int64(len(text)))
	if l.config, l.fused, err = parse(name, text); err != nil {
		return nil, err
	}
	if err := l.generation(dir, name, text, note); err != nil {
		return nil, err
	}
	return l, l.findWeights(dir, note)
}

// generation takes the beginning-of-text token from generation_config.json where the config itself does not say what it is.
func (l *layout) generation(dir files, config string, text []byte, note func(string, int64)) error {
	const name = "generation_config.json"
	b, err := dir.read(name, maxConfig)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	values, err := parseJSONObject(b)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	note(name, int64(len(b)))
	k := &keys{file: name, values: values}
	bos := k.id("bos_token_id", l.config.BOS)
	if k.err != nil || strings.Contains(string(text), "bos_token_id") {
		return k.err
	}
	l.config.BOS = bos
	if err := l.config.Validate(); err != nil {
		return fmt.Errorf("%s with %s: %w", config, name, err)
	}
	return nil
}

// findWeights lists the weights' files, as the implementation that wrote them looks for them.
func (l *layout) findWeights(dir files, note func(string, int64)) error {
	const single, index = "model.safetensors", "model.safetensors.index.json"
	switch {
	case dir.exists(single):
		l.weights = []string{single}
		return nil
	case !l.original && dir.exists(index):
		return l.readIndex(dir, index, note)
	}
	if !l.original {
		return fmt.Errorf("expected %s or %s, found neither", single, index)
	}
	for i := 0; ; i++ {
		name := "model_" + strconv.Itoa(i) + ".safetensors"
		if !dir.exists(name) {
			break
		}
		l.weights = append(l.weights, name)
	}
	if len(l.weights) == 0 {
		return fmt.Errorf("expected %s or model_0.safetensors, found neither", single)
	}
	return nil
}

func (l *layout) readIndex(dir files, name string, note func(string, int64)) error {
	text, err := dir.read(name, maxIndex)
	if err != nil {
		return err
	}
	note(name, int64(len(text)))
	l.indexFile = name
	if l.index, err = parseIndex(text); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	shards := map[string]bool{}
	for _, tensor := range sortedKeys(l.index) {
		shard := l.index[tensor]
		if shards[shard] {
			continue
		}
		shards[shard] = true
		// A plain name: an index must not reach outside its directory.
		if !fs.ValidPath(shard) || shard == "." || strings.ContainsAny(shard, `/\:`) {
			return fmt.Errorf("%s: tensor %s is in %.120q, expected the name of a file in the same directory", name, clip(tensor), shard)
		}
		if !dir.exists(shard) {
			return fmt.Errorf("%s: tensor %s is in %s, which does not exist", name, clip(tensor), clip(shard))
		}
		l.weights = append(l.weights, shard)
	}
	if len(l.weights) == 0 {
		return fmt.Errorf("%s: weight_map is empty", name)
	}
	slices.Sort(l.weights)
	return nil
}

// want is one tensor that a layout should have: its name in the file, its shape, and the canonical tensors that its rows hold, in
// order. optional tensors may be absent.
type want struct {
	name     string
	shape    []int
	parts    []part
	optional bool
}

type part struct {
	name string
	rows int // values, of a vector
}

// wanted lists the tensors of a checkpoint in the order in which a model uses them. Whether weights are fused is l.fused.
func (l *layout) wanted() []want {
	c := &l.config
	w := &wants{}
	embedding := "backbone.embeddings.weight"
	if l.original {
		embedding = "embedding.weight"
	}
	w.add(embedding, []int{c.VocabSize, c.EmbeddingDim}, "embeddings.weight")
	for i := range c.NumBlocks {
		l.wantBlock(w, fmt.Sprintf("blocks.%d.", i))
	}
	if c.OutNorm {
		w.add("backbone.out_norm.weight", []int{c.EmbeddingDim}, "out_norm.weight")
		if c.UseBias {
			w.add("backbone.out_norm.bias", []int{c.EmbeddingDim}, "out_norm.bias")
			// transformers' output norm has no bias where all its other norms have one; the original's has.
			w.list[len(w.list)-1].optional = !l.original
		}
	}
	w.add("lm_head.weight", []int{c.VocabSize, c.EmbeddingDim}, "lm_head.weight")
	w.list[len(w.list)-1].optional = c.Tied
	return w.list
}

func (l *layout) wantBlock(w *wants, b string) {
	c := &l.config
	w.norm(b+"norm_mlstm", c.EmbeddingDim, c.UseBias)
	qk, v := c.QKDim, c.VDim
	if l.fused {
		w.linear(b+"mlstm_layer.qkv_opreact", c.EmbeddingDim, c.UseBias,
			part{b + "mlstm_layer.q", qk}, part{b + "mlstm_layer.k", qk}, part{b + "mlstm_layer.v", v}, part{b + "mlstm_layer.ogate_preact", v})
		w.linear(b+"mlstm_layer.ifgate_preact", c.EmbeddingDim, true,
			part{b + "mlstm_layer.igate_preact", c.NumHeads}, part{b + "mlstm_layer.fgate_preact", c.NumHeads})
	} else {
		for _, p := range []part{{"q", qk}, {"k", qk}, {"v", v}, {"ogate_preact", v}} {
			w.linear(b+"mlstm_layer."+p.name, c.EmbeddingDim, c.UseBias, part{b + "mlstm_layer." + p.name, p.rows})
		}
		for _, gate := range []string{"igate_preact", "fgate_preact"} {
			w.linear(b+"mlstm_layer."+gate, c.EmbeddingDim, true, part{b + "mlstm_layer." + gate, c.NumHeads})
		}
	}
	w.norm(b+"mlstm_layer.multihead_norm", v, c.UseBias)
	w.linear(b+"mlstm_layer.out_proj", v, c.UseBias, part{b + "mlstm_layer.out_proj", c.EmbeddingDim})
	w.norm(b+"norm_ffn", c.EmbeddingDim, c.UseBias)
	gate, up := part{b + "ffn.proj_up_gate", c.FFNDim}, part{b + "ffn.proj_up", c.FFNDim}
	if l.fused {
		w.linear(b+"ffn.proj_up_gate_z", c.EmbeddingDim, c.UseBias, gate, up)
	} else {
		w.linear(gate.name, c.EmbeddingDim, c.UseBias, gate)
		w.linear(up.name, c.EmbeddingDim, c.UseBias, up)
	}
	w.linear(b+"ffn.proj_down", c.FFNDim, c.UseBias, part{b + "ffn.proj_down", c.EmbeddingDim})
}

type wants struct{ list []want }

func (w *wants) add(name string, shape []int, canonical string) {
	w.list = append(w.list, want{name: name, shape: shape, parts: []part{{canonical, shape[0]}}})
}

func (w *wants) norm(name string, n int, bias bool) {
	w.add("backbone."+name+".weight", []int{n}, name+".weight")
	if bias {
		w.add("backbone."+name+".bias", []int{n}, name+".bias")
	}
}

// linear is a projection of cols inputs; parts are what its rows hold.
func (w *wants) linear(name string, cols int, bias bool, parts ...part) {
	weight := want{name: "backbone." + name + ".weight"}
	vector := want{name: "backbone." + name + ".bias"}
	rows := 0
	for _, p := range parts {
		weight.parts = append(weight.parts, part{p.name + ".weight", p.rows})
		vector.parts = append(vector.parts, part{p.name + ".bias", p.rows})
		rows += p.rows
	}
	weight.shape, vector.shape = []int{rows, cols}, []int{rows}
	w.list = append(w.list, weight)
	if bias {
		w.list = append(w.list, vector)
	}
}
