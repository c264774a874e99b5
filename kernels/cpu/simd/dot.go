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
	eight eightArgs
	run   eightRun
	from  [8]*byte // eights: float16 scales of the streams
	tile  tileArgs
	scale scaleArgs

	sc   []float32 // dots: scales of rows
	y    []float32 // dots, eights: results of rows
	half []int16   // eights: float16 scales of rows
	w    []float32 // tiles: packed weights
	ws   []float32 // tiles: scales of packed weights
	rs   []float32 // tiles: scales of rows
	c    []float32 // tiles: results
	t    []float32 // tiles: rows on their way into tiles
	a    []float32 // Gemm: A transposed
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
	case a.n == 1 && p.eights(m.Enc) != nil:
		p.mulEight(p.eights(m.Enc), m, dst, a, r0, r1, s, add)
	case a.tiles:
		p.mulTiles(m, dst, ldd, a, r0, r1, s, add)
	default:
		p.mulDots(m, dst, ldd, a, r0, r1, s, add)
	}
}

const (
	// streamAhead is the distance in bytes between what is multiplied and what is prefetched, of each stream. It was measured, as was
	// int4's, whose arithmetic takes longer.
	streamAhead     = 1536
	streamAheadInt4 = 4 << 10
	// rowsRun is how many rows of each stream a kernel takes in one call at most; scaleBytes, about how large their scales may be,
	// which are made before: they, the vector and what is on its way share the first-level cache.
	rowsRun    = 16
	scaleBytes = 32 << 10
	// cachedBytes is about how large rows may be that several calls share.
	cachedBytes = 64 << 10
)

// mulDots goes over the matrix in four streams, each a quarter of the rows. Rows are read from memory once: the second and further
// vectors find them in the cache.
func (p *Path) mulDots(m *Matrix, dst []float32, ldd int, a *Acts, r0, r1 int, s *Scratch, add bool) {
	d := &s.dot
	d.n = uintptr(format.PaddedCols(m.Cols))
	d.block = uintptr(a.block)
	if m.Enc.Kind == format.Int4 {
		d.setInt4()
	}
	o := dotRows{m: m, dst: dst, ldd: ldd, acts: a, add: add, wanted: 4}
	rows := (r1 - r0) / 4
	p.shareScales(m, a, s)
	run := p.rowsAtOnce(m, a)
	for i := 0; i < rows; i += run {
		for j := range o.first {
			o.first[j] = r0 + j*rows + i
		}
		o.rows = min(run, rows-i)
		p.runDots(&o, s)
	}
	o.wanted, o.rows = (r1-r0)%4, 1
	if o.wanted == 0 {
		return
	}
	for j := range o.first {
		// Behind the last row comes the last row again: what is computed of it is dropped.
		o.first[j] = min(r0+4*rows+j, r1-1)
	}
	p.runDots(&o, s)
}

// dotRows are rows of a matrix: the first of each of four streams, and how many follow on each. Of the four streams, the first so many
// are wanted.
type dotRows struct {
	m      *Matrix
	dst    []float32
	ldd    int
	acts   *Acts
	add    bool
	first  [4]int
	rows   int // of each stream
	wanted int
}

// rowsAtOnce is how many rows of each stream a kernel takes in one call. Where several calls share them, they have to stay in the
// cache.
func (p *Path) rowsAtOnce(m *Matrix, a *Acts) int {
	ks := p.dots[m.Enc.Kind]
	run, together := rowsRun, a.n
	if a.n > ks[0].n {
		run, together = min(run, cachedBytes/(4*m.rowBytes())), ks[0].n
	}
	if m.Enc.Group != 0 && !p.dotKernel(m.Enc.Kind, together).scaled {
		run = min(run, scaleBytes/(4*4*a.lds*together))
		if !p.wholeScales(m.Enc.Groups(m.Cols)) {
			run = 1
		}
	}
	return max(1, run)
}

// runDots multiplies the rows with all vectors, as many at a time as kernels take.
func (p *Path) runDots(o *dotRows, s *Scratch) {
	m, a, d := o.m, o.acts, &s.dot
	rowBytes := m.rowBytes()
	values := unsafe.Pointer(unsafe.SliceData(m.Values[:m.Rows*rowBytes]))
	ahead := uintptr(streamAhead)
	if m.Enc.Kind == format.Int4 {
		ahead = streamAheadInt4
	}
	calls := 0
	for i := 0; i < a.n; i += p.dotKernel(m.Enc.Kind, a.n-i).n {
		calls++
	}
	call := 0
	for i := 0; i < a.n; {
		k := p.dotKernel(m.Enc.Kind, a.n-i)
		for j := range d.w {
			d.w[j] = unsafe.Add(values, o.first[j]*rowBytes)
			d.ahead[j] = ahead
			if k.paired || calls > 1 {
				// The next rows. Calls share the asking for them.
				d.ahead[j] = 0
				if j*calls/4 == call {
					d.ahead[j] = uintptr(o.rows * rowBytes)
				}
			}
		}
		p.setDot(o, s, i, k)
		k.run(d)
		s.store(o, i, k.n)
		i += k.n
		call++
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

// setDot points the kernel to vectors [i, i+n) and to the results, and makes the rows' scales.
func (p *Path) setDot(o *dotRows, s *Scratch, i int, k *dotKernel) {
	m, a, d, n := o.m, o.acts, &s.dot, k.n
	s.y = growAligned(s.y, 4*o.rows*n)
	d.rows, d.results, d.ldr = uintptr(o.rows), unsafe.Pointer(&s.y[0]), uintptr(4*4*o.rows)
	if !m.quantized() {
		d.x, d.ldx = unsafe.Pointer(&a.f[i*a.ldf]), uintptr(4*a.ldf)
		return
	}
	if m.Enc.Kind == format.Int8 {
		d.x, d.ldx = unsafe.Pointer(&a.words[i*a.ldq]), uintptr(2*a.ldq)
	} else {
		d.x, d.ldx = unsafe.Pointer(&a.bytes[i*a.ldq]), uintptr(a.ldq)
	}
	d.ldsc = uintptr(4 * a.lds)
	if m.Enc.Group == 0 {
		d.scNext, d.sc = 0, unsafe.Pointer(&s.sc[4*i*a.lds])
		return
	}
	if k.scaled {
		s.setRows(o, i)
		d.scales = &s.scale
		return
	}
	d.scNext = uintptr(4 * 4 * n * a.lds)
	s.sc = growAligned(s.sc, 4*o.rows*n*a.lds)
	for v := range n {
		p.setScales(o, s, i+v, s.sc[v*a.lds:], n, s.y[4*o.rows*v:])
	}
	d.sc = unsafe.Pointer(&s.sc[0])
}

// shareScales makes the scales of four rows where all rows have those of the vectors: for each call of a kernel, [stream][vector].
func (p *Path) shareScales(m *Matrix, a *Acts, s *Scratch) {
	if !m.quantized() || m.Enc.Group != 0 {
		return
	}
	s.sc = growAligned(s.sc, 4*a.n*a.lds)
	for i := 0; i < a.n; {
		n := p.dotKernel(m.Enc.Kind, a.n-i).n
		for j := range 4 {
			copy(s.sc[(4*i+j*n)*a.lds:][:n*a.lds], a.s[i*a.lds:])
		}
		i += n
	}
}

// setScales makes the scales of the rows for vector i, at a distance of n vectors' scales, and their totals.
func (p *Path) setScales(o *dotRows, s *Scratch, i int, out []float32, n int, totals []float32) {
	m, a, c := o.m, o.acts, &s.scale
	s.setRows(o, i)
	c.ld, c.rows = uintptr(4*n*a.lds), uintptr(o.rows)
	c.out, c.totals = unsafe.Pointer(&out[0]), unsafe.Pointer(&totals[0])
	if !p.wholeScales(int(c.n)) {
		c.setTails(0, &c.scales, p.scaleLanes)
		if m.Enc.Asymmetric {
			c.setTails(1, &c.offsets, p.scaleLanes)
		}
	}
	if m.Enc.Asymmetric {
		p.scalesOffsets(c)
	} else {
		p.scales(c)
	}
}

// setRows points to the scales and offsets of the rows and of vector i.
func (s *Scratch) setRows(o *dotRows, i int) {
	m, a, c := o.m, o.acts, &s.scale
	groups := m.Enc.Groups(m.Cols)
	c.n, c.next = uintptr(groups), uintptr(2*groups)
	c.s, c.sums = unsafe.Pointer(&a.s[i*a.lds]), unsafe.Pointer(&a.sums[i*a.lds])
	for j := range c.scales {
		at := 2 * o.first[j] * groups
		c.scales[j] = unsafe.Pointer(&m.Scales[at])
		c.offsets[j] = c.scales[j]
		if m.Enc.Asymmetric {
			c.offsets[j] = unsafe.Pointer(&m.Mins[at])
		}
	}
}

// wholeScales reports whether the scales operation needs no tails for rows of so many groups.
func (p *Path) wholeScales(groups int) bool { return p.scaleLanes == 0 || groups%p.scaleLanes == 0 }

// store takes the results of n vectors from i to where they belong.
func (s *Scratch) store(o *dotRows, i, n int) {
	perRow := o.m.Enc.Kind == format.Int8 && o.m.Enc.Group == 0
	for v := range n {
		y := s.y[4*o.rows*v : 4*o.rows*(v+1)]
		for j := range o.wanted {
			out := o.dst[(i+v)*o.ldd+o.first[j]:][:o.rows]
			if perRow {
				for t := range o.rows {
					y[4*t+j] = float32(y[4*t+j] * o.m.rowScale(o.first[j]+t)) // no fusing with an addition
				}
			}
			if o.add {
				for t := range o.rows {
					out[t] += y[4*t+j]
				}
			} else {
				for t := range o.rows {
					out[t] = y[4*t+j]
				}
			}
		}
	}
}
