package checkpoints

import (
	"fmt"
	"math"
	"strings"

	"xlstm/format"
)

// Config7B describes NX-AI/xLSTM-7b.
func Config7B() format.Config {
	return format.Config{
		VocabSize: 50304, EmbeddingDim: 4096, NumBlocks: 32, NumHeads: 8, QKDim: 2048, VDim: 4096, FFNDim: 10944,
		NormEps: 1e-6, CellEps: 1e-6, GateSoftCap: 15, OutputSoftCap: 30, OutNorm: true, BOS: 0, ForceBOS: true,
	}
}

// Synthetic is a checkpoint whose weights are generated as they are read: nothing is stored, whatever its size. A value depends on
// seed, tensor and place alone, so that any row can be read at any time, and twice the same. Weights are near normal and scaled so
// that activations keep a magnitude of about 1 through any number of blocks, and gates vary as a trained model's do: forget biases
// run from 3 to 6 over the heads; input gates lie around -3, since at the initial -10 of training the cell would be silent and
// nothing downstream would notice its being wrong. The values are the same in every version of the program.
func Synthetic(config format.Config, seed uint64) *Checkpoint {
	c := &Checkpoint{source: fmt.Sprintf("synthetic, seed %d", seed), config: config, tensors: map[string]Tensor{}}
	l := &layout{config: config}
	for _, w := range l.wanted() {
		name := w.parts[0].name
		if name == "lm_head.weight" && config.Tied {
			continue
		}
		cols := w.shape[len(w.shape)-1]
		g := &generated{key: mix(seed ^ hashName(name)), cols: cols, dist: distribution(name, cols, &config)}
		c.add(Tensor{name: name, shape: w.shape, dtype: "F32", rows: g})
	}
	if config.Tied {
		head := c.tensors["embeddings.weight"]
		head.name = "lm_head.weight"
		c.add(head)
	}
	return c
}

// dist is a normal distribution whose mean runs from mean to mean+ramp over a row.
type dist struct{ mean, ramp, std float64 }

func distribution(name string, cols int, c *format.Config) dist {
	weight := strings.HasSuffix(name, ".weight")
	fan := 1 / math.Sqrt(float64(cols))
	is := func(part string) bool { return strings.Contains(name, part) }
	switch {
	case is("embeddings"):
		if c.Tied { // it is the head, too, whose logits should not be dominated by the token that was read
			return dist{std: 2 * fan}
		}
		return dist{std: 1}
	case is("norm") && weight:
		return dist{mean: 1, std: 0.25}
	case is("igate_preact") && !weight:
		return dist{mean: -3, std: 1}
	case is("fgate_preact") && !weight:
		return dist{mean: 3, ramp: 3, std: 0}
	case !weight:
		return dist{std: 0.1}
	case is("out_proj") || is("proj_down"):
		// Both add to the residual stream, 2L times in all; their inputs are gated to about half of 1.
		return dist{std: 2 * fan / math.Sqrt(float64(2*c.NumBlocks))}
	case is("lm_head"):
		return dist{std: 2 * fan}
	}
	return dist{std: fan}
}

// generated is values made from their place. The key is the tensor's.
type generated struct {
	key  uint64
	cols int
	dist dist
}

func (g *generated) release(int, int) error { return nil }

func (g *generated) read(dst []float32, from int) error {
	for row := from / g.cols; len(dst) > 0; row++ {
		n := min(g.cols, len(dst))
		g.row(dst[:n], row)
		dst = dst[n:]
	}
	return nil
}

// row makes one row. A 64-bit number gives one value: the sum of its four 16-bit pieces is near normal, with mean 2*65535 and
// variance 4*(65536^2-1)/12, and never further than 3.5 standard deviations from its mean.
func (g *generated) row(dst []float32, row int) {
	const mean, std = 2 * 65535, 65536 / math.Sqrt2 / 1.2247448713915890 // 65536/sqrt(3)
	scale := float32(g.dist.std / std)
	state := mix(g.key + uint64(row)*golden)
	for i := range dst {
		state += golden
		z := mix(state)
		sum := int32(z&0xffff) + int32(z>>16&0xffff) + int32(z>>32&0xffff) + int32(z>>48)
		dst[i] = float32(sum-mean) * scale
	}
	if g.dist.mean == 0 && g.dist.ramp == 0 {
		return
	}
	for i := range dst {
		dst[i] += float32(g.dist.mean + g.dist.ramp*float64(i)/float64(max(len(dst)-1, 1)))
	}
}

const golden = 0x9e3779b97f4a7c15

// mix is the output function of the generator splitmix64.
func mix(z uint64) uint64 {
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// hashName is FNV-1a.
func hashName(name string) uint64 {
	h := uint64(0xcbf29ce484222325)
	for i := range len(name) {
		h = (h ^ uint64(name[i])) * 0x100000001b3
	}
	return h
}
