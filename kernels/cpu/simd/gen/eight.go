package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// Offsets of the fields of eightArgs.
const (
	eightW       = 0
	eightX       = 64
	eightWhole   = 72
	eightAll     = 80
	eightRows    = 88
	eightResults = 96
	eightS       = 104
	eightSc      = 112
	eightScNext  = 176
	eightAhead   = 184
	eightScRow   = 248
)

// visitBytes is how much of a stream's row is read before the next stream's turn.
const visitBytes = 256

// eights makes the kernels of one vector: eight streams of rows, of which each in turn is read for four lines. Eight share each
// load of the vector, so that what comes of it from the second-level cache is an eighth of what one row would ask for; four
// lines in a row are what the hardware's prefetches follow as well as one stream alone. AVX-512 has the registers to keep the
// vector's part for all eight, AVX2 takes it from the first-level cache.
//
// With AVX2 float32 and groups gain nothing by it.
func eights() {
	eightFloat("F16")
	eightFloat("BF16")
	eightInt8(256)
	if wide {
		eightExact()
		eightInt8(128)
		eightInt8(64)
		eightGather()
	}
}

// eight is what these kernels have in common.
type eight struct {
	w   [8]Register
	at  Register // bytes from the streams' beginnings
	x   Register // what of the vector is next
	acc []VecVirtual
}

// Offsets of the fields of the kernels' local memory: pointers to where the vector's whole visits and where all of it ends, the
// rows that are left, where results go on, and scales.
const (
	ownWhole   = 0
	ownEnd     = 8
	ownRows    = 16
	ownResults = 24
	ownScales  = 32
	ownSize    = 48
)

func eightField(disp int) Mem { return Mem{Base: Load(Param("a"), GP64()), Disp: disp} }

func eightLoad(disp int) GPVirtual {
	r := GP64()
	MOVQ(eightField(disp), r)
	return r
}

// eightParts is what kernels differ in.
type eightParts struct {
	start, row  func()                  // come first, and before each row; may be nil
	xBytes      int                     // of the vector that a visit takes
	visit, rest func(k *eight, own Mem) // multiply visitBytes of every stream, and what is left of a row
	total       func(acc []VecVirtual) [2]VecVirtual
}

func eightKernel(name string, p eightParts) {
	function("eight"+name, "func(a *eightArgs)")
	own := AllocLocal(ownSize)
	k := &eight{at: GP64(), acc: vecs(8)}
	for _, field := range [][2]int{{eightWhole, ownWhole}, {eightAll, ownEnd}} {
		end := eightLoad(field[0])
		ADDQ(eightField(eightX), end)
		MOVQ(end, own.Offset(field[1]))
	}
	for _, field := range [][2]int{{eightRows, ownRows}, {eightResults, ownResults}} {
		MOVQ(eightLoad(field[0]), own.Offset(field[1]))
	}
	XORQ(k.at, k.at)
	if p.start != nil {
		p.start()
	}
	Label("row")
	zero(k.acc...)
	k.x = eightLoad(eightX)
	if p.row != nil {
		p.row()
	}
	CMPQ(k.x, own.Offset(ownWhole))
	JAE(LabelRef("rest"))
	for s := range k.w {
		k.w[s] = eightLoad(eightW + 8*s)
	}
	Label("visit")
	p.visit(k, own)
	ADDQ(I32(visitBytes), k.at)
	ADDQ(I32(p.xBytes), k.x)
	CMPQ(k.x, own.Offset(ownWhole))
	JB(LabelRef("visit"))
	Label("rest")
	CMPQ(k.x, own.Offset(ownEnd))
	JAE(LabelRef("done"))
	p.rest(k, own)
	Label("done")
	to := GP64()
	MOVQ(own.Offset(ownResults), to)
	for i, sums := range p.total(k.acc) {
		VMOVUPS(sums, Mem{Base: to, Disp: 16 * i})
	}
	ADDQ(Imm(32), own.Offset(ownResults))
	DECQ(own.Offset(ownRows))
	JNZ(LabelRef("row"))
	VZEROUPPER()
	RET()
}

// value is what stream s has at a distance of disp bytes.
func (k *eight) value(s, disp int) Mem { return Mem{Base: k.w[s], Index: k.at, Scale: 1, Disp: disp} }

// touch loads once more what stream s has at a distance of disp bytes, for nothing but to take a place among the loads that are
// under way. That more loads a line read faster was measured (docs/BENCHMARKS.md), of loads alone too; presumably what is far
// ahead takes the buffers for misses that the hardware's prefetches need.
func (k *eight) touch(s, disp int) {
	if wide {
		MOVQ(k.value(s, disp), GP64())
	}
}

// restByStreams is a loop over what is left of a row, step bytes of each stream a time.
func restByStreams(step, xBytes int, body func(k *eight)) func(k *eight, own Mem) {
	return func(k *eight, own Mem) {
		for s := range k.w {
			k.w[s] = eightLoad(eightW + 8*s)
		}
		Label("few")
		body(k)
		ADDQ(I32(step), k.at)
		ADDQ(I32(xBytes), k.x)
		CMPQ(k.x, own.Offset(ownEnd))
		JB(LabelRef("few"))
	}
}

// eightFloat is dotFloat: the sums' order is the same, bit for bit.
func eightFloat(name string) {
	body := func(values int) func(k *eight) {
		return func(k *eight) {
			n := values / lanes()
			x := make([]Op, n)
			for i := range x {
				x[i] = Mem{Base: k.x, Disp: 4 * lanes() * i}
				if wide {
					v := vec()
					VMOVUPS(x[i], v)
					x[i] = v
				}
			}
			for s := range k.w {
				for i := range x {
					w := vec()
					loadFloats(name, k.value(s, 2*lanes()*i), w)
					k.touch(s, 2*lanes()*i+16)
					VFMADD231PS(x[i], w, k.acc[s])
				}
			}
		}
	}
	visit := body(visitBytes / 2)
	eightKernel(name, eightParts{xBytes: 2 * visitBytes, visit: func(k *eight, _ Mem) { visit(k) }, rest: restByStreams(64, 128, body(32)),
		total: eightSums})
}

func eightSums(acc []VecVirtual) [2]VecVirtual { return [2]VecVirtual{sum4(acc[:4]), sum4(acc[4:])} }

// eightExact is dotExact.
func eightExact() {
	body := func(values int) func(k *eight) {
		return func(k *eight) {
			x := vecs(values / 8)
			for i := range x {
				VCVTPS2PD(Mem{Base: k.x, Disp: 32 * i}, x[i])
			}
			for s := range k.w {
				for i := range x {
					w := vec()
					VCVTPS2PD(k.value(s, 32*i), w)
					VFMADD231PD(x[i], w, k.acc[s])
				}
			}
		}
	}
	visit := body(visitBytes / 4)
	eightKernel("F32", eightParts{xBytes: visitBytes, visit: func(k *eight, _ Mem) { visit(k) }, rest: restByStreams(128, 128, body(32)),
		total: func(acc []VecVirtual) [2]VecVirtual { return [2]VecVirtual{sumExact(acc[:4]), sumExact(acc[4:])} }})
}

// eightInt8 is dotInt8 for blocks of 256 values, whose scales are the vector's, or for groups, which have one of the vector and one of
// the row: the integer sum of a block times its scale is added to the float32 sums.
func eightInt8(group int) {
	name := "I8"
	if group != 256 {
		name = fmt.Sprint(name, "G", group)
	}
	c := &eightBlocks{group: group}
	p := eightParts{xBytes: 2 * visitBytes, visit: c.visit, rest: c.rest, total: eightSums}
	p.row = func() { c.s = eightLoad(eightS) }
	if group != 256 {
		p.start = func() {
			c.at = GP64()
			XORQ(c.at, c.at)
			SUBQ(eightField(eightScNext), c.at)
		}
		p.row = func() {
			c.s = eightLoad(eightS)
			ADDQ(eightField(eightScNext), c.at)
			c.prefetch()
		}
	} else if wide {
		p.rest = c.restTogether
	}
	eightKernel(name, p)
}

// eightBlocks is what the kernels of int8 have beside the others' registers.
type eightBlocks struct {
	group int      // values of a block
	s     Register // the vector's next scale
	at    Register // bytes from the beginnings of the rows' scales
}

// prefetch asks for the scales of the rows that come after those of this call.
func (c *eightBlocks) prefetch() {
	row := eightLoad(eightScRow)
	for s := range 8 {
		next := eightField(eightAhead + 8*s)
		at := GP64()
		MOVQ(next, at)
		ADDQ(row, next)
		for i := range 256 / c.group {
			PREFETCHT1(Mem{Base: at, Disp: 64 * i})
		}
	}
}

func (c *eightBlocks) visit(k *eight, own Mem) {
	n := 2 * lanes() // values of a vector of weights
	x := make([]Op, visitBytes/n)
	for i := range x {
		x[i] = Mem{Base: k.x, Disp: 2 * n * i}
		if wide {
			v := vec()
			move(x[i], v)
			x[i] = v
		}
	}
	for s := range k.w {
		scales := c.scales(s, own)
		for g := range visitBytes / c.group {
			sum := vec()
			for i := g * c.group / n; i < (g+1)*c.group/n; i++ {
				w := vec()
				VPMOVSXBW(k.value(s, n*i), w)
				k.touch(s, n*i+16)
				if i == g*c.group/n {
					VPMADDWD(x[i], w, sum)
				} else {
					dotProductAdd(sum, w, x[i], w)
				}
			}
			scaleAdd(sum, scales.Offset(4*g), k.acc[s])
		}
	}
	ADDQ(Imm(uint64(4*visitBytes/c.group)), c.s)
	if c.group != 256 {
		ADDQ(Imm(uint64(2*visitBytes/c.group)), c.at)
	}
}

// scales is where the scales of a visit of stream s are: the vector's, or their products with the row's.
func (c *eightBlocks) scales(s int, own Mem) Mem {
	if c.group == 256 {
		return Mem{Base: c.s}
	}
	from := Mem{Base: eightLoad(eightSc + 8*s), Index: c.at, Scale: 1}
	v, half := XMM(), XMM()
	if c.group == 64 {
		VMOVQ(from, half)
	} else {
		VMOVD(from, half)
	}
	VCVTPH2PS(half, v)
	VMULPS(Mem{Base: c.s}, v, v)
	VMOVUPS(v, own.Offset(ownScales))
	return own.Offset(ownScales)
}

// restTogether does what is left of the rows, less than a block, of all streams at a time.
func (c *eightBlocks) restTogether(k *eight, own Mem) {
	sums, x := vecs(8), vec()
	zero(sums...)
	restByStreams(32, 64, func(k *eight) {
		move(Mem{Base: k.x}, x)
		for s := range k.w {
			w := vec()
			VPMOVSXBW(k.value(s, 0), w)
			dotProductAdd(sums[s], w, x, w)
		}
	})(k, own)
	for s, sum := range sums {
		scaleAdd(sum, Mem{Base: c.s}, k.acc[s])
	}
}

// rest does what is left of the rows, less than 256 values, stream by stream and block by block.
func (c *eightBlocks) rest(k *eight, own Mem) {
	left, blocks := GP64(), GP64() // bytes of a row, and of its blocks' scales
	MOVQ(own.Offset(ownEnd), left)
	SUBQ(k.x, left)
	SHRQ(Imm(1), left)
	for s := range k.w {
		c.restOf(k, own, s, left, blocks)
	}
	ADDQ(left, k.at)
	if c.group != 256 {
		ADDQ(blocks, c.at)
	}
}

func (c *eightBlocks) restOf(k *eight, own Mem, s int, left, blocks Register) {
	label := func(name string) string { return fmt.Sprint(name, s) }
	w, at := eightLoad(eightW+8*s), GP64()
	ADDQ(k.at, w)
	XORQ(at, at)
	XORQ(blocks, blocks)
	sum := vec()
	Label(label("block"))
	zero(sum)
	Label(label("few"))
	for i := range 16 / lanes() {
		v := vec()
		VPMOVSXBW(Mem{Base: w, Index: at, Scale: 1, Disp: 2 * lanes() * i}, v)
		dotProductAdd(sum, v, Mem{Base: k.x, Index: at, Scale: 2, Disp: 4 * lanes() * i}, v)
	}
	ADDQ(Imm(32), at)
	CMPQ(at, left)
	JAE(LabelRef(label("scale")))
	if c.group == 256 {
		JMP(LabelRef(label("few")))
	} else {
		TESTQ(U32(c.group-1), at)
		JNZ(LabelRef(label("few")))
	}
	Label(label("scale"))
	scale := Mem{Base: c.s}
	if c.group != 256 {
		row, f := eightLoad(eightSc+8*s), XMM()
		ADDQ(c.at, row)
		half := GP32()
		MOVWLZX(Mem{Base: row, Index: blocks, Scale: 1}, half)
		VMOVD(half, f)
		VCVTPH2PS(f, f)
		VMULSS(Mem{Base: c.s, Index: blocks, Scale: 2}, f, f)
		scale = own.Offset(ownScales)
		VMOVSS(f, scale)
	}
	scaleAdd(sum, scale, k.acc[s])
	ADDQ(Imm(2), blocks)
	CMPQ(at, left)
	JB(LabelRef(label("block")))
}

// eightGather makes the copy of rows of scales, eight streams of n bytes, 32 or more, a row, in the order in which they are needed.
func eightGather() {
	function("eightGather", "func(dst *byte, src *[8]*byte, n, rows int)")
	p := params("dst", "src", "n", "rows")
	dst, src, n, rows := p[0], p[1], p[2], p[3]
	next, streams := GP64(), GP64()
	MOVQ(n, next)
	SHLQ(Imm(3), next)
	MOVQ(U32(8), streams)
	Label("stream")
	from, to, left := GP64(), GP64(), GP64()
	MOVQ(Mem{Base: src}, from)
	MOVQ(dst, to)
	MOVQ(rows, left)
	Label("row")
	at, y := GP64(), YMM()
	XORQ(at, at)
	Label("copy")
	ADDQ(Imm(32), at)
	CMPQ(at, n)
	CMOVQHI(n, at) // the last 32 bytes overlap others
	VMOVDQU(Mem{Base: from, Index: at, Scale: 1, Disp: -32}, y)
	VMOVDQU(y, Mem{Base: to, Index: at, Scale: 1, Disp: -32})
	CMPQ(at, n)
	JB(LabelRef("copy"))
	ADDQ(n, from)
	ADDQ(next, to)
	DECQ(left)
	JNZ(LabelRef("row"))
	ADDQ(Imm(8), src)
	ADDQ(n, dst)
	DECQ(streams)
	JNZ(LabelRef("stream"))
	end()
}

// scaleAdd adds sum, integers, times the scale in memory to acc. sum is overwritten.
func scaleAdd(sum VecVirtual, scale Mem, acc VecVirtual) {
	VCVTDQ2PS(sum, sum)
	if wide {
		VFMADD231PS_BCST(scale, sum, acc)
		return
	}
	f := vec()
	VBROADCASTSS(scale, f)
	VFMADD231PS(sum, f, acc)
}
