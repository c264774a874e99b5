package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// Offsets of the fields of tileArgs.
const (
	tileW      = 0
	tileX      = 8
	tileLdx    = 16
	tileC      = 24
	tileK      = 32
	tileBlocks = 40
	tileWs     = 48
	tileS      = 56
	tileLds    = 64
	tileStarts = 72
)

// tiles makes kernels for several numbers of vectors; the largest is what registers allow: two registers of sums a vector, two of
// weights, one of a vector's value, and for integers in AVX2 one of products.
func tiles() {
	counts := []int{6, 4, 2, 1}
	if wide {
		counts = []int{12, 8, 4, 2, 1}
	}
	for _, n := range counts {
		floatTile(n)
		wordTile(n)
		byteTile(n)
	}
	counts = []int{2, 1}
	if wide {
		counts = []int{6, 3, 1}
	}
	for _, n := range counts {
		exactTile(n)
	}
}

// tileState is what the tile kernels have in common: two vectors of rows, n vectors of activations.
type tileState struct {
	args, w, c, k Register
	x             rowPointers
	acc           [][2]VecVirtual
	row           int // bytes of a row of the tile: two vectors
}

// rowPointers addresses rows a distance apart: every third has a pointer.
type rowPointers struct {
	base []Register
	ld   Register
}

func newRows(first, ld Register, n int) rowPointers {
	p := rowPointers{ld: ld, base: []Register{first}}
	for i := 3; i < n; i += 3 {
		r := GP64()
		LEAQ(Mem{Base: p.base[i/3-1], Index: ld, Scale: 2}, r)
		ADDQ(ld, r)
		p.base = append(p.base, r)
	}
	return p
}

func (p rowPointers) at(i, disp int) Mem {
	m := Mem{Base: p.base[i/3], Disp: disp}
	if i%3 > 0 {
		m.Index, m.Scale = p.ld, uint8(i%3)
	}
	return m
}

func (p rowPointers) advance(bytes int) {
	for _, r := range p.base {
		ADDQ(I32(bytes), r)
	}
}

func newTile(name string, n int) *tileState {
	function(fmt.Sprintf("%sTilex%d", name, n), "func(a *tileArgs)")
	t := &tileState{args: Load(Param("a"), GP64()), row: 8 * lanes()}
	t.w = load(t.args, tileW)
	t.c = load(t.args, tileC)
	t.x = newRows(load(t.args, tileX), load(t.args, tileLdx), n)
	t.acc = make([][2]VecVirtual, n)
	for i := range t.acc {
		t.acc[i] = [2]VecVirtual{vec(), vec()}
	}
	return t
}

func (t *tileState) zero() {
	for _, a := range t.acc {
		zero(a[0], a[1])
	}
}

// floatTile: one value of each row and of each vector at a time, four times a round.
func floatTile(n int) {
	t := newTile("float", n)
	t.k = load(t.args, tileK)
	t.zero()
	step := func(j int) {
		w := vecs(2)
		for i := range w {
			VMOVUPS(Mem{Base: t.w, Disp: t.row*j + t.row/2*i}, w[i])
		}
		for i := range n {
			x := vec()
			VBROADCASTSS(t.x.at(i, 4*j), x)
			VFMADD231PS(x, w[0], t.acc[i][0])
			VFMADD231PS(x, w[1], t.acc[i][1])
		}
	}
	SUBQ(Imm(4), t.k)
	JB(LabelRef("rest"))
	Label("loop")
	for j := range 4 {
		step(j)
	}
	t.x.advance(16)
	ADDQ(I32(4*t.row), t.w)
	SUBQ(Imm(4), t.k)
	JAE(LabelRef("loop"))
	Label("rest")
	ADDQ(Imm(4), t.k)
	JZ(LabelRef("done"))
	Label("single")
	step(0)
	t.x.advance(4)
	ADDQ(I32(t.row), t.w)
	DECQ(t.k)
	JNZ(LabelRef("single"))
	Label("done")
	for i, a := range t.acc {
		for j := range a {
			at := Mem{Base: t.c, Disp: t.row*i + t.row/2*j}
			VADDPS(at, a[j], a[j])
			VMOVUPS(a[j], at)
		}
	}
	VZEROUPPER()
	RET()
}

// exactTile is floatTile with sums in float64: four vectors of rows.
func exactTile(n int) {
	function(fmt.Sprintf("exactTilex%d", n), "func(a *tileArgs)")
	args := Load(Param("a"), GP64())
	w, c, k := load(args, tileW), load(args, tileC), load(args, tileK)
	x := newRows(load(args, tileX), load(args, tileLdx), n)
	half := 2 * lanes() // bytes of a vector's rows in float32
	acc := make([][]VecVirtual, n)
	for i := range acc {
		acc[i] = vecs(4)
		zero(acc[i]...)
	}
	Label("loop")
	row := vecs(4)
	for j := range row {
		VCVTPS2PD(Mem{Base: w, Disp: half * j}, row[j])
	}
	for i := range acc {
		v := vec()
		if wide {
			VCVTPS2PD_BCST(x.at(i, 0), v)
		} else {
			VBROADCASTSS(x.at(i, 0), v.AsX())
			VCVTPS2PD(v.AsX(), v)
		}
		for j := range row {
			VFMADD231PD(v, row[j], acc[i][j])
		}
	}
	x.advance(4)
	ADDQ(I32(4*half), w)
	DECQ(k)
	JNZ(LabelRef("loop"))
	for i := range acc {
		for j, a := range acc[i] {
			at, old := Mem{Base: c, Disp: half * (4*i + j)}, vec()
			VCVTPS2PD(at, old)
			VADDPD(old, a, a)
			if wide {
				VCVTPD2PS(a, a.AsY())
				VMOVUPS(a.AsY(), at)
			} else {
				VCVTPD2PSY(a, a.AsX())
				VMOVUPS(a.AsX(), at)
			}
		}
	}
	VZEROUPPER()
	RET()
}

// wordTile: a pair of int16 at a time, two pairs a round; after each block the integer sums are scaled and added to c.
func wordTile(n int) {
	t := newTile("word", n)
	b := t.newBlocks()
	Label("block")
	t.k = load(t.args, tileK)
	t.zero()
	Label("loop")
	for j := range 2 {
		w := t.weights(j)
		for i := range n {
			x := vec()
			VPBROADCASTD(t.x.at(i, 4*j), x)
			if wide {
				vnni(w[0], x, t.acc[i][0])
				vnni(w[1], x, t.acc[i][1])
				continue
			}
			tmp := vec()
			VPMADDWD(w[0], x, tmp)
			VPADDD(tmp, t.acc[i][0], t.acc[i][0])
			VPMADDWD(w[1], x, x)
			VPADDD(x, t.acc[i][1], t.acc[i][1])
		}
	}
	t.x.advance(8)
	ADDQ(I32(2*t.row), t.w)
	SUBQ(Imm(4), t.k)
	JNZ(LabelRef("loop"))
	b.add(t)
	JNZ(LabelRef("block"))
	VZEROUPPER()
	RET()
}

// weights loads row j of the tile from where the kernel stands.
func (t *tileState) weights(j int) []VecVirtual {
	w := vecs(2)
	for i := range w {
		move(Mem{Base: t.w, Disp: t.row*j + t.row/2*i}, w[i])
	}
	return w
}

// blockState is what the kernels of integers have in common: where the scales of the next block are, and how many are to come.
type blockState struct {
	ws, blocks Register
	scales     rowPointers
}

func (t *tileState) newBlocks() *blockState {
	return &blockState{ws: load(t.args, tileWs), blocks: load(t.args, tileBlocks),
		scales: newRows(load(t.args, tileS), load(t.args, tileLds), 3)}
}

// each calls f with the address of each vector's value of a block, from the first vector's on, the next lds bytes on.
func (b *blockState) each(first Register, n int, f func(i int, at Mem)) {
	at := GP64()
	MOVQ(first, at)
	for i := range n {
		f(i, Mem{Base: at})
		if i < n-1 {
			ADDQ(b.scales.ld, at)
		}
	}
}

// add adds the scaled sums to c and goes on to the next block; it sets the flag of zero where there is none.
func (b *blockState) add(t *tileState) {
	b.each(b.scales.base[0], len(t.acc), func(i int, at Mem) {
		s := vec()
		VBROADCASTSS(at, s)
		for j, a := range t.acc[i] {
			c, both := Mem{Base: t.c, Disp: t.row*i + t.row/2*j}, vec()
			VMULPS(Mem{Base: b.ws, Disp: t.row / 2 * j}, s, both)
			VCVTDQ2PS(a, a)
			VFMADD213PS(c, both, a)
			VMOVUPS(a, c)
		}
	})
	ADDQ(Imm(4), b.scales.base[0])
	ADDQ(I32(t.row), b.ws)
	DECQ(b.blocks)
}

// byteTile: four nibbles of each row, as bytes, with four bytes of each vector at a time, a block of 32 values a round. The sums
// begin with the vectors' starts.
func byteTile(n int) {
	t := newTile("byte", n)
	b := t.newBlocks()
	starts := load(t.args, tileStarts)
	var sums Mem
	if !wide {
		sums = AllocLocal(64 * n)
	}
	sum := func(i, j int) Mem { return sums.Offset(64*i + 32*j) }
	Label("block")
	t.k = load(t.args, tileK)
	b.each(starts, n, func(i int, at Mem) {
		for j, a := range t.acc[i] {
			VPBROADCASTD(at, a)
			if !wide {
				VMOVDQU(a, sum(i, j))
			}
		}
	})
	Label("loop")
	for j := range 8 {
		w := t.weights(j)
		for i := range n {
			x := vec()
			VPBROADCASTD(t.x.at(i, 4*j), x)
			if wide {
				vnniBytes(x, w[0], t.acc[i][0])
				vnniBytes(x, w[1], t.acc[i][1])
				continue
			}
			bytePairs(x, w[0], t.acc[i][0], vec(), j == 0)
			bytePairs(x, w[1], t.acc[i][1], x, j == 0)
		}
	}
	if !wide {
		for i := range n {
			for j, a := range t.acc[i] {
				VPMADDWD(words("ones", 1), a, a)
				VPADDD(sum(i, j), a, a)
				VMOVDQU(a, sum(i, j))
			}
		}
	}
	t.x.advance(32)
	ADDQ(I32(8*t.row), t.w)
	SUBQ(Imm(32), t.k)
	JNZ(LabelRef("loop"))
	b.add(t)
	ADDQ(Imm(4), starts)
	TESTQ(b.blocks, b.blocks)
	JNZ(LabelRef("block"))
	VZEROUPPER()
	RET()
}

// bytePairs adds to acc's words, or puts into them, products of two pairs of bytes: at most 2*15*127 = 3810 in magnitude, of which 16
// bits hold eight. tmp may be x.
func bytePairs(x, w, acc, tmp VecVirtual, first bool) {
	if first {
		VPMADDUBSW(x, w, acc)
		return
	}
	VPMADDUBSW(x, w, tmp)
	VPADDW(tmp, acc, acc)
}
