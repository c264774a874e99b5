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
		intTile(n)
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

// intTile: a pair of values at a time, two pairs a round; after each block the integer sums are scaled and added to c.
func intTile(n int) {
	t := newTile("int", n)
	ws := load(t.args, tileWs)
	scales := newRows(load(t.args, tileS), load(t.args, tileLds), 3)
	blocks := load(t.args, tileBlocks)
	Label("block")
	t.k = load(t.args, tileK)
	t.zero()
	Label("loop")
	for j := range 2 {
		w := vecs(2)
		for i := range w {
			move(Mem{Base: t.w, Disp: t.row*j + t.row/2*i}, w[i])
		}
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

	at := GP64()
	MOVQ(scales.base[0], at)
	for i, a := range t.acc {
		s := vec()
		VBROADCASTSS(Mem{Base: at}, s)
		if i < n-1 {
			ADDQ(scales.ld, at)
		}
		for j := range a {
			c, both := Mem{Base: t.c, Disp: t.row*i + t.row/2*j}, vec()
			VMULPS(Mem{Base: ws, Disp: t.row / 2 * j}, s, both)
			VCVTDQ2PS(a[j], a[j])
			VFMADD213PS(c, both, a[j])
			VMOVUPS(a[j], c)
		}
	}
	ADDQ(Imm(4), scales.base[0])
	ADDQ(I32(t.row), ws)
	DECQ(blocks)
	JNZ(LabelRef("block"))
	VZEROUPPER()
	RET()
}
