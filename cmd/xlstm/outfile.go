package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
)

// outFile is a file that appears whole or not at all: written under another name beside it, synced and renamed by commit.
// Devices and pipes are written directly.
type outFile struct {
	*bufio.Writer
	f    *os.File
	name string // under which it will appear; "" for devices, pipes and stdout
}

// create begins an output file; "-" is stdout.
func (a *app) create(name string) (*outFile, error) {
	if name == "-" {
		return &outFile{Writer: bufio.NewWriter(a.out)}, nil
	}
	if info, err := os.Stat(name); err == nil && info.IsDir() {
		return nil, fmt.Errorf("%s: is a directory, expected a file to write", name)
	} else if err == nil && !info.Mode().IsRegular() {
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err != nil {
			return nil, err
		}
		return &outFile{Writer: bufio.NewWriterSize(f, 1<<20), f: f}, nil
	}
	// The temporary name is ours alone: created exclusively.
	temporary := fmt.Sprintf("%s.%08x.tmp", name, rand.Uint32())
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, errors.Unwrap(err))
	}
	return &outFile{Writer: bufio.NewWriterSize(f, 1<<20), f: f, name: name}, nil
}

// commit makes the file appear.
func (o *outFile) commit() error {
	err := o.Flush()
	if o.f == nil {
		return err
	}
	if err == nil && o.name != "" {
		err = o.f.Sync()
	}
	if cerr := o.f.Close(); err == nil {
		err = cerr
	}
	if o.name == "" {
		o.f = nil
		return err
	}
	if err == nil {
		err = os.Rename(o.f.Name(), o.name)
	}
	if err != nil {
		_ = os.Remove(o.f.Name()) // the error to report is the first
		o.f = nil
		return o.explain(err)
	}
	o.f = nil
	dir, err := os.Open(filepath.Dir(o.name))
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := dir.Sync(); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	return nil
}

// abort removes what was written; after commit it does nothing.
func (o *outFile) abort() {
	if o.f == nil {
		return
	}
	o.f.Close()
	if o.name != "" {
		_ = os.Remove(o.f.Name()) // an error is on its way already
	}
	o.f = nil
}

// explain names the file that was asked for in place of its temporary name.
func (o *outFile) explain(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return fmt.Errorf("%s %s: %w", p.Op, o.name, p.Err)
	}
	return err
}

// writeWhole writes a file by write: whole, or not at all.
func (a *app) writeWhole(name string, write func(w io.Writer) error) error {
	o, err := a.create(name)
	if err != nil {
		return err
	}
	defer o.abort()
	if err := write(o); err != nil {
		return o.explain(err)
	}
	return o.commit()
}
