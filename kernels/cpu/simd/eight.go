package simd

import (
	"encoding/binary"
	"math"
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
	s       unsafe.Pointer    // integers: float32 scales of the vector's blocks
	sc      [8]unsafe.Pointer // groups: float16 scales of the streams' first rows
	scNext  uintptr           // groups: bytes from the end of a row of scales to the next
	ahead   [8]uintptr        // groups: addresses of scales that will be needed soon
	scRow   uintptr           // groups: bytes of a row of scales
}

const (
	// visitBytes is how much of a row kernels read before they go on to the next stream.
	visitBytes = 256
	// eightRows is how many rows of each stream a kernel takes in one call. Results are in a small piece of memory until then, and
	// scales of groups are copied into one: eight streams of them beside those of values are more than the hardware follows.
	eightRows = 64
)

// eightRun are rows of a matrix: the first of each stream, and how many follow on each.
type eightRun struct {
	m      *Matrix
	first  [8]int
	rows   int
	out    [8 * eightRows]float32 // results [row][stream]
	turned [8 * eightRows]float32 // [stream][row]
}

// mulEight is mulDots of one vector, in eight streams, each an eighth of the rows.
func (p *Path) mulEight(kernel func(*eightArgs), m *Matrix, dst []float32, a *Acts, r0, r1 int, s *Scratch, add bool) {
	e := &s.eight
	n := format.PaddedCols(m.Cols)
	size := uintptr(4)
	e.x = unsafe.Pointer(unsafe.SliceData(a.f))
	if m.quantized() {
		size, e.x, e.s = 2, unsafe.Pointer(unsafe.SliceData(a.words)), unsafe.Pointer(unsafe.SliceData(a.s))
	}
	e.all = size * uintptr(n)
	e.whole = size * uintptr(n-n%(visitBytes*n/m.rowBytes()))
	out := dst[r0:r1]
	perRow := m.Enc.Kind == format.Int8 && m.Enc.Group == 0
	if add || perRow {
		s.y = growAligned(s.y, r1-r0)
		out = s.y
	}
	s.run.m = m
	p.runEight(kernel, out, r0, s)
	if !add && !perRow {
		return
	}
	dst = dst[r0:r1]
	if perRow {
		scales := m.Scales[4*r0 : 4*r1]
		for i := range out {
			out[i] *= math.Float32frombits(binary.LittleEndian.Uint32(scales[4*i:]))
		}
	}
	if !add {
		copy(dst, out)
		return
	}
	for i, v := range out {
		dst[i] += v
	}
}

// runEight computes the rows from r0 on for which out has room, without what int8 rows' scales do.
func (p *Path) runEight(kernel func(*eightArgs), out []float32, r0 int, s *Scratch) {
	o := &s.run
	rows := len(out) / 8
	for i := 0; i < rows; i += eightRows {
		o.rows = min(eightRows, rows-i)
		for j := range o.first {
			o.first[j] = r0 + j*rows + i
		}
		p.setEight(s)
		kernel(&s.eight)
		whole := (o.rows + 7) / 8 * 8
		p.transpose(bytesOf(&o.turned[0]), bytesOf(&o.out[0]), 4*8, 8, whole)
		for j := range 8 {
			copy(out[j*rows+i:][:o.rows], o.turned[j*whole:])
		}
	}
	if rest := out[8*rows:]; len(rest) > 0 {
		o.rows = 1
		for j := range o.first {
			// Behind the last row comes the last row again: what is computed of it is dropped.
			o.first[j] = r0 + min(8*rows+j, len(out)-1)
		}
		p.setEight(s)
		kernel(&s.eight)
		copy(rest, o.out[:])
	}
}

// setEight points the kernel to the rows.
func (p *Path) setEight(s *Scratch) {
	o, e := &s.run, &s.eight
	rowBytes := o.m.rowBytes()
	values := unsafe.Pointer(unsafe.SliceData(o.m.Values[:o.m.Rows*rowBytes]))
	for j, row := range o.first {
		e.w[j] = unsafe.Add(values, row*rowBytes)
	}
	e.rows, e.results = uintptr(o.rows), unsafe.Pointer(&o.out)
	if o.m.Enc.Group != 0 {
		p.gatherScales(s)
	}
}

// gatherScales copies the rows' scales into the order in which they are needed.
func (p *Path) gatherScales(s *Scratch) {
	o, e := &s.run, &s.eight
	n := 2 * o.m.Enc.Groups(o.m.Cols)
	scales := unsafe.Pointer(unsafe.SliceData(o.m.Scales[:o.m.Rows*n]))
	s.half = growAligned(s.half, 8*o.rows*n/2)
	to := unsafe.Pointer(&s.half[0])
	e.scNext, e.scRow = uintptr(7*n), uintptr(n)
	for j, row := range o.first {
		s.from[j] = (*byte)(unsafe.Add(scales, row*n))
		e.ahead[j] = uintptr(unsafe.Pointer(s.from[j])) + uintptr(o.rows*n)
		e.sc[j] = unsafe.Add(to, j*n)
	}
	if n >= 32 {
		p.gather((*byte)(to), &s.from, n, o.rows)
		return
	}
	for i := range 8 * o.rows {
		copy(unsafe.Slice((*byte)(unsafe.Add(to, i*n)), n), unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(s.from[i%8]), i/8*n)), n))
	}
}
