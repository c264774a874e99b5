package format

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// verifyChunk is how much is read at once, in bytes.
const verifyChunk = 1 << 20

// Verify reads every byte of the file and compares it with its checksum; bytes that have none are padding and must be zero, and the
// values that pad rows must be codes of zero. It reads the file rather than its mapping, so that it needs little memory, using all
// cores. progress, which may be nil, is told the bytes read so far and in all, from several goroutines at once.
func (f *File) Verify(ctx context.Context, progress func(done, total int64)) error {
	v := &verifier{file: f, progress: progress}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	g.Go(func() error { return v.frame(ctx) })
	// The largest first, so that no worker is left alone with one at the end.
	tensors := slices.Clone(f.tensors)
	slices.SortStableFunc(tensors, func(a, b Tensor) int { return len(b.Data) - len(a.Data) })
	offsets := v.offsets()
	for _, t := range tensors {
		g.Go(func() error { return v.tensor(ctx, &t, offsets[t.Name]) })
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("verify %s: %w", f.path, err)
	}
	return nil
}

type verifier struct {
	file     *File
	progress func(done, total int64)
	done     atomic.Int64
}

func (v *verifier) offsets() map[string]int64 {
	at := make(map[string]int64, len(v.file.tensors))
	offset := v.file.header.sections[sectionTensors].offset
	for i := range v.file.tensors {
		t := &v.file.tensors[i]
		at[t.Name] = offset
		offset += int64(len(t.Data))
	}
	return at
}

// read passes the bytes of [from, to) to each, in order.
func (v *verifier) read(ctx context.Context, from, to int64, each func(b []byte) error) error {
	buf := make([]byte, min(to-from, verifyChunk))
	for from < to {
		if err := ctx.Err(); err != nil {
			return err
		}
		b := buf[:min(to-from, verifyChunk)]
		if n, err := v.file.file.ReadAt(b, from); n < len(b) {
			if err == io.EOF {
				return fmt.Errorf("the file ends at byte %d, expected %d: it was shortened after it was opened", from+int64(n), v.file.header.fileSize)
			}
			return cause(err)
		}
		if err := each(b); err != nil {
			return err
		}
		from += int64(len(b))
		if done := v.done.Add(int64(len(b))); v.progress != nil {
			v.progress(done, v.file.header.fileSize)
		}
	}
	return nil
}

// frame checks everything but the tensors: the header, the other sections, and the padding between them.
func (v *verifier) frame(ctx context.Context) error {
	var head []byte
	if err := v.read(ctx, 0, headerSize, func(b []byte) error { head = append(head, b...); return nil }); err != nil {
		return err
	}
	if h, err := parseHeader(head, v.file.header.fileSize); err != nil {
		return err
	} else if *h != *v.file.header {
		return errors.New("the header has changed since the file was opened")
	}
	end := int64(headerSize)
	for i := range v.file.header.sections {
		s := &v.file.header.sections[i]
		if err := v.zeros(ctx, "before section "+sectionNames[i], end, s.offset); err != nil {
			return err
		}
		end = s.end()
		if i == sectionTensors {
			continue // each tensor has a checksum of its own
		}
		if err := v.sum(ctx, "section "+sectionNames[i], s.offset, end, s.sum); err != nil {
			return err
		}
	}
	return nil
}

func (v *verifier) zeros(ctx context.Context, where string, from, to int64) error {
	at := from
	return v.read(ctx, from, to, func(b []byte) error {
		if i := nonZero(b); i >= 0 {
			return fmt.Errorf("padding %s: byte %d is %#x, expected 0", where, at+int64(i), b[i])
		}
		at += int64(len(b))
		return nil
	})
}

func nonZero(b []byte) int { return slices.IndexFunc(b, func(c byte) bool { return c != 0 }) }

func (v *verifier) sum(ctx context.Context, what string, from, to int64, want [sha256.Size]byte) error {
	h := sha256.New()
	if err := v.read(ctx, from, to, func(b []byte) error { h.Write(b); return nil }); err != nil {
		return err
	}
	if sum := [sha256.Size]byte(h.Sum(nil)); sum != want {
		return damaged(what, sum, want)
	}
	return nil
}

func (v *verifier) tensor(ctx context.Context, t *Tensor, offset int64) error {
	if err := v.sum(ctx, "tensor "+t.Name, offset, offset+int64(len(t.Data)), t.SHA256); err != nil {
		return err
	}
	// Its bytes are what the writer wrote. That these follow the rules is looked at in the mapping.
	if err := t.checkPadding(); err != nil {
		return fmt.Errorf("tensor %s: %w", t.Name, err)
	}
	return nil
}

// checkPadding checks the zeros after each part and the codes of zero after each row.
func (t *Tensor) checkPadding() error {
	s := t.Encoding.Sizes(t.Rows, t.Cols)
	n := int64(t.Rows)
	for _, p := range []struct {
		part     string
		from, to int64
	}{
		{"values", n * s.ValueRow, s.ScalesOffset}, {"scales", s.ScalesOffset + n*s.ScaleRow, s.MinsOffset},
		{"minimums", s.MinsOffset + n*s.MinRow, s.Total},
	} {
		if i := nonZero(t.Data[p.from:p.to]); i >= 0 {
			return fmt.Errorf("padding after the %s is not zero", p.part)
		}
	}
	if t.Cols%RowAlign == 0 {
		return nil
	}
	for r := range n {
		if !t.Encoding.paddedWithZero(t.Data[r*s.ValueRow:(r+1)*s.ValueRow], t.Cols) {
			return fmt.Errorf("row %d is not padded with the code of zero", r)
		}
	}
	return nil
}

// paddedWithZero reports whether the values of a stored row beyond cols are codes of zero.
func (e Encoding) paddedWithZero(row []byte, cols int) bool {
	if e.Kind != Int4 {
		return nonZero(row[len(row)/PaddedCols(cols)*cols:]) < 0
	}
	// The last block of 32 values has value j in the low nibble of byte j and value j+16 in its high nibble.
	block := row[cols/32*16:]
	for j := cols % 32; j < 32; j++ {
		if block[j%16]>>(j/16*4)&15 != 8 {
			return false
		}
	}
	return true
}
