package quantize

import (
	"fmt"

	"xlstm/format"
)

// Rows is the storage of consecutive rows of one tensor: the values, scales and minimums of format.Encoding.Sizes, without the
// alignment between them. Parts that the encoding does not have are empty.
type Rows struct{ Values, Scales, Mins []byte }

// MakeRows allocates storage for rows x cols values.
func MakeRows(enc format.Encoding, rows, cols int) Rows {
	s := enc.Sizes(rows, cols)
	n := int64(rows)
	return Rows{make([]byte, n*s.ValueRow), make([]byte, n*s.ScaleRow), make([]byte, n*s.MinRow)}
}

// RowsOf finds the parts of a whole stored tensor, Sizes(rows, cols).Total bytes long. Nothing is copied.
func RowsOf(data []byte, enc format.Encoding, rows, cols int) (Rows, error) {
	s := enc.Sizes(rows, cols)
	if int64(len(data)) != s.Total {
		return Rows{}, fmt.Errorf("%s tensor of %d x %d has %d bytes, expected %d", enc, rows, cols, len(data), s.Total)
	}
	n := int64(rows)
	return Rows{
		data[:n*s.ValueRow],
		data[s.ScalesOffset : s.ScalesOffset+n*s.ScaleRow],
		data[s.MinsOffset : s.MinsOffset+n*s.MinRow],
	}, nil
}

// Slice is the storage of rows [from, to). Nothing is copied.
func (r Rows) Slice(enc format.Encoding, cols, from, to int) Rows {
	s := enc.Sizes(1, cols)
	a, b := int64(from), int64(to)
	return Rows{r.Values[a*s.ValueRow : b*s.ValueRow], r.Scales[a*s.ScaleRow : b*s.ScaleRow], r.Mins[a*s.MinRow : b*s.MinRow]}
}

// check reports storage that is not that of rows x cols values, or a slice of values that is not rows*cols long.
func (r Rows) check(enc format.Encoding, values, rows, cols int) error {
	if err := enc.Validate(); err != nil {
		return err
	}
	if rows < 0 || cols < 1 {
		return fmt.Errorf("%s: %d x %d values", enc, rows, cols)
	}
	if int64(values) != int64(rows)*int64(cols) {
		return fmt.Errorf("%s: %d values, expected %d x %d", enc, values, rows, cols)
	}
	s := enc.Sizes(rows, cols)
	n := int64(rows)
	for _, p := range []struct {
		name      string
		got, want int64
	}{
		{"values", int64(len(r.Values)), n * s.ValueRow}, {"scales", int64(len(r.Scales)), n * s.ScaleRow},
		{"minimums", int64(len(r.Mins)), n * s.MinRow},
	} {
		if p.got != p.want {
			return fmt.Errorf("%s: %d bytes of %s for %d x %d values, expected %d", enc, p.got, p.name, rows, cols, p.want)
		}
	}
	return nil
}
