package simd

import (
	"encoding/binary"
	"math"
	"unsafe"
)

// genericRows is tileRows of the plain path: with two vectors the sums are eight scalars.
const genericRows = 4

// The sums are in float64, which costs plain Go nothing, so that they serve as exactTiles too.

func genericFloatTile1(a *tileArgs) {
	k := int(a.k)
	w, x := unsafe.Slice((*float32)(a.w), genericRows*k), unsafe.Slice((*float32)(a.x), k)
	c := (*[genericRows]float32)(a.c)
	s0, s1, s2, s3 := float64(c[0]), float64(c[1]), float64(c[2]), float64(c[3])
	for i, xi := range x {
		u, v := w[genericRows*i:genericRows*i+4:genericRows*i+4], float64(xi)
		s0 += v * float64(u[0])
		s1 += v * float64(u[1])
		s2 += v * float64(u[2])
		s3 += v * float64(u[3])
	}
	c[0], c[1], c[2], c[3] = float32(s0), float32(s1), float32(s2), float32(s3)
}

func genericFloatTile2(a *tileArgs) {
	k := int(a.k)
	w, x := unsafe.Slice((*float32)(a.w), genericRows*k), unsafe.Slice((*float32)(a.x), k)
	y := unsafe.Slice((*float32)(unsafe.Add(a.x, a.ldx)), k)[:len(x)]
	c := (*[2 * genericRows]float32)(a.c)
	s0, s1, s2, s3 := float64(c[0]), float64(c[1]), float64(c[2]), float64(c[3])
	t0, t1, t2, t3 := float64(c[4]), float64(c[5]), float64(c[6]), float64(c[7])
	for i, xi := range x {
		u, v, z := w[genericRows*i:genericRows*i+4:genericRows*i+4], float64(xi), float64(y[i])
		u0, u1, u2, u3 := float64(u[0]), float64(u[1]), float64(u[2]), float64(u[3])
		s0 += v * u0
		s1 += v * u1
		s2 += v * u2
		s3 += v * u3
		t0 += z * u0
		t1 += z * u1
		t2 += z * u2
		t3 += z * u3
	}
	for i, v := range [...]float64{s0, s1, s2, s3, t0, t1, t2, t3} {
		c[i] = float32(v)
	}
}

func genericWordTile1(a *tileArgs) {
	pairs := int(a.k) / 2
	c := (*[genericRows]float32)(a.c)
	for b := range int(a.blocks) {
		w := unsafe.Slice((*int16)(unsafe.Add(a.w, b*pairs*4*genericRows)), 2*genericRows*pairs)
		x := unsafe.Slice((*int16)(unsafe.Add(a.x, b*pairs*4)), 2*pairs)
		ws := (*[genericRows]float32)(unsafe.Add(a.ws, b*4*genericRows))
		scale := *(*float32)(unsafe.Add(a.s, 4*b))
		var s0, s1, s2, s3 int32
		for i := 0; i+1 < len(x); i += 2 {
			u := w[genericRows*i : genericRows*i+8 : genericRows*i+8]
			v, z := int32(x[i]), int32(x[i+1])
			s0 += v*int32(u[0]) + z*int32(u[1])
			s1 += v*int32(u[2]) + z*int32(u[3])
			s2 += v*int32(u[4]) + z*int32(u[5])
			s3 += v*int32(u[6]) + z*int32(u[7])
		}
		c[0] += float32(s0) * ws[0] * scale
		c[1] += float32(s1) * ws[1] * scale
		c[2] += float32(s2) * ws[2] * scale
		c[3] += float32(s3) * ws[3] * scale
	}
}

func genericByteTile1(a *tileArgs) {
	k := int(a.k)
	c := (*[genericRows]float32)(a.c)
	for b := range int(a.blocks) {
		w := unsafe.Slice((*byte)(unsafe.Add(a.w, b*k*genericRows)), genericRows*k)
		x := unsafe.Slice((*int8)(unsafe.Add(a.x, b*k)), k)
		ws := (*[genericRows]float32)(unsafe.Add(a.ws, b*4*genericRows))
		scale, start := *(*float32)(unsafe.Add(a.s, 4*b)), *(*int32)(unsafe.Add(a.starts, 4*b))
		sums := [genericRows]int32{start, start, start, start}
		for ; len(x) >= 4 && len(w) >= 4*genericRows; x, w = x[4:], w[4*genericRows:] {
			for r := range sums {
				u := w[4*r : 4*r+4]
				sums[r] += int32(x[0])*int32(u[0]) + int32(x[1])*int32(u[1]) + int32(x[2])*int32(u[2]) + int32(x[3])*int32(u[3])
			}
		}
		for r, s := range sums {
			c[r] += float32(s) * (ws[r] * scale)
		}
	}
}

// genericTranspose is the transpose operation: rows of n 32-bit units, ld bytes apart, into dst[unit][row].
func genericTranspose(dst, src *byte, ld uintptr, n, rows int) {
	d := unsafe.Slice((*uint32)(unsafe.Pointer(dst)), n*rows)
	for r := range rows {
		row := unsafe.Slice((*uint32)(unsafe.Add(unsafe.Pointer(src), uintptr(r)*ld)), n)
		for u, v := range row {
			d[u*rows+r] = v
		}
	}
}

func genericWidenF32(dst, src *byte, n int) {
	d, s := unsafe.Slice((*float32)(unsafe.Pointer(dst)), n), unsafe.Slice(src, 4*n)
	for i := range d {
		d[i] = math.Float32frombits(binary.LittleEndian.Uint32(s[4*i:]))
	}
}

func genericWidenF16(dst, src *byte, n int) {
	d, s := unsafe.Slice((*float32)(unsafe.Pointer(dst)), n), unsafe.Slice(src, 2*n)
	for i := range d {
		d[i] = half(binary.LittleEndian.Uint16(s[2*i:]))
	}
}

func genericWidenBF16(dst, src *byte, n int) {
	d, s := unsafe.Slice((*float32)(unsafe.Pointer(dst)), n), unsafe.Slice(src, 2*n)
	for i := range d {
		d[i] = math.Float32frombits(uint32(binary.LittleEndian.Uint16(s[2*i:])) << 16)
	}
}

func genericWidenI8(dst, src *byte, n int) {
	d, s := unsafe.Slice((*int16)(unsafe.Pointer(dst)), n), unsafe.Slice((*int8)(unsafe.Pointer(src)), n)
	for i := range d {
		d[i] = int16(s[i])
	}
}

// genericWidenI4 gives nibbles as bytes.
func genericWidenI4(dst, src *byte, n int) {
	d, s := unsafe.Slice(dst, n), unsafe.Slice(src, n/2)
	for ; len(d) >= 32; d, s = d[32:], s[16:] {
		for j, b := range s[:16] {
			d[j], d[j+16] = b&15, b>>4
		}
	}
}
