package simd

import (
	"encoding/binary"
	"math"
	"unsafe"
)

// The plain kernels. They do the same integer arithmetic as the assembly; sums in float32 have another order.

// eachRow gives f the values, the scales and the result of every row of every stream, for kernels of one vector.
func (a *dotArgs) eachRow(rowBytes int, f func(w, sc unsafe.Pointer, result *float32)) {
	results := unsafe.Slice((*float32)(a.results), 4*a.rows)
	for i := range results {
		row, stream := i/4, i%4
		f(unsafe.Add(a.w[stream], row*rowBytes), unsafe.Add(a.sc, row*int(a.scNext)+stream*int(a.ldsc)), &results[i])
	}
}

// genericDotF32 sums in float64, as all paths do for float32 weights: they are for those who want the model as it is.
func genericDotF32(a *dotArgs) {
	x := unsafe.Slice((*float32)(a.x), a.n)
	a.eachRow(4*len(x), func(p, _ unsafe.Pointer, result *float32) {
		w := unsafe.Slice((*byte)(p), 4*len(x))
		var s0, s1, s2, s3 float64
		for i := 0; i < len(x); i += 4 {
			v, u := x[i:i+4:i+4], w[4*i:4*i+16:4*i+16]
			s0 += float64(v[0]) * float64(math.Float32frombits(binary.LittleEndian.Uint32(u)))
			s1 += float64(v[1]) * float64(math.Float32frombits(binary.LittleEndian.Uint32(u[4:])))
			s2 += float64(v[2]) * float64(math.Float32frombits(binary.LittleEndian.Uint32(u[8:])))
			s3 += float64(v[3]) * float64(math.Float32frombits(binary.LittleEndian.Uint32(u[12:])))
		}
		*result = float32(s0 + s1 + (s2 + s3))
	})
}

func genericDotF16(a *dotArgs) {
	x := unsafe.Slice((*float32)(a.x), a.n)
	a.eachRow(2*len(x), func(p, _ unsafe.Pointer, result *float32) {
		w := unsafe.Slice((*byte)(p), 2*len(x))
		var s0, s1, s2, s3 float32
		for i := 0; i < len(x); i += 4 {
			v, u := x[i:i+4:i+4], w[2*i:2*i+8:2*i+8]
			s0 += v[0] * half(binary.LittleEndian.Uint16(u))
			s1 += v[1] * half(binary.LittleEndian.Uint16(u[2:]))
			s2 += v[2] * half(binary.LittleEndian.Uint16(u[4:]))
			s3 += v[3] * half(binary.LittleEndian.Uint16(u[6:]))
		}
		*result = s0 + s1 + (s2 + s3)
	})
}

func genericDotBF16(a *dotArgs) {
	x := unsafe.Slice((*float32)(a.x), a.n)
	a.eachRow(2*len(x), func(p, _ unsafe.Pointer, result *float32) {
		w := unsafe.Slice((*byte)(p), 2*len(x))
		var s0, s1, s2, s3 float32
		for i := 0; i < len(x); i += 4 {
			v, u := x[i:i+4:i+4], binary.LittleEndian.Uint64(w[2*i:])
			s0 += v[0] * math.Float32frombits(uint32(u)<<16)
			s1 += v[1] * math.Float32frombits(uint32(u)&0xffff0000)
			s2 += v[2] * math.Float32frombits(uint32(u>>16)&0xffff0000)
			s3 += v[3] * math.Float32frombits(uint32(u>>32)&0xffff0000)
		}
		*result = s0 + s1 + (s2 + s3)
	})
}

// genericDotI8 sums a block in int32, then times its scale in float32.
func genericDotI8(a *dotArgs) {
	x := unsafe.Slice((*int16)(a.x), a.n)
	block := int(a.block)
	a.eachRow(len(x), func(p, scales unsafe.Pointer, result *float32) {
		w := unsafe.Slice((*int8)(p), len(x))
		sum := float32(0)
		for b, scale := range unsafe.Slice((*float32)(scales), (len(x)+block-1)/block) {
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
		*result = sum
	})
}

// genericDotI4 begins with what is in the results: the sums of the offsets.
func genericDotI4(a *dotArgs) {
	x := unsafe.Slice((*int8)(a.x), (a.n+127)/128*256)
	blocks := int(a.n) / 32
	per := int(a.block) / 32
	a.eachRow(16*blocks, func(p, scales unsafe.Pointer, result *float32) {
		w := unsafe.Slice((*byte)(p), 16*blocks)
		sum := *result
		for g, scale := range unsafe.Slice((*float32)(scales), (blocks+per-1)/per) {
			var s int32
			for b := g * per; b < min((g+1)*per, blocks); b++ {
				s += genericBlockI4(w[16*b:], x[b/4*256+b%4*16:])
			}
			sum += scale * float32(s)
		}
		*result = sum
	})
}

// genericBlockI4 is the dot product of a block of 32 nibbles with x, in the order of genericPermute.
func genericBlockI4(w []byte, x []int8) int32 {
	w = w[:16]
	x0, x1, x2, x3 := x[:16], x[64:80], x[128:144], x[192:208]
	var upper, lower int32
	for t, b := range w {
		low, high := int32(b&15), int32(b>>4)
		upper += low*int32(x0[t]) + high*int32(x1[t])
		lower += low*int32(x2[t]) + high*int32(x3[t])
	}
	return upper<<8 + lower
}

// genericScales is the scales operation with the scales as offsets: see scaleArgs.
func genericScales(a *scaleArgs) { genericScale(a, &a.scales) }

func genericScalesOffsets(a *scaleArgs) { genericScale(a, &a.offsets) }

func genericScale(a *scaleArgs, offsets *[4]unsafe.Pointer) {
	n := int(a.n)
	s, sums := unsafe.Slice((*float32)(a.s), n), unsafe.Slice((*float32)(a.sums), n)
	totals := unsafe.Slice((*float32)(a.totals), 4*a.rows)
	for i := range totals {
		row := i / 4 * int(a.next)
		out := unsafe.Slice((*float32)(unsafe.Add(a.out, i*int(a.ld))), n)
		scale := unsafe.Slice((*byte)(unsafe.Add(a.scales[i%4], row)), 2*n)
		offset := unsafe.Slice((*byte)(unsafe.Add(offsets[i%4], row)), 2*n)
		total := float32(0)
		for g := range out {
			out[g] = s[g] * half(binary.LittleEndian.Uint16(scale[2*g:]))
			total += sums[g] * half(binary.LittleEndian.Uint16(offset[2*g:]))
		}
		totals[i] = total
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
	return m * (1. / actMax), actMax / m
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

// genericQuantize rounds x, by blocks, to multiples of scales[b] = max|x| / actMax, ties to even, puts the sum of a block's
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

// genericPermute takes each 128 values of int4 activations apart into signed bytes, 256*upper + lower, in the order in which 64
// bytes of nibbles take them: the upper bytes of what low nibbles are multiplied with, values 0 to 15 of each block of 32, then
// those of high nibbles, values 16 to 31; then the lower bytes of both.
func genericPermute(row []int16) {
	var tmp [128]int16
	for ; len(row) >= len(tmp); row = row[len(tmp):] {
		copy(tmp[:], row)
		to := (*[256]int8)(unsafe.Pointer(&row[0]))
		for i, v := range tmp {
			at := i%32/16*64 + i/32*16 + i%16
			to[at], to[128+at] = int8((int32(v)+128)>>8), int8(v)
		}
	}
}
