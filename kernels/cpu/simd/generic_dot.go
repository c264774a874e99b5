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
	x := unsafe.Slice((*int8)(a.x), (a.n+127)/128*128)
	blocks := int(a.n) / 32
	per := int(a.block) / 32
	a.eachRow(16*blocks, func(p, scales unsafe.Pointer, result *float32) {
		w := unsafe.Slice((*byte)(p), 16*blocks)
		sum := *result
		for g, scale := range unsafe.Slice((*float32)(scales), (blocks+per-1)/per) {
			var s int32
			for b := g * per; b < min((g+1)*per, blocks); b++ {
				s += genericBlockI4(w[16*b:], x[b/4*128+b%4*16:])
			}
			sum += scale * float32(s)
		}
		*result = sum
	})
}

// genericBlockI4 is the dot product of a block of 32 nibbles with x, in the order of genericPermute.
func genericBlockI4(w []byte, x []int8) int32 {
	w, x0, x1 := w[:16], x[:16], x[64:80]
	var sum int32
	for t, b := range w {
		sum += int32(b&15)*int32(x0[t]) + int32(b>>4)*int32(x1[t])
	}
	return sum
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
