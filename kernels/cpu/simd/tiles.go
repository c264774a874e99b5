package simd

import (
	"encoding/binary"
	"unsafe"

	"xlstm/format"
)

// The way of packed tiles, for prompts. A tile is tileRows rows of weights by depth values, widened to float32 (int8 to int16, int4 to
// bytes) and transposed, so that a vector register holds one value (two, four) of many rows; the kernel multiplies it with values of
// several vectors, each broadcast, and keeps all sums in registers.

const (
	depth    = 256 // values of a row in a tile: that much of it and of a few vectors stay in the first-level cache
	runTiles = 4   // tiles that take turns at the same vectors: together they stay in the second-level cache
)

// mulTiles computes rows [r0, r1) of m with all vectors.
func (p *Path) mulTiles(m *Matrix, dst []float32, ldd int, a *Acts, r0, r1 int, s *Scratch, add bool) {
	run := runTiles * p.tileRows
	for r := r0; r < r1; r += run {
		rows := min(run, r1-r)
		tiles := (rows + p.tileRows - 1) / p.tileRows
		s.c = growAligned(s.c, tiles*a.n*p.tileRows)
		clear(s.c)
		p.widenScales(m, s, r, rows)
		for k := 0; k < m.Cols; k += depth {
			p.packMatrix(m, s, r, rows, k)
			if !m.quantized() {
				p.runFloatTiles(s, m.Enc.Kind == format.FP32, tiles, min(depth, format.PaddedCols(m.Cols)-k), a.f[k:], a.ldf, a.n)
			} else {
				p.runIntTiles(m, s, tiles, a, k)
			}
		}
		if m.Enc.Asymmetric {
			p.addMins(m, a, s, r, rows)
		}
		s.storeTiles(m, dst, ldd, a.n, r, rows, p.tileRows, add)
	}
}

func (m *Matrix) quantized() bool { return m.Enc.Kind == format.Int8 || m.Enc.Kind == format.Int4 }

// units is how many 32-bit units a row of a tile has.
func (m *Matrix) units() int {
	switch m.Enc.Kind {
	case format.Int8:
		return depth / 2
	case format.Int4:
		return depth / 4
	}
	return depth
}

// packMatrix fills s.w with the tiles of rows [r, r+rows) at column k, and s.ws with their scales. Rows and columns that are
// missing from the last ones are zero.
func (p *Path) packMatrix(m *Matrix, s *Scratch, r, rows, k int) {
	units := m.units()
	tiles := (rows + p.tileRows - 1) / p.tileRows
	s.w = growAligned(s.w, runTiles*p.tileRows*depth)
	s.t = growAligned(s.t, maxTileRows*depth)
	n := min(depth, format.PaddedCols(m.Cols)-k)
	rowBytes := m.rowBytes()
	at := m.rowBytes() / (format.PaddedCols(m.Cols) / 32) * (k / 32)
	for t := range tiles {
		have := min(p.tileRows, rows-t*p.tileRows)
		wide := s.t[:p.tileRows*units]
		if have < p.tileRows || n < depth {
			clear(wide)
		}
		for j := range have {
			src := m.Values[(r+t*p.tileRows+j)*rowBytes+at:]
			p.widen[m.Enc.Kind](bytesOf(&wide[j*units]), &src[0], n)
		}
		p.transpose(bytesOf(&s.w[t*p.tileRows*units]), bytesOf(&wide[0]), uintptr(4*units), units, p.tileRows)
		if m.quantized() {
			p.packScales(m, s, t, have, k)
		}
	}
}

func bytesOf(x *float32) *byte { return (*byte)(unsafe.Pointer(x)) }

// widenScales fills s.rs with the scales of rows [r, r+rows), [row][group], where groups have scales of their own.
func (p *Path) widenScales(m *Matrix, s *Scratch, r, rows int) {
	groups := m.Enc.Groups(m.Cols)
	if !m.quantized() || m.Enc.Group == 0 {
		return
	}
	s.rs = growAligned(s.rs, rows*groups)
	n := rows * groups
	halves := m.Scales[2*r*groups : 2*(r*groups+n)]
	whole := n &^ 31 // what the operation takes at a time
	if whole > 0 {
		p.widen[format.FP16](bytesOf(&s.rs[0]), &halves[0], whole)
	}
	for i := whole; i < n; i++ {
		s.rs[i] = half(binary.LittleEndian.Uint16(halves[2*i:]))
	}
}

// packScales fills the scales of tile t, [block][tileRows], for the blocks from column k on. Without groups they are 1, for
// storeTiles multiplies with the row's scale.
func (p *Path) packScales(m *Matrix, s *Scratch, t, have, k int) {
	block := m.Enc.Group
	if block == 0 {
		block = actBlock
	}
	blocks := depth / block
	s.ws = growAligned(s.ws, runTiles*maxTileRows*depth/32)
	ws := s.ws[t*blocks*p.tileRows:][:blocks*p.tileRows]
	clear(ws)
	groups, first := m.Enc.Groups(m.Cols), t*p.tileRows
	for b := range min(blocks, (m.Cols-k+block-1)/block) {
		to := ws[b*p.tileRows:][:have]
		if m.Enc.Group == 0 {
			for j := range to {
				to[j] = 1
			}
			continue
		}
		for j := range to {
			to[j] = s.rs[(first+j)*groups+k/block+b]
		}
	}
}

// runFloatTiles adds to s.c, [tile][vector][tileRows], the products of packed tiles, depth k each, with n vectors of x, ldx apart;
// exact is with sums in float64.
func (p *Path) runFloatTiles(s *Scratch, exact bool, tiles, k int, x []float32, ldx, n int) {
	a := &s.tile
	kernels := p.floatTiles
	if exact {
		kernels = p.exactTiles
	}
	a.k, a.ldx = uintptr(k), uintptr(4*ldx)
	for i := 0; i < n; {
		kernel := tileFor(kernels, n-i)
		a.x = unsafe.Pointer(&x[i*ldx])
		for t := range tiles {
			a.w = unsafe.Pointer(&s.w[t*p.tileRows*depth])
			a.c = unsafe.Pointer(&s.c[(t*n+i)*p.tileRows])
			kernel.run(a)
		}
		i += kernel.n
	}
}

// runIntTiles does the same with m's integer tiles and the activations x from column k on.
func (p *Path) runIntTiles(m *Matrix, s *Scratch, tiles int, x *Acts, k int) {
	a := &s.tile
	blocks := depth / x.block
	a.k, a.blocks = uintptr(x.block), uintptr(blocks)
	a.lds = uintptr(4 * x.lds)
	for i := 0; i < x.n; {
		var kernel *tileKernel
		if at := i*x.ldq + k; m.Enc.Kind == format.Int8 {
			kernel = tileFor(p.wordTiles, x.n-i)
			a.x, a.ldx = unsafe.Pointer(&x.words[at]), uintptr(2*x.ldq)
		} else {
			kernel = tileFor(p.byteTiles, x.n-i)
			a.x, a.ldx = unsafe.Pointer(&x.bytes[at]), uintptr(x.ldq)
			a.starts = unsafe.Pointer(&x.starts[i*x.lds+k/x.block])
		}
		a.s = unsafe.Pointer(&x.s[i*x.lds+k/x.block])
		for t := range tiles {
			a.w = unsafe.Pointer(&s.w[t*p.tileRows*m.units()])
			a.ws = unsafe.Pointer(&s.ws[t*blocks*p.tileRows])
			a.c = unsafe.Pointer(&s.c[(t*x.n+i)*p.tileRows])
			kernel.run(a)
		}
		i += kernel.n
	}
}

// tileFor is the kernel for the most vectors up to n.
func tileFor(ks []tileKernel, n int) *tileKernel {
	for i := range ks {
		if ks[i].n <= n {
			return &ks[i]
		}
	}
	return nil // not reached: the last takes one
}

// addMins adds what the minimums of asymmetric groups contribute: a product of them with the sums of the groups.
func (p *Path) addMins(m *Matrix, a *Acts, s *Scratch, r, rows int) {
	groups := m.Enc.Groups(m.Cols)
	tiles := (rows + p.tileRows - 1) / p.tileRows
	for g := 0; g < groups; g += depth {
		n := min(depth, groups-g)
		for t := range tiles {
			w := s.w[t*p.tileRows*depth:][:n*p.tileRows]
			clear(w)
			for j := range min(p.tileRows, rows-t*p.tileRows) {
				for b := range n {
					row, c := r+t*p.tileRows+j, (g+b)*m.Enc.Group
					w[b*p.tileRows+j] = m.min(row, c)
				}
			}
		}
		p.runFloatTiles(s, false, tiles, n, a.sums[g:], a.lds, a.n)
	}
}

// storeTiles takes the results of rows [r, r+rows) to dst.
func (s *Scratch) storeTiles(m *Matrix, dst []float32, ldd, n, r, rows, tileRows int, add bool) {
	for t := 0; t*tileRows < rows; t++ {
		have := min(tileRows, rows-t*tileRows)
		first := r + t*tileRows
		var scale [maxTileRows]float32
		for j := range have {
			scale[j] = 1
			if m.Enc.Kind == format.Int8 && m.Enc.Group == 0 {
				scale[j] = m.rowScale(first + j)
			}
		}
		for i := range n {
			out := dst[i*ldd+first:][:have]
			c := s.c[(t*n+i)*tileRows:][:have]
			if add {
				for j, v := range c {
					out[j] += float32(v * scale[j]) // no fusing: as Mul, then added
				}
			} else {
				for j, v := range c {
					out[j] = v * scale[j]
				}
			}
		}
	}
}
