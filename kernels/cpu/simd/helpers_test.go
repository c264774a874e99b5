package simd

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"xlstm/format"
)

var encodings = []string{"fp32", "fp16", "bf16", "int8", "int8g32", "int8g64", "int8g128",
	"int4g32", "int4g64", "int4g128", "int4g32a", "int4g64a", "int4g128a"}

// eachPath runs f on every path of this CPU.
func eachPath(t *testing.T, f func(t *testing.T, p *Path)) {
	for _, p := range Paths() {
		t.Run(p.Name(), func(t *testing.T) { f(t, p) })
	}
}

func mustEncoding(s string) format.Encoding {
	e, err := format.ParseEncoding(s)
	if err != nil {
		panic(err)
	}
	return e
}

// randomHalf is a float16 in (-1, 1), subnormals and zeros among them.
func randomHalf(r *rand.Rand) uint16 {
	return uint16(r.IntN(2))<<15 | uint16(r.IntN(15<<10))
}

// randomMatrix fills all parts with random values; those of the padding are zero's codes.
func randomMatrix(r *rand.Rand, enc format.Encoding, rows, cols int) *Matrix {
	m := newMatrix(enc, rows, cols)
	rowBytes := m.rowBytes()
	for i := range rows {
		row := m.Values[i*rowBytes : (i+1)*rowBytes]
		for c := range cols {
			switch enc.Kind {
			case format.FP32:
				binary.LittleEndian.PutUint32(row[4*c:], math.Float32bits(float32(r.NormFloat64())))
			case format.FP16:
				binary.LittleEndian.PutUint16(row[2*c:], randomHalf(r))
			case format.BF16:
				binary.LittleEndian.PutUint16(row[2*c:], uint16(math.Float32bits(float32(r.NormFloat64()))>>16))
			case format.Int8:
				row[c] = byte(r.IntN(255) - 127)
			case format.Int4:
				setNibble(row, c, byte(r.IntN(16)))
			}
		}
	}
	switch {
	case enc.Group != 0:
		for i := 0; i < len(m.Scales); i += 2 {
			binary.LittleEndian.PutUint16(m.Scales[i:], randomHalf(r))
		}
		for i := 0; i < len(m.Mins); i += 2 {
			binary.LittleEndian.PutUint16(m.Mins[i:], randomHalf(r))
		}
	case enc.Kind == format.Int8:
		for i := 0; i < len(m.Scales); i += 4 {
			binary.LittleEndian.PutUint32(m.Scales[i:], math.Float32bits(float32(r.NormFloat64()/100)))
		}
	}
	return m
}

// newMatrix makes a matrix of zeros with parts exactly as long as needed.
func newMatrix(enc format.Encoding, rows, cols int) *Matrix {
	s := enc.Sizes(rows, cols)
	m := &Matrix{Enc: enc, Rows: rows, Cols: cols, Values: make([]byte, int64(rows)*s.ValueRow),
		Scales: make([]byte, int64(rows)*s.ScaleRow), Mins: make([]byte, int64(rows)*s.MinRow)}
	if enc.Kind == format.Int4 {
		for i := range m.Values {
			m.Values[i] = 0x88
		}
	}
	return m
}

func setNibble(row []byte, c int, v byte) {
	at, shift := c/32*16+c%16, c%32/16*4
	row[at] = row[at]&^(15<<shift) | v<<shift
}

func randomVector(r *rand.Rand, n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	return x
}

// product is the reference: decoded weights times x in float64. size is the sum of the magnitudes of the terms, and of what
// offsets add to and take from them.
func product(m *Matrix, x []float32) (y, size []float64) {
	y, size = make([]float64, m.Rows), make([]float64, m.Rows)
	row := make([]float32, m.Cols)
	for r := range m.Rows {
		m.Row(row, r)
		for c, w := range row {
			y[r] += float64(w) * float64(x[c])
			size[r] += math.Abs(float64(w) * float64(x[c]))
			if m.Enc.Kind == format.Int4 {
				size[r] += 8 * math.Abs(float64(m.scale(r, c))*float64(x[c]))
			}
			if m.Enc.Asymmetric {
				size[r] += math.Abs(float64(m.min(r, c)) * float64(x[c]))
			}
		}
	}
	return y, size
}

// quantized is what x becomes for products with enc.
func quantized(enc format.Encoding, x []float32) []float32 {
	if enc.Kind != format.Int8 && enc.Kind != format.Int4 {
		return x
	}
	var a Acts
	a.Resize(SmallBatch(enc)+1, len(x), enc) // not permuted
	genericPath().SetRow(&a, 0, x)
	y := make([]float32, len(x))
	for i := range y {
		if y[i] = a.s[i/a.block]; enc.Kind == format.Int8 {
			y[i] *= float32(a.words[i])
		} else {
			y[i] *= float32(a.bytes[i])
		}
	}
	return y
}

// checkClose fails where got differs from want by more than tol*size.
func checkClose(t *testing.T, what func() string, got float32, want, size, tol float64) {
	t.Helper()
	if d := math.Abs(float64(got) - want); !(d <= tol*size+1e-30) {
		t.Fatalf("%s: got %v, expected %v, off by %.3g of %.3g", what(), got, want, d, size)
	}
}

// name makes a name that costs nothing unless it is needed.
func name(parts ...any) func() string { return func() string { return fmt.Sprint(parts...) } }
