package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// pack makes what fills tiles.
func pack() {
	widen("widenF16", 32, 64, func(src, dst Register) {
		for i := range 4 {
			y := YMM()
			VCVTPH2PS(Mem{Base: src, Disp: 16 * i}, y)
			VMOVUPS(y, Mem{Base: dst, Disp: 32 * i})
		}
	})
	widen("widenBF16", 32, 64, func(src, dst Register) {
		for i := range 4 {
			y := YMM()
			VPMOVZXWD(Mem{Base: src, Disp: 16 * i}, y)
			VPSLLD(Imm(16), y, y)
			VMOVDQU(y, Mem{Base: dst, Disp: 32 * i})
		}
	})
	widen("widenI8", 32, 32, func(src, dst Register) {
		for i := range 2 {
			y := YMM()
			VPMOVSXBW(Mem{Base: src, Disp: 16 * i}, y)
			VMOVDQU(y, Mem{Base: dst, Disp: 32 * i})
		}
	})
	widenI4()
	transpose()
}

// ahead asks for what follows in the same row of the matrix 256 values on: the next tile's, when all rows of this one, a page or
// more apart, have been read. bytes is what 32 values take.
func ahead(src Register, bytes int) {
	for at := 0; at < bytes; at += 64 {
		PREFETCHT1(Mem{Base: src, Disp: 8*bytes + at})
	}
}

// widen makes a function that takes values numbers a round, in bytes long together, to numbers of twice the size.
func widen(name string, values, in int, body func(src, dst Register)) {
	function(name, "func(dst, src *byte, n int)")
	dst, src, n := Load(Param("dst"), GP64()), Load(Param("src"), GP64()), Load(Param("n"), GP64())
	Label("loop")
	body(src, dst)
	ahead(src, in)
	ADDQ(I32(in), src)
	ADDQ(I32(2*in), dst)
	SUBQ(I32(values), n)
	JNZ(LabelRef("loop"))
	VZEROUPPER()
	RET()
}

// widenI4 takes 32 nibbles a round to bytes: the low ones are the first 16 values.
func widenI4() {
	function("widenI4", "func(dst, src *byte, n int)")
	dst, src, n := Load(Param("dst"), GP64()), Load(Param("src"), GP64()), Load(Param("n"), GP64())
	low, shift, c := YMM(), YMM(), GP32()
	MOVL(U32(0x0f0f0f0f), c)
	VMOVD(c, low.AsX())
	VPBROADCASTD(low.AsX(), low)
	counts := GLOBL("upperHalf", RODATA|NOPTR)
	for i := range 8 {
		DATA(4*i, U32(uint32(i/4*4)))
	}
	VMOVDQU(counts, shift)
	Label("loop")
	y := YMM()
	VBROADCASTI128(Mem{Base: src}, y)
	VPSRLVD(shift, y, y)
	VPAND(low, y, y)
	VMOVDQU(y, Mem{Base: dst})
	ahead(src, 16)
	ADDQ(Imm(16), src)
	ADDQ(Imm(32), dst)
	SUBQ(Imm(32), n)
	JNZ(LabelRef("loop"))
	VZEROUPPER()
	RET()
}

// transpose takes squares of 8 rows by 8 units of 32 bits.
func transpose() {
	function("transpose", "func(dst, src *byte, ld uintptr, n, rows int)")
	dst, src, ld := Load(Param("dst"), GP64()), Load(Param("src"), GP64()), Load(Param("ld"), GP64())
	n, rows := Load(Param("n"), GP64()), Load(Param("rows"), GP64())
	ldd := GP64()
	MOVQ(rows, ldd)
	SHLQ(Imm(2), ldd)
	Label("rows")
	in := newRows(GP64(), ld, 8)
	MOVQ(src, in.base[0])
	for i := 1; i < len(in.base); i++ {
		LEAQ(Mem{Base: in.base[i-1], Index: ld, Scale: 2}, in.base[i])
		ADDQ(ld, in.base[i])
	}
	to, left := GP64(), GP64()
	MOVQ(dst, to)
	MOVQ(n, left)
	Label("units")
	square(in, to, ldd)
	in.advance(32)
	SUBQ(Imm(8), left)
	JNZ(LabelRef("units"))
	LEAQ(Mem{Base: src, Index: ld, Scale: 8}, src)
	ADDQ(Imm(32), dst)
	SUBQ(Imm(8), rows)
	JNZ(LabelRef("rows"))
	VZEROUPPER()
	RET()
}

// square transposes 8 by 8 units: rows in pairs, pairs of pairs, halves. It leaves to behind what it stored.
func square(in rowPointers, to, ldd Register) {
	// Lanes of 128 bits: row i beside row i+4, first of units 0 to 3, then of units 4 to 7.
	for h := range 2 {
		r := make([]VecVirtual, 4)
		for i := range r {
			r[i] = YMM()
			VMOVUPS(in.at(i, 16*h), r[i].AsX())
			VINSERTF128(Imm(1), in.at(i+4, 16*h), r[i], r[i])
		}
		a, b, c, d := YMM(), YMM(), YMM(), YMM()
		VUNPCKLPS(r[1], r[0], a) // 0: r0 r1, 1: r0 r1
		VUNPCKHPS(r[1], r[0], b) // 2, 3
		VUNPCKLPS(r[3], r[2], c)
		VUNPCKHPS(r[3], r[2], d)
		for _, p := range [][2]VecVirtual{{a, c}, {b, d}} {
			low, high := YMM(), YMM()
			VUNPCKLPD(p[1], p[0], low)
			VUNPCKHPD(p[1], p[0], high)
			VMOVUPS(low, Mem{Base: to})
			ADDQ(ldd, to)
			VMOVUPS(high, Mem{Base: to})
			ADDQ(ldd, to)
		}
	}
}

// Offsets of the fields of scaleArgs.
const (
	scaleScales  = 0
	scaleOffsets = 32
	scaleOut     = 64
	scaleLd      = 72
	scaleN       = 80
	scaleS       = 88
	scaleSums    = 96
	scaleTotals  = 104
	scaleRows    = 112
	scaleDone    = 120
	scaleNext    = 128
	scaleTails   = 136
)

// scales multiplies the scales of four streams' rows at a time with those of a vector, lanes() groups a round, and sums the products of
// offsets. The groups behind the last whole round are loaded through a mask in AVX-512, and stand in the tails in AVX2.
func scales(offsets bool) {
	name := "scales"
	if offsets {
		name = "scalesOffsets"
	}
	function(name, "func(a *scaleArgs)")
	args := Load(Param("a"), GP64())
	out, n, s, sums := load(args, scaleOut), load(args, scaleN), load(args, scaleS), load(args, scaleSums)
	var from, offset [4]Register
	for r := range from {
		from[r] = GP64()
	}
	if offsets { // few registers: offsets' pointers are read each time
		offset[0] = GP64()
	}
	acc := vecs(4)
	i, whole, ahead := GP64(), GP64(), GP64()
	MOVQ(n, whole)
	ANDQ(I8(-lanes()), whole)
	XORQ(ahead, ahead)
	MOVQ(ahead, Mem{Base: args, Disp: scaleDone})
	// halves widens the next values; in the tail only what is there of them.
	mask := K()
	if wide {
		// 1<<(n%16) - 1, by clearing what is above the lowest bits of ones.
		bits, ones := GP32(), GP32()
		MOVL(n.As32(), bits)
		ANDL(Imm(15), bits)
		MOVL(I32(-1), ones)
		BZHIL(bits, ones, ones)
		KMOVW(ones, mask)
	}
	halves := func(tail bool, disp int, from Mem, to VecVirtual) {
		switch {
		case tail && wide:
			VMOVDQU16_Z(from, mask, to.AsY())
			VCVTPH2PS(to.AsY(), to)
		case tail:
			VCVTPH2PS(Mem{Base: args, Disp: scaleTails + disp}, to)
		default:
			VCVTPH2PS(from, to)
		}
	}
	round := func(tail bool) {
		x, sum, row := vec(), vec(), GP64()
		VMOVUPS(Mem{Base: s, Index: i, Scale: 4}, x)
		VMOVUPS(Mem{Base: sums, Index: i, Scale: 4}, sum)
		LEAQ(Mem{Base: out, Index: i, Scale: 4}, row)
		for r := range from {
			y, w := vec(), vec()
			halves(tail, 32*r, Mem{Base: from[r], Index: i, Scale: 2}, w)
			if !tail {
				PREFETCHT1(Mem{Base: from[r], Index: i, Scale: 2, Disp: 4096})
			}
			VMULPS(x, w, y)
			VMOVUPS(y, Mem{Base: row})
			if r < 3 {
				ADDQ(Mem{Base: args, Disp: scaleLd}, row)
			}
			if offsets {
				MOVQ(Mem{Base: args, Disp: scaleOffsets + 8*r}, offset[0])
				ADDQ(ahead, offset[0])
				halves(tail, 128+32*r, Mem{Base: offset[0], Index: i, Scale: 2}, w)
			}
			VFMADD231PS(w, sum, acc[r])
		}
	}
	Label("rows")
	for r := range from {
		MOVQ(Mem{Base: args, Disp: scaleScales + 8*r}, from[r])
		ADDQ(ahead, from[r])
	}
	zero(acc...)
	XORQ(i, i)
	CMPQ(i, whole)
	JE(LabelRef("tail"))
	Label("loop")
	round(false)
	ADDQ(Imm(uint64(lanes())), i)
	CMPQ(i, whole)
	JB(LabelRef("loop"))
	Label("tail")
	CMPQ(i, n)
	JE(LabelRef("done"))
	round(true)
	Label("done")
	at, done := GP64(), Mem{Base: args, Disp: scaleDone}
	MOVQ(done, at)
	SHLQ(Imm(4), at)
	ADDQ(Mem{Base: args, Disp: scaleTotals}, at)
	VMOVUPS(sum4(acc), Mem{Base: at})
	MOVQ(Mem{Base: args, Disp: scaleLd}, at)
	LEAQ(Mem{Base: out, Index: at, Scale: 4}, out)
	ADDQ(Mem{Base: args, Disp: scaleNext}, ahead)
	MOVQ(done, at)
	INCQ(at)
	MOVQ(at, done)
	CMPQ(at, Mem{Base: args, Disp: scaleRows})
	JB(LabelRef("rows"))
	VZEROUPPER()
	RET()
}
