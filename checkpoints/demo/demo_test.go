package demo

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"slices"
	"testing"
)

const (
	maxWeightBytes = 32 << 20
	parameters     = 13_783_716
)

func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := fs.ReadFile(FS(), name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

type config struct {
	Vocab     int     `json:"vocab_size"`
	Dim       int     `json:"embedding_dim"`
	Blocks    int     `json:"num_blocks"`
	Heads     int     `json:"num_heads"`
	QKFactor  float64 `json:"qk_dim_factor"`
	VFactor   float64 `json:"v_dim_factor"`
	FFNFactor float64 `json:"ffn_proj_factor"`
	FFNRound  int     `json:"ffn_round_up_to_multiple_of"`
	Tied      bool    `json:"tie_word_embeddings"`
	Bias      bool    `json:"use_bias"`
	ForceBOS  bool    `json:"force_bos_token_insert"`
	BOS       *int    `json:"bos_token_id"`
	EOS       *int    `json:"eos_token_id"`
}

func readConfig(t *testing.T) config {
	t.Helper()
	var c config
	if err := json.Unmarshal(read(t, ConfigFile), &c); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestFSHoldsTheCheckpointAlone(t *testing.T) {
	entries, err := fs.ReadDir(FS(), ".")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	want := []string{ConfigFile, GenerationConfigFile, WeightsFile, TokenizerFile}
	if !slices.Equal(got, want) {
		t.Errorf("embedded files %q, want %q", got, want)
	}
	f, err := FS().Open(WeightsFile)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, ok := f.(io.ReaderAt); !ok {
		t.Errorf("%T does not implement io.ReaderAt", f)
	}
}

func TestConfig(t *testing.T) {
	c := readConfig(t)
	if c.Bias || c.Tied || !c.ForceBOS {
		t.Errorf("use_bias %v, tie_word_embeddings %v, force_bos_token_insert %v", c.Bias, c.Tied, c.ForceBOS)
	}
	if c.BOS == nil || *c.BOS != 0 || c.EOS == nil || *c.EOS != 0 {
		t.Error("a text must begin and end at token 0")
	}
	odd := c.Dim
	for odd%2 == 0 {
		odd /= 2
	}
	if odd > 3 {
		t.Errorf("width %d is no power of two times at most 3", c.Dim)
	}
	var g struct {
		EOS *int `json:"eos_token_id"`
	}
	if err := json.Unmarshal(read(t, GenerationConfigFile), &g); err != nil || g.EOS == nil || *g.EOS != 0 {
		t.Errorf("%s: end of text %v (%v), want 0", GenerationConfigFile, g.EOS, err)
	}
}

func TestTokenizerCoversTheVocabulary(t *testing.T) {
	var tok struct {
		Model struct {
			Vocab map[string]int `json:"vocab"`
		} `json:"model"`
	}
	if err := json.Unmarshal(read(t, TokenizerFile), &tok); err != nil {
		t.Fatal(err)
	}
	c := readConfig(t)
	seen := make([]bool, c.Vocab)
	for token, id := range tok.Model.Vocab {
		if id < 0 || id >= c.Vocab || seen[id] {
			t.Fatalf("token %q has id %d: out of range or taken", token, id)
		}
		seen[id] = true
	}
	if i := slices.Index(seen, false); i >= 0 {
		t.Errorf("no token has id %d", i)
	}
	if id, ok := tok.Model.Vocab["<|endoftext|>"]; !ok || id != 0 {
		t.Errorf("<|endoftext|> is %d, %v; want 0", id, ok)
	}
}

type tensor struct {
	Dtype   string `json:"dtype"`
	Shape   []int  `json:"shape"`
	Offsets [2]int `json:"data_offsets"`
}

// parse splits a safetensors file into its tensors, its metadata and its data,
// and checks that the tensors cover the data without gap or overlap.
func parse(t *testing.T, b []byte) (map[string]tensor, map[string]string, []byte) {
	t.Helper()
	if len(b) < 8 || binary.LittleEndian.Uint64(b) > uint64(len(b)-8) {
		t.Fatal("no safetensors header")
	}
	n := 8 + int(binary.LittleEndian.Uint64(b))
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(b[8:n], &raw); err != nil {
		t.Fatal(err)
	}
	var meta map[string]string
	tensors := map[string]tensor{}
	var spans [][2]int
	for name, v := range raw {
		if name == "__metadata__" {
			if err := json.Unmarshal(v, &meta); err != nil {
				t.Fatal(err)
			}
			continue
		}
		var x tensor
		if err := json.Unmarshal(v, &x); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		size := map[string]int{"BF16": 2, "F32": 4, "I64": 8}[x.Dtype]
		for _, d := range x.Shape {
			size *= d
		}
		if size == 0 || x.Offsets[1]-x.Offsets[0] != size {
			t.Errorf("%s: %s %v at %v", name, x.Dtype, x.Shape, x.Offsets)
		}
		tensors[name] = x
		spans = append(spans, x.Offsets)
	}
	slices.SortFunc(spans, func(a, b [2]int) int { return a[0] - b[0] })
	end := 0
	for _, s := range spans {
		if s[0] != end {
			t.Fatalf("data at %d, want %d", s[0], end)
		}
		end = s[1]
	}
	if end != len(b)-n {
		t.Fatalf("tensors end at %d of %d bytes", end, len(b)-n)
	}
	return tensors, meta, b[n:]
}

// shapes lists the tensors that a checkpoint of this config must hold.
func shapes(c config) map[string][]int {
	qk, v := int(float64(c.Dim)*c.QKFactor), int(float64(c.Dim)*c.VFactor)
	ffn := int(math.Ceil(float64(c.Dim)*c.FFNFactor/float64(c.FFNRound))) * c.FFNRound
	m := map[string][]int{
		"backbone.embeddings.weight": {c.Vocab, c.Dim},
		"backbone.out_norm.weight":   {c.Dim},
		"lm_head.weight":             {c.Vocab, c.Dim},
	}
	for i := range c.Blocks {
		for name, shape := range map[string][]int{
			"norm_mlstm.weight":                 {c.Dim},
			"mlstm_layer.q.weight":              {qk, c.Dim},
			"mlstm_layer.k.weight":              {qk, c.Dim},
			"mlstm_layer.v.weight":              {v, c.Dim},
			"mlstm_layer.ogate_preact.weight":   {v, c.Dim},
			"mlstm_layer.igate_preact.weight":   {c.Heads, c.Dim},
			"mlstm_layer.igate_preact.bias":     {c.Heads},
			"mlstm_layer.fgate_preact.weight":   {c.Heads, c.Dim},
			"mlstm_layer.fgate_preact.bias":     {c.Heads},
			"mlstm_layer.multihead_norm.weight": {v},
			"mlstm_layer.out_proj.weight":       {c.Dim, v},
			"norm_ffn.weight":                   {c.Dim},
			"ffn.proj_up_gate.weight":           {ffn, c.Dim},
			"ffn.proj_up.weight":                {ffn, c.Dim},
			"ffn.proj_down.weight":              {c.Dim, ffn},
		} {
			m[fmt.Sprintf("backbone.blocks.%d.%s", i, name)] = shape
		}
	}
	return m
}

func TestWeights(t *testing.T) {
	b := read(t, WeightsFile)
	if len(b) > maxWeightBytes {
		t.Errorf("%d bytes, want at most %d", len(b), maxWeightBytes)
	}
	tensors, _, data := parse(t, b)
	want, count := shapes(readConfig(t)), 0
	for name, x := range tensors {
		if x.Dtype != "BF16" || !slices.Equal(x.Shape, want[name]) {
			t.Errorf("%s: %s %v, want BF16 %v", name, x.Dtype, x.Shape, want[name])
		}
		nonzero := false
		for at := x.Offsets[0]; at < x.Offsets[1]; at += 2 {
			v := float64(math.Float32frombits(uint32(binary.LittleEndian.Uint16(data[at:])) << 16))
			if math.IsNaN(v) || math.Abs(v) > 100 {
				t.Fatalf("%s holds %v", name, v)
			}
			nonzero = nonzero || v != 0
			count++
		}
		if !nonzero {
			t.Errorf("%s is all zero", name)
		}
	}
	if len(tensors) != len(want) || count != parameters {
		t.Errorf("%d tensors of %d parameters, want %d of %d", len(tensors), count, len(want), parameters)
	}
}

func floats(data []byte, x tensor) []float64 {
	v := make([]float64, 0, (x.Offsets[1]-x.Offsets[0])/4)
	for at := x.Offsets[0]; at < x.Offsets[1]; at += 4 {
		v = append(v, float64(math.Float32frombits(binary.LittleEndian.Uint32(data[at:]))))
	}
	return v
}

// The golden file must belong to the embedded weights, and its losses to its logits.
func TestGoldenBelongsToTheWeights(t *testing.T) {
	b, err := os.ReadFile("testdata/golden.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	tensors, meta, data := parse(t, b)
	sum := sha256.Sum256(read(t, WeightsFile))
	if got := hex.EncodeToString(sum[:]); got != meta["model_sha256"] {
		t.Fatalf("weights have sha256 %s, the golden values were made from %s", got, meta["model_sha256"])
	}
	shape := tensors["logits"].Shape
	if len(shape) != 3 || shape[2] != readConfig(t).Vocab {
		t.Fatalf("logits %v", shape)
	}
	rows, length, vocab := shape[0], shape[1], shape[2]
	logits, nll := floats(data, tensors["logits"]), floats(data, tensors["nll"])
	id := func(r, i int) int {
		return int(binary.LittleEndian.Uint64(data[tensors["input_ids"].Offsets[0]+8*(r*length+i):]))
	}
	for r := range rows {
		if id(r, 0) != 0 {
			t.Errorf("row %d begins with token %d, want 0", r, id(r, 0))
		}
		for i := range length - 1 {
			at := (r*length + i) * vocab
			total := 0.0
			for _, z := range logits[at : at+vocab] {
				total += math.Exp(z)
			}
			got := math.Log(total) - logits[at+id(r, i+1)]
			if want := nll[r*(length-1)+i]; math.Abs(got-want) > 1e-5 {
				t.Errorf("row %d token %d: loss of the logits %v, golden %v", r, i, got, want)
			}
		}
	}
}
