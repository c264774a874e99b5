package main

import (
	"math"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// gateConstants is a table of float32 constants, each 8 times, that gates use.
type gateConstants struct {
	at     Mem
	index  map[float32]int
	values []float32
}

// ln2High has 12 significant bits, so that its products with small integers are exact.
var (
	ln2High = float32(0x1.62ep-1)
	ln2Low  = float32(math.Ln2 - 0x1.62ep-1)
)

func newGateConstants() *gateConstants {
	c := &gateConstants{index: map[float32]int{}}
	c.at = GLOBL("gateConstants", RODATA|NOPTR)
	add := func(v float32) {
		i := len(c.values)
		c.index[v] = i
		c.values = append(c.values, v)
		for j := range 8 {
			DATA(32*i+4*j, U32(math.Float32bits(v))) // F32 would write whole numbers as integers
		}
	}
	for _, v := range []float32{1, 2, math.Log2E, ln2High, ln2Low, 104, -104, 40, -40} {
		add(v)
	}
	for k := 3; k <= 7; k++ {
		add(float32(1 / math.Gamma(float64(k+1))))
	}
	add(0.5)
	return c
}

// of is the constant's place in memory.
func (c *gateConstants) of(v float32) Mem {
	i, ok := c.index[v]
	if !ok {
		panic("gen: no such constant")
	}
	return c.at.Offset(32 * i)
}

// clamp limits x to [low, high]; NaN stays NaN.
func (c *gateConstants) clamp(x VecVirtual, low, high float32) {
	limit := YMM()
	VMOVUPS(c.of(high), limit)
	VMINPS(x, limit, x) // of a NaN and a number the first operand is taken
	VMOVUPS(c.of(low), limit)
	VMAXPS(x, limit, x)
}

// reduce splits x = n*ln2 + r, |r| <= ln2/2, and gives n as integers and p = exp(r)-1 by its series, whose error after r^7 is
// below 2^-27 of r. x is overwritten.
func (c *gateConstants) reduce(x VecVirtual) (n, p VecVirtual) {
	n, p = YMM(), YMM()
	whole := YMM()
	VMULPS(c.of(math.Log2E), x, whole)
	VROUNDPS(Imm(0), whole, whole)
	VCVTPS2DQ(whole, n)
	VFNMADD231PS(c.of(ln2High), whole, x)
	VFNMADD231PS(c.of(ln2Low), whole, x)
	VMOVUPS(c.of(float32(1/math.Gamma(8))), p)
	for k := 6; k >= 2; k-- {
		VFMADD213PS(c.of(float32(1/math.Gamma(float64(k+1)))), x, p)
	}
	square := YMM()
	VMULPS(x, x, square)
	VFMADD213PS(x, square, p)
	return n, p
}

// power is 2^n of integers n in [-126, 127].
func (c *gateConstants) power(n VecVirtual) VecVirtual {
	y := YMM()
	VPSLLD(Imm(23), n, y)
	VPADDD(c.of(1), y, y)
	return y
}

// exp replaces x, limited to [-104, 104], by its exponential, which underflows to zero and overflows to infinity at its ends: the
// power of two is multiplied in two halves.
func (c *gateConstants) exp(x VecVirtual) VecVirtual {
	c.clamp(x, -104, 104)
	n, p := c.reduce(x)
	half := YMM()
	VPSRAD(Imm(1), n, half)
	VPSUBD(half, n, n)
	VADDPS(c.of(1), p, p)
	VMULPS(c.power(half), p, p)
	VMULPS(c.power(n), p, p)
	return p
}

// sigmoid gives 1/(1+exp(-x)).
func (c *gateConstants) sigmoid(x VecVirtual) VecVirtual {
	minus, one := YMM(), YMM()
	VXORPS(minus, minus, minus)
	VSUBPS(x, minus, minus)
	e := c.exp(minus)
	VMOVUPS(c.of(1), one)
	VADDPS(one, e, e)
	VDIVPS(e, one, e)
	return e
}

func gates() {
	c := newGateConstants()

	function("sigmoidMul", "func(dst, x, y *float32, n int)")
	p := params("dst", "x", "y", "n")
	each(p[3], func(i Register) {
		x := YMM()
		VMOVUPS(float(p[1], i), x)
		s := c.sigmoid(x)
		VMULPS(float(p[2], i), s, s)
		VMOVUPS(s, float(p[0], i))
	})
	end()

	function("siluMul", "func(dst, gate, up *float32, n int)")
	p = params("dst", "gate", "up", "n")
	each(p[3], func(i Register) {
		x := YMM()
		VMOVUPS(float(p[1], i), x)
		s := c.sigmoid(x)
		VMULPS(x, s, s)
		VMULPS(float(p[2], i), s, s)
		VMOVUPS(s, float(p[0], i))
	})
	end()

	function("sigmoid", "func(dst, x *float32, n int)")
	p = params("dst", "x", "n")
	each(p[2], func(i Register) {
		x := YMM()
		VMOVUPS(float(p[1], i), x)
		VMOVUPS(c.sigmoid(x), float(p[0], i))
	})
	end()

	// tanh(x) = e/(e+2) with e = exp(2x)-1 = 2^n*(exp(r)-1) + (2^n-1), which is precise near zero too.
	function("softCap", "func(x *float32, n int, c float32)")
	p = params("x", "n")
	cap := broadcast("c")
	each(p[1], func(i Register) {
		x := YMM()
		VMOVUPS(float(p[0], i), x)
		VADDPS(x, x, x)
		c.clamp(x, -40, 40)
		n, e := c.reduce(x)
		power, less := c.power(n), YMM()
		VSUBPS(c.of(1), power, less)
		VFMADD213PS(less, power, e)
		VADDPS(c.of(2), e, less)
		VDIVPS(less, e, e)
		VMULPS(cap, e, e)
		VMOVUPS(e, float(p[0], i))
	})
	end()

	function("sumExp", "func(x *float32, n int, shift float32) float64")
	p = params("x", "n")
	shift, sum := broadcast("shift"), YMM()
	VXORPD(sum, sum, sum)
	each(p[1], func(i Register) {
		x := YMM()
		VMOVUPS(float(p[0], i), x)
		VSUBPS(shift, x, x)
		e := c.exp(x)
		high, d := XMM(), YMM()
		VEXTRACTF128(Imm(1), e, high)
		VCVTPS2PD(e.AsX(), d)
		VADDPD(d, sum, sum)
		VCVTPS2PD(high, d)
		VADDPD(d, sum, sum)
	})
	high := XMM()
	VEXTRACTF128(Imm(1), sum, high)
	VADDPD(sum.AsX(), high, high)
	VHADDPD(high, high, high)
	Store(high, ReturnIndex(0))
	end()
}
