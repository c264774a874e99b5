package convert

import (
	"fmt"
	"maps"
	"strconv"
	"strings"

	"xlstm/format"
	"xlstm/quantize"
)

// optionRotate is the provenance option that holds a rotation's seed.
const optionRotate = "rotate"

// Rotate gives the same model with its residual stream and, per head, its queries and keys rotated by randomized Hadamard
// matrices that the seed stands for (QuaRot, arXiv 2404.00456). It computes the same function, since norm weights are folded:
// rmsnorm(R x) = R rmsnorm(x), and (R q).(R k) = q.k. What it gains is that no channel stands out, which is what low-bit
// encodings suffer from.
func (s *Source) Rotate(seed uint64) (*Source, error) {
	if _, ok := s.provenance.Options[optionRotate]; ok {
		return nil, fmt.Errorf("rotate: %w", errNoRotation)
	}
	residual, err := quantize.NewRotation(s.config.EmbeddingDim, seed)
	if err != nil {
		return nil, fmt.Errorf("rotate the residual stream: %w", err)
	}
	heads, err := quantize.NewRotation(s.config.HeadQKDim(), seed)
	if err != nil {
		return nil, fmt.Errorf("rotate queries and keys: %w", err)
	}
	r := *s
	r.provenance.Options = maps.Clone(s.provenance.Options)
	if r.provenance.Options == nil {
		r.provenance.Options = map[string]string{}
	}
	r.provenance.Options[optionRotate] = strconv.FormatUint(seed, 10)
	r.tensors = make(map[string]tensor, len(s.tensors))
	for _, spec := range s.Tensors() {
		r.tensors[spec.Name] = rotateTensor(s.tensors[spec.Name], spec, residual, heads, 2*s.config.QKDim)
	}
	return &r, nil
}

// rotateTensor wraps t in what becomes of it. The first qk rows of qkvo are queries and keys.
func rotateTensor(t tensor, spec format.TensorSpec, residual, heads *quantize.Rotation, qk int) tensor {
	name := spec.Name
	if rest, ok := strings.CutPrefix(name, "blocks."); ok {
		_, name, _ = strings.Cut(rest, ".")
	}
	r := &rotated{tensor: t, rows: spec.Rows, cols: spec.Cols}
	switch name {
	case format.TensorEmbed, format.TensorHead, format.TensorGates, format.TensorGateUp:
		r.right = residual // E' = E R^T; what reads the stream: W' = W R^T
	case format.TensorQKVO:
		r.right, r.left, r.leftRows = residual, heads, qk
	case format.TensorOut, format.TensorDown:
		r.left, r.leftRows = residual, spec.Rows // what writes it: W' = R W
	case format.TensorOutBias, format.TensorDownBias:
		r.vector, r.vectorLen = residual, spec.Cols
	case format.TensorQKVOBias:
		r.vector, r.vectorLen = heads, qk
	default:
		return t
	}
	return r
}

// rotated is a tensor with rotations merged in, computed in float64 from the tensor's float32.
type rotated struct {
	tensor
	rows, cols int
	right      *quantize.Rotation // of all rows; nil: none
	left       *quantize.Rotation // of each run of its width among the first leftRows rows; nil: none
	leftRows   int
	vector     *quantize.Rotation // of each run of its width among the first vectorLen values of the only row; nil: none
	vectorLen  int
}

// step is the width of the rotation over rows: that many rows are computed together.
func (r *rotated) step() int {
	if r.left == nil {
		return 1
	}
	return r.left.Width()
}

func (r *rotated) read(dst []float32, r0, r1 int) error {
	if r.left == nil {
		if err := r.tensor.read(dst, r0, r1); err != nil {
			return err
		}
		r.turn(dst, r1-r0)
		return nil
	}
	// Rows that are rotated with others are computed with all of them.
	width := r.left.Width()
	for r0 < r1 && r0 < r.leftRows {
		first := r0 / width * width
		group := dst
		end := min(first+width, r1)
		if whole := first == r0 && end == first+width; whole {
			group = dst[:width*r.cols]
		} else {
			group = make([]float32, width*r.cols)
		}
		if err := r.tensor.read(group, first, first+width); err != nil {
			return err
		}
		applyLeft(r.left, group, r.cols)
		r.turn(group, width)
		n := (end - r0) * r.cols
		copy(dst[:n], group[(r0-first)*r.cols:])
		dst, r0 = dst[n:], end
	}
	if r0 >= r1 {
		return nil
	}
	if err := r.tensor.read(dst, r0, r1); err != nil {
		return err
	}
	r.turn(dst, r1-r0)
	return nil
}

// stripCols is how many columns are rotated together: a strip of a 7B's 4,096 rows is 256 KiB, which stays in the cache where whole
// rows would not.
const stripCols = 16

// applyLeft replaces w, [r.Width(), cols], by R w.
func applyLeft(r *quantize.Rotation, w []float32, cols int) {
	rows := r.Width()
	strip := make([]float32, rows*min(cols, stripCols))
	for c := 0; c < cols; c += stripCols {
		n := min(stripCols, cols-c)
		for i := range rows {
			copy(strip[i*n:(i+1)*n], w[i*cols+c:])
		}
		r.ApplyLeft(strip, n)
		for i := range rows {
			copy(w[i*cols+c:], strip[i*n:(i+1)*n])
		}
	}
}

// turn rotates what lies along rows.
func (r *rotated) turn(w []float32, rows int) {
	if r.right != nil {
		r.right.ApplyRight(w, rows)
	}
	if r.vector != nil {
		for first := 0; first < r.vectorLen && rows > 0; first += r.vector.Width() {
			r.vector.ApplyRightAt(w, 1, r.cols, first)
		}
	}
}

// origin would name one row where a rotated one is made of many.
func (r *rotated) origin(row int) string {
	if r.left != nil && row < r.leftRows {
		return ""
	}
	return r.tensor.origin(row)
}
