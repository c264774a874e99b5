package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// Kernels of one vector take one row after the other, so that memory is read as one stream, which is what it serves fastest:
// four rows side by side halve its rate. Four rows' sums are added up together, in the order of the kernels of four rows.
//
// Hardware follows a single stream. Prefetches of every other or every fourth line help it across pages and where the
// arithmetic fills the window of instructions; prefetches of every line take the buffers that its own ones need. The arithmetic of
// int4 leaves it too little of the window: those rows are left to the kernels of four.
//
// All this holds while the vector stays in the first-level cache beside the stream: see streamBytes.
func rowKernels() {
	rowsFloat("F16")
	rowsFloat("BF16")
	rowsInt8()
}

// rowsState is what the kernels have in common.
type rowsState struct {
	args, x   Register
	w         Register // what is read next
	n, i      Register // values of a row; the next one
	sc, scale Register // integers: the row's first scale, the next one
	acc       [4]VecVirtual
}

func newRowsKernel(name string) *rowsState {
	function("dotRows"+name, "func(a *dotArgs)")
	k := &rowsState{args: Load(Param("a"), GP64()), i: GP64(), scale: GP64()}
	k.w, k.x, k.n, k.sc = load(k.args, dotW), load(k.args, dotX), load(k.args, dotN), load(k.args, dotSc)
	for r := range k.acc {
		k.acc[r] = vec()
	}
	return k
}

func (k *rowsState) field(disp int) Mem { return Mem{Base: k.args, Disp: disp} }

// each makes the loop over four rows at a time. row makes the code of one of them, which moves w to its end. Sums are zero
// before; the totals are stored.
func (k *rowsState) each(sums []VecVirtual, row func(r int), total func() []VecVirtual) {
	quads, results, ldsc := load(k.args, dotQuads), load(k.args, dotResults), load(k.args, dotLdsc)
	Label("quad")
	zero(sums...)
	for r := range k.acc {
		XORQ(k.i, k.i)
		MOVQ(k.sc, k.scale)
		ADDQ(ldsc, k.sc)
		row(r)
	}
	s := sum4(total())
	VMOVUPS(s, Mem{Base: results})
	ADDQ(Imm(16), results)
	DECQ(quads)
	JNZ(LabelRef("quad"))
	VZEROUPPER()
	RET()
}

// prefetch asks for one of every lines of the bytes that are distance bytes ahead.
func (k *rowsState) prefetch(distance, bytes, every int) {
	for at := 0; at < bytes; at += 64 * every {
		PREFETCHT1(Mem{Base: k.w, Disp: distance + at})
	}
}

// whole is n rounded down to a multiple of unit.
func (k *rowsState) whole(unit int) Register {
	r := GP64()
	MOVQ(k.n, r)
	ANDQ(I32(-unit), r)
	return r
}

// label makes names of labels of row r.
func label(r int) func(string) string {
	return func(name string) string { return fmt.Sprint(name, r) }
}

// rowsFloat takes 256 values a round, then 32. Even and odd vectors of each 32 values have sums of their own.
func rowsFloat(name string) {
	k := newRowsKernel(name)
	even, odd := k.acc[:], vecs(4)
	whole := k.whole(256)
	values := func(r, n int) {
		for at := 0; at < n; at += lanes() {
			w := vec()
			loadFloats(name, Mem{Base: k.w, Disp: 2 * at}, w)
			acc := even[r]
			if at/lanes()%2 == 1 {
				acc = odd[r]
			}
			VFMADD231PS(Mem{Base: k.x, Index: k.i, Scale: 4, Disp: 4 * at}, w, acc)
		}
		ADDQ(I32(2*n), k.w)
		ADDQ(I32(n), k.i)
	}
	k.each(append(odd, even...), func(r int) {
		l := label(r)
		CMPQ(k.i, whole)
		JAE(LabelRef(l("rest")))
		Label(l("loop"))
		k.prefetch(6144, 512, 2)
		values(r, 256)
		CMPQ(k.i, whole)
		JB(LabelRef(l("loop")))
		Label(l("rest"))
		CMPQ(k.i, k.n)
		JE(LabelRef(l("done")))
		Label(l("few"))
		values(r, 32)
		CMPQ(k.i, k.n)
		JB(LabelRef(l("few")))
		Label(l("done"))
	}, func() []VecVirtual {
		for r := range even {
			VADDPS(odd[r], even[r], even[r])
		}
		return even
	})
}

// rowsInt8 takes whole blocks of 256 in one piece, others 32 values at a time.
func rowsInt8() {
	k := newRowsKernel("I8")
	end, left := GP64(), GP64()
	sums, scaled := vecs(2), vec()
	values := func(n int) {
		for at := 0; at < n; at += 2 * lanes() {
			w := vec()
			VPMOVSXBW(Mem{Base: k.w, Disp: at}, w)
			x, sum := Mem{Base: k.x, Index: k.i, Scale: 2, Disp: 2 * at}, sums[at/(2*lanes())%2]
			if wide {
				vnni(x, w, sum)
			} else {
				VPMADDWD(x, w, w)
				VPADDD(w, sum, sum)
			}
		}
		ADDQ(I32(n), k.w)
		ADDQ(I32(n), k.i)
	}
	k.each(k.acc[:], func(r int) {
		l := label(r)
		XORQ(end, end)
		Label(l("block"))
		ADDQ(k.field(dotBlock), end)
		CMPQ(end, k.n)
		CMOVQHI(k.n, end)
		zero(sums...)
		PREFETCHT1(Mem{Base: k.w, Disp: 8192})
		MOVQ(end, left)
		SUBQ(k.i, left)
		CMPQ(left, U32(256))
		JNE(LabelRef(l("few")))
		values(256)
		JMP(LabelRef(l("scale")))
		Label(l("few"))
		values(32)
		CMPQ(k.i, end)
		JB(LabelRef(l("few")))
		Label(l("scale"))
		VPADDD(sums[1], sums[0], scaled)
		VCVTDQ2PS(scaled, scaled)
		VBROADCASTSS(Mem{Base: k.scale}, sums[0])
		ADDQ(Imm(4), k.scale)
		VFMADD231PS(scaled, sums[0], k.acc[r])
		CMPQ(k.i, k.n)
		JB(LabelRef(l("block")))
	}, func() []VecVirtual { return k.acc[:] })
}
