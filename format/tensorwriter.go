package format

import (
	"crypto/sha256"
	"fmt"
	"hash"
)

// TensorWriter writes one tensor's rows, from the first to the last. Values go to the file as they come; scales and minimums,
// which lie behind all values, are kept until the last row. It is for one goroutine at a time.
type TensorWriter struct {
	w            *Writer
	spec         TensorSpec
	sizes        Sizes
	offset       int64
	taken        bool
	err          error // the first
	rows         int   // written so far
	hash         hash.Hash
	sum          [sha256.Size]byte // once it is complete
	scales, mins []byte
}

func newTensorWriter(w *Writer, s TensorSpec, offset int64) TensorWriter {
	return TensorWriter{w: w, spec: s, sizes: s.Encoding.Sizes(s.Rows, s.Cols), offset: offset}
}

// Spec is the tensor's name, encoding and shape.
func (t *TensorWriter) Spec() TensorSpec { return t.spec }

// WriteRows writes the next rows: Sizes.ValueRow, ScaleRow and MinRow bytes for each of them. Parts that the encoding does not
// have are empty. The bytes may be changed once it has returned. After an error the tensor stays incomplete.
func (t *TensorWriter) WriteRows(values, scales, mins []byte) error {
	if t.err == nil {
		t.err = t.write(values, scales, mins)
	}
	if t.err != nil {
		return fmt.Errorf("write %s: tensor %s: %w", t.w.path, t.spec.Name, cause(t.err))
	}
	return nil
}

func (t *TensorWriter) write(values, scales, mins []byte) error {
	n := int64(len(values)) / t.sizes.ValueRow
	for _, p := range []struct {
		name      string
		got, want int64
	}{
		{"values", int64(len(values)), n * t.sizes.ValueRow}, {"scales", int64(len(scales)), n * t.sizes.ScaleRow},
		{"minimums", int64(len(mins)), n * t.sizes.MinRow},
	} {
		if p.got != p.want {
			return fmt.Errorf("%d bytes of %s, expected %d for %d rows", p.got, p.name, p.want, n)
		}
	}
	if n > int64(t.spec.Rows-t.rows) {
		return fmt.Errorf("rows %d to %d of %d", t.rows, int64(t.rows)+n, t.spec.Rows)
	}
	if n == 0 {
		return nil
	}
	if t.hash == nil {
		t.hash = sha256.New()
	}
	t.hash.Write(values)
	if _, err := t.w.file.WriteAt(values, t.offset+int64(t.rows)*t.sizes.ValueRow); err != nil {
		return err
	}
	t.scales, t.mins = append(t.scales, scales...), append(t.mins, mins...)
	if t.rows+int(n) == t.spec.Rows {
		if err := t.finish(); err != nil {
			return err
		}
	}
	t.rows += int(n) // last: an error leaves the tensor incomplete
	return nil
}

// finish writes the parts behind the values. The padding is zero as the file was made.
func (t *TensorWriter) finish() error {
	var zeros [PartAlign]byte
	at := int64(t.spec.Rows) * t.sizes.ValueRow
	for _, p := range []struct {
		offset int64
		part   []byte
	}{{t.sizes.ScalesOffset, t.scales}, {t.sizes.MinsOffset, t.mins}, {t.sizes.Total, nil}} {
		t.hash.Write(zeros[:p.offset-at])
		t.hash.Write(p.part)
		if _, err := t.w.file.WriteAt(p.part, t.offset+p.offset); err != nil {
			return err
		}
		at = p.offset + int64(len(p.part))
	}
	t.hash.Sum(t.sum[:0])
	t.hash, t.scales, t.mins = nil, nil, nil
	return nil
}
