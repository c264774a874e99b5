package simd

import (
	"encoding/binary"
	"math"
	"unsafe"
)

// The plain kernels. They do the same integer arithmetic as the assembly; sums in float32 have another order.

// genericDotF32 sums in float64, as all paths do for float32 weights: they are for those who want the model as it is.
func genericDotF32(a *dotArgs) {
	x := unsafe.Slice((*float32)(a.x), a.n)
	for r, p := range a.w {
		w := unsafe.Slice((*byte)(p), 4*len(x))
		var s0, s1, s2, s3 float64
		for i := 0; i < len(x); i += 4 {
			v, u := x[i:i+4:i+4], w[4*i:4*i+16:4*i+16]
			s0 += float64(v[0]) * float64(math.Float32frombits(binary.LittleEndian.Uint32(u)))
			s1 += float64(v[1]) * float64(math.Float32frombits(binary.LittleEndian.Uint32(u[4:])))
			s2 += float64(v[2]) * float64(math.Float32frombits(binary.LittleEndian.Uint32(u[8:])))
			s3 += float64(v[3]) * float64(math.Float32frombits(binary.LittleEndian.Uint32(u[12:])))
		}
		a.out[r] = float32(s0 + s1 + (s2 + s3))
	}
}

func genericDotF16(a *dotArgs) {
	x := unsafe.Slice((*float32)(a.x), a.n)
	for r, p := range a.w {
		w := unsafe.Slice((*byte)(p), 2*len(x))
		var s0, s1, s2, s3 float32
		for i := 0; i < len(x); i += 4 {
			v, u := x[i:i+4:i+4], w[2*i:2*i+8:2*i+8]
			s0 += v[0] * half(binary.LittleEndian.Uint16(u))
			s1 += v[1] * half(binary.LittleEndian.Uint16(u[2:]))
			s2 += v[2] * half(binary.LittleEndian.Uint16(u[4:]))
			s3 += v[3] * half(binary.LittleEndian.Uint16(u[6:]))
		}
		a.out[r] = s0 + s1 + (s2 + s3)
	}
}

func genericDotBF16(a *dotArgs) {
	x := unsafe.Slice((*float32)(a.x), a.n)
	for r, p := range a.w {
		w := unsafe.Slice((*byte)(p), 2*len(x))
		var s0, s1, s2, s3 float32
		for i := 0; i < len(x); i += 4 {
			v, u := x[i:i+4:i+4], binary.LittleEndian.Uint64(w[2*i:])
			s0 += v[0] * math.Float32frombits(uint32(u)<<16)
			s1 += v[1] * math.Float32frombits(uint32(u)&0xffff0000)
			s2 += v[2] * math.Float32frombits(uint32(u>>16)&0xffff0000)
			s3 += v[3] * math.Float32frombits(uint32(u>>32)&0xffff0000)
		}
		a.out[r] = s0 + s1 + (s2 + s3)
	}
}

// genericDotI8 sums a block in int32, then times its scale in float32.
func genericDotI8(a *dotArgs) {
	x := unsafe.Slice((*int16)(a.x), a.n)
	block := int(a.block)
	for r, p := range a.w {
		w := unsafe.Slice((*int8)(p), len(x))
		sc := unsafe.Slice((*float32)(unsafe.Add(a.sc, r*int(a.ldsc))), (len(x)+block-1)/block)
		sum := float32(0)
		for b, scale := range sc {
			xs, ws := x[b*block:min((b+1)*block, len(x))], w[b*block:]
			ws = ws[:len(xs)]
			var s0, s1, s2, s3 int32
			for len(xs) >= 4 && len(ws) >= 4 {
				s0 += int32(xs[0]) * int32(ws[0])
				s1 += int32(xs[1]) * int32(ws[1])
				s2 += int32(xs[2]) * int32(ws[2])
				s3 += int32(xs[3]) * int32(ws[3])
				xs, ws = xs[4:], ws[4:]
			}
			sum += scale * float32(s0+s1+s2+s3)
		}
		a.out[r] = sum
	}
}

// genericDotI4 begins with what is in out: the sums of the offsets.
func genericDotI4(a *dotArgs) {
	x := unsafe.Slice((*int16)(a.x), (a.n+127)/128*128)
	blocks := int(a.n) / 32
	per := int(a.block) / 32
	for r, p := range a.w {
		w := unsafe.Slice((*byte)(p), 16*blocks)
		sc := unsafe.Slice((*float32)(unsafe.Add(a.sc, r*int(a.ldsc))), (blocks+per-1)/per)
		sum := a.out[r]
		for g, scale := range sc {
			var s int32
			for b := g * per; b < min((g+1)*per, blocks); b++ {
				s += genericBlockI4(w[16*b:], x[b/4*128+b%4*8:])
			}
			sum += scale * float32(s)
		}
		a.out[r] = sum
	}
}

// genericBlockI4 is the dot product of a block of 32 nibbles with x, in the order of genericPermute.
func genericBlockI4(w []byte, x []int16) (s int32) {
	w = w[:16]
	x0, x1, x2, x3 := x[:8], x[32:40], x[64:72], x[96:104]
	for t := range 8 {
		v := int32(binary.LittleEndian.Uint16(w[2*t:]))
		s += v & 15 * int32(x0[t])
		s += v >> 4 & 15 * int32(x1[t])
		s += v >> 8 & 15 * int32(x2[t])
		s += v >> 12 * int32(x3[t])
	}
	return s
}

// genericScales is the scales operation with the scales as offsets: see scaleArgs.
func genericScales(a *scaleArgs) { genericScale(a, &a.scales) }

func genericScalesOffsets(a *scaleArgs) { genericScale(a, &a.offsets) }

func genericScale(a *scaleArgs, offsets *[4]unsafe.Pointer) {
	n := int(a.n)
	s, sums := unsafe.Slice((*float32)(a.s), n), unsafe.Slice((*float32)(a.sums), n)
	totals := unsafe.Slice((*float32)(a.totals), 4*a.quads)
	for r := range totals {
		behind := r / 4 * 4 * 2 * n // of the first four rows
		out := unsafe.Slice((*float32)(unsafe.Add(a.out, r*int(a.ld))), n)
		scale := unsafe.Slice((*byte)(unsafe.Add(a.scales[r%4], behind)), 2*n)
		offset := unsafe.Slice((*byte)(unsafe.Add(offsets[r%4], behind)), 2*n)
		total := float32(0)
		for g := range out {
			out[g] = s[g] * half(binary.LittleEndian.Uint16(scale[2*g:]))
			total += sums[g] * half(binary.LittleEndian.Uint16(offset[2*g:]))
		}
		totals[r] = total
	}
}

// tinyBlock is the magnitude below which a block of activations is taken for zero: the inverse of its scale would overflow.
const tinyBlock = 1e-30

// blockScale gives a block's scale and what its values are multiplied by, from the bits of its largest magnitude. Where that is
// 0, the block is all zero or, the scale being NaN, has a value that is not finite: see fillBlock.
func blockScale(top uint32) (scale, inverse float32) {
	m := math.Float32frombits(top)
	switch {
	case top >= 0xff<<23: // infinity or NaN
		return float32(math.NaN()), 0
	case m < tinyBlock:
		return 0, 0
	}
	return m * (1. / 32767), 32767 / m
}

// fillBlock fills a block that is not rounded and returns the sum of its values.
func fillBlock(out []int16, scale float32) float32 {
	value := int16(0)
	if scale != 0 { // NaN makes all products NaN, whatever the values
		value = 1
	}
	for i := range out {
		out[i] = value
	}
	return float32(int(value) * len(out))
}

// genericQuantize rounds x, by blocks, to multiples of scales[b] = max|x| / 32767, ties to even, puts the sum of a block's
// integers to sums[b], exact for blocks up to 256, and fills what is left of row, scales and sums with zeros.
func genericQuantize(row []int16, scales, sums, x []float32, block int) {
	clear(row[len(x):])
	blocks := (len(x) + block - 1) / block
	clear(scales[blocks:])
	clear(sums[blocks:])
	for b := range blocks {
		xs := x[b*block : min((b+1)*block, len(x))]
		out := row[b*block:][:len(xs)]
		top := uint32(0)
		for _, v := range xs {
			top = max(top, math.Float32bits(v)&0x7fffffff)
		}
		var inverse float32
		scales[b], inverse = blockScale(top)
		if inverse == 0 {
			sums[b] = fillBlock(out, scales[b])
			continue
		}
		sum := int32(0)
		for i, v := range xs {
			// Adding 1.5*2^23 leaves the rounded value in the low bits. The conversion forbids fusing.
			out[i] = int16(math.Float32bits(float32(v*inverse) + 0x1.8p23))
			sum += int32(out[i])
		}
		sums[b] = float32(sum)
	}
}

// genericPermute brings each 128 values of int4 activations into the order in which 64 bytes of nibbles give theirs, 16 bits at
// a time: word t of block b (8 words a block of 32) holds values 2t, 2t+16, 2t+1 and 2t+17 of the block in its nibbles from low
// to high. So the order is: nibble, block, word.
func genericPermute(row []int16) {
	var tmp [128]int16
	for ; len(row) >= 128; row = row[128:] {
		copy(tmp[:], row)
		for s := range 4 {
			from := s%2*16 + s/2
			for b := range 4 {
				for t := range 8 {
					row[s*32+b*8+t] = tmp[b*32+from+2*t]
				}
			}
		}
	}
}
