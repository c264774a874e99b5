package simd

import (
	"os"
	"slices"
	"unsafe"

	"xlstm/format"
)

// Path is one implementation of every operation.
type Path struct {
	name string

	dots          [format.Int4 + 1][]dotKernel                // by kind; descending numbers of vectors, the last takes one
	eights        func(format.Encoding) func(*eightArgs)      // kernels of one vector; nil where dots do it
	gather        func(dst *byte, src *[8]*byte, n, rows int) // with eights of groups: dst[i][j] = row i of n bytes, 32 or more, of src[j]
	words         rounder[int16]                              // activations for int8
	bytes         rounder[int8]                               // for int4
	permute       func(row []int8)                            // see genericPermute
	scales        func(a *scaleArgs)                          // with the scales as offsets
	scalesOffsets func(a *scaleArgs)
	scaleLanes    int // groups that scales takes at a time; 0 where it takes any number

	tileRows   int // rows of a packed tile, at most maxTileRows
	floatTiles []tileKernel
	exactTiles []tileKernel                                  // floatTiles with sums in float64
	wordTiles  []tileKernel                                  // int8
	byteTiles  []tileKernel                                  // int4
	widen      [format.Int4 + 1]func(dst, src *byte, n int)  // one row of n values, multiple of 32
	transpose  func(dst, src *byte, ld uintptr, n, rows int) // 32-bit units: dst[u*tileRows+r] = src[r][u]

	streamRead func(b []byte) uint64
	peakFloat  func(operations int)
	peakWords  func(operations int)
	peakBytes  func(operations int)
	vectorOps
}

// dotKernel multiplies rows of four streams with n vectors, two streams at a time where paired is set. Where scaled is set it makes the
// rows' scales itself.
type dotKernel struct {
	n      int
	run    func(*dotArgs)
	paired bool
	scaled bool
}

// tileKernel multiplies a packed tile with n vectors.
type tileKernel struct {
	n   int
	run func(*tileArgs)
}

// dotArgs are the arguments of dot kernels, which go over successive rows of four streams. The assembly knows the offsets of its
// fields.
type dotArgs struct {
	w       [4]unsafe.Pointer // the streams' first rows of values, n each; the next follow without a gap
	x       unsafe.Pointer    // the first vector: float32, int8's words or int4's bytes
	ldx     uintptr           // bytes between vectors
	sc      unsafe.Pointer    // integers: float32 scales of the blocks, [row][stream][vector]
	ldsc    uintptr           // bytes between successive scales of vectors, and of streams' last and first vectors
	scNext  uintptr           // bytes between the scales of rows; 0 where rows share them
	n       uintptr           // values, a multiple of 32
	block   uintptr           // integers: values that share a scale
	ahead   [4]uintptr        // bytes between what a stream reads and what is prefetched
	rows    uintptr           // of each stream, at least 1
	results unsafe.Pointer    // float32 [vector][row][stream]; int4 adds to them
	ldr     uintptr           // bytes between the results of vectors

	// Of int4, whose rows are taken 128 values at a time:
	step  uintptr   // bytes of scales that many values have
	mask  uint16    // which 32-bit words of 64 bytes of nibbles there are in the last, incomplete round
	_     uint16    //
	low   uint32    // 15 in each byte
	index [16]int32 // which of the next scales belongs to each 4 bytes of a row's nibbles
	masks [16]int32 // mask, a word each

	// Of int4's kernels that make the scales themselves, of 16 groups at a time:
	scales      *scaleArgs
	span        uintptr // values of so many groups
	roundGroups uint32  // groups in 128 values
}

// setInt4 fills what int4 needs of n and block.
func (d *dotArgs) setInt4() {
	d.step = 4 * 128 / d.block
	d.span, d.roundGroups = 16*d.block, uint32(128/d.block)
	d.low = 0x0f0f0f0f
	words := int(d.n%128) / 8
	d.mask = 1<<words - 1
	for i := range d.index {
		d.index[i] = int32(i / (int(d.block) / 8))
		d.masks[i] = 0
		if i < words {
			d.masks[i] = -1
		}
	}
}

// tileArgs are the arguments of tile kernels: c[i][r] += sum_k w[k][r] x[i][k], for integers block by block, times ws[block][r]
// and s[i][block], for bytes after starts[i][block] was added. The assembly knows the offsets of its fields.
type tileArgs struct {
	w      unsafe.Pointer // tile: float32 [k][tileRows], int16 [k/2][tileRows][2], or of nibbles uint8 [k/4][tileRows][4]
	x      unsafe.Pointer // float32, int16 or int8
	ldx    uintptr        // bytes between vectors
	c      unsafe.Pointer // float32 [vector][tileRows]
	k      uintptr        // values; integers: of a block
	blocks uintptr        // integers: number of blocks
	ws     unsafe.Pointer // integers: float32 [block][tileRows]
	s      unsafe.Pointer // integers: float32 scales of x
	lds    uintptr        // bytes between the scales of vectors, and between their starts
	starts unsafe.Pointer // bytes: int32
}

// scaleArgs are the arguments of the scales operation on rows of four streams: out[i][r][g] = scales[r][i][g]*s[g] for row i of
// stream r, and totals[i][r] = the sum over g of offsets[r][i][g]*sums[g], where the offsets may be the scales themselves. The assembly knows the offsets of its fields.
type scaleArgs struct {
	scales  [4]unsafe.Pointer // float16, of the streams' first rows
	offsets [4]unsafe.Pointer // float16: minimums, where there are any
	out     unsafe.Pointer    // float32
	ld      uintptr           // bytes between rows of out
	n       uintptr           // groups
	s       unsafe.Pointer    // float32 scales of the vector's blocks, zero from n to the next multiple of 16
	sums    unsafe.Pointer    // float32, likewise
	totals  unsafe.Pointer    // float32
	rows    uintptr           // of each stream; 1 where n is not a multiple of Path.scaleLanes
	_       uintptr           // the assembly's count
	next    uintptr           // bytes between successive rows of a stream, of scales and of offsets
	tails   [2][4][16]uint16  // scales and offsets from the last multiple of Path.scaleLanes on, then zeros
}

// setTails copies the last groups of part which (0 scales, 1 offsets), rows of n groups, for kernels that take lanes at a time.
func (a *scaleArgs) setTails(which int, rows *[4]unsafe.Pointer, lanes int) {
	n := int(a.n)
	for r, p := range rows {
		t := &a.tails[which][r]
		clear(t[copy(t[:], unsafe.Slice((*uint16)(p), n)[n/lanes*lanes:]):])
	}
}

// maxTileRows bounds Path.tileRows.
const maxTileRows = 32

var (
	paths  = allPaths()
	active = choose(os.Getenv("XLSTM_CPU"), paths)
)

// allPaths lists the implementations that this CPU can run, the plain one first and the best last.
func allPaths() []*Path {
	return append([]*Path{genericPath()}, archPaths()...)
}

// choose takes the last of paths, or the one called name where there is one: a path that the CPU lacks is not an error, for the
// same setting has to serve all machines.
func choose(name string, paths []*Path) *Path {
	if i := slices.IndexFunc(paths, func(p *Path) bool { return p.name == name }); i >= 0 {
		return paths[i]
	}
	return paths[len(paths)-1]
}

// Paths lists the implementations that this CPU can run, the best last.
func Paths() []*Path { return slices.Clone(paths) }

// Active is the implementation that the package's functions use.
func Active() *Path { return active }

// Name is what XLSTM_CPU calls the path: generic, avx2 or avx512.
func (p *Path) Name() string { return p.name }
