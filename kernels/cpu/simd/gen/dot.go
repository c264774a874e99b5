package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// Offsets of the fields of dotArgs.
const (
	dotW       = 0
	dotX       = 32
	dotLdx     = 40
	dotSc      = 48
	dotLdsc    = 56
	dotScNext  = 64
	dotN       = 72
	dotBlock   = 80
	dotAhead   = 88
	dotRows    = 120
	dotResults = 128
	dotLdr     = 136

	dotStep  = 144
	dotMask  = 152
	dotLow   = 156
	dotIndex = 160
	dotMasks = 224

	dotScales      = 288
	dotSpan        = 296
	dotRoundGroups = 304
)

// dots makes the kernels of dot products: four streams of rows, times n vectors. Memory serves few long streams fastest, and four
// rows share each load of a vector, which with long rows comes from the second-level cache. Where registers do not suffice for
// the sums of four rows, two streams go after the other two, row by row.
func dots() {
	scales(false)
	scales(true)
	for _, n := range []int{1, 2} {
		dotExact(n)
		dotFloat("F16", n)
		dotFloat("BF16", n)
		dotInt8(n)
		if n == 1 && wide {
			dotInt4Scaled()
		} else {
			dotInt4(n)
		}
	}
	if wide {
		dotFloat("F16", 4)
		dotFloat("BF16", 4)
		dotInt4(4)
	}
}

// dotState is what the dot kernels have in common.
type dotState struct {
	args  Register
	w     []Register // what is read next, of each stream at work
	first int        // number of the first stream at work
	x     rowPointers
	i     Register       // values of the row that are done
	acc   [][]VecVirtual // float sums [stream][vector], of the streams at work
	count int            // vectors
	label func(string) string
	local Mem // where the next rows begin; args keeps what Go's collector may look at
}

// Offsets of the fields of dotState.local.
const (
	localW       = 0
	localSc      = 32
	localRows    = 40
	localResults = 48
	localSize    = 56
)

// newDot begins a kernel that works on so many streams together.
func newDot(name string, vectors, together int) *dotState {
	function(fmt.Sprintf("dot%sx%d", name, vectors), "func(a *dotArgs)")
	d := &dotState{args: Load(Param("a"), GP64()), count: vectors}
	d.w = make([]Register, together)
	for r := range d.w {
		d.w[r] = GP64()
	}
	d.acc = make([][]VecVirtual, together)
	for r := range d.acc {
		d.acc[r] = vecs(vectors)
	}
	return d
}

func (d *dotState) field(disp int) Mem { return Mem{Base: d.args, Disp: disp} }

// each makes the loop over rows. row makes the code that goes over one row of each stream at work: it moves w to the rows' ends
// and leaves sums in acc, which are zero before. total gives the four sums of acc's four vectors.
func (d *dotState) each(row func(), total func([]VecVirtual) VecVirtual, add bool) {
	d.local = AllocLocal(localSize)
	for r := range 4 {
		MOVQ(load(d.args, dotW+8*r), d.local.Offset(localW+8*r))
	}
	MOVQ(load(d.args, dotSc), d.local.Offset(localSc))
	MOVQ(load(d.args, dotRows), d.local.Offset(localRows))
	MOVQ(load(d.args, dotResults), d.local.Offset(localResults))
	Label("row")
	for d.first = 0; d.first < 4; d.first += len(d.w) {
		first := d.first
		d.label = func(name string) string { return fmt.Sprint(name, first) }
		for r := range d.w {
			MOVQ(d.local.Offset(localW+8*(first+r)), d.w[r])
		}
		d.x = newRows(load(d.args, dotX), load(d.args, dotLdx), d.count)
		for _, acc := range d.acc {
			zero(acc...)
		}
		d.i = GP64()
		XORQ(d.i, d.i)
		row()
		for r := range d.w {
			MOVQ(d.w[r], d.local.Offset(localW+8*(first+r)))
		}
		d.store(total, add)
	}
	ADDQ(Imm(16), d.local.Offset(localResults))
	DECQ(d.local.Offset(localRows))
	JNZ(LabelRef("row"))
	VZEROUPPER()
	RET()
}

// store puts the sums of the rows at work to the results, or with add adds them.
func (d *dotState) store(total func([]VecVirtual) VecVirtual, add bool) {
	to := GP64()
	MOVQ(d.local.Offset(localResults), to)
	if len(d.acc) == 4 {
		for v := range d.count {
			s := total([]VecVirtual{d.acc[0][v], d.acc[1][v], d.acc[2][v], d.acc[3][v]})
			if add {
				VADDPS(Mem{Base: to}, s, s)
			}
			VMOVUPS(s, Mem{Base: to})
			ADDQ(d.field(dotLdr), to)
		}
		return
	}
	for v := 0; v < d.count; v += 2 {
		low := Mem{Base: to, Disp: 4 * d.first}
		next := load(d.args, dotLdr)
		ADDQ(to, next)
		high := Mem{Base: next, Disp: 4 * d.first}
		s := total([]VecVirtual{d.acc[0][v], d.acc[1][v], d.acc[0][v+1], d.acc[1][v+1]})
		if add {
			old := XMM()
			VMOVSD(low, old)
			VMOVHPS(high, old, old)
			VADDPS(old, s, s)
		}
		VMOVLPS(s, low)
		VMOVHPS(s, high)
		MOVQ(next, to)
		ADDQ(d.field(dotLdr), to)
	}
}

// prefetch asks for lines ahead of each stream, into the second-level cache: the streams and the vectors would not stay in the
// first together.
func (d *dotState) prefetch(lines int) {
	for r, w := range d.w {
		ahead := load(d.args, dotAhead+8*(d.first+r))
		for i := range lines {
			PREFETCHT1(Mem{Base: w, Index: ahead, Scale: 1, Disp: 64 * i})
		}
	}
}

// advance moves on by values, of which each takes so many bits.
func (d *dotState) advance(values, bits int) {
	for _, w := range d.w {
		ADDQ(I32(values*bits/8), w)
	}
	ADDQ(I32(values), d.i)
}

func load(base Register, disp int) GPVirtual {
	r := GP64()
	MOVQ(Mem{Base: base, Disp: disp}, r)
	return r
}

// dotFloat: 32 values of each row a round.
func dotFloat(name string, vectors int) {
	d := newDot(name, vectors, 4)
	x := vecs(vectors)
	d.each(func() {
		Label(d.label("loop"))
		for at := 0; at < 32; at += lanes() {
			for v := range x {
				VMOVUPS(d.x.at(v, 4*at), x[v])
			}
			for r := range d.w {
				w := vec()
				loadFloats(name, Mem{Base: d.w[r], Disp: 2 * at}, w)
				for v := range x {
					VFMADD231PS(x[v], w, d.acc[r][v])
				}
			}
		}
		d.prefetch(1)
		d.x.advance(128)
		d.advance(32, 16)
		CMPQ(d.i, d.field(dotN))
		JB(LabelRef(d.label("loop")))
	}, sum4, false)
}

// dotExact is the product of float32 weights, summed in float64.
func dotExact(vectors int) {
	d := newDot("F32", vectors, 4)
	x := vecs(vectors)
	d.each(func() {
		Label("loop")
		for at := 0; at < 32; at += lanes() / 2 {
			for v := range x {
				VCVTPS2PD(d.x.at(v, 4*at), x[v])
			}
			for r := range d.w {
				w := vec()
				VCVTPS2PD(Mem{Base: d.w[r], Disp: 4 * at}, w)
				for v := range x {
					VFMADD231PD(x[v], w, d.acc[r][v])
				}
			}
		}
		d.prefetch(2)
		d.x.advance(128)
		d.advance(32, 32)
		CMPQ(d.i, d.field(dotN))
		JB(LabelRef("loop"))
	}, sumExact, false)
}

// sumExact is sum4 of float64 lanes. The vectors are overwritten.
func sumExact(v []VecVirtual) VecVirtual {
	low, high := sum2(v[0], v[1]), sum2(v[2], v[3])
	VMOVLHPS(high, low, low)
	return low
}

// loadFloats widens a vector of floats in memory.
func loadFloats(name string, from Mem, to VecVirtual) {
	switch name {
	case "F16":
		VCVTPH2PS(from, to)
	case "BF16":
		VPMOVZXWD(from, to)
		VPSLLD(Imm(16), to, to)
	}
}

// scalePointers points to the scales of the streams at work, [stream][vector].
func (d *dotState) scalePointers() rowPointers {
	ld, base := load(d.args, dotLdsc), GP64()
	MOVQ(d.local.Offset(localSc), base)
	if d.first > 0 { // two streams, four vectors, or one of both
		skip := GP64()
		IMUL3Q(Imm(uint64(d.first*d.count)), ld, skip)
		ADDQ(skip, base)
	}
	return newRows(base, ld, len(d.w)*d.count)
}

// nextScales moves to the scales of the next row.
func (d *dotState) nextScales() {
	if d.first+len(d.w) == 4 {
		next := load(d.args, dotScNext)
		ADDQ(next, d.local.Offset(localSc))
	}
}

// dotInt8: some values of each row a round, then what is left of a block; the integer sums of a block times its scale are added to the
// float32 sums. With two vectors AVX2 has not enough registers for both: the float32 sums are on the stack.
func dotInt8(vectors int) {
	d := newDot("I8", vectors, 4)
	together := len(d.w)
	spill := !wide && vectors > 1
	var stack Mem
	if spill {
		stack = AllocLocal(32 * 4 * vectors)
	}
	// One vector's sums are in two chains, for few of them would wait for each other.
	chains := 1
	if wide && vectors == 1 {
		chains = 2
	}
	sums := make([][]VecVirtual, together*chains)
	for r := range sums {
		sums[r] = vecs(vectors)
	}
	unit := 64 // values a round
	x := vecs(vectors)
	d.each(func() {
		if spill {
			z := YMM()
			VXORPS(z, z, z)
			for i := range 4 * vectors {
				VMOVUPS(z, stack.Offset(32*i))
			}
		}
		sc := d.scalePointers()
		end, left := GP64(), GP64()
		XORQ(end, end)
		values := func(n int) {
			for at := 0; at < n; at += 2 * lanes() {
				for v := range x {
					move(d.x.at(v, 2*at), x[v])
				}
				for r := range d.w {
					w, tmp := vec(), vec()
					VPMOVSXBW(Mem{Base: d.w[r], Disp: at}, w)
					for v := range x {
						dotProductAdd(sums[r+together*(at/(2*lanes())%chains)][v], w, x[v], tmp)
					}
				}
			}
			d.prefetch(1)
			d.x.advance(2 * n)
			d.advance(n, 8)
		}
		Label(d.label("block"))
		ADDQ(d.field(dotBlock), end)
		CMPQ(end, d.field(dotN))
		CMOVQHI(d.field(dotN), end)
		for r := range sums {
			zero(sums[r]...)
		}
		MOVQ(end, left)
		SUBQ(d.i, left)
		SUBQ(U32(unit), left)
		JB(LabelRef(d.label("few")))
		Label(d.label("loop"))
		values(unit)
		SUBQ(U32(unit), left)
		JAE(LabelRef(d.label("loop")))
		Label(d.label("few"))
		ADDQ(U32(unit), left)
		JZ(LabelRef(d.label("scale")))
		Label(d.label("rest"))
		values(32)
		SUBQ(Imm(32), left)
		JNZ(LabelRef(d.label("rest")))
		Label(d.label("scale"))
		for r := range d.w {
			for v := range x {
				scale, s := vec(), sums[r][v]
				if chains > 1 {
					VPADDD(sums[r+together][v], s, s)
				}
				VBROADCASTSS(sc.at(r*vectors+v, 0), scale)
				VCVTDQ2PS(s, s)
				if spill {
					at := stack.Offset(32 * (vectors*r + v))
					VFMADD213PS(at, scale, s)
					VMOVUPS(s, at)
				} else {
					VFMADD231PS(s, scale, d.acc[r][v])
				}
			}
		}
		sc.advance(4)
		CMPQ(d.i, d.field(dotN))
		JB(LabelRef(d.label("block")))
		d.nextScales()
		if spill {
			for r := range d.acc {
				for v := range d.acc[r] {
					VMOVUPS(stack.Offset(32*(vectors*r+v)), d.acc[r][v])
				}
			}
		}
	}, sum4, false)
}

// move loads a vector of integers.
func move(from Op, to VecVirtual) {
	if wide {
		VMOVDQU32(from, to)
	} else {
		VMOVDQU(from, to)
	}
}
