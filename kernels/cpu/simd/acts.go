package simd

import (
	"unsafe"

	"xlstm/format"
)

// Acts holds activations, n vectors of cols values, in the form that products with one encoding take. Its memory is used
// again: once it has been as large as needed, nothing is allocated. Different vectors may be set at the same time.
type Acts struct {
	n, cols int
	enc     format.Encoding
	tiles   bool // the way that Mul takes: packed tiles
	block   int  // values that share a scale

	f   []float32 // [n, ldf] fp32, fp16, bf16
	ldf int
	// int8 and int4: quantized values [n, ldq], their scales [n, lds].
	words []int16 // int8
	bytes []int8  // int4; for dot products in the order of genericPermute
	ldq   int
	s     []float32
	lds   int
	// int4: what a group's offset is multiplied by [n, lds]: the sum of its values, or with symmetric encodings and dot products -8
	// times that, the offset being the group's scale. And what the tiles' integer sums of a group begin with [n, lds]: with symmetric
	// encodings -8 times the sum of its quantized values, for nibbles are 8 more than what they stand for.
	sums   []float32
	starts []int32
}

// actBlock is the number of activations that share a scale, for int8 without groups. With groups it is the group.
const actBlock = 256

// The magnitudes of a block's largest quantized value. 16 bits for int8, whose own error is of the size that 8 bits would add; 8
// bits for int4, whose error is a hundred times larger.
const (
	wordMax = 127*256 + 127
	byteMax = 127
)

// N is the number of vectors.
func (a *Acts) N() int { return a.n }

// Cols is the length of a vector.
func (a *Acts) Cols() int { return a.cols }

// Resize makes room for n vectors of cols values, for products with matrices in encoding enc. All n must be set after it.
func (a *Acts) Resize(n, cols int, enc format.Encoding) {
	a.n, a.cols, a.enc = n, cols, enc
	a.tiles = n > SmallBatch(enc)
	switch enc.Kind {
	case format.Int8, format.Int4:
		a.block = enc.Group
		if a.block == 0 {
			a.block = actBlock
		}
		// Whole blocks of 256: every kernel may run over the zeros behind the last value.
		padded := (cols + 255) / 256 * 256
		a.lds = padded/a.block + 16 // kernels read 16 scales at a time
		a.s = growAligned(a.s, n*a.lds)
		a.sums = growAligned(a.sums, n*a.lds)
		if enc.Kind == format.Int8 {
			a.ldq = stagger(2*padded) / 2
			a.words = growAligned(a.words, n*a.ldq)
			return
		}
		a.ldq = stagger(padded)
		a.bytes = growAligned(a.bytes, n*a.ldq)
		a.starts = growAligned(a.starts, n*a.lds)
	default:
		a.ldf = stagger(4*format.PaddedCols(cols)) / 4
		a.f = growAligned(a.f, n*a.ldf)
	}
}

// stagger rounds a row of n bytes up to an odd number of cache lines, so that the same column of successive vectors falls into
// different sets of the cache even where cols is a power of two.
func stagger(n int) int {
	lines := (n + 63) / 64
	return (lines | 1) * 64
}

// Set takes n vectors of cols values, ldx apart, in one call.
func (a *Acts) Set(x []float32, ldx, n, cols int, enc format.Encoding) {
	a.Resize(n, cols, enc)
	a.SetRange(x, ldx, 0, n)
}

// SetRange takes vectors [i0, i1) of x, which begins with vector 0; vectors are ldx apart.
func (a *Acts) SetRange(x []float32, ldx, i0, i1 int) {
	for i := i0; i < i1; i++ {
		a.SetRow(i, x[i*ldx:i*ldx+a.cols])
	}
}

// SetRow takes vector i.
func (a *Acts) SetRow(i int, x []float32) { active.SetRow(a, i, x) }

// SetRow is Acts.SetRow on path p.
func (p *Path) SetRow(a *Acts, i int, x []float32) {
	x = x[:a.cols]
	switch a.enc.Kind {
	case format.Int8:
		p.words.quantize(a.words[i*a.ldq:(i+1)*a.ldq], a.s[i*a.lds:(i+1)*a.lds], nil, x, a.block)
	case format.Int4:
		p.setBytes(a, i, x)
	default:
		row := a.f[i*a.ldf : (i+1)*a.ldf]
		clear(row[copy(row, x):])
	}
}

// setBytes takes vector i for int4.
func (p *Path) setBytes(a *Acts, i int, x []float32) {
	row, scales := a.bytes[i*a.ldq:(i+1)*a.ldq], a.s[i*a.lds:(i+1)*a.lds]
	sums, starts := a.sums[i*a.lds:(i+1)*a.lds], a.starts[i*a.lds:(i+1)*a.lds]
	p.bytes.quantize(row, scales, starts, x, a.block)
	if !a.tiles {
		p.permute(row)
	}
	factor := int32(-8)
	if a.enc.Asymmetric {
		factor = 1
	}
	for g, scale := range scales {
		starts[g] *= factor
		sums[g] = float32(starts[g]) * scale
	}
	if a.enc.Asymmetric {
		clear(starts)
	}
}

// growAligned is s with length n at an address divisible by 64, allocated anew only where its capacity is too small. A new
// slice is zero; of an old one the contents are undefined.
func growAligned[T int8 | int16 | int32 | float32](s []T, n int) []T {
	if cap(s) >= n {
		return s[:n]
	}
	const line = 64
	var zero T
	size := int(unsafe.Sizeof(zero))
	b := make([]T, n+n/4+line/size)
	skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(b)))%line) / size
	return b[skip:][:n]
}
