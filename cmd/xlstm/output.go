package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
)

// output is stdout: buffered, and remembering the first error, which run reports. Commands write without looking.
type output struct {
	mu  sync.Mutex
	w   io.Writer
	buf []byte
	err error
}

const outputBuffer = 64 << 10

// Write implements io.Writer.
func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.buf = append(o.buf, b...)
	if len(o.buf) >= outputBuffer {
		o.flush()
	}
	if o.err != nil {
		return 0, o.err
	}
	return len(b), nil
}

// Flush passes on what is buffered, and returns the first error that there was.
func (o *output) Flush() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.flush()
	return o.err
}

func (o *output) flush() {
	if o.err == nil && len(o.buf) > 0 {
		if _, err := o.w.Write(o.buf); err != nil {
			o.err = fmt.Errorf("output: %w", err)
		}
	}
	o.buf = o.buf[:0]
}

// printf writes to stdout.
func (a *app) printf(format string, args ...any) { fmt.Fprintf(a.out, format, args...) }

// printJSON writes v to stdout, indented.
func (a *app) printJSON(v any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return err
	}
	_, err := a.out.Write(b.Bytes())
	return err
}

// What is read whole at most, in bytes: a text, ids or a tokenizer. Devices and pipes may have no end, and their size is not known
// before, so that reading them takes three times the memory for a moment.
const (
	maxInput  = 2 << 30 // of a file
	maxStream = 512 << 20
)

// readInput reads a whole file, or stdin for "-". It returns at once when the context ends, whatever the file does.
func (a *app) readInput(ctx context.Context, name string) ([]byte, error) {
	type result struct {
		b   []byte
		err error
	}
	c := make(chan result, 1)
	go func() {
		var r result
		if name == "-" {
			r.b, r.err = readAtMost(a.in, "stdin", 0, maxStream)
		} else {
			r.b, r.err = readFile(name)
		}
		c <- r
	}()
	select {
	case r := <-c:
		return r.b, r.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return readAtMost(f, name, 0, maxStream)
	}
	return readAtMost(f, name, info.Size(), maxInput)
}

// readAtMost reads r to its end, which is expected after size bytes; more than limit bytes are an error.
func readAtMost(r io.Reader, name string, size, limit int64) ([]byte, error) {
	if size > limit {
		return nil, fmt.Errorf("%s: %d bytes, expected at most %d", name, size, limit)
	}
	b := bytes.NewBuffer(make([]byte, 0, max(size, 0)+bytes.MinRead))
	if _, err := b.ReadFrom(io.LimitReader(r, limit+1)); err != nil {
		if name == "stdin" {
			err = fmt.Errorf("stdin: %w", err)
		}
		return nil, err
	}
	if int64(b.Len()) > limit {
		return nil, fmt.Errorf("%s: more than %d bytes", name, limit)
	}
	return b.Bytes(), nil
}

// size is a number of bytes for people, in powers of 1000 as disks and the Hub count.
func size(n int64) string {
	x, unit := float64(n), "B"
	for _, u := range []string{"kB", "MB", "GB", "TB", "PB"} {
		if x < 999.5 {
			break
		}
		x, unit = x/1000, u
	}
	switch {
	case unit == "B":
		return fmt.Sprintf("%d B", n)
	case x < 9.995:
		return fmt.Sprintf("%.2f %s", x, unit)
	case x < 99.95:
		return fmt.Sprintf("%.1f %s", x, unit)
	}
	return fmt.Sprintf("%.0f %s", x, unit)
}
