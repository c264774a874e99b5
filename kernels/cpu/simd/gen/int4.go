package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// dotInt4: 128 values of each row a round, the last round's through a mask. 64 bytes of nibbles give two vectors of bytes, low and
// high nibbles, which are unsigned; activations are the signed bytes that belong to those: see genericPermute. A group's scale
// reaches its lanes by a permutation of the next scales. AVX2 takes a round in two halves.
func dotInt4(vectors int) {
	together := 4
	if vectors > 2 {
		together = 2
	}
	k := newInt4("I4", vectors, together)
	if wide {
		VMOVDQU32(k.field(dotIndex), k.index)
	}
	k.each(func() {
		k.sc = k.scalePointers()
		whole := load(k.args, dotN)
		ANDQ(I8(-128), whole)
		JZ(LabelRef(k.label("tail")))
		Label(k.label("loop"))
		k.round(false)
		CMPQ(k.i, whole)
		JB(LabelRef(k.label("loop")))
		Label(k.label("tail"))
		CMPQ(k.i, k.field(dotN))
		JE(LabelRef(k.label("done")))
		k.tail(whole)
		Label(k.label("done"))
		k.nextScales()
	}, sum4, true)
}

// dotInt4Scaled is dotInt4 of one vector for AVX-512, which makes the rows' scales itself, those of 16 groups in a register for each
// row, and sums the offsets: reading them goes on beside the products.
func dotInt4Scaled() {
	k := newInt4("I4Scaled", 1, 4)
	k.scales = vecs(4)
	offsets, row, mask := vecs(4), AllocLocal(8), K()
	MOVQ(U32(0), row)
	k.each(func() {
		zero(offsets...)
		group, whole, end, limit := GP64(), load(k.args, dotN), GP64(), GP64()
		XORQ(group, group)
		ANDQ(I8(-128), whole)
		Label("groups")
		k.loadScales(group, row, mask, offsets)
		VMOVDQU32(k.field(dotIndex), k.index)
		MOVQ(k.i, end)
		ADDQ(k.field(dotSpan), end)
		MOVQ(end, limit)
		CMPQ(limit, whole)
		CMOVQHI(whole, limit)
		CMPQ(k.i, limit)
		JE(LabelRef("rest"))
		Label("loop")
		k.round(false)
		CMPQ(k.i, limit)
		JB(LabelRef("loop"))
		Label("rest")
		CMPQ(k.i, whole)
		JB(LabelRef("groups"))
		CMPQ(k.i, k.field(dotN))
		JE(LabelRef("done"))
		CMPQ(k.i, end) // the incomplete round may begin the next 16 groups
		JE(LabelRef("groups"))
		k.tail(whole)
		Label("done")
		next := load(k.args, dotScales)
		MOVQ(Mem{Base: next, Disp: scaleNext}, next)
		ADDQ(next, row)
	}, func(v []VecVirtual) VecVirtual {
		sum, total := sum4(v), sum4(offsets)
		VADDPS(total, sum, sum)
		return sum
	}, false)
}

// loadScales makes the scales of the next 16 groups of each row, or of as many as there are, and goes on behind them. row holds how
// far the rows are from the first.
func (k *int4State) loadScales(group Register, row Mem, mask Register, offsets []VecVirtual) {
	args, left, most, ones := load(k.args, dotScales), GP64(), GP64(), GP32()
	MOVQ(Mem{Base: args, Disp: scaleN}, left)
	SUBQ(group, left)
	MOVQ(U32(16), most)
	CMPQ(left, most)
	CMOVQHI(most, left)
	MOVL(I32(-1), ones)
	BZHIL(left.As32(), ones, ones)
	KMOVW(ones, mask)
	s, sums, w, at := vec(), vec(), vec(), GP64()
	vector := func(field int, to VecVirtual) {
		MOVQ(Mem{Base: args, Disp: field}, at)
		VMOVUPS(Mem{Base: at, Index: group, Scale: 4}, to)
	}
	vector(scaleS, s)
	vector(scaleSums, sums)
	halves := func(field int) {
		MOVQ(Mem{Base: args, Disp: field}, at)
		ADDQ(row, at)
		VMOVDQU16_Z(Mem{Base: at, Index: group, Scale: 2}, mask, w.AsY())
		PREFETCHT1(Mem{Base: at, Index: group, Scale: 2, Disp: scalesAhead})
		VCVTPH2PS(w.AsY(), w)
	}
	for r := range k.scales {
		halves(scaleScales + 8*r)
		VMULPS(s, w, k.scales[r])
		halves(scaleOffsets + 8*r)
		VFMADD231PS(sums, w, offsets[r])
	}
	ADDQ(Imm(16), group)
}

// scalesAhead is the distance in bytes between scales that are read and what is prefetched of them.
const scalesAhead = 1024

type int4State struct {
	*dotState
	sc     rowPointers
	low    VecVirtual   // 15 in each byte
	index  VecVirtual   // of the scale of each lane
	scales []VecVirtual // of the rows, where the kernel makes them

	// Temporaries, the same ones for all rows, for the allocator does not find room for new ones each time.
	q      []VecVirtual
	values [][]VecVirtual // of activations, in AVX-512
	sum    VecVirtual
	tmp    VecVirtual
}

// newInt4 begins a kernel and takes its registers.
func newInt4(name string, vectors, together int) *int4State {
	k := &int4State{dotState: newDot(name, vectors, together), low: vec(), q: vecs(2), sum: vec(), tmp: vec()}
	VPBROADCASTD(k.field(dotLow), k.low)
	if wide {
		k.index = vec()
		for range vectors {
			k.values = append(k.values, vecs(2))
		}
	}
	return k
}

// tail does what is behind the last whole round and moves to the rows' ends.
func (k *int4State) tail(whole Register) {
	k.round(true)
	left := load(k.args, dotN)
	SUBQ(whole, left)
	SHRQ(Imm(1), left)
	for _, w := range k.w {
		ADDQ(left, w)
	}
}

func (k *int4State) round(tail bool) {
	if wide {
		k.part(tail, 0)
	} else {
		k.part(tail, 0)
		k.part(tail, 1)
	}
	if tail {
		return
	}
	k.prefetch(1)
	if k.scales != nil {
		VPADDD_BCST(k.field(dotRoundGroups), k.index, k.index)
	} else {
		step := load(k.args, dotStep)
		for _, sc := range k.sc.base {
			ADDQ(step, sc)
		}
	}
	k.x.advance(128)
	k.advance(128, 4)
}

// part does a round, or half of one, for each row: nibbles to bytes, two products a vector, scale. AVX-512 has the registers to load
// the vectors' activations once for all rows.
func (k *int4State) part(tail bool, half int) {
	x := make([][2]Op, k.count)
	for v := range x {
		for s := range x[v] {
			x[v][s] = k.x.at(v, 64*s+32*half)
			if k.values != nil {
				VMOVDQU32(x[v][s], k.values[v][s])
				x[v][s] = k.values[v][s]
			}
		}
	}
	low, high := k.q[0], k.q[1]
	for r := range k.w {
		k.loadNibbles(Mem{Base: k.w[r], Disp: 32 * half}, tail, half, low)
		VPSRLW(Imm(4), low, high)
		k.and(k.low, low, low)
		k.and(k.low, high, high)
		for v := range x {
			if wide {
				zero(k.sum)
				vnniBytes(x[v][0], low, k.sum)
				vnniBytes(x[v][1], high, k.sum)
			} else { // 16 bits hold the sum of two pairs of products, at most 2*2*15*127
				VPMADDUBSW(x[v][0], low, k.sum)
				VPMADDUBSW(x[v][1], high, k.tmp)
				VPADDW(k.tmp, k.sum, k.sum)
				VPMADDWD(words("ones", 1), k.sum, k.sum)
			}
			VCVTDQ2PS(k.sum, k.sum)
			k.permuteScales(r, v, half)
			VFMADD231PS(k.sum, k.tmp, k.acc[r][v])
		}
	}
}

var wordsMade = map[string]Mem{}

// words is a vector of words in read-only memory.
func words(name string, value uint16) Mem {
	if m, ok := wordsMade[name]; ok {
		return m
	}
	m := GLOBL(name, RODATA|NOPTR)
	for i := range 16 {
		DATA(2*i, U16(value))
	}
	wordsMade[name] = m
	return m
}

// permuteScales brings the next scales of row r and vector v, at most four, to their lanes in k.tmp. In AVX-512 they are loaded alone: a
// load of a whole vector would cross two lines nearly always.
func (k *int4State) permuteScales(r, v, half int) {
	switch {
	case k.scales != nil:
		VPERMPS(k.scales[r], k.index, k.tmp)
	case wide:
		VBROADCASTF32X4(k.sc.at(r*k.count+v, 0), k.tmp)
		VPERMPS(k.tmp, k.index, k.tmp)
	default:
		VMOVUPS(k.field(dotIndex+32*half), k.tmp)
		VPERMPS(k.sc.at(r*k.count+v, 0), k.tmp, k.tmp)
	}
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
		KMOVW(k.field(dotMask), mask)
		VMOVDQU32_Z(from, mask, to)
	default:
		mask := YMM()
		VMOVDQU(k.field(dotMasks+32*half), mask)
		VPMASKMOVD(from, mask, to)
	}
}
