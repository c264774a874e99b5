package quantize

import (
	"encoding/binary"
	"fmt"
	"math"

	"xlstm/format"
)

// ScaleMode says how the scale (and minimum) of a row or group is chosen. Floating-point encodings have none.
type ScaleMode uint8

const (
	// MaxOnly takes the smallest scale that holds every value.
	MaxOnly ScaleMode = iota
	// LeastSquares searches for the scale with the least squared error, weighted where Options has weights. It is never
	// worse than MaxOnly by that measure.
	LeastSquares
)

// Options of EncodeRows.
type Options struct {
	Scale ScaleMode
	// Weights, optional, is the importance of each column's squared error: the second moment of the activation that the
	// column multiplies. Finite and not negative. A row or group whose weights are all zero is treated as unweighted.
	Weights []float32
	// FirstRow is the number of the first row, for error messages.
	FirstRow int
}

// ValueError says which weights an encoding cannot hold. Columns are those of the value, or the first and last of its group.
type ValueError struct {
	Row, FirstCol, LastCol int
	Encoding               format.Encoding
	What                   string
}

func (e *ValueError) Error() string {
	if e.FirstCol == e.LastCol {
		return fmt.Sprintf("row %d, column %d: %s", e.Row, e.FirstCol, e.What)
	}
	return fmt.Sprintf("row %d, columns %d to %d: %s", e.Row, e.FirstCol, e.LastCol, e.What)
}

// EncodeRows stores src, [rows, cols], in dst, which has exactly the sizes of MakeRows. The result depends on nothing else:
// the same input gives the same bytes on every machine, padding included. Weights that are not finite, and fp16 and bf16
// overflow of values, scales or minimums, are a *ValueError; dst is then undefined.
func EncodeRows(dst Rows, enc format.Encoding, src []float32, rows, cols int, opt Options) error {
	if err := dst.check(enc, len(src), rows, cols); err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	if err := checkWeights(opt.Weights, cols); err != nil {
		return fmt.Errorf("encode %s: %w", enc, err)
	}
	e := newEncoder(enc, cols, opt)
	for r := range rows {
		row := src[r*cols : (r+1)*cols]
		if err := e.row(dst.Slice(enc, cols, r, r+1), row); err != nil {
			err.Row, err.Encoding = opt.FirstRow+r, enc
			return fmt.Errorf("encode %s: %w", enc, err)
		}
	}
	return nil
}

func checkWeights(w []float32, cols int) error {
	if w == nil {
		return nil
	}
	if len(w) != cols {
		return fmt.Errorf("%d column weights for %d columns", len(w), cols)
	}
	for i, v := range w {
		if !(v >= 0 && v <= math.MaxFloat32) {
			return fmt.Errorf("weight of column %d is %v, expected a finite number that is not negative", i, v)
		}
	}
	return nil
}

// DecodeRows is the inverse of EncodeRows: dst, [rows, cols], becomes the stored values, rounded to float32.
func DecodeRows(dst []float32, enc format.Encoding, src Rows, rows, cols int) error {
	if err := src.check(enc, len(dst), rows, cols); err != nil {
		return fmt.Errorf("decode: %w", err)
	}
	for r := range rows {
		decodeRow(dst[r*cols:(r+1)*cols], enc, src.Slice(enc, cols, r, r+1))
	}
	return nil
}

func decodeRow(dst []float32, enc format.Encoding, src Rows) {
	switch enc.Kind {
	case format.FP32:
		for i := range dst {
			dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(src.Values[4*i:]))
		}
	case format.FP16:
		DecodeFP16(dst, src.Values)
	case format.BF16:
		DecodeBF16(dst, src.Values)
	case format.Int8, format.Int4:
		group := groupOf(enc, len(dst))
		for g, c := 0, 0; c < len(dst); g, c = g+1, c+group {
			x := dst[c:min(c+group, len(dst))]
			p := loadParams(enc, src, g)
			if enc.Kind == format.Int8 {
				decodeInt8(x, src.Values[c:], p)
			} else {
				decodeInt4(x, src.Values[c/2:], enc.Asymmetric, p)
			}
		}
	}
}

// encoder encodes rows of one width.
type encoder struct {
	enc     format.Encoding
	group   int       // values a scale
	weights []float32 // nil: unweighted
	fit     fitter
	codes   [128]uint8
}

func newEncoder(enc format.Encoding, cols int, opt Options) *encoder {
	return &encoder{enc: enc, group: groupOf(enc, cols), weights: opt.Weights, fit: fitter{enc: enc, search: opt.Scale == LeastSquares}}
}

// groupOf is the number of values that share a scale, in a row of cols values.
func groupOf(enc format.Encoding, cols int) int {
	if enc.Group == 0 {
		return cols
	}
	return enc.Group
}

func (e *encoder) row(dst Rows, x []float32) *ValueError {
	switch e.enc.Kind {
	case format.FP32:
		return encodeFP32(dst.Values, x)
	case format.FP16, format.BF16:
		return e.encodeHalf(dst.Values, x)
	}
	for g, c := 0, 0; c < len(x); g, c = g+1, c+e.group {
		end := min(c+e.group, len(x))
		var w []float32
		if e.weights != nil {
			w = e.weights[c:end]
		}
		p, err := e.fit.params(x[c:end], w)
		if err != nil {
			err.FirstCol, err.LastCol = err.FirstCol+c, err.LastCol+c
			return err
		}
		storeParams(e.enc, dst, g, p)
		e.group1(dst.Values, c, x[c:end], p)
	}
	return nil
}

// group1 writes the codes of x, the group that begins at column c of a row with the given values, and the padding after it.
func (e *encoder) group1(values []byte, c int, x []float32, p params) {
	if e.enc.Kind == format.Int8 {
		dst := values[c:format.PaddedCols(c+len(x))]
		codesInt8(dst[:len(x)], x, p.scale)
		clear(dst[len(x):])
		return
	}
	codes := e.codes[:format.PaddedCols(len(x))]
	if e.enc.Asymmetric {
		codesAsym(codes, x, p)
	} else {
		codesSym(codes, x, p.scale)
	}
	for i := len(x); i < len(codes); i++ {
		codes[i] = 8
	}
	packInt4(values[c/2:], codes)
}

func encodeFP32(dst []byte, x []float32) *ValueError {
	for i, v := range x {
		b := math.Float32bits(v)
		if b&f32Inf == f32Inf {
			return notFinite(x, i)
		}
		binary.LittleEndian.PutUint32(dst[4*i:], b)
	}
	clear(dst[4*len(x):])
	return nil
}

func (e *encoder) encodeHalf(dst []byte, x []float32) *ValueError {
	bulk := EncodeFP16
	if e.enc.Kind == format.BF16 {
		bulk = EncodeBF16
	}
	if i := bulk(dst, x); i >= 0 {
		if v := float64(x[i]); math.IsNaN(v) || math.IsInf(v, 0) {
			return notFinite(x, i)
		}
		return &ValueError{FirstCol: i, LastCol: i, What: fmt.Sprintf("%v does not fit %s", x[i], e.enc)}
	}
	clear(dst[2*len(x):])
	return nil
}

func notFinite(x []float32, i int) *ValueError {
	return &ValueError{FirstCol: i, LastCol: i, What: fmt.Sprintf("weight is %v, expected a finite number", x[i])}
}
