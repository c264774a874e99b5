package simd

import (
	"encoding/binary"
	"fmt"
	"math"

	"xlstm/format"
)

// Matrix is a tensor of Rows x Cols as a file stores it, in its parts (format.Encoding.Sizes): values, scales and minimums,
// each little-endian and row by row, rows of values padded to a multiple of 32. Parts may be longer than needed.
type Matrix struct {
	Enc                  format.Encoding
	Rows, Cols           int
	Values, Scales, Mins []byte
}

// SmallBatch is the largest number of vectors for which Mul takes the way of dot products with matrices in enc. Of more vectors,
// packing tiles costs less than it gains; dot products of integers reach less of the arithmetic's peak than those of floats.
func SmallBatch(enc format.Encoding) int {
	if enc.Kind == format.Int8 || enc.Kind == format.Int4 {
		return 16
	}
	return 32
}

// Check reports whether the encoding exists and the parts are long enough. Mul takes it for granted.
func (m *Matrix) Check() error {
	if err := m.Enc.Validate(); err != nil {
		return err
	}
	if m.Rows < 0 || m.Cols < 1 {
		return fmt.Errorf("matrix of %d x %d", m.Rows, m.Cols)
	}
	s := m.Enc.Sizes(m.Rows, m.Cols)
	rows := int64(m.Rows)
	for _, p := range []struct {
		name string
		have []byte
		row  int64
	}{{"values", m.Values, s.ValueRow}, {"scales", m.Scales, s.ScaleRow}, {"minimums", m.Mins, s.MinRow}} {
		if int64(len(p.have)) < rows*p.row {
			return fmt.Errorf("matrix of %d x %d in %s has %d bytes of %s, expected %d", m.Rows, m.Cols, m.Enc, len(p.have), p.name, rows*p.row)
		}
	}
	return nil
}

// Mul computes rows [r0, r1) of the product with each vector x_i of a: dst[i*ldd+r] = sum_c W[r,c] * x_i[c].
func (m *Matrix) Mul(dst []float32, ldd int, a *Acts, r0, r1 int, s *Scratch) {
	active.Mul(m, dst, ldd, a, r0, r1, s)
}

// MulAdd adds the same product to dst: dst[i*ldd+r] += sum_c W[r,c] * x_i[c].
func (m *Matrix) MulAdd(dst []float32, ldd int, a *Acts, r0, r1 int, s *Scratch) {
	active.MulAdd(m, dst, ldd, a, r0, r1, s)
}

// Row decodes row r into dst, Cols long.
func (m *Matrix) Row(dst []float32, r int) {
	dst = dst[:m.Cols]
	row := m.valueRow(r)
	switch m.Enc.Kind {
	case format.FP32:
		for c := range dst {
			dst[c] = math.Float32frombits(binary.LittleEndian.Uint32(row[4*c:]))
		}
	case format.FP16:
		for c := range dst {
			dst[c] = half(binary.LittleEndian.Uint16(row[2*c:]))
		}
	case format.BF16:
		for c := range dst {
			dst[c] = math.Float32frombits(uint32(binary.LittleEndian.Uint16(row[2*c:])) << 16)
		}
	case format.Int8:
		for c := range dst {
			dst[c] = float32(int8(row[c])) * m.scale(r, c)
		}
	case format.Int4:
		for c := range dst {
			q := float32(row[c/32*16+c%16] >> (c % 32 / 16 * 4) & 15)
			if m.Enc.Asymmetric {
				dst[c] = q*m.scale(r, c) + m.min(r, c)
			} else {
				dst[c] = (q - 8) * m.scale(r, c)
			}
		}
	}
}

// rowBytes is the size of a stored row of values.
func (m *Matrix) rowBytes() int { return int(m.Enc.ValueRowBytes(m.Cols)) }

func (m *Matrix) valueRow(r int) []byte {
	n := m.rowBytes()
	return m.Values[r*n : (r+1)*n]
}

// scale is the scale of column c in row r.
func (m *Matrix) scale(r, c int) float32 {
	if m.Enc.Group == 0 {
		return m.rowScale(r)
	}
	return half(binary.LittleEndian.Uint16(m.Scales[2*(r*m.Enc.Groups(m.Cols)+c/m.Enc.Group):]))
}

func (m *Matrix) min(r, c int) float32 {
	return half(binary.LittleEndian.Uint16(m.Mins[2*(r*m.Enc.Groups(m.Cols)+c/m.Enc.Group):]))
}

// rowScale is the scale of row r of an int8 matrix without groups.
func (m *Matrix) rowScale(r int) float32 {
	return math.Float32frombits(binary.LittleEndian.Uint32(m.Scales[4*r:]))
}

// half widens a float16.
func half(h uint16) float32 {
	b := uint32(h&0x7fff) << 13
	sign := uint32(h&0x8000) << 16
	if b >= 0x1f<<23 {
		return math.Float32frombits(sign | b | 0xff<<23)
	}
	// b read as a float32 is the value / 2^112, of normal and subnormal float16 alike.
	return math.Float32frombits(sign | math.Float32bits(math.Float32frombits(b)*0x1p112))
}
