package quantize

import (
	"encoding/binary"
	"math"

	"xlstm/format"
)

// params are the stored scale and minimum of a row or group, as the file will hold them: already rounded.
type params struct{ scale, min float32 }

func loadParams(enc format.Encoding, src Rows, g int) params {
	if enc.Kind == format.Int8 && enc.Group == 0 {
		return params{scale: math.Float32frombits(binary.LittleEndian.Uint32(src.Scales))}
	}
	p := params{scale: FromFP16(binary.LittleEndian.Uint16(src.Scales[2*g:]))}
	if enc.Asymmetric {
		p.min = FromFP16(binary.LittleEndian.Uint16(src.Mins[2*g:]))
	}
	return p
}

func storeParams(enc format.Encoding, dst Rows, g int, p params) {
	if enc.Kind == format.Int8 && enc.Group == 0 {
		binary.LittleEndian.PutUint32(dst.Scales, math.Float32bits(p.scale))
		return
	}
	binary.LittleEndian.PutUint16(dst.Scales[2*g:], ToFP16(p.scale))
	if enc.Asymmetric {
		binary.LittleEndian.PutUint16(dst.Mins[2*g:], ToFP16(p.min))
	}
}

// Adding roundMagic to a float32 of less than 2^22 in magnitude rounds it to an integer, ties to even, which then is the
// difference of the sum's bits to roundBits. The explicit conversions below keep compilers from fusing multiply and add, which
// would make files differ between machines.
const (
	roundMagic = 3 << 22
	roundBits  = 0x4b400000
)

func roundInt(f float32) int32 { return int32(math.Float32bits(f+roundMagic)) - roundBits }

// tinyScale is the scale below which a float32 reciprocal loses precision or overflows; float16 scales never are.
const tinyScale = 0x1p-120

// maxSteps bounds a value divided by its scale, so that roundInt works on it; searched scales are at least the largest
// magnitude of their group over maxSteps.
const maxSteps = 1 << 20

// codesInt8 writes the nearest codes of x, in [-127, 127].
func codesInt8(dst []byte, x []float32, scale float32) {
	if scale == 0 {
		clear(dst[:len(x)])
		return
	}
	if scale < tinyScale {
		for i, v := range x {
			q := math.RoundToEven(float64(v) / float64(scale))
			dst[i] = byte(int8(min(max(q, -127), 127)))
		}
		return
	}
	r := 1 / scale
	dst = dst[:len(x)]
	for i, v := range x {
		dst[i] = byte(min(max(roundInt(float32(v*r)), -127), 127))
	}
}

func decodeInt8(dst []float32, src []byte, p params) {
	src = src[:len(dst)]
	for i := range dst {
		dst[i] = float32(int8(src[i])) * p.scale
	}
}

// codesSym writes the nearest codes of x for w = (q-8)*scale, in [0, 15]. The scale may be negative.
func codesSym(dst []uint8, x []float32, scale float32) {
	r := inverse(scale)
	dst = dst[:len(x)]
	for i, v := range x {
		dst[i] = uint8(min(max(roundInt(float32(v*r)), -8), 7) + 8)
	}
}

// codesAsym writes the nearest codes of x for w = q*scale + min, in [0, 15].
func codesAsym(dst []uint8, x []float32, p params) {
	r := inverse(p.scale)
	dst = dst[:len(x)]
	for i, v := range x {
		dst[i] = uint8(min(max(roundInt(float32((v-p.min)*r)), 0), 15))
	}
}

// inverse is 1/scale, or 0 for a scale of zero.
func inverse(scale float32) float32 {
	if scale == 0 {
		return 0
	}
	return 1 / scale
}

// packInt4 packs codes, a multiple of 32 of them: byte j of a block of 16 holds code j low and code j+16 high.
func packInt4(dst []byte, codes []uint8) {
	for len(codes) >= 32 {
		b, d := codes[:32], dst[:16]
		for j := range d {
			d[j] = b[j]&15 | b[j+16]<<4
		}
		codes, dst = codes[32:], dst[16:]
	}
}

func decodeInt4(dst []float32, src []byte, asymmetric bool, p params) {
	zero := int32(8)
	if asymmetric {
		zero = 0
	}
	var block [32]float32
	for len(dst) > 0 {
		for j, b := range src[:16] {
			block[j] = float32(float32(int32(b&15)-zero)*p.scale) + p.min
			block[j+16] = float32(float32(int32(b>>4)-zero)*p.scale) + p.min
		}
		dst = dst[copy(dst, block[:]):]
		src = src[16:]
	}
}
