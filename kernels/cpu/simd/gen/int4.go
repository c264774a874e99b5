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
	k := &int4State{dotState: newDot("I4", vectors, together)}
	k.low = vec()
	VPBROADCASTD(k.field(dotLow), k.low)
	k.q, k.sum, k.tmp = vecs(2), vec(), vec()
	if wide {
		k.index = vec()
		VMOVDQU32(k.field(dotIndex), k.index)
	}
	if wide {
		for range vectors {
			k.values = append(k.values, vecs(2))
		}
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
		k.round(true)
		left := load(k.args, dotN)
		SUBQ(whole, left)
		SHRQ(Imm(1), left)
		for _, w := range k.w {
			ADDQ(left, w)
		}
		Label(k.label("done"))
		k.nextScales()
	}, sum4, true)
}

type int4State struct {
	*dotState
	sc    rowPointers
	low   VecVirtual // 15 in each byte
	index VecVirtual // of the scale of each lane

	// Temporaries, the same ones for all rows, for the allocator does not find room for new ones each time.
	q      []VecVirtual
	values [][]VecVirtual // of activations, in AVX-512
	sum    VecVirtual
	tmp    VecVirtual
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
	step := load(k.args, dotStep)
	for _, sc := range k.sc.base {
		ADDQ(step, sc)
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
			index := k.index
			if !wide {
				index = k.tmp
				VMOVUPS(k.field(dotIndex+32*half), index)
			}
			permuteScales(k.sc.at(r*k.count+v, 0), index, k.tmp)
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
