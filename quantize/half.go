package quantize

import (
	"encoding/binary"
	"math"
)

// Bit patterns of float32 values that bound the ranges of float16.
const (
	f32Inf       = 0x7f800000
	f16Overflow  = 0x477ff000 // 65520: halfway between the largest float16, 65504, and 65536; it and all above round to infinity
	f16MinNormal = 0x38800000 // 2^-14
	bf16Overflow = 0x7f7f8000 // halfway above the largest bfloat16
)

// MaxFP16 is the largest finite float16.
const MaxFP16 = 65504

// ToFP16 rounds f to the nearest float16, ties to even. Finite values of 65520 and more become infinite; NaN stays NaN, quiet.
func ToFP16(f float32) uint16 {
	b := math.Float32bits(f)
	sign := uint16(b>>16) & 0x8000
	b &= 0x7fffffff
	switch {
	case b < f16MinNormal:
		// The sum's unit in the last place is 2^-24, that of float16's subnormals: the addition does the rounding.
		return sign | uint16(math.Float32bits(math.Float32frombits(b)+0.5)-0x3f000000)
	case b < f16Overflow:
		// Rebias the exponent by 15-127, add half of what is cut off (less one unless the kept part is odd), cut off.
		return sign | uint16((b-(112<<23)+0xfff+(b>>13&1))>>13)
	case b <= f32Inf:
		return sign | 0x7c00
	}
	return sign | 0x7e00 | uint16(b>>13)&0x3ff
}

// FromFP16 widens a float16, exactly.
func FromFP16(h uint16) float32 {
	sign := uint32(h&0x8000) << 16
	b := uint32(h&0x7fff) << 13
	if b >= 0x1f<<23 {
		return math.Float32frombits(sign | b | f32Inf)
	}
	// b read as a float32 is the value divided by 2^112, whether normal or subnormal.
	f := math.Float32frombits(b) * 0x1p112
	return math.Float32frombits(sign | math.Float32bits(f))
}

// ToBF16 rounds f to the nearest bfloat16, ties to even. Finite values above the largest bfloat16, 3.39e38, by half a unit or
// more become infinite; NaN stays NaN, quiet.
func ToBF16(f float32) uint16 {
	b := math.Float32bits(f)
	if b&0x7fffffff > f32Inf {
		return uint16(b>>16) | 0x40
	}
	return uint16((b + 0x7fff + b>>16&1) >> 16)
}

// FromBF16 widens a bfloat16, exactly.
func FromBF16(h uint16) float32 { return math.Float32frombits(uint32(h) << 16) }

// EncodeFP16 writes src as little-endian float16 into the first 2*len(src) bytes of dst. It returns the index of the first
// value that is not finite or does not fit (65520 and more in magnitude), or -1; such values are written as ToFP16 gives them.
func EncodeFP16(dst []byte, src []float32) int {
	bad := -1
	dst = dst[:2*len(src)]
	for i, f := range src {
		if math.Float32bits(f)&0x7fffffff >= f16Overflow && bad < 0 {
			bad = i
		}
		binary.LittleEndian.PutUint16(dst[2*i:], ToFP16(f))
	}
	return bad
}

// DecodeFP16 widens len(dst) little-endian float16 values of src.
func DecodeFP16(dst []float32, src []byte) {
	src = src[:2*len(dst)]
	for i := range dst {
		dst[i] = FromFP16(binary.LittleEndian.Uint16(src[2*i:]))
	}
}

// EncodeBF16 writes src as little-endian bfloat16 into the first 2*len(src) bytes of dst. It returns the index of the first
// value that is not finite or does not fit, or -1; such values are written as ToBF16 gives them.
func EncodeBF16(dst []byte, src []float32) int {
	bad := -1
	dst = dst[:2*len(src)]
	for i, f := range src {
		if math.Float32bits(f)&0x7fffffff >= bf16Overflow && bad < 0 {
			bad = i
		}
		binary.LittleEndian.PutUint16(dst[2*i:], ToBF16(f))
	}
	return bad
}

// DecodeBF16 widens len(dst) little-endian bfloat16 values of src.
func DecodeBF16(dst []float32, src []byte) {
	src = src[:2*len(dst)]
	for i := range dst {
		dst[i] = FromBF16(binary.LittleEndian.Uint16(src[2*i:]))
	}
}
