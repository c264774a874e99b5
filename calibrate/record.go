package calibrate

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
)

// A record is a file of the work directory: magic, the calibration's key, the length of the head, the head (JSON), the body, and the
// SHA-256 of all that. It is written under another name and renamed: there whole, or not at all.
const (
	recordMagic   = "XLSTMCAL"
	recordFixed   = len(recordMagic) + sha256.Size + 4
	recordMaxHead = 1 << 20
	copyBytes     = 1 << 20
)

// writeRecord writes a record whose body is what write writes.
func writeRecord(ctx context.Context, path string, key [sha256.Size]byte, head any, write func(io.Writer) error) (err error) {
	text, err := json.Marshal(head)
	if err != nil {
		return err
	}
	if len(text) > recordMaxHead {
		return fmt.Errorf("%s: a head of %d bytes, expected at most %d", path, len(text), recordMaxHead)
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*.tmp")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = errors.Join(f.Close(), os.Remove(f.Name())) // the first error is the one to report
		}
	}()
	sum := sha256.New()
	w := bufio.NewWriterSize(io.MultiWriter(stoppable{ctx, f}, sum), copyBytes)
	fixed := append([]byte(recordMagic), key[:]...)
	fixed = binary.LittleEndian.AppendUint32(fixed, uint32(len(text)))
	if _, err = w.Write(append(fixed, text...)); err == nil {
		err = write(w)
	}
	if err == nil {
		err = w.Flush()
	}
	if err == nil {
		_, err = f.Write(sum.Sum(nil))
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = f.Close()
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	return err
}

// stoppable is a file that is written until the context ends.
type stoppable struct {
	ctx context.Context
	f   *os.File
}

func (s stoppable) Write(b []byte) (int, error) {
	for at := 0; at < len(b); at += copyBytes {
		if err := s.ctx.Err(); err != nil {
			return at, err
		}
		if n, err := s.f.Write(b[at:min(at+copyBytes, len(b))]); err != nil {
			return at + n, err
		}
	}
	return len(b), nil
}

// record is an open record whose checksum was right.
type record struct {
	f    *os.File
	body int64 // offset
	size int64 // of the body, in bytes
}

// openRecord opens a record, checks all of it and reads its head.
func openRecord(ctx context.Context, path string, key [sha256.Size]byte, head any) (*record, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	r, err := readRecord(ctx, f, key, head)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

func readRecord(ctx context.Context, f *os.File, key [sha256.Size]byte, head any) (*record, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() < int64(recordFixed+sha256.Size) {
		return nil, fmt.Errorf("%d bytes, expected at least %d: not of a calibration", info.Size(), recordFixed+sha256.Size)
	}
	sum := sha256.New()
	in := io.TeeReader(bufio.NewReaderSize(io.LimitReader(f, info.Size()-sha256.Size), copyBytes), sum)
	fixed := make([]byte, recordFixed)
	if _, err := io.ReadFull(in, fixed); err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint32(fixed[recordFixed-4:])
	switch {
	case string(fixed[:len(recordMagic)]) != recordMagic:
		return nil, errors.New("not of a calibration")
	case string(fixed[len(recordMagic):recordFixed-4]) != string(key[:]):
		return nil, errors.New("of another calibration")
	case int64(n) > min(recordMaxHead, info.Size()-int64(recordFixed+sha256.Size)):
		return nil, fmt.Errorf("damaged: a head of %d bytes", n)
	}
	text := make([]byte, n)
	if _, err := io.ReadFull(in, text); err != nil {
		return nil, err
	}
	if err := copyAll(ctx, in); err != nil {
		return nil, err
	}
	if err := checkSum(f, sum, info.Size()-sha256.Size); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, head); err != nil {
		return nil, fmt.Errorf("damaged: %w", err)
	}
	body := int64(recordFixed) + int64(n)
	return &record{f: f, body: body, size: info.Size() - sha256.Size - body}, nil
}

// copyAll reads what is left, looking at the context now and then.
func copyAll(ctx context.Context, in io.Reader) error {
	for {
		if _, err := io.CopyN(io.Discard, in, copyBytes); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

func checkSum(f *os.File, sum hash.Hash, at int64) error {
	want := make([]byte, sha256.Size)
	if _, err := f.ReadAt(want, at); err != nil {
		return err
	}
	if string(want) != string(sum.Sum(nil)) {
		return errors.New("damaged: its checksum is wrong")
	}
	return nil
}

// readAt fills dst from the body at off.
func (r *record) readAt(dst []byte, off int64) error {
	if off < 0 || off+int64(len(dst)) > r.size {
		return fmt.Errorf("%s: %d bytes at %d of %d", r.f.Name(), len(dst), off, r.size)
	}
	_, err := r.f.ReadAt(dst, r.body+off)
	return err
}

func (r *record) close() error { return r.f.Close() }
