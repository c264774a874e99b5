package simd

import "math"

// rounder quantizes activations to integers of type T.
type rounder[T int8 | int16] struct {
	max float32 // the largest quantized value
	// maxAbs gives the bits of the largest magnitude; round rounds x*factor, ties to even, into out and returns the sum. The largest
	// magnitude of the products must not exceed max by more than a rounding error.
	maxAbs func(x []float32) uint32
	round  func(out []T, x []float32, factor float32) int32
}

// quantize rounds x, by blocks, to multiples of scales[b] = max|x| / r.max, puts the sum of a block's integers to sums[b] where sums is
// not nil, and fills what is left of row, scales and sums with zeros.
func (r *rounder[T]) quantize(row []T, scales []float32, sums []int32, x []float32, block int) {
	clear(row[len(x):])
	blocks := (len(x) + block - 1) / block
	clear(scales[blocks:])
	if sums != nil {
		clear(sums[blocks:])
	}
	for b := range blocks {
		xs := x[b*block : min((b+1)*block, len(x))]
		out := row[b*block:][:len(xs)]
		scale, factor := r.scale(r.maxAbs(xs))
		scales[b] = scale
		var sum int32
		if factor == 0 {
			sum = fillBlock(out, scale)
		} else {
			sum = r.round(out, xs, factor)
		}
		if sums != nil {
			sums[b] = sum
		}
	}
}

// tinyBlock is the magnitude below which a block of activations is taken for zero: the inverse of its scale would overflow.
const tinyBlock = 1e-30

// scale gives a block's scale and what its values are multiplied by, from the bits of its largest magnitude. Where that is
// 0, the block is all zero or, the scale being NaN, has a value that is not finite: see fillBlock.
func (r *rounder[T]) scale(top uint32) (scale, factor float32) {
	m := math.Float32frombits(top)
	switch {
	case top >= 0xff<<23: // infinity or NaN
		return float32(math.NaN()), 0
	case m < tinyBlock:
		return 0, 0
	}
	return m * (1 / r.max), r.max / m
}

// fillBlock fills a block that is not rounded and returns the sum of its values.
func fillBlock[T int8 | int16](out []T, scale float32) int32 {
	value := T(0)
	if scale != 0 { // NaN makes all products NaN, whatever the values
		value = 1
	}
	for i := range out {
		out[i] = value
	}
	return int32(value) * int32(len(out))
}

func genericMaxAbs(x []float32) uint32 {
	top := uint32(0)
	for _, v := range x {
		top = max(top, math.Float32bits(v)&0x7fffffff)
	}
	return top
}

func genericRound[T int8 | int16](out []T, x []float32, factor float32) int32 {
	sum := int32(0)
	for i, v := range x {
		// Adding 1.5*2^23 leaves the rounded value in the low bits. The conversion forbids fusing.
		out[i] = T(math.Float32bits(float32(v*factor) + 0x1.8p23))
		sum += int32(out[i])
	}
	return sum
}

// genericPermute brings each 128 bytes of int4 activations into the order in which 64 bytes of nibbles take them: first what low
// nibbles are multiplied with, values 0 to 15 of each block of 32, then high nibbles' values 16 to 31.
func genericPermute(row []int8) {
	var tmp [128]int8
	for ; len(row) >= len(tmp); row = row[len(tmp):] {
		copy(tmp[:], row)
		for i := 0; i < len(tmp); i += 16 {
			copy(row[i%32*4+i/32*16:][:16], tmp[i:])
		}
	}
}
