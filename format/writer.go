package format

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
)

// Header is what a file holds beside its weights.
type Header struct {
	Config     Config
	Recipe     string
	Provenance Provenance
	Tokenizer  []byte       // compiled; empty where the checkpoint has none
	Tensors    []TensorSpec // those that Specs lists for Config, in that order
}

// Writer writes one file. It writes to a temporary file beside it, .NAME.tmp-XXXXXXXX, which Commit gives its name and Abort
// removes: a file appears whole or not at all.
type Writer struct {
	path, temp string
	file       *os.File
	header     header
	sections   [numSections][]byte // of all but the tensors
	provenance Provenance
	tensors    []TensorWriter
	index      map[string]int

	mu   sync.Mutex // guards tensors' taken
	done bool
}

// Create begins a file. Its layout is settled and the space for it reserved before it returns, so that a full disk is an error
// here, errors.Is(err, ErrNoSpace) where the system told how much there is.
func Create(path string, h Header) (*Writer, error) {
	w := &Writer{path: path, provenance: h.Provenance, index: map[string]int{}}
	err := w.plan(&h)
	if err == nil {
		err = w.create()
	}
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", path, err)
	}
	return w, nil
}

// plan lays the file out.
func (w *Writer) plan(h *Header) error {
	if err := h.Config.Validate(); err != nil {
		return err
	}
	if err := checkSpecs(&h.Config, h.Tensors); err != nil {
		return err
	}
	config, err := json.Marshal(&h.Config)
	if err != nil {
		return err
	}
	w.sections[sectionConfig] = config
	w.sections[sectionRecipe] = []byte(h.Recipe)
	w.sections[sectionTokenizer] = h.Tokenizer
	w.sections[sectionDirectory] = make([]byte, len(h.Tensors)*entrySize)
	if w.sections[sectionProvenance], err = json.Marshal(&h.Provenance); err != nil {
		return err
	}
	size := int64(0)
	for i := range h.Tensors {
		size += h.Tensors[i].Size()
	}
	if err := w.place(size); err != nil {
		return err
	}
	offset := w.header.sections[sectionTensors].offset
	w.tensors = make([]TensorWriter, len(h.Tensors))
	for i, s := range h.Tensors {
		w.tensors[i] = newTensorWriter(w, s, offset)
		w.index[s.Name] = i
		offset += s.Size()
	}
	return nil
}

// place gives the sections their places; tensors is the size of theirs.
func (w *Writer) place(tensors int64) error {
	for i := range w.header.sections {
		s := &w.header.sections[i]
		s.length = int64(len(w.sections[i]))
		if i == sectionTensors {
			s.length = tensors
		}
		if s.length > sectionMax[i] {
			return fmt.Errorf("section %s has %d bytes, expected at most %d", sectionNames[i], s.length, sectionMax[i])
		}
	}
	w.header.place()
	return nil
}

func checkSpecs(c *Config, specs []TensorSpec) error {
	if n := tensorCount(c); len(specs) != n {
		return fmt.Errorf("%d tensors, expected the %d of the config", len(specs), n)
	}
	for i, want := range Specs(c, func(string) Encoding { return Encoding{} }) {
		got := specs[i]
		if want.Encoding.Kind == 0 {
			want.Encoding = got.Encoding
		}
		if got != want {
			return fmt.Errorf("tensor %d is %s, %d x %d, %s, expected %s, %d x %d, %s", i, got.Name, got.Rows, got.Cols, got.Encoding,
				want.Name, want.Rows, want.Cols, want.Encoding)
		}
		if err := got.Encoding.Validate(); err != nil {
			return fmt.Errorf("tensor %s: %w", got.Name, err)
		}
	}
	return nil
}

// create makes the temporary file.
func (w *Writer) create() error {
	if info, err := os.Stat(w.path); err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("it exists and is %s, expected a regular file or none", describeMode(info.Mode()))
	}
	dir, base := filepath.Split(w.path)
	if base == "" || base == "." || base == ".." {
		return errors.New("expected the name of a file")
	}
	var err error
	for range 100 {
		w.temp = filepath.Join(dir, fmt.Sprintf(".%s.tmp-%08x", base, rand.Uint32()))
		w.file, err = os.OpenFile(w.temp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
		if !errors.Is(err, fs.ErrExist) {
			break
		}
	}
	if err != nil {
		return cause(err)
	}
	if err := reserve(w.file, w.header.fileSize); err != nil {
		w.Abort()
		if errors.Is(err, ErrNoSpace) {
			return err
		}
		return fmt.Errorf("reserve %d bytes: %w", w.header.fileSize, cause(err))
	}
	return nil
}

// Tensor gives the writer of one tensor, once. Different tensors may be written by different goroutines at the same time.
func (w *Writer) Tensor(name string) (*TensorWriter, error) {
	i, ok := w.index[name]
	if !ok {
		return nil, fmt.Errorf("write %s: there is no tensor %s", w.path, name)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	t := &w.tensors[i]
	if t.taken {
		return nil, fmt.Errorf("write %s: tensor %s is already being written", w.path, name)
	}
	t.taken = true
	return t, nil
}

// SetProvenance replaces the provenance that Create was given, for what becomes known only while the weights are written.
func (w *Writer) SetProvenance(p Provenance) { w.provenance = p }

// Commit completes the file, makes it durable and gives it its name. It refuses while a tensor is incomplete. After an error
// there is no new file, unless it is the directory that could not be made durable.
func (w *Writer) Commit() error {
	if w.done {
		return fmt.Errorf("commit %s: already committed or aborted", w.path)
	}
	err := w.finish()
	if err == nil {
		err = w.file.Sync()
	}
	if err == nil {
		err = w.file.Close()
	}
	if err == nil {
		err = os.Rename(w.temp, w.path)
	}
	if err != nil {
		w.Abort()
		return fmt.Errorf("commit %s: %w", w.path, cause(err))
	}
	w.done = true
	if err := syncDir(filepath.Dir(w.path)); err != nil {
		return fmt.Errorf("commit %s: sync its directory: %w", w.path, cause(err))
	}
	return nil
}

// finish writes everything but the tensors.
func (w *Writer) finish() error {
	for i := range w.tensors {
		t := &w.tensors[i]
		if t.rows != t.spec.Rows {
			return fmt.Errorf("tensor %s has %d rows of %d", t.spec.Name, t.rows, t.spec.Rows)
		}
		putEntry(w.sections[sectionDirectory][i*entrySize:], &t.spec, t.offset, t.sum)
	}
	var err error
	if w.sections[sectionProvenance], err = json.Marshal(&w.provenance); err != nil {
		return err
	}
	if err := w.place(w.header.sections[sectionTensors].length); err != nil {
		return err
	}
	if err := w.file.Truncate(w.header.fileSize); err != nil {
		return err
	}
	for i, b := range w.sections {
		if i == sectionTensors {
			continue
		}
		s := &w.header.sections[i]
		s.sum = sha256.Sum256(b)
		if _, err := w.file.WriteAt(b, s.offset); err != nil {
			return err
		}
	}
	_, err = w.file.WriteAt(w.header.marshal(), 0)
	return err
}

// Abort removes what was written. After Commit, or a second time, it does nothing.
func (w *Writer) Abort() error {
	if w.done {
		return nil
	}
	w.done = true
	w.file.Close() // its content does not matter, and Commit may have closed it
	if err := os.Remove(w.temp); err != nil {
		return fmt.Errorf("abort %s: %w", w.path, err)
	}
	return nil
}
