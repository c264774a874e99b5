package hub

import (
	"context"
	"crypto/sha1" // the hash of git's objects; the Hub gives no other for plain files
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"syscall"
)

// mismatchError is a file whose contents are not those that the Hub names.
type mismatchError struct{ kind, want, got string }

func (e *mismatchError) Error() string {
	return fmt.Sprintf("the contents are damaged: expected %s %s, found %s", e.kind, e.want, e.got)
}

// verify hashes size bytes of r and compares.
func (p *puller) verify(ctx context.Context, r io.ReaderAt, f File) error {
	if !f.Hashed() {
		return nil // every byte of its size has come: there is no more to hold it against
	}
	var h hash.Hash
	e := mismatchError{kind: "SHA-256", want: f.SHA256}
	if f.SHA256 != "" {
		h = sha256.New()
	} else {
		e = mismatchError{kind: "git blob", want: f.GitOID}
		h = sha1.New()
		fmt.Fprintf(h, "blob %d\x00", f.Size)
	}
	in, buf := io.NewSectionReader(r, 0, f.Size), make([]byte, 1<<20)
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := in.Read(buf)
		h.Write(buf[:n])
		p.report(Event{Kind: Checking, File: f, Bytes: int64(n)})
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	if e.got = hex.EncodeToString(h.Sum(nil)); e.got != e.want {
		return &e
	}
	return nil
}

// diskError says plainly what a full disk is, and that repeating the request does not help.
func diskError(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		err = fmt.Errorf("the disk is full (what has arrived is kept, pull again to go on): %w", err)
	}
	return permanent{err}
}
