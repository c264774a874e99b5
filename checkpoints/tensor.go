package checkpoints

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"unsafe"
)

// Tensor is one tensor of a checkpoint under its canonical name: a matrix [rows, cols], or a vector [n], which is one row of n
// values. It is a handle: copies refer to the same values.
type Tensor struct {
	name  string
	shape []int
	dtype string
	rows  rows
}

// rows are the values behind a tensor. Arguments are checked by Tensor; a value's place is row*cols + column.
type rows interface {
	read(dst []float32, from int) error // values from, from+1, ...
	release(from, n int) error
}

// Name is the canonical name.
func (t Tensor) Name() string { return t.name }

// Shape is [rows, cols], or [n] for a vector.
func (t Tensor) Shape() []int { return slices.Clone(t.shape) }

// DType is how the checkpoint stores the values: F32, F16 or BF16.
func (t Tensor) DType() string { return t.dtype }

// Rows is the number of rows: 1 for a vector.
func (t Tensor) Rows() int {
	if len(t.shape) == 1 {
		return 1
	}
	return t.shape[0]
}

// Cols is the number of values in a row: n for a vector [n].
func (t Tensor) Cols() int { return t.shape[len(t.shape)-1] }

// ReadRows reads rows r0 to r1-1 as float32 into dst, which must be (r1-r0)*Cols() long. The conversion is exact.
func (t Tensor) ReadRows(dst []float32, r0, r1 int) error {
	if err := t.checkRows(r0, r1); err != nil {
		return err
	}
	cols := t.Cols()
	if len(dst) != (r1-r0)*cols {
		return fmt.Errorf("tensor %s: %d values for rows %d to %d, expected %d", t.name, len(dst), r0, r1, (r1-r0)*cols)
	}
	if err := t.rows.read(dst, r0*cols); err != nil {
		return fmt.Errorf("tensor %s: %w", t.name, err)
	}
	return nil
}

// ReleaseRows lets the memory of rows that were read go; they can be read again. It keeps a program small that streams through
// a checkpoint larger than the machine's memory.
func (t Tensor) ReleaseRows(r0, r1 int) error {
	if err := t.checkRows(r0, r1); err != nil {
		return err
	}
	cols := t.Cols()
	if err := t.rows.release(r0*cols, (r1-r0)*cols); err != nil {
		return fmt.Errorf("tensor %s: %w", t.name, err)
	}
	return nil
}

// Release is ReleaseRows of all rows.
func (t Tensor) Release() error { return t.ReleaseRows(0, t.Rows()) }

func (t Tensor) checkRows(r0, r1 int) error {
	if r0 < 0 || r1 < r0 || r1 > t.Rows() {
		return fmt.Errorf("tensor %s: rows %d to %d of %d", t.name, r0, r1, t.Rows())
	}
	return nil
}

// stored is values in a file: store.data[off : off+size].
type stored struct {
	store     *store
	off, size int
	convert   converter
}

// bytes is nil after the checkpoint was closed.
func (s *stored) bytes() []byte {
	if s.store.data == nil {
		return nil
	}
	return s.store.data[s.off : s.off+s.size]
}

func (s *stored) read(dst []float32, from int) error {
	b := s.bytes()
	if b == nil {
		return errors.New("the checkpoint is closed")
	}
	s.convert.decode(dst, b[from*s.convert.size:])
	return nil
}

func (s *stored) release(from, n int) error {
	return s.store.release(s.off+from*s.convert.size, n*s.convert.size)
}

// converter decodes len(dst) little-endian values of size bytes each.
type converter struct {
	size   int
	decode func(dst []float32, src []byte)
}

var converters = map[string]converter{"F32": {4, decodeF32}, "F16": {2, decodeF16}, "BF16": {2, decodeBF16}}

var littleEndian = binary.NativeEndian.Uint16([]byte{1, 0}) == 1

func decodeF32(dst []float32, src []byte) {
	if len(dst) == 0 {
		return
	}
	if littleEndian {
		// Bytes are copied, not pointed at as float32: a tensor may begin at any byte of a file.
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&dst[0])), 4*len(dst)), src)
		return
	}
	for i := range dst {
		dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(src[4*i:]))
	}
}

func decodeBF16(dst []float32, src []byte) {
	src = src[:2*len(dst)]
	for i := range dst {
		dst[i] = math.Float32frombits(uint32(binary.LittleEndian.Uint16(src[2*i:])) << 16)
	}
}

// decodeF16 moves exponent and mantissa to float32's place, where they mean 2^-112 times the value, subnormals included; the
// product is exact. Infinities and NaNs, the largest exponent, are made so afterwards.
func decodeF16(dst []float32, src []byte) {
	src = src[:2*len(dst)]
	for i := range dst {
		h := uint32(binary.LittleEndian.Uint16(src[2*i:]))
		bits := math.Float32bits(math.Float32frombits((h&0x7fff)<<13) * 0x1p112)
		if h&0x7c00 == 0x7c00 {
			bits |= 0x7f800000
		}
		dst[i] = math.Float32frombits(bits | (h&0x8000)<<16)
	}
}
