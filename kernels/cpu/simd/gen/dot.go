package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// Offsets of the fields of dotArgs.
const (
	dotW     = 0
	dotX     = 32
	dotLdx   = 40
	dotSc    = 48
	dotLdsc  = 56
	dotLdscx = 64
	dotN     = 72
	dotBlock = 80
	dotNext  = 88
	dotOut   = 96

	dotStep    = 160
	dotMask    = 168
	dotFifteen = 172
	dotIndex   = 176
	dotMasks   = 240
	dotQuads   = 304
	dotResults = 312
)

func dots() {
	scales(false)
	scales(true)
	for _, n := range []int{1, 2} {
		dotExact(n)
		dotFloat("F16", n, 2)
		dotFloat("BF16", n, 2)
		dotInt8(n)
		dotInt4(n)
	}
	if wide {
		dotFloat("F16", 4, 2)
		dotFloat("BF16", 4, 2)
	}
	rowKernels()
}

// dotState is what the dot kernels have in common: four rows, n vectors.
type dotState struct {
	args Register
	w    [4]Register
	x    []Register
	next Register
	n    Register
	acc  [4][]VecVirtual // float32 sums [row][vector]
}

func newDot(name string, vectors int) *dotState {
	function(fmt.Sprintf("dot%sx%d", name, vectors), "func(a *dotArgs)")
	d := &dotState{args: Load(Param("a"), GP64())}
	for r := range d.w {
		d.w[r] = load(d.args, dotW+8*r)
	}
	d.x = make([]Register, vectors)
	d.x[0] = load(d.args, dotX)
	for v := 1; v < vectors; v++ {
		d.x[v] = GP64()
		MOVQ(Mem{Base: d.args, Disp: dotLdx}, d.x[v])
		ADDQ(d.x[v-1], d.x[v])
	}
	d.next = load(d.args, dotNext)
	d.n = load(d.args, dotN)
	return d
}

// accumulators makes the float32 sums, zero.
func (d *dotState) accumulators() {
	for r := range d.acc {
		d.acc[r] = vecs(len(d.x))
		zero(d.acc[r]...)
	}
}

// finish adds up the lanes and stores out, or with add adds to it.
func (d *dotState) finish(add bool) {
	for v := range d.x {
		s := sum4([]VecVirtual{d.acc[0][v], d.acc[1][v], d.acc[2][v], d.acc[3][v]})
		if add {
			VADDPS(Mem{Base: d.args, Disp: dotOut + 16*v}, s, s)
		}
		VMOVUPS(s, Mem{Base: d.args, Disp: dotOut + 16*v})
	}
	VZEROUPPER()
	RET()
}

// prefetch asks for the next lines of the next rows, into the second-level cache: four rows, their successors and the activations
// would not stay in the first together.
func (d *dotState) prefetch(lines int) {
	for i := range lines {
		PREFETCHT1(Mem{Base: d.next, Disp: 64 * i})
	}
	ADDQ(I32(64*lines), d.next)
}

func load(base Register, disp int) GPVirtual {
	r := GP64()
	MOVQ(Mem{Base: base, Disp: disp}, r)
	return r
}

// dotFloat: 32 values of each row a round, size bytes each. Even and odd vectors of each round have sums of their own, which
// gives two chains of additions a row and vector; where registers are too few for that, two rows go after the other two.
func dotFloat(name string, vectors, size int) {
	d := newDot(name, vectors)
	together := 4
	if vectors > 2 || !wide && vectors > 1 {
		together = 2
	}
	d.accumulators()
	odd := make([][]VecVirtual, together)
	for r := range odd {
		odd[r] = vecs(vectors)
	}
	x := vecs(vectors)
	i := GP64()
	for first := 0; first < 4; first += together {
		l := label(first)
		for r := range odd {
			zero(odd[r]...)
		}
		XORQ(i, i)
		Label(l("loop"))
		for at := 0; at < 32; at += lanes() {
			for v := range x {
				VMOVUPS(Mem{Base: d.x[v], Index: i, Scale: 4, Disp: 4 * at}, x[v])
			}
			for r := range odd {
				w := vec()
				loadFloats(name, Mem{Base: d.w[first+r], Index: i, Scale: uint8(size), Disp: size * at}, w)
				for v := range x {
					acc := d.acc[first+r][v]
					if at/lanes()%2 == 1 {
						acc = odd[r][v]
					}
					VFMADD231PS(x[v], w, acc)
				}
			}
		}
		d.prefetch(2 * size * together / 4)
		ADDQ(Imm(32), i)
		CMPQ(i, d.n)
		JB(LabelRef(l("loop")))
		for r := range odd {
			for v := range x {
				VADDPS(odd[r][v], d.acc[first+r][v], d.acc[first+r][v])
			}
		}
	}
	d.finish(false)
}

// dotExact is the product of float32 weights, summed in float64.
func dotExact(vectors int) {
	d := newDot("F32", vectors)
	d.accumulators()
	x := vecs(vectors)
	i := GP64()
	XORQ(i, i)
	Label("loop")
	for at := 0; at < 32; at += lanes() / 2 {
		for v := range x {
			VCVTPS2PD(Mem{Base: d.x[v], Index: i, Scale: 4, Disp: 4 * at}, x[v])
		}
		for r := range d.w {
			w := vec()
			VCVTPS2PD(Mem{Base: d.w[r], Index: i, Scale: 4, Disp: 4 * at}, w)
			for v := range x {
				VFMADD231PD(x[v], w, d.acc[r][v])
			}
		}
	}
	d.prefetch(8)
	ADDQ(Imm(32), i)
	CMPQ(i, d.n)
	JB(LabelRef("loop"))
	for v := range d.x {
		for r := 0; r < 4; r += 2 {
			VMOVLPS(sum2(d.acc[r][v], d.acc[r+1][v]), Mem{Base: d.args, Disp: dotOut + 16*v + 4*r})
		}
	}
	VZEROUPPER()
	RET()
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

// dotInt8: 32 values of each row a round; the integer sums of a block times its scale are added to the float32 sums. With two
// vectors AVX2 has not enough registers for both: the float32 sums are on the stack.
func dotInt8(vectors int) {
	d := newDot("I8", vectors)
	spill := !wide && vectors > 1
	var stack Mem
	if spill {
		stack = AllocLocal(32 * 4 * vectors)
		z := YMM()
		VXORPS(z, z, z)
		for i := range 4 * vectors {
			VMOVUPS(z, stack.Offset(32*i))
		}
	} else {
		d.accumulators()
	}
	sc := make([]Register, vectors)
	sc[0] = load(d.args, dotSc)
	for v := 1; v < vectors; v++ {
		sc[v] = load(d.args, dotLdscx)
		ADDQ(sc[v-1], sc[v])
	}
	ldsc := load(d.args, dotLdsc)
	var sums [4][]VecVirtual
	for r := range sums {
		sums[r] = vecs(vectors)
	}
	i, end := GP64(), GP64()
	XORQ(i, i)
	XORQ(end, end)
	Label("block")
	ADDQ(Mem{Base: d.args, Disp: dotBlock}, end)
	CMPQ(end, d.n)
	CMOVQHI(d.n, end)
	for r := range sums {
		zero(sums[r]...)
	}
	Label("loop")
	x := vecs(vectors)
	for at := 0; at < 32; at += 2 * lanes() {
		for v := range x {
			move(Mem{Base: d.x[v], Index: i, Scale: 2, Disp: 2 * at}, x[v])
		}
		for r := range d.w {
			w, tmp := vec(), vec()
			VPMOVSXBW(Mem{Base: d.w[r], Index: i, Scale: 1, Disp: at}, w)
			for v := range x {
				dotProductAdd(sums[r][v], w, x[v], tmp)
			}
		}
	}
	d.prefetch(2)
	ADDQ(Imm(32), i)
	CMPQ(i, end)
	JB(LabelRef("loop"))

	for v := range x {
		row := GP64()
		MOVQ(sc[v], row)
		for r := range sums {
			scale := vec()
			VBROADCASTSS(Mem{Base: row}, scale)
			if r < 3 {
				ADDQ(ldsc, row)
			}
			s := sums[r][v]
			VCVTDQ2PS(s, s)
			if spill {
				at := stack.Offset(32 * (4*v + r))
				VFMADD213PS(at, scale, s)
				VMOVUPS(s, at)
			} else {
				VFMADD231PS(s, scale, d.acc[r][v])
			}
		}
		ADDQ(Imm(4), sc[v])
	}
	CMPQ(i, d.n)
	JB(LabelRef("block"))
	if spill {
		for r := range d.acc {
			d.acc[r] = sums[r]
			for v := range sums[r] {
				VMOVUPS(stack.Offset(32*(4*v+r)), sums[r][v])
			}
		}
	}
	d.finish(false)
}

// move loads a vector of integers.
func move(from Op, to VecVirtual) {
	if wide {
		VMOVDQU32(from, to)
	} else {
		VMOVDQU(from, to)
	}
}

// dotInt4: 128 values of each row a round, the last round's through a mask. 64 bytes of nibbles, as words of 16 bits, give four
// vectors of int16; the activations are in the same order. A group's scale reaches its lanes by a permutation of the next
// scales. AVX2 takes a round in two halves.
func dotInt4(vectors int) {
	k := &int4State{dotState: newDot("I4", vectors)}
	k.accumulators()
	k.setScales()
	k.low = vec()
	VPBROADCASTD(Mem{Base: k.args, Disp: dotFifteen}, k.low)
	k.q, k.sum, k.tmp = vecs(4), vecs(vectors), vec()
	if wide {
		k.index = vec()
		VMOVDQU32(Mem{Base: k.args, Disp: dotIndex}, k.index)
		for range vectors {
			k.values = append(k.values, vecs(4))
		}
	}
	i, whole := GP64(), GP64()
	XORQ(i, i)
	MOVQ(k.n, whole)
	ANDQ(I8(-128), whole)
	JZ(LabelRef("tail"))
	Label("loop")
	k.round(false)
	ADDQ(U32(128), i)
	CMPQ(i, whole)
	JB(LabelRef("loop"))
	Label("tail")
	CMPQ(i, k.n)
	JE(LabelRef("done"))
	k.round(true)
	Label("done")
	k.finish(true)
}

// setScales loads pointers to the scales.
func (k *int4State) setScales() {
	k.sc = make([]Register, len(k.x))
	k.sc[0] = load(k.args, dotSc)
	for v := 1; v < len(k.x); v++ {
		k.sc[v] = load(k.args, dotLdscx)
		ADDQ(k.sc[v-1], k.sc[v])
	}
	k.ldsc = load(k.args, dotLdsc)
	k.ldsc3 = GP64()
	LEAQ(Mem{Base: k.ldsc, Index: k.ldsc, Scale: 2}, k.ldsc3)
}

// nextScale is where the next scales of a row are.
func (k *int4State) nextScale(v, r int) Mem {
	switch r {
	case 0:
		return Mem{Base: k.sc[v]}
	case 3:
		return Mem{Base: k.sc[v], Index: k.ldsc3, Scale: 1}
	}
	return Mem{Base: k.sc[v], Index: k.ldsc, Scale: uint8(r)}
}

func (k *int4State) round(tail bool) {
	if wide {
		k.part(tail, 0)
	} else {
		k.part(tail, 0)
		k.part(tail, 1)
	}
	if !tail {
		k.prefetch(4)
		for v := range k.sc {
			ADDQ(Mem{Base: k.args, Disp: dotStep}, k.sc[v])
		}
		for r := range k.w {
			ADDQ(Imm(64), k.w[r])
		}
		for v := range k.x {
			ADDQ(U32(256), k.x[v])
		}
	}
}

// part does a round, or half of one, for each row: nibbles to words, four products a vector, scale. AVX-512 has the registers
// to load activations once for all rows.
func (k *int4State) part(tail bool, half int) {
	x := make([][4]Op, len(k.x))
	for v := range x {
		for s := range x[v] {
			x[v][s] = Mem{Base: k.x[v], Disp: 64*s + 32*half}
			if wide {
				VMOVDQU32(x[v][s], k.values[v][s])
				x[v][s] = k.values[v][s]
			}
		}
	}
	for r := range k.w {
		q := k.q
		k.loadNibbles(Mem{Base: k.w[r], Disp: 32 * half}, tail, half, q[3])
		k.spread(q)
		for v := range k.x {
			sum := k.sum[v]
			if wide {
				zero(sum)
				for s := range q {
					vnni(x[v][s], q[s], sum)
				}
			} else {
				VPMADDWD(x[v][0], q[0], sum)
				for s := 1; s < 4; s++ {
					dotProductAdd(sum, q[s], x[v][s], k.tmp)
				}
			}
			VCVTDQ2PS(sum, sum)
			index := k.index
			if !wide {
				index = k.tmp
				VMOVUPS(Mem{Base: k.args, Disp: dotIndex + 32*half}, index)
			}
			permuteScales(k.nextScale(v, r), index, k.tmp)
			VFMADD231PS(sum, k.tmp, k.acc[r][v])
		}
	}
}

// permuteScales brings the next scales, at most four, to their lanes. In AVX-512 they are loaded alone: a load of a whole vector
// would cross two lines nearly always.
func permuteScales(next Mem, index, to VecVirtual) {
	if !wide {
		VPERMPS(next, index, to)
		return
	}
	VBROADCASTF32X4(next, to)
	VPERMPS(to, index, to)
}

// spread takes the words of q[3] apart into their nibbles.
func (k *int4State) spread(q []VecVirtual) {
	k.and(k.low, q[3], q[0])
	VPSRLW(Imm(4), q[3], q[1])
	k.and(k.low, q[1], q[1])
	VPSRLW(Imm(8), q[3], q[2])
	k.and(k.low, q[2], q[2])
	VPSRLW(Imm(12), q[3], q[3])
}

func (k *int4State) and(a, b, to VecVirtual) {
	if wide {
		VPANDD(a, b, to)
	} else {
		VPAND(a, b, to)
	}
}

// loadNibbles loads a vector of nibbles; in the tail, only what is there of it.
func (k *int4State) loadNibbles(from Mem, tail bool, half int, to VecVirtual) {
	switch {
	case !tail:
		move(from, to)
	case wide:
		mask := K()
		KMOVW(Mem{Base: k.args, Disp: dotMask}, mask)
		VMOVDQU32_Z(from, mask, to)
	default:
		mask := YMM()
		VMOVDQU(Mem{Base: k.args, Disp: dotMasks + 32*half}, mask)
		VPMASKMOVD(from, mask, to)
	}
}

type int4State struct {
	*dotState
	sc          []Register // of each vector: the next scales of row 0
	ldsc, ldsc3 Register   // bytes between rows of scales, and three times that
	low         VecVirtual // 15 in each word
	index       VecVirtual // of the scale of each lane

	// Temporaries, the same ones for all rows, for the allocator does not find room for new ones each time.
	q      []VecVirtual
	values [][]VecVirtual // of activations, in AVX-512
	sum    []VecVirtual
	tmp    VecVirtual
}
