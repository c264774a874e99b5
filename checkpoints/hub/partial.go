package hub

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"sync"
)

const (
	partialSuffix = ".partial"
	journalSuffix = ".partial.journal"
	flushBytes    = 8 << 20 // a killed program loses at most this much of each running request
	maxJournal    = 16 << 20
)

// span is the bytes [start, end) of a file.
type span struct{ start, end int64 }

// partial is a file on its way: NAME.partial, as long as the file will be, and NAME.partial.journal, which says what of it is
// there. The journal's first line is the identity of what is downloaded; a journal with another identity is worth nothing.
// Each further line is "START LENGTH". It is written after the bytes, and not synced: what a crash of the machine loses, the
// hash of the whole file finds out.
type partial struct {
	File
	file, journal *os.File

	mu    sync.Mutex
	done  []span // sorted, disjoint, not touching
	bytes int64  // of done
}

// identity is the first line of a journal.
type identity struct {
	Repo, Commit, Path string
	Size               int64
	SHA256, GitOID     string
}

// openPartial opens what an earlier pull left of f, or begins anew.
func (p *puller) openPartial(f File) (*partial, error) {
	if dir := path.Dir(f.Path); dir != "." {
		if err := p.root.MkdirAll(dir, 0o777); err != nil {
			return nil, err
		}
	}
	part := &partial{File: f}
	var err error
	if part.file, err = p.openRegular(f.Path + partialSuffix); err != nil {
		return nil, err
	}
	if part.journal, err = p.openRegular(f.Path + journalSuffix); err != nil {
		part.close()
		return nil, err
	}
	head, err := json.Marshal(identity{p.repo, p.commit, f.Path, f.Size, f.SHA256, f.GitOID})
	if err == nil {
		err = part.load(head)
	}
	if err != nil {
		part.close()
		return nil, fmt.Errorf("%s: %w", f.Path, diskError(err))
	}
	return part, nil
}

// openRegular opens a file for reading and writing, and refuses anything that is there and not a regular file.
func (p *puller) openRegular(name string) (*os.File, error) {
	if info, err := p.root.Lstat(name); err == nil && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: expected a regular file, found %s", name, info.Mode().Type())
	}
	return p.root.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o666)
}

// load reads the journal and writes it anew, short.
func (d *partial) load(head []byte) error {
	text, err := io.ReadAll(io.LimitReader(d.journal, maxJournal))
	if err != nil {
		return err
	}
	info, err := d.file.Stat()
	if err != nil {
		return err
	}
	if rest, ok := bytes.CutPrefix(text, append(bytes.Clone(head), '\n')); ok && info.Size() == d.Size {
		d.parse(rest)
	} else if err := d.file.Truncate(0); err != nil {
		return err
	}
	if err := d.file.Truncate(d.Size); err != nil {
		return err
	}
	out := append(bytes.Clone(head), '\n')
	for _, s := range d.done {
		out = fmt.Appendf(out, "%d %d\n", s.start, s.end-s.start)
	}
	if err := d.journal.Truncate(0); err != nil {
		return err
	}
	if _, err := d.journal.WriteAt(out, 0); err != nil {
		return err
	}
	_, err = d.journal.Seek(0, io.SeekEnd)
	return err
}

// parse takes the journal's lines as long as they make sense; the last may be cut off.
func (d *partial) parse(lines []byte) {
	r := bufio.NewReader(bytes.NewReader(lines))
	for {
		line, err := r.ReadString('\n')
		var start, n int64
		if err != nil {
			return
		}
		if k, err := fmt.Sscanf(line, "%d %d\n", &start, &n); k != 2 || err != nil || start < 0 || n <= 0 || n > d.Size || start > d.Size-n {
			return
		}
		d.add(start, n)
	}
}

// have is how many bytes are there.
func (d *partial) have() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.bytes
}

// add notes that n bytes from start are there, and returns how many of them were not before.
func (d *partial) add(start, n int64) (fresh int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := span{start, start + n}
	i, _ := slices.BinarySearchFunc(d.done, s, func(a, b span) int {
		if a.end < b.start {
			return -1
		}
		return 1
	})
	j := i
	for ; j < len(d.done) && d.done[j].start <= s.end; j++ {
		s.start, s.end = min(s.start, d.done[j].start), max(s.end, d.done[j].end)
		fresh -= d.done[j].end - d.done[j].start
	}
	d.done = slices.Replace(d.done, i, j, s)
	fresh += s.end - s.start
	d.bytes += fresh
	return fresh
}

// flush writes down that n bytes from start are there.
func (d *partial) flush(start, n int64) error {
	if n <= 0 {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	_, err := fmt.Fprintf(d.journal, "%d %d\n", start, n)
	return err
}

// missing lists what is not there yet, in pieces of at most size bytes.
func (d *partial) missing(size int64) (pieces []span) {
	d.mu.Lock()
	defer d.mu.Unlock()
	at := int64(0)
	for _, s := range append(slices.Clone(d.done), span{d.Size, d.Size}) {
		for at < s.start {
			end := min(at+size, s.start)
			pieces = append(pieces, span{at, end})
			at = end
		}
		at = s.end
	}
	return pieces
}

// restart forgets what is there.
func (d *partial) restart() (thrown int64, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	thrown, d.bytes, d.done = d.bytes, 0, nil
	line, err := bufio.NewReader(io.NewSectionReader(d.journal, 0, maxJournal)).ReadString('\n')
	if err != nil {
		return thrown, err
	}
	if err := d.journal.Truncate(int64(len(line))); err != nil {
		return thrown, err
	}
	_, err = d.journal.Seek(0, io.SeekEnd)
	return thrown, err
}

func (d *partial) close() {
	for _, f := range []*os.File{d.file, d.journal} {
		if f != nil {
			_ = f.Close() // nothing is taken for written that finish has not synced
		}
	}
	d.file, d.journal = nil, nil
}

// finish puts the checked file in its place: synced, renamed, and the folder's entry synced.
func (p *puller) finish(d *partial) error {
	if err := d.file.Sync(); err != nil {
		return diskError(err)
	}
	d.close()
	if err := p.root.Rename(d.Path+partialSuffix, d.Path); err != nil {
		return err
	}
	if err := p.root.Remove(d.Path + journalSuffix); err != nil {
		return err
	}
	dir, err := p.root.Open(path.Dir(d.Path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// discard removes a partial file and its journal.
func (p *puller) discard(d *partial) {
	d.close()
	for _, name := range []string{d.Path + partialSuffix, d.Path + journalSuffix} {
		_ = p.root.Remove(name) // an error is on its way already
	}
}

// whole reports whether f is in the directory already, byte for byte.
func (p *puller) whole(ctx context.Context, f File) (bool, error) {
	info, err := p.root.Lstat(f.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if info.Mode().Type()&^fs.ModeSymlink != 0 {
		return false, fmt.Errorf("%s: expected a regular file, found %s", path.Join(p.dir, f.Path), info.Mode().Type())
	}
	if !f.Hashed() {
		return false, nil // it might be of another commit
	}
	file, err := p.root.Open(f.Path)
	if err != nil {
		return false, err
	}
	defer file.Close()
	if info, err = file.Stat(); err != nil || info.Size() != f.Size {
		return false, err
	}
	err = p.verify(ctx, file, f)
	var m *mismatchError
	if errors.As(err, &m) {
		return false, nil
	}
	return err == nil, err
}
