package runtime

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
)

// A state's file, version 1, little-endian:
//
//	magic "XLSTMSTA", version u32, pending tokens u32, model fingerprint [32]byte, tokens in the memory u64, floats u64,
//	the pending tokens u32 each, the floats (kernels.State.Export's), CRC-32C of all before it u32
const (
	stateMagic   = "XLSTMSTA"
	stateVersion = 1
	stateHeader  = 8 + 4 + 4 + 32 + 8 + 8
	stateChunk   = 1 << 16 // floats written or read at once
)

var errNotRegular = errors.New("not a regular file")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Save writes the state to a file, whole or not at all: a temporary file beside it takes its name once it is on the disk. What is
// there already is replaced if it is a regular file; a directory, device or pipe is an error.
func (s *State) Save(path string) (err error) {
	if s.broken != nil {
		return s.broken
	}
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("save state to %s: %w", path, errNotRegular)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.tmp")
	if err != nil {
		return fmt.Errorf("save state to %s: %w", path, cause(err))
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
			err = fmt.Errorf("save state to %s: %w", path, cause(err))
		}
	}()
	if err := s.write(f); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// cause leaves out the temporary name, which says nothing to who asked for another.
func cause(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// syncDir makes a rename in dir last. Systems that cannot sync directories do without.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return nil
	}
	_ = d.Sync() // not every file system has it, and the file itself is safe
	return d.Close()
}

func (s *State) write(f io.Writer) error {
	sum := crc32.New(castagnoli)
	w := bufio.NewWriterSize(io.MultiWriter(f, sum), 1<<18)
	floats := make([]float32, s.model.cfg.StateFloats())
	if err := s.memory.Export(floats); err != nil {
		return err
	}
	le := binary.LittleEndian
	h := le.AppendUint32([]byte(stateMagic), stateVersion)
	h = le.AppendUint32(h, uint32(len(s.pending)))
	h = append(h, s.model.fingerprint[:]...)
	h = le.AppendUint64(h, s.fed)
	h = le.AppendUint64(h, uint64(len(floats)))
	for _, id := range s.pending {
		h = le.AppendUint32(h, uint32(id))
	}
	if _, err := w.Write(h); err != nil {
		return err
	}
	buf := make([]byte, 0, 4*stateChunk)
	for len(floats) > 0 {
		n := min(stateChunk, len(floats))
		buf = buf[:0]
		for _, v := range floats[:n] {
			buf = le.AppendUint32(buf, math.Float32bits(v))
		}
		if _, err := w.Write(buf); err != nil {
			return err
		}
		floats = floats[n:]
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return binary.Write(f, le, sum.Sum32())
}

// LoadState reads a state that Save wrote for the same model, on whatever engine. Any other file is an error.
func (m *Model) LoadState(path string) (*State, error) {
	info, err := os.Stat(path) // before opening, which waits where the path is a pipe
	if err != nil {
		return nil, fmt.Errorf("load state: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("load state from %s: %w", path, errNotRegular)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("load state: %w", err)
	}
	defer f.Close()
	s, err := m.readState(bufio.NewReaderSize(f, 1<<18), info.Size())
	if err != nil {
		return nil, fmt.Errorf("load state from %s: %w", path, err)
	}
	return s, nil
}

// readState reads a state file of size bytes. Nothing is allocated before the size is known to be right.
func (m *Model) readState(r io.Reader, size int64) (*State, error) {
	sum := crc32.New(castagnoli)
	summed := io.TeeReader(r, sum)
	h := make([]byte, stateHeader)
	if _, err := io.ReadFull(summed, h); err != nil {
		return nil, fmt.Errorf("%d bytes, too few for a state file", size)
	}
	fed, waiting, err := m.checkStateHeader(h, size)
	if err != nil {
		return nil, err
	}
	pending, err := m.readPending(summed, waiting)
	if err != nil {
		return nil, err
	}
	floats, err := readFloats(summed, m.cfg.StateFloats())
	if err != nil {
		return nil, err
	}
	var stored uint32
	if err := binary.Read(r, binary.LittleEndian, &stored); err != nil {
		return nil, err
	}
	if stored != sum.Sum32() {
		return nil, errors.New("the checksum does not match: the file is damaged")
	}
	for i, v := range floats {
		if v-v != 0 {
			return nil, fmt.Errorf("value %d is %v", i, v)
		}
	}
	s, err := m.NewState()
	if err != nil {
		return nil, err
	}
	if err := s.memory.Import(floats); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.fed, s.pending = fed, pending
	return s, nil
}

// checkStateHeader reads how many tokens are in the memory, and how many wait. What it accepts has the size that its counts imply.
func (m *Model) checkStateHeader(h []byte, size int64) (fed uint64, waiting int, err error) {
	le := binary.LittleEndian
	if string(h[:8]) != stateMagic {
		return 0, 0, errors.New("not a state file")
	}
	if v := le.Uint32(h[8:]); v != stateVersion {
		return 0, 0, fmt.Errorf("version %d, expected %d", v, stateVersion)
	}
	if [32]byte(h[16:48]) != m.fingerprint {
		return 0, 0, fmt.Errorf("it is a state of model %x, not of %x", h[16:24], m.fingerprint[:8])
	}
	if n := le.Uint64(h[56:]); n != uint64(m.cfg.StateFloats()) {
		return 0, 0, fmt.Errorf("%d values, expected %d", n, m.cfg.StateFloats())
	}
	tokens := int64(le.Uint32(h[12:]))
	if want := stateHeader + 4*tokens + 4*int64(m.cfg.StateFloats()) + 4; size != want {
		return 0, 0, fmt.Errorf("%d bytes, expected %d", size, want)
	}
	if fed = le.Uint64(h[48:]); fed > math.MaxInt64 {
		return 0, 0, fmt.Errorf("%d tokens: impossible", fed)
	}
	return fed, int(tokens), nil
}

func (m *Model) readPending(r io.Reader, n int) ([]int32, error) {
	b := make([]byte, 4*n)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	var pending []int32
	for ; len(b) > 0; b = b[4:] {
		pending = append(pending, int32(binary.LittleEndian.Uint32(b)))
	}
	return pending, m.checkIDs(pending)
}

func readFloats(r io.Reader, n int) ([]float32, error) {
	floats := make([]float32, n)
	buf := make([]byte, 4*min(n, stateChunk))
	for i := 0; i < n; {
		b := buf[:4*min(n-i, stateChunk)]
		if _, err := io.ReadFull(r, b); err != nil {
			return nil, err
		}
		for ; len(b) > 0; b = b[4:] {
			floats[i] = math.Float32frombits(binary.LittleEndian.Uint32(b))
			i++
		}
	}
	return floats, nil
}
