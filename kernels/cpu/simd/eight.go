package simd

import (
	"unsafe"

	"xlstm/format"
)

// eightArgs are the arguments of kernels of one vector, which go over successive rows of eight streams. The assembly knows the
// offsets of its fields.
type eightArgs struct {
	w       [8]unsafe.Pointer // the streams' first rows of values; the next follow without a gap
	x       unsafe.Pointer    // the vector: float32, or int16
	whole   uintptr           // bytes of it for which rows have multiples of visitBytes
	all     uintptr           // bytes of it, a multiple of 32 values
	rows    uintptr           // of each stream, at least 1
	results unsafe.Pointer    // float32 [row][stream]
	sc      [2]unsafe.Pointer // integers: float32 scales of the vector's blocks; with groups of rows' groups, [row][stream] of four streams each
	ldsc    uintptr           // groups: bytes between the scales of streams
	scNext  uintptr           // groups: bytes between the scales of rows
}

const (
	// visitBytes is how much of a row kernels read before they go on to the next stream.
	visitBytes = 256
	// eightRows is how many rows of each stream a kernel takes in one call at most.
	eightRows = 64
)

// mulEight is mulDots of one vector, in eight streams, each an eighth of the rows.
func (p *Path) mulEight(kernel func(*eightArgs), m *Matrix, dst []float32, a *Acts, r0, r1 int, s *Scratch, add bool) {
	e := &s.eight
	n := format.PaddedCols(m.Cols)
	e.x, e.all, e.whole = unsafe.Pointer(unsafe.SliceData(a.f)), uintptr(4*n), uintptr(4*n)
	if m.quantized() {
		e.x, e.all, e.whole = unsafe.Pointer(unsafe.SliceData(a.words)), uintptr(2*n), uintptr(2*n)
		e.sc = [2]unsafe.Pointer{unsafe.Pointer(&a.s[0]), nil}
	}
	e.whole -= e.all / uintptr(n) * uintptr(n%(visitBytes*n/m.rowBytes()))
	o := eightRun{m: m, dst: dst, add: add, wanted: 8}
	rows, run := (r1-r0)/8, eightRows
	if m.Enc.Group != 0 {
		run = max(1, min(run, scaleBytes/(8*4*a.lds)))
		if !p.wholeScales(m.Enc.Groups(m.Cols)) {
			run = 1
		}
	}
	for i := 0; i < rows; i += run {
		o.rows = min(run, rows-i)
		for j := range o.first {
			o.first[j] = r0 + j*rows + i
		}
		p.runEight(kernel, &o, a, s)
	}
	o.wanted, o.rows = (r1-r0)%8, 1
	if o.wanted == 0 {
		return
	}
	for j := range o.first {
		// Behind the last row comes the last row again: what is computed of it is dropped.
		o.first[j] = min(r0+8*rows+j, r1-1)
	}
	p.runEight(kernel, &o, a, s)
}

// eightRun are rows of a matrix: the first of each stream, how many follow on each, and how many of the streams are wanted.
type eightRun struct {
	m            *Matrix
	dst          []float32
	add          bool
	first        [8]int
	rows, wanted int
}

func (p *Path) runEight(kernel func(*eightArgs), o *eightRun, a *Acts, s *Scratch) {
	m, e := o.m, &s.eight
	rowBytes := m.rowBytes()
	values := unsafe.Pointer(unsafe.SliceData(m.Values[:m.Rows*rowBytes]))
	for j, row := range o.first {
		e.w[j] = unsafe.Add(values, row*rowBytes)
	}
	s.y = growAligned(s.y, 8*o.rows)
	e.rows, e.results = uintptr(o.rows), unsafe.Pointer(&s.y[0])
	if m.Enc.Group != 0 {
		p.setEightScales(o, a, s)
	}
	kernel(e)
	for j, first := range o.first[:o.wanted] {
		s.storeStream(o, j, first)
	}
}

// setEightScales makes the scales of the rows' groups.
func (p *Path) setEightScales(o *eightRun, a *Acts, s *Scratch) {
	e := &s.eight
	half := 4 * o.rows * a.lds
	s.sc = growAligned(s.sc, 2*half)
	e.ldsc, e.scNext = uintptr(4*a.lds), uintptr(4*4*a.lds)
	four := dotRows{m: o.m, acts: a, rows: o.rows}
	for i := range e.sc {
		copy(four.first[:], o.first[4*i:])
		e.sc[i] = unsafe.Pointer(&s.sc[i*half])
		p.setScales(&four, s, 0, s.sc[i*half:], 1, s.y) // the totals are not wanted
	}
}

// storeStream takes the results of stream j, whose first row is given, to where they belong.
func (s *Scratch) storeStream(o *eightRun, j, first int) {
	y, out := s.y[j:], o.dst[first:first+o.rows]
	perRow := o.m.Enc.Kind == format.Int8 && o.m.Enc.Group == 0
	for t := range out {
		v := y[8*t]
		if perRow {
			v = float32(v * o.m.rowScale(first+t)) // no fusing with an addition
		}
		if o.add {
			v += out[t]
		}
		out[t] = v
	}
}
