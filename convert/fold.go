package convert

import (
	"fmt"
	"math"

	"xlstm/checkpoints"
	"xlstm/format"
)

// folder builds the tensors of a file from those of a checkpoint, and keeps the first error.
type folder struct {
	src     *checkpoints.Checkpoint
	config  *format.Config
	tensors map[string]tensor
	err     error
}

// all folds and fuses (arXiv 2503.13427 for the names; the table is in docs/FORMAT.md).
func (f *folder) all() {
	f.tensors[format.TensorEmbed] = f.matrix(columns{}, rows{name: "embeddings.weight", scale: 1})
	for i := range f.config.NumBlocks {
		f.block(i)
	}
	out := columns{}
	if f.config.OutNorm {
		out = f.norm("out_norm")
		f.config.HeadBias = out.shift != nil
	}
	head := rows{name: "lm_head.weight", scale: inverse(f.config.OutputSoftCap)}
	f.tensors[format.TensorHead] = f.matrix(out, head)
	if f.config.HeadBias {
		f.tensors[format.TensorHeadBias] = f.bias(out, head)
	}
}

func (f *folder) block(i int) {
	c := f.config
	from := func(name string) string { return fmt.Sprintf("blocks.%d.%s", i, name) }
	to := func(name string) string { return format.BlockTensor(i, name) }
	linear := func(weight, bias string, in columns, parts ...rows) {
		for j := range parts {
			p := &parts[j]
			p.name, p.bias = from(p.name+".weight"), from(p.name+".bias")
			if !c.UseBias && bias != format.TensorGatesBias {
				p.bias = ""
			}
		}
		f.tensors[to(weight)] = f.matrix(in, parts...)
		if parts[0].bias != "" {
			f.tensors[to(bias)] = f.bias(in, parts...)
		}
	}
	in := f.norm(from("norm_mlstm"))
	linear(format.TensorQKVO, format.TensorQKVOBias, in,
		rows{name: "mlstm_layer.q", scale: 1 / math.Sqrt(float64(c.HeadQKDim()))}, rows{name: "mlstm_layer.k", scale: 1},
		rows{name: "mlstm_layer.v", scale: 1}, rows{name: "mlstm_layer.ogate_preact", scale: 1})
	linear(format.TensorGates, format.TensorGatesBias, in,
		rows{name: "mlstm_layer.igate_preact", scale: inverse(c.GateSoftCap)}, rows{name: "mlstm_layer.fgate_preact", scale: inverse(c.GateSoftCap)})

	// The per-head norm's bias passes the output gate, sigmoid(o)*(y*g + b): with it, the norm stays what it is.
	headNorm := columns{}
	if c.UseBias {
		f.tensors[to(format.TensorHeadNorm)] = f.matrix(columns{}, rows{name: from("mlstm_layer.multihead_norm.weight"), scale: 1})
		f.tensors[to(format.TensorHeadNormBias)] = f.matrix(columns{}, rows{name: from("mlstm_layer.multihead_norm.bias"), scale: 1})
	} else {
		headNorm = f.norm(from("mlstm_layer.multihead_norm"))
	}
	linear(format.TensorOut, format.TensorOutBias, headNorm, rows{name: "mlstm_layer.out_proj", scale: 1})
	linear(format.TensorGateUp, format.TensorGateUpBias, f.norm(from("norm_ffn")),
		rows{name: "ffn.proj_up_gate", scale: 1}, rows{name: "ffn.proj_up", scale: 1})
	linear(format.TensorDown, format.TensorDownBias, columns{}, rows{name: "ffn.proj_down", scale: 1})
}

// inverse of a soft cap; 0 stands for no cap, which scales nothing.
func inverse(limit float64) float64 {
	if limit == 0 {
		return 1
	}
	return 1 / limit
}

// columns is a norm before a projection: y*gain + shift. nil stands for ones and for zeros.
type columns struct{ gain, shift []float64 }

// norm reads a norm's weight, and its bias where the checkpoint has one.
func (f *folder) norm(name string) columns {
	c := columns{gain: f.vector(name+".weight", true)}
	if f.config.UseBias {
		// The checkpoint was checked: only the output norm may lack a bias that the others have.
		c.shift = f.vector(name+".bias", name != "out_norm")
	}
	return c
}

// vector reads a small tensor. Norm weights meet whole columns, so that what is wrong with one is said here, by its name.
func (f *folder) vector(name string, required bool) []float64 {
	t, ok := f.tensor(name, required)
	if !ok {
		return nil
	}
	v := make([]float32, t.Cols())
	if err := t.ReadRows(v, 0, 1); err != nil {
		f.fail(err)
		return nil
	}
	out := make([]float64, len(v))
	for i, x := range v {
		out[i] = float64(x)
		if math.IsNaN(out[i]) || math.IsInf(out[i], 0) {
			f.fail(fmt.Errorf("tensor %s: value %d is %v, expected a finite number", name, i, x))
		}
	}
	return out
}

func (f *folder) tensor(name string, required bool) (checkpoints.Tensor, bool) {
	t, ok := f.src.Tensor(name)
	if !ok && required {
		f.fail(fmt.Errorf("tensor %s is missing", name))
	}
	return t, ok
}

func (f *folder) fail(err error) {
	if f.err == nil {
		f.err = err
	}
}

// rows says what consecutive rows of a file's tensor are made of: scale * (W with its columns multiplied by the gain), and for the
// bias scale * (b + W shift).
type rows struct {
	name, bias string // of the checkpoint's tensors; no bias: ""
	scale      float64
}

// matrix folds weights and puts them one below the other.
func (f *folder) matrix(in columns, parts ...rows) tensor {
	m := &folded{}
	for _, p := range parts {
		t, ok := f.tensor(p.name, true)
		if !ok {
			continue
		}
		m.cols = t.Cols()
		w := foldedPart{weight: t, first: m.rows, gain: in.gain, scale: p.scale}
		if in.gain != nil && p.scale != 1 {
			w.gain = make([]float64, len(in.gain))
			for i, g := range in.gain {
				w.gain[i] = g * p.scale
			}
		}
		m.parts = append(m.parts, w)
		m.rows += t.Rows()
	}
	return m
}

// folded is a matrix of a file, or a vector that is copied.
type folded struct {
	rows, cols int
	parts      []foldedPart
}

type foldedPart struct {
	weight checkpoints.Tensor
	first  int       // row of the file's tensor at which it begins
	gain   []float64 // of the columns, scale included; nil: scale is all
	scale  float64
}

func (m *folded) step() int { return 1 }

// each calls do for the rows [a, b) of every part that rows [r0, r1) cover.
func (m *folded) each(r0, r1 int, do func(p *foldedPart, a, b int) error) error {
	for i := range m.parts {
		p := &m.parts[i]
		a, b := max(r0-p.first, 0), min(r1-p.first, p.weight.Rows())
		if a >= b {
			continue
		}
		if err := do(p, a, b); err != nil {
			return err
		}
	}
	return nil
}

func (m *folded) read(dst []float32, r0, r1 int) error {
	return m.each(r0, r1, func(p *foldedPart, a, b int) error {
		out := dst[(p.first+a-r0)*m.cols:][:(b-a)*m.cols]
		if err := p.weight.ReadRows(out, a, b); err != nil {
			return err
		}
		p.fold(out, m.cols)
		return nil
	})
}

func (m *folded) release(r0, r1 int) error {
	return m.each(r0, r1, func(p *foldedPart, a, b int) error { return p.weight.ReleaseRows(a, b) })
}

func (m *folded) origin(row int) (name string) {
	_ = m.each(row, row+1, func(p *foldedPart, a, _ int) error {
		name = fmt.Sprintf("%s, row %d", p.weight.Name(), a)
		return nil
	})
	return name
}

// fold multiplies rows by the gains of their columns. A product of two float32 is exact in float64, so that a weight is rounded
// once where there is no scale beside the gain, and by less than 1.00001 half units where there is.
func (p *foldedPart) fold(w []float32, cols int) {
	switch {
	case p.gain != nil:
		for len(w) > 0 {
			row := w[:cols]
			for i, g := range p.gain[:len(row)] {
				row[i] = float32(float64(row[i]) * g)
			}
			w = w[cols:]
		}
	case p.scale != 1:
		for i := range w {
			w[i] = float32(float64(w[i]) * p.scale)
		}
	}
}

// bias folds the biases of the parts of a matrix, and the norm's before it.
func (f *folder) bias(in columns, parts ...rows) tensor {
	b := &foldedBias{}
	for _, p := range parts {
		t, ok := f.tensor(p.name, true)
		if !ok {
			continue
		}
		part := biasPart{weight: t, shift: in.shift, scale: p.scale}
		if p.bias != "" {
			if part.bias, ok = f.tensor(p.bias, true); !ok {
				continue
			}
			part.biased = true
		}
		b.parts = append(b.parts, part)
	}
	return b
}

// foldedBias is the bias of a fused matrix: one row.
type foldedBias struct{ parts []biasPart }

type biasPart struct {
	weight, bias checkpoints.Tensor
	biased       bool
	shift        []float64 // of the norm before the matrix; nil: none
	scale        float64
}

func (b *foldedBias) step() int { return 1 }

func (b *foldedBias) read(dst []float32, r0, r1 int) error {
	for i := range b.parts {
		if r0 == r1 {
			break
		}
		n := b.parts[i].weight.Rows()
		if err := b.parts[i].read(dst[:n]); err != nil {
			return err
		}
		dst = dst[n:]
	}
	return nil
}

func (b *foldedBias) release(int, int) error { return nil } // read keeps nothing

func (b *foldedBias) origin(int) string { return "" }

// read computes scale * (b + W shift) in float64.
func (p *biasPart) read(dst []float32) error {
	if p.biased {
		if err := p.bias.ReadRows(dst, 0, 1); err != nil {
			return err
		}
	} else {
		clear(dst)
	}
	n, cols := len(dst), p.weight.Cols()
	if p.shift == nil {
		for i, v := range dst {
			dst[i] = float32(float64(v) * p.scale)
		}
		return nil
	}
	block := min(blockRows(cols, 1), n)
	w := make([]float32, block*cols)
	for r0 := 0; r0 < n; r0 += block {
		r1 := min(r0+block, n)
		w := w[:(r1-r0)*cols]
		if err := p.weight.ReadRows(w, r0, r1); err != nil {
			return err
		}
		for r := r0; r < r1; r++ {
			sum := float64(dst[r])
			for j, x := range w[(r-r0)*cols:][:cols] {
				sum += float64(float64(x) * p.shift[j])
			}
			dst[r] = float32(sum * p.scale)
		}
		if err := p.weight.ReleaseRows(r0, r1); err != nil {
			return err
		}
	}
	return nil
}
