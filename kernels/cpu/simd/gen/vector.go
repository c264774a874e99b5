package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// Functions on vectors take a number of values that is a multiple of 8, except where they say otherwise; their callers in Go pad
// the rest.

// each makes a loop over n values, 8 a round, with i as the index.
func each(n Register, body func(i Register)) {
	i := GP64()
	XORQ(i, i)
	TESTQ(n, n)
	JZ(LabelRef("done"))
	Label("loop")
	body(i)
	ADDQ(Imm(8), i)
	CMPQ(i, n)
	JB(LabelRef("loop"))
	Label("done")
}

// float is value i of the vector at base.
func float(base, i Register) Mem { return Mem{Base: base, Index: i, Scale: 4} }

// params loads parameters into registers.
func params(names ...string) []Register {
	r := make([]Register, len(names))
	for i, name := range names {
		r[i] = Load(Param(name), GP64())
	}
	return r
}

// broadcast puts a float32 parameter into all lanes.
func broadcast(name string) VecVirtual {
	y := YMM()
	p, err := Param(name).Resolve()
	check(err)
	VBROADCASTSS(p.Addr, y)
	return y
}

func end() {
	VZEROUPPER()
	RET()
}

func reductions() {
	function("dot", "func(x, y *float32, n int) float32")
	p := params("x", "y", "n")
	acc := vecs(4)
	zero(acc...)
	i, whole := GP64(), GP64()
	XORQ(i, i)
	MOVQ(p[2], whole)
	ANDQ(I8(-32), whole)
	JZ(LabelRef("rest"))
	Label("loop")
	for j, a := range acc {
		v := YMM()
		VMOVUPS(Mem{Base: p[0], Index: i, Scale: 4, Disp: 32 * j}, v)
		VFMADD231PS(Mem{Base: p[1], Index: i, Scale: 4, Disp: 32 * j}, v, a)
	}
	ADDQ(Imm(32), i)
	CMPQ(i, whole)
	JB(LabelRef("loop"))
	Label("rest")
	CMPQ(i, p[2])
	JAE(LabelRef("done"))
	Label("eight")
	v := YMM()
	VMOVUPS(float(p[0], i), v)
	VFMADD231PS(float(p[1], i), v, acc[0])
	ADDQ(Imm(8), i)
	CMPQ(i, p[2])
	JB(LabelRef("eight"))
	Label("done")
	VADDPS(acc[1], acc[0], acc[0])
	VADDPS(acc[3], acc[2], acc[2])
	VADDPS(acc[2], acc[0], acc[0])
	Store(sum1(acc[0]), ReturnIndex(0))
	end()

	// Sums in float64 of x and of squares of x less mean.
	function("sum", "func(x *float32, n int) float64")
	p = params("x", "n")
	s := vecs(2)
	zero(s...)
	each(p[1], func(i Register) {
		for j, d := range doubles(p[0], i) {
			VADDPD(d, s[j], s[j])
		}
	})
	Store(sumDoubles(s), ReturnIndex(0))
	end()

	function("sumSquaresAbout", "func(x *float32, n int, mean float64) float64")
	p = params("x", "n")
	mean, s := broadcastDouble("mean"), vecs(2)
	zero(s...)
	each(p[1], func(i Register) {
		for j, d := range doubles(p[0], i) {
			VSUBPD(mean, d, d)
			VFMADD231PD(d, d, s[j])
		}
	})
	Store(sumDoubles(s), ReturnIndex(0))
	end()

	function("max", "func(x *float32, n int) float32")
	p = params("x", "n")
	top := YMM()
	VMOVUPS(Mem{Base: p[0]}, top)
	each(p[1], func(i Register) { VMAXPS(float(p[0], i), top, top) })
	high := XMM()
	VEXTRACTF128(Imm(1), top, high)
	VMAXPS(top.AsX(), high, high)
	other := XMM()
	VPERMILPS(Imm(0x4e), high, other)
	VMAXPS(other, high, high)
	VPERMILPS(Imm(0xb1), high, other)
	VMAXPS(other, high, high)
	Store(high, ReturnIndex(0))
	end()
}

func elementwise() {
	function("axpy", "func(y, x *float32, n int, alpha float32)")
	p := params("y", "x", "n")
	alpha := broadcast("alpha")
	each(p[2], func(i Register) {
		v := YMM()
		VMOVUPS(float(p[0], i), v)
		VFMADD231PS(float(p[1], i), alpha, v)
		VMOVUPS(v, float(p[0], i))
	})
	end()

	function("scaleTo", "func(dst, x *float32, n int, alpha float32)")
	p = params("dst", "x", "n")
	alpha = broadcast("alpha")
	each(p[2], func(i Register) {
		v := YMM()
		VMULPS(float(p[1], i), alpha, v)
		VMOVUPS(v, float(p[0], i))
	})
	end()

	function("normTo", "func(dst, x *float32, n int, mean, factor float64)")
	p = params("dst", "x", "n")
	mean, factor := broadcastDouble("mean"), broadcastDouble("factor")
	each(p[2], func(i Register) {
		for j, d := range doubles(p[1], i) {
			VSUBPD(mean, d, d)
			VMULPD(factor, d, d)
			VCVTPD2PSY(d, d.AsX())
			VMOVUPS(d.AsX(), Mem{Base: p[0], Index: i, Scale: 4, Disp: 16 * j})
		}
	})
	end()
}

// doubles widens the 8 values at i.
func doubles(base, i Register) []VecVirtual {
	d := vecs(2)
	for j := range d {
		VCVTPS2PD(Mem{Base: base, Index: i, Scale: 4, Disp: 16 * j}, d[j])
	}
	return d
}

// sumDoubles adds the float64 lanes of both vectors.
func sumDoubles(s []VecVirtual) VecVirtual {
	high := XMM()
	VADDPD(s[1], s[0], s[0])
	VEXTRACTF128(Imm(1), s[0], high)
	VADDPD(s[0].AsX(), high, high)
	VHADDPD(high, high, high)
	return high
}

// broadcastDouble puts a float64 parameter into all lanes.
func broadcastDouble(name string) VecVirtual {
	y := YMM()
	p, err := Param(name).Resolve()
	check(err)
	VBROADCASTSD(p.Addr, y)
	return y
}

// quantize makes the passes over a block of activations: n is a multiple of 32.
func quantize() {
	function("maxAbs", "func(x *float32, n int) uint32")
	p := params("x", "n")
	top, mask := YMM(), YMM()
	zero(top)
	VPCMPEQD(mask, mask, mask)
	VPSRLD(Imm(1), mask, mask)
	each(p[1], func(i Register) {
		v := YMM()
		VPAND(float(p[0], i), mask, v)
		VPMAXUD(v, top, top)
	})
	high, other, out := XMM(), XMM(), GP32()
	VEXTRACTI128(Imm(1), top, high)
	VPMAXUD(top.AsX(), high, high)
	VPSHUFD(Imm(0x4e), high, other)
	VPMAXUD(other, high, high)
	VPSHUFD(Imm(0xb1), high, other)
	VPMAXUD(other, high, high)
	VMOVD(high, out)
	Store(out, ReturnIndex(0))
	end()

	round("roundWords", "int16", 16, func(v []VecVirtual, sum VecVirtual, to Mem) {
		ones := YMM()
		VPCMPEQD(ones, ones, ones)
		VPSRLW(Imm(15), ones, ones)
		VPACKSSDW(v[1], v[0], v[0])
		VPERMQ(Imm(0xd8), v[0], v[0])
		VMOVDQU(v[0], to)
		VPMADDWD(ones, v[0], v[0])
		VPADDD(v[0], sum, sum)
	})
	round("roundBytes", "int8", 32, func(v []VecVirtual, sum VecVirtual, to Mem) {
		for _, u := range v {
			VPADDD(u, sum, sum)
		}
		VPACKSSDW(v[1], v[0], v[0])
		VPACKSSDW(v[3], v[2], v[2])
		VPACKSSWB(v[2], v[0], v[0])
		order := GLOBL("packedOrder", RODATA|NOPTR)
		for i, at := range []uint32{0, 4, 1, 5, 2, 6, 3, 7} {
			DATA(4*i, U32(at))
		}
		index := YMM()
		VMOVDQU(order, index)
		VPERMD(v[0], index, v[0])
		VMOVDQU(v[0], to)
	})
	permute()
}

// round makes a function that rounds x*factor, some values a time, to integers and returns their sum. store adds them to sum and
// stores them.
func round(name, kind string, values int, store func(v []VecVirtual, sum VecVirtual, to Mem)) {
	function(name, "func(dst *"+kind+", x *float32, n int, factor float32) int32")
	p := params("dst", "x", "n")
	factor, sum, i := broadcast("factor"), YMM(), GP64()
	zero(sum)
	XORQ(i, i)
	Label("loop")
	v := vecs(values / 8)
	for j := range v {
		VMULPS(Mem{Base: p[1], Index: i, Scale: 4, Disp: 32 * j}, factor, v[j])
		VCVTPS2DQ(v[j], v[j])
	}
	store(v, sum, Mem{Base: p[0], Index: i, Scale: uint8(32 / values)})
	ADDQ(Imm(uint64(values)), i)
	CMPQ(i, p[2])
	JB(LabelRef("loop"))
	low := XMM()
	VEXTRACTI128(Imm(1), sum, low)
	VPADDD(sum.AsX(), low, low)
	VPHADDD(low, low, low)
	VPHADDD(low, low, low)
	total := GP32()
	VMOVD(low, total)
	Store(total, ReturnIndex(0))
	end()
}

// permute brings 128 values a round into int4's order: see genericPermute.
func permute() {
	function("permute", "func(row *int8, n int)")
	p := params("row", "n")
	Label("loop")
	in := vecs(4)
	for b := range in {
		VMOVDQU(Mem{Base: p[0], Disp: 32 * b}, in[b])
	}
	for b := 0; b < len(in); b += 2 {
		low, high := YMM(), YMM()
		VPERM2I128(Imm(0x20), in[b+1], in[b], low)
		VPERM2I128(Imm(0x31), in[b+1], in[b], high)
		VMOVDQU(low, Mem{Base: p[0], Disp: 16 * b})
		VMOVDQU(high, Mem{Base: p[0], Disp: 64 + 16*b})
	}
	ADDQ(U32(128), p[0])
	SUBQ(U32(128), p[1])
	JNZ(LabelRef("loop"))
	end()
}

// step makes the mLSTM step of four rows of C and of one, over n columns, a multiple of lanes(). coef holds a, then b*k of each
// row, then q of each row.
func step() {
	for _, rows := range []int{4, 1} {
		function("step"+string(rune('0'+rows)), "func(c *float32, ld uintptr, v, h *float32, n int, coef *[9]float32)")
		p := params("c", "ld", "v", "h", "n", "coef")
		c := []Register{p[0]}
		for r := 1; r < rows; r++ {
			at := GP64()
			MOVQ(c[r-1], at)
			ADDQ(p[1], at)
			c = append(c, at)
		}
		coef := vecs(9)
		for i, at := range coef {
			if i == 0 || (i-1)%4 < rows {
				VBROADCASTSS(Mem{Base: p[5], Disp: 4 * i}, at)
			}
		}
		ahead := GP64()
		MOVQ(c[rows-1], ahead)
		ADDQ(p[1], ahead)
		i := GP64()
		XORQ(i, i)
		Label("loop")
		v, h := vec(), vec()
		VMOVUPS(float(p[2], i), v)
		VMOVUPS(float(p[3], i), h)
		if rows == 4 {
			for r := range rows * lanes() / 16 {
				PREFETCHT0(Mem{Base: ahead, Disp: 64 * r})
			}
			ADDQ(I32(16*lanes()), ahead)
		}
		for r := range rows {
			x := vec()
			VMULPS(float(c[r], i), coef[0], x)
			VFMADD231PS(coef[1+r], v, x)
			VMOVUPS(x, float(c[r], i))
			VFMADD231PS(coef[5+r], x, h)
		}
		VMOVUPS(h, float(p[3], i))
		ADDQ(Imm(uint64(lanes())), i)
		CMPQ(i, p[4])
		JB(LabelRef("loop"))
		end()
	}
}

// stream sums 512 bytes a round; n is a multiple of that. Plain loads of 32 bytes were measured to be the fastest: loads of 64 bytes,
// and prefetches at any distance into any cache, cost some percent where memory gives most, and gain nothing where it gives less.
func stream() {
	function("streamRead", "func(b *byte, n int) uint64")
	p := params("b", "n")
	acc := vecs(4)
	zero(acc...)
	limit := GP64()
	MOVQ(p[0], limit)
	ADDQ(p[1], limit)
	Label("loop")
	for i := range 16 {
		VPADDQ(Mem{Base: p[0], Disp: 32 * i}, acc[i%4], acc[i%4])
	}
	ADDQ(U32(512), p[0])
	CMPQ(p[0], limit)
	JB(LabelRef("loop"))
	VPADDQ(acc[1], acc[0], acc[0])
	VPADDQ(acc[3], acc[2], acc[2])
	VPADDQ(acc[2], acc[0], acc[0])
	x := XMM()
	VEXTRACTI128(Imm(1), acc[0], x)
	VPADDQ(acc[0].AsX(), x, x)
	y, sum := XMM(), GP64()
	VPSHUFD(Imm(0x4e), x, y)
	VPADDQ(y, x, x)
	VMOVQ(x, sum)
	Store(sum, ReturnIndex(0))
	end()
}
