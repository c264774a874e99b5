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
	eightSc      = 104
	eightLdsc    = 120
	eightScNext  = 128
)

// visitBytes is how much of a stream's row is read before the next stream's turn.
const visitBytes = 256

// eights makes the kernels of one vector: eight streams of rows, of which each in turn is read for four lines. Eight share each
// load of the vector, so that what comes of it from the second-level cache is an eighth of what one row would ask for; four
// lines in a row are what the hardware's prefetches follow as well as one stream alone. AVX-512 has the registers to keep the
// vector's part for all eight, AVX2 takes it from the first-level cache.
func eights() {
	eightFloat("F16")
	eightFloat("BF16")
	eightExact()
	for _, group := range []int{256, 128, 64, 32} {
		eightInt8(group)
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
// rows that are left, and where results and scales go on.
const (
	ownWhole   = 0
	ownEnd     = 8
	ownRows    = 16
	ownResults = 24
	ownSc      = 32
	ownSize    = 48
)

func eightField(disp int) Mem { return Mem{Base: Load(Param("a"), GP64()), Disp: disp} }

func eightLoad(disp int) GPVirtual {
	r := GP64()
	MOVQ(eightField(disp), r)
	return r
}

// eightKernel makes a kernel: begin comes before each row, visit multiplies visitBytes of every stream with xBytes of the vector,
// rest what is left of a row, and total sums the eight accumulators up into two vectors of four results.
func eightKernel(name string, xBytes int, begin func(own Mem), visit, rest func(k *eight, own Mem), total func(acc []VecVirtual) [2]VecVirtual) {
	function("eight"+name, "func(a *eightArgs)")
	own := AllocLocal(ownSize)
	k := &eight{at: GP64(), acc: vecs(8)}
	for _, field := range [][2]int{{eightWhole, ownWhole}, {eightAll, ownEnd}} {
		end := eightLoad(field[0])
		ADDQ(eightField(eightX), end)
		MOVQ(end, own.Offset(field[1]))
	}
	for _, field := range [][2]int{{eightRows, ownRows}, {eightResults, ownResults}, {eightSc, ownSc}, {eightSc + 8, ownSc + 8}} {
		MOVQ(eightLoad(field[0]), own.Offset(field[1]))
	}
	XORQ(k.at, k.at)
	Label("row")
	zero(k.acc...)
	k.x = eightLoad(eightX)
	begin(own)
	CMPQ(k.x, own.Offset(ownWhole))
	JAE(LabelRef("rest"))
	for s := range k.w {
		k.w[s] = eightLoad(eightW + 8*s)
	}
	Label("visit")
	visit(k, own)
	ADDQ(I32(visitBytes), k.at)
	ADDQ(I32(xBytes), k.x)
	CMPQ(k.x, own.Offset(ownWhole))
	JB(LabelRef("visit"))
	Label("rest")
	CMPQ(k.x, own.Offset(ownEnd))
	JAE(LabelRef("done"))
	rest(k, own)
	Label("done")
	to := GP64()
	MOVQ(own.Offset(ownResults), to)
	for i, sums := range total(k.acc) {
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
					VFMADD231PS(x[i], w, k.acc[s])
				}
			}
		}
	}
	visit := body(visitBytes / 2)
	eightKernel(name, 2*visitBytes, func(Mem) {}, func(k *eight, _ Mem) { visit(k) }, restByStreams(64, 128, body(32)), eightSums)
}

func eightSums(acc []VecVirtual) [2]VecVirtual { return [2]VecVirtual{sum4(acc[:4]), sum4(acc[4:])} }

// eightExact is dotExact.
func eightExact() {
	body := func(values int) func(k *eight) {
		return func(k *eight) {
			n := lanes() / 2
			for from := 0; from < values; from += 8 * n { // the registers of eight vectors
				var x []VecVirtual
				for at := from; at < min(values, from+8*n); at += n {
					if !wide {
						break
					}
					v := vec()
					VCVTPS2PD(Mem{Base: k.x, Disp: 4 * at}, v)
					x = append(x, v)
				}
				for s := range k.w {
					for at := from; at < min(values, from+8*n); at += n {
						w := vec()
						VCVTPS2PD(k.value(s, 4*at), w)
						if wide {
							VFMADD231PD(x[(at-from)/n], w, k.acc[s])
							continue
						}
						v := vec()
						VCVTPS2PD(Mem{Base: k.x, Disp: 4 * at}, v)
						VFMADD231PD(v, w, k.acc[s])
					}
				}
			}
		}
	}
	visit := body(visitBytes / 4)
	eightKernel("F32", visitBytes, func(Mem) {}, func(k *eight, _ Mem) { visit(k) }, restByStreams(128, 128, body(32)),
		func(acc []VecVirtual) [2]VecVirtual { return [2]VecVirtual{sumExact(acc[:4]), sumExact(acc[4:])} })
}

// eightScales points to what scales come next. Without groups all streams have the vector's.
type eightScales struct {
	group     int
	base      [2]Register // of the first four streams and of the others
	ld, three Register    // bytes between streams, once and three times
}

func (c *eightScales) begin(own Mem) {
	c.base[0] = GP64()
	MOVQ(own.Offset(ownSc), c.base[0])
	if c.group == 256 {
		return
	}
	c.base[1], c.ld, c.three = GP64(), eightLoad(eightLdsc), GP64()
	MOVQ(own.Offset(ownSc+8), c.base[1])
	LEAQ(Mem{Base: c.ld, Index: c.ld, Scale: 2}, c.three)
	next := eightLoad(eightScNext)
	ADDQ(next, own.Offset(ownSc))
	ADDQ(next, own.Offset(ownSc+8))
}

// of is the place of stream s's scale number g.
func (c *eightScales) of(s, g int) Mem {
	m := Mem{Base: c.base[0], Disp: 4 * g}
	if c.group == 256 {
		return m
	}
	m.Base = c.base[s/4]
	switch s % 4 {
	case 1:
		m.Index, m.Scale = c.ld, 1
	case 2:
		m.Index, m.Scale = c.ld, 2
	case 3:
		m.Index, m.Scale = c.three, 1
	}
	return m
}

func (c *eightScales) advance(blocks int) {
	ADDQ(Imm(uint64(4*blocks)), c.base[0])
	if c.group != 256 {
		ADDQ(Imm(uint64(4*blocks)), c.base[1])
	}
}

// eightInt8 is dotInt8 for blocks of 256 values, which all streams share, or for groups: the integer sum of a block times its scale is
// added to the float32 sums.
func eightInt8(group int) {
	name := "I8"
	if group != 256 {
		name = fmt.Sprint(name, "G", group)
	}
	n := 2 * lanes() // values of a vector of weights
	c := &eightScales{group: group}
	visit := func(k *eight, _ Mem) {
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
			for g := range visitBytes / group {
				sum := vec()
				for i := g * group / n; i < (g+1)*group/n; i++ {
					w := vec()
					VPMOVSXBW(k.value(s, n*i), w)
					if i == g*group/n {
						VPMADDWD(x[i], w, sum)
					} else {
						dotProductAdd(sum, w, x[i], w)
					}
				}
				scaleAdd(sum, c.of(s, g), k.acc[s])
			}
		}
		c.advance(visitBytes / group)
	}
	rest := func(k *eight, own Mem) {
		left := GP64() // bytes of a row
		MOVQ(own.Offset(ownEnd), left)
		SUBQ(k.x, left)
		SHRQ(Imm(1), left)
		for s := range k.w {
			eightRest(k, c, s, left)
		}
		ADDQ(left, k.at)
	}
	eightKernel(name, 2*visitBytes, c.begin, visit, rest, eightSums)
}

// eightRest does what is left of stream s's row, less than 256 values, a block at a time.
func eightRest(k *eight, c *eightScales, s int, left Register) {
	label := func(name string) string { return fmt.Sprint(name, s) }
	w, sc, at := eightLoad(eightW+8*s), GP64(), GP64()
	ADDQ(k.at, w)
	LEAQ(c.of(s, 0), sc)
	XORQ(at, at)
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
	if c.group > 32 {
		CMPQ(at, left)
		JAE(LabelRef(label("scale")))
		if c.group < 256 {
			TESTQ(U32(c.group-1), at)
		}
		if c.group == 256 {
			JMP(LabelRef(label("few")))
		} else {
			JNZ(LabelRef(label("few")))
		}
	}
	Label(label("scale"))
	scaleAdd(sum, Mem{Base: sc}, k.acc[s])
	ADDQ(Imm(4), sc)
	CMPQ(at, left)
	JB(LabelRef(label("block")))
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
