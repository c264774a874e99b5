package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// peaks makes loops of multiplications and additions in registers, ten chains of them, as fast as the processor can.
func peaks() {
	peak("peakFloat", func(acc, x, tmp VecVirtual) { VFMADD231PS(x, x, acc) })
	peak("peakWords", func(acc, x, tmp VecVirtual) { dotProductAdd(acc, x, x, tmp) })
	peak("peakBytes", func(acc, x, tmp VecVirtual) {
		if wide {
			vnniBytes(x, x, acc)
			return
		}
		VPMADDUBSW(x, x, tmp) // sums in 16 bits, as between two additions in 32
		VPADDW(tmp, acc, acc)
	})
}

func peak(name string, step func(acc, x, tmp VecVirtual)) {
	function(name, "func(rounds int)")
	rounds := params("rounds")[0]
	acc, x, tmp := vecs(peakChains), vec(), vecs(4)
	zero(acc...)
	zero(x)
	Label("loop")
	for i, a := range acc {
		step(a, x, tmp[i%len(tmp)])
	}
	DECQ(rounds)
	JNZ(LabelRef("loop"))
	end()
}

// peakChains is simd.peakChains.
const peakChains = 10
