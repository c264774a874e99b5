package format

import "strings"

// TensorSpec says what a tensor is called, how it is stored, and its shape.
type TensorSpec struct {
	Name       string
	Encoding   Encoding
	Rows, Cols int
}

// Size is the tensor's stored size in bytes, a multiple of PartAlign.
func (s TensorSpec) Size() int64 { return s.Encoding.Sizes(s.Rows, s.Cols).Total }

// Specs lists the tensors that a file of a model with config c holds, in the order in which it holds them. Encodings are what
// encodingOf says, but for those that are FP32 in every file; it is not asked for these. c must be valid.
func Specs(c *Config, encodingOf func(name string) Encoding) []TensorSpec {
	l := specList{encodingOf: encodingOf, specs: make([]TensorSpec, 0, tensorCount(c))}
	l.matrix(TensorEmbed, c.VocabSize, c.EmbeddingDim)
	for i := range c.NumBlocks {
		l.block(c, func(name string) string { return BlockTensor(i, name) })
	}
	l.matrix(TensorHead, c.VocabSize, c.EmbeddingDim)
	if c.HeadBias {
		l.fp32(TensorHeadBias, 1, c.VocabSize)
	}
	return l.specs
}

// tensorCount is the number of tensors that Specs lists.
func tensorCount(c *Config) int {
	block, ends := 6, 2
	if c.UseBias {
		block += 6
	}
	if c.HeadBias {
		ends++
	}
	return c.NumBlocks*block + ends
}

type specList struct {
	encodingOf func(name string) Encoding
	specs      []TensorSpec
}

func (l *specList) matrix(name string, rows, cols int) {
	l.specs = append(l.specs, TensorSpec{name, l.encodingOf(name), rows, cols})
}

func (l *specList) fp32(name string, rows, cols int) {
	l.specs = append(l.specs, TensorSpec{name, Encoding{Kind: FP32}, rows, cols})
}

func (l *specList) block(c *Config, full func(name string) string) {
	linear := func(name, bias string, rows, cols int) {
		l.matrix(full(name), rows, cols)
		if c.UseBias {
			l.fp32(full(bias), 1, rows)
		}
	}
	linear(TensorQKVO, TensorQKVOBias, 2*c.QKDim+2*c.VDim, c.EmbeddingDim)
	l.fp32(full(TensorGates), 2*c.NumHeads, c.EmbeddingDim)
	l.fp32(full(TensorGatesBias), 1, 2*c.NumHeads)
	if c.UseBias {
		l.fp32(full(TensorHeadNorm), 1, c.VDim)
		l.fp32(full(TensorHeadNormBias), 1, c.VDim)
	}
	linear(TensorOut, TensorOutBias, c.EmbeddingDim, c.VDim)
	linear(TensorGateUp, TensorGateUpBias, 2*c.FFNDim, c.EmbeddingDim)
	linear(TensorDown, TensorDownBias, c.EmbeddingDim, c.FFNDim)
}

// AlwaysFP32 reports whether the tensor of that name is FP32 in every file: gates, since their errors sit in an exponent, and
// vectors, since they are small.
func AlwaysFP32(name string) bool {
	if rest, ok := strings.CutPrefix(name, "blocks."); ok {
		_, name, _ = strings.Cut(rest, ".")
	}
	return name == TensorGates || name == TensorHeadNorm || strings.HasSuffix(name, ".bias")
}
