package simd

import (
	"unsafe"

	"xlstm/format"
)

// Scratch is the memory that one worker needs for products. The zero value is ready; it grows to what is needed and is used
// again. Two calls must not use one at the same time.
type Scratch struct {
	// Exact makes Gemm sum in float64.
	Exact bool

	dot   dotArgs
	tile  tileArgs
	scale scaleArgs

	sc []float32 // dots: scales of four rows, or of rowsRun
	y  []float32 // dots: results of rowsRun rows
	w  []float32 // tiles: packed weights
	ws []float32 // tiles: scales of packed weights
	c  []float32 // tiles: results
	t  []float32 // tiles: rows on their way into tiles
	a  []float32 // Gemm: A transposed
}

// Mul is Matrix.Mul on path p.
func (p *Path) Mul(m *Matrix, dst []float32, ldd int, a *Acts, r0, r1 int, s *Scratch) {
	p.mul(m, dst, ldd, a, r0, r1, s, false)
}

// MulAdd is Matrix.MulAdd on path p.
func (p *Path) MulAdd(m *Matrix, dst []float32, ldd int, a *Acts, r0, r1 int, s *Scratch) {
	p.mul(m, dst, ldd, a, r0, r1, s, true)
}

func (p *Path) mul(m *Matrix, dst []float32, ldd int, a *Acts, r0, r1 int, s *Scratch, add bool) {
	switch {
	case r0 >= r1 || a.n == 0:
	case a.tiles:
		p.mulTiles(m, dst, ldd, a, r0, r1, s, add)
	case a.n == 1:
		p.mulOne(m, dst, a, r0, r1, s, add)
	default:
		p.mulDots(m, dst, ldd, a, r0, r1, s, add)
	}
}

// prefetchAhead is the least distance, in bytes, between what is multiplied and what is prefetched: from some 32 KB on, rates of
// all encodings were level.
const prefetchAhead = 48 << 10

// mulDots goes over the matrix four rows at a time. Rows are read from memory once: the second and further vectors find them in
// the cache.
func (p *Path) mulDots(m *Matrix, dst []float32, ldd int, a *Acts, r0, r1 int, s *Scratch, add bool) {
	rowBytes := m.rowBytes()
	values := unsafe.Pointer(unsafe.SliceData(m.Values[:m.Rows*rowBytes]))
	ahead := max(4*rowBytes, prefetchAhead)
	d := &s.dot
	d.n = uintptr(format.PaddedCols(m.Cols))
	d.block = uintptr(a.block)
	if m.Enc.Kind == format.Int4 {
		d.setInt4()
	}
	for r := r0; r < r1; r += 4 {
		for j := range d.w {
			// Behind the last row comes the last row again: what is computed of it is dropped.
			d.w[j] = unsafe.Add(values, min(r+j, r1-1)*rowBytes)
		}
		// Behind r1 stands what the next call is likely to want. At the end the address stays within the matrix: a prefetch
		// cannot fault, but no pointer may leave its object.
		d.next = unsafe.Add(values, min(r*rowBytes+ahead, (m.Rows-1)*rowBytes))
		for i := 0; i < a.n; {
			k := p.dotKernel(m.Enc.Kind, a.n-i)
			p.setDot(m, a, s, r, r1, i, k.n)
			k.run(d)
			s.store(m, dst[i*ldd:], ldd, r, min(r+4, r1), k.n, add)
			d.next = d.w[0] // it is on its way: nothing new to ask for
			i += k.n
		}
	}
}

// dotKernel is the kernel for the most vectors up to n.
func (p *Path) dotKernel(kind format.Kind, n int) *dotKernel {
	ks := p.dots[kind]
	for i := range ks {
		if ks[i].n <= n {
			return &ks[i]
		}
	}
	return nil // not reached: the last takes one
}

// setDot points the kernel to vectors [i, i+n) and makes the scales of four rows from r.
func (p *Path) setDot(m *Matrix, a *Acts, s *Scratch, r, r1, i, n int) {
	d := &s.dot
	switch m.Enc.Kind {
	case format.Int8, format.Int4:
	default:
		d.x, d.ldx = unsafe.Pointer(&a.f[i*a.ldf]), uintptr(4*a.ldf)
		return
	}
	d.x, d.ldx = unsafe.Pointer(&a.q[i*a.ldq]), uintptr(2*a.ldq)
	if m.Enc.Group == 0 {
		d.sc, d.ldsc, d.ldscx = unsafe.Pointer(&a.s[i*a.lds]), 0, uintptr(4*a.lds)
		return
	}
	s.sc = growAligned(s.sc, 16*a.lds)
	d.sc, d.ldsc, d.ldscx = unsafe.Pointer(&s.sc[0]), uintptr(4*a.lds), uintptr(4*4*a.lds)
	p.setScales(m, a, s, r, r1)
	for v := range n {
		c := &s.scale
		c.out, c.totals = unsafe.Pointer(&s.sc[4*v*a.lds]), unsafe.Pointer(&d.out[4*v]) // what int4 kernels add their results to
		c.s = unsafe.Pointer(&a.s[(i+v)*a.lds])
		c.sums = unsafe.Pointer(&a.sums[(i+v)*a.lds])
		p.runScales(m, c)
	}
}

func (p *Path) runScales(m *Matrix, c *scaleArgs) {
	if m.Enc.Asymmetric {
		p.scalesOffsets(c)
	} else {
		p.scales(c)
	}
}

// wholeScales reports whether the scales operation needs no tails for rows of so many groups.
func (p *Path) wholeScales(groups int) bool { return p.scaleLanes == 0 || groups%p.scaleLanes == 0 }

// setScales points the scales operation to four rows from r.
func (p *Path) setScales(m *Matrix, a *Acts, s *Scratch, r, r1 int) {
	c := &s.scale
	groups := m.Enc.Groups(m.Cols)
	c.n, c.ld, c.quads = uintptr(groups), uintptr(4*a.lds), 1
	for j := range c.scales {
		at := 2 * min(r+j, r1-1) * groups
		c.scales[j] = unsafe.Pointer(&m.Scales[at])
		if m.Enc.Asymmetric {
			c.offsets[j] = unsafe.Pointer(&m.Mins[at])
		}
	}
	if p.wholeScales(groups) {
		return
	}
	c.setTails(0, &c.scales, p.scaleLanes)
	if m.Enc.Asymmetric {
		c.setTails(1, &c.offsets, p.scaleLanes)
	}
}

// store takes the results of rows [r, end) and n vectors to dst.
func (s *Scratch) store(m *Matrix, dst []float32, ldd, r, end, n int, add bool) {
	perRow := m.Enc.Kind == format.Int8 && m.Enc.Group == 0
	for v := range n {
		out := dst[v*ldd+r : v*ldd+end]
		for j := range out {
			y := s.dot.out[4*v+j]
			if perRow {
				y = float32(y * m.rowScale(r+j)) // no fusing with the addition
			}
			if add {
				y += out[j]
			}
			out[j] = y
		}
	}
}
