package simd

import (
	"unsafe"

	"xlstm/format"
)

// rowsRun is how many rows are taken in one run at most: enough that what a run costs is little, few enough that the scales of
// their groups stay in the first-level cache.
const rowsRun = 32

// streamBytes is the size of a vector up to which rows are taken one after the other: what stays in the first-level cache beside
// the stream of weights. Behind it, a kernel of four rows reads the vector less often, and was measured to be faster.
const streamBytes = 16 << 10

// mulOne multiplies rows [r0, r1) with the one vector of a. The results are those of mulDots, bit for bit.
func (p *Path) mulOne(m *Matrix, dst []float32, a *Acts, r0, r1 int, s *Scratch, add bool) {
	whole := r0 + (r1-r0)&^3
	switch kernel := p.rowsKernel(m, a); {
	case kernel != nil:
		p.mulRows(kernel, m, dst, a, r0, whole, s, add)
	case m.Enc.Kind == format.Int4:
		p.mulQuads(m, dst, a, r0, whole, s, add)
	default:
		whole = r0
	}
	p.mulDots(m, dst, 0, a, whole, r1, s, add)
}

func (p *Path) rowsKernel(m *Matrix, a *Acts) func(*dotArgs) {
	kind, size := int(m.Enc.Kind), 4
	if m.Enc.Kind == format.Int8 {
		size = 2
	}
	if kind >= len(p.rows) || size*a.cols > streamBytes {
		return nil
	}
	return p.rows[kind]
}

// startRows sets what all rows have in common.
func (p *Path) startRows(m *Matrix, a *Acts, s *Scratch) (values unsafe.Pointer) {
	d := &s.dot
	d.n, d.block = uintptr(format.PaddedCols(m.Cols)), uintptr(a.block)
	s.y = growAligned(s.y, rowsRun)
	return unsafe.Pointer(unsafe.SliceData(m.Values[:m.Rows*m.rowBytes()]))
}

// mulRows takes row after row.
func (p *Path) mulRows(kernel func(*dotArgs), m *Matrix, dst []float32, a *Acts, r0, r1 int, s *Scratch, add bool) {
	d, values := &s.dot, p.startRows(m, a, s)
	d.results = unsafe.Pointer(&s.y[0])
	for r := r0; r < r1; r += rowsRun {
		n := min(rowsRun, r1-r)
		d.w[0] = unsafe.Add(values, r*m.rowBytes())
		d.quads = uintptr(n / 4)
		p.setRows(m, a, s, r, r+n)
		kernel(d)
		s.storeRows(m, dst[r:r+n], r, add)
	}
}

// mulQuads takes four rows of int4 at a time, and the scales of a run at once.
func (p *Path) mulQuads(m *Matrix, dst []float32, a *Acts, r0, r1 int, s *Scratch, add bool) {
	d, values, rowBytes := &s.dot, p.startRows(m, a, s), m.rowBytes()
	d.setInt4()
	kernel := p.dotKernel(m.Enc.Kind, 1).run
	ahead, last := max(4*rowBytes, prefetchAhead), (m.Rows-1)*rowBytes
	for r := r0; r < r1; r += rowsRun {
		n := min(rowsRun, r1-r)
		p.setRows(m, a, s, r, r+n)
		for i := 0; i < n; i += 4 {
			at := (r + i) * rowBytes
			for j := range d.w {
				d.w[j] = unsafe.Add(values, at+j*rowBytes)
			}
			d.next = unsafe.Add(values, min(at+ahead, last))
			d.sc = unsafe.Pointer(&s.sc[i*a.lds])
			copy(d.out[:4], s.y[i:])
			kernel(d)
			copy(s.y[i:i+4], d.out[:])
		}
		s.storeRows(m, dst[r:r+n], r, add)
	}
}

// setRows points the kernel to the vector and makes the scales of rows [r, end), and in s.y the sums of int4's offsets.
func (p *Path) setRows(m *Matrix, a *Acts, s *Scratch, r, end int) {
	d := &s.dot
	switch m.Enc.Kind {
	case format.Int8, format.Int4:
	default:
		d.x = unsafe.Pointer(&a.f[0])
		return
	}
	d.x = unsafe.Pointer(&a.q[0])
	if m.Enc.Group == 0 {
		d.sc, d.ldsc = unsafe.Pointer(&a.s[0]), 0
		return
	}
	s.sc = growAligned(s.sc, rowsRun*a.lds)
	d.sc, d.ldsc = unsafe.Pointer(&s.sc[0]), uintptr(4*a.lds)
	c := &s.scale
	c.s, c.sums = unsafe.Pointer(&a.s[0]), unsafe.Pointer(&a.sums[0])
	step := end - r
	if !p.wholeScales(m.Enc.Groups(m.Cols)) {
		step = 4
	}
	for i := r; i < end; i += step {
		p.setScales(m, a, s, i, end)
		c.quads = uintptr(step / 4)
		c.out, c.totals = unsafe.Pointer(&s.sc[(i-r)*a.lds]), unsafe.Pointer(&s.y[i-r])
		p.runScales(m, c)
	}
}

// storeRows takes the results of rows from r to dst.
func (s *Scratch) storeRows(m *Matrix, dst []float32, r int, add bool) {
	y := s.y[:len(dst)]
	if m.Enc.Kind == format.Int8 && m.Enc.Group == 0 {
		for i := range y {
			y[i] = float32(y[i] * m.rowScale(r+i)) // no fusing with the addition
		}
	}
	if !add {
		copy(dst, y)
		return
	}
	for i := range dst {
		dst[i] += y[i]
	}
}
