package format

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"unsafe"
)

// File is an opened .xlstm file. It is safe for concurrent use until Close.
//
// Its bytes are mapped: everything that it hands out points into the mapping, must not be written to, and must not be used
// after Close. A file that another program shortens while it is mapped ends this one with a bus error where it reads beyond the
// new end; files that this package writes are replaced by renaming, which leaves open ones as they are.
type File struct {
	path        string
	file        *os.File
	data        []byte // the whole file
	header      *header
	config      Config
	recipe      string
	provenance  Provenance
	tensors     []Tensor
	index       map[string]int
	fingerprint [sha256.Size]byte
}

// Tensor is one stored tensor: Rows x Cols values, row by row.
type Tensor struct {
	Name       string
	Encoding   Encoding
	Rows, Cols int
	Data       []byte            // Encoding.Sizes(Rows, Cols).Total bytes, from a multiple of PartAlign in the file
	SHA256     [sha256.Size]byte // of Data, as the directory says; Open does not compute it
}

// Values are the encoded values of all rows, Sizes.ValueRow bytes each.
func (t *Tensor) Values() []byte {
	s := t.Encoding.Sizes(t.Rows, t.Cols)
	return t.part(0, s.ValueRow)
}

// Scales are the scales of all rows, Sizes.ScaleRow bytes each; empty where the encoding has none.
func (t *Tensor) Scales() []byte {
	s := t.Encoding.Sizes(t.Rows, t.Cols)
	return t.part(s.ScalesOffset, s.ScaleRow)
}

// Mins are the minimums of all rows, Sizes.MinRow bytes each; empty where the encoding has none.
func (t *Tensor) Mins() []byte {
	s := t.Encoding.Sizes(t.Rows, t.Cols)
	return t.part(s.MinsOffset, s.MinRow)
}

func (t *Tensor) part(offset, row int64) []byte {
	end := offset + int64(t.Rows)*row
	return t.Data[offset:end:end]
}

// Open maps a file and checks its structure: header, config, recipe, provenance and directory with their checksums, and that the
// directory lists exactly the tensors that the config implies, with their shapes and places. It reads no weights: Verify does.
func Open(path string) (*File, error) {
	f := &File{path: path}
	if err := f.open(); err != nil {
		f.Close()
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return f, nil
}

func (f *File) open() error {
	size, err := f.openRegular()
	if err != nil {
		return err
	}
	if size == 0 {
		return errors.New("the file is empty, expected an .xlstm file")
	}
	if int64(int(size)) != size {
		return fmt.Errorf("%d bytes do not fit this machine's address space", size)
	}
	if f.data, err = mapFile(f.file, int(size)); err != nil {
		return err
	}
	return f.parse()
}

// openRegular refuses what is not a regular file before opening it, since opening a pipe would wait for its other end.
func (f *File) openRegular() (size int64, err error) {
	info, err := os.Stat(f.path)
	if err != nil {
		return 0, cause(err)
	}
	if !info.Mode().IsRegular() {
		return 0, fmt.Errorf("expected a regular file, found %s", describeMode(info.Mode()))
	}
	if f.file, err = os.Open(f.path); err != nil {
		return 0, cause(err)
	}
	if info, err = f.file.Stat(); err != nil {
		return 0, cause(err)
	}
	return info.Size(), nil
}

// parse reads everything but the weights from f.data.
func (f *File) parse() error {
	var err error
	if f.header, err = parseHeader(f.data, int64(len(f.data))); err != nil {
		return err
	}
	// The tokenizer is not read either: it is the largest of them, and its reader checks it.
	for _, i := range []int{sectionConfig, sectionRecipe, sectionDirectory, sectionProvenance} {
		if err := f.checkSection(i); err != nil {
			return err
		}
	}
	if err := f.parseConfig(); err != nil {
		return err
	}
	f.recipe = string(f.section(sectionRecipe))
	if err := unmarshalStrict(f.section(sectionProvenance), &f.provenance); err != nil {
		return fmt.Errorf("provenance: %w", err)
	}
	if err := f.parseDirectory(); err != nil {
		return err
	}
	f.fingerprint = f.header.fingerprint()
	return nil
}

func (f *File) section(i int) []byte {
	s := &f.header.sections[i]
	return f.data[s.offset:s.end():s.end()]
}

func (f *File) checkSection(i int) error {
	want := f.header.sections[i].sum
	if sum := sha256.Sum256(f.section(i)); sum != want {
		return damaged("section "+sectionNames[i], sum, want)
	}
	return nil
}

func damaged(what string, sum, want [sha256.Size]byte) error {
	return fmt.Errorf("%s is damaged: SHA-256 begins with %x, expected %x", what, sum[:8], want[:8])
}

// parseConfig accepts only the bytes that marshalConfig makes, so that a config has one form and readers cannot disagree about
// doubled or misspelt keys.
func (f *File) parseConfig() error {
	b := f.section(sectionConfig)
	if err := unmarshalStrict(b, &f.config); err != nil {
		return fmt.Errorf("config: %w", err)
	}
	if err := f.config.Validate(); err != nil {
		return err
	}
	again, err := json.Marshal(&f.config)
	if err != nil {
		return fmt.Errorf("config: %w", err)
	}
	if !bytes.Equal(again, b) {
		return fmt.Errorf("config is not in canonical form: %.80q, expected %.80q", b, again)
	}
	return nil
}

func unmarshalStrict(b []byte, to any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(to); err != nil {
		return err
	}
	if d.InputOffset() != int64(len(b)) {
		return fmt.Errorf("%d bytes after the JSON value", int64(len(b))-d.InputOffset())
	}
	return nil
}

// parseDirectory holds the directory against the tensors that the config implies. Their number, order, shapes and places follow
// from it, so that an entry has no freedom but its encoding and its checksum.
func (f *File) parseDirectory() error {
	dir := f.section(sectionDirectory)
	count := tensorCount(&f.config)
	if len(dir) != count*entrySize {
		return fmt.Errorf("directory has %d bytes, expected %d for the %d tensors of the config", len(dir), count*entrySize, count)
	}
	specs := Specs(&f.config, func(string) Encoding { return Encoding{} })
	f.tensors = make([]Tensor, 0, count)
	f.index = make(map[string]int, count)
	data := &f.header.sections[sectionTensors]
	offset := data.offset
	for i := range specs {
		s, e := &specs[i], dir[i*entrySize:(i+1)*entrySize]
		enc, err := entryEncoding(e)
		if err == nil && s.Encoding.Kind == FP32 && enc.Kind != FP32 {
			err = fmt.Errorf("%s is %s, expected fp32 as in every file", s.Name, enc)
		}
		if err == nil {
			s.Encoding = enc
			err = checkEntry(e, s, offset)
		}
		if err == nil && offset+s.Size() > data.end() {
			err = fmt.Errorf("%s ends at byte %d, beyond the tensors' end at %d", s.Name, offset+s.Size(), data.end())
		}
		if err != nil {
			return fmt.Errorf("tensor %d of the directory: %w", i, err)
		}
		end := offset + s.Size()
		t := Tensor{Name: s.Name, Encoding: enc, Rows: s.Rows, Cols: s.Cols, Data: f.data[offset:end:end]}
		copy(t.SHA256[:], e[96:])
		f.index[s.Name] = i
		f.tensors = append(f.tensors, t)
		offset = end
	}
	if offset != data.end() {
		return fmt.Errorf("section tensors ends at byte %d, expected %d by the directory", data.end(), offset)
	}
	return nil
}

// fingerprint is what identifies the model: config, tokenizer, and the directory with every tensor's checksum. Where the model
// came from and what its recipe is called are not part of it.
func (h *header) fingerprint() [sha256.Size]byte {
	sum := sha256.New()
	for _, i := range []int{sectionConfig, sectionTokenizer, sectionDirectory} {
		sum.Write(h.sections[i].sum[:])
	}
	return [sha256.Size]byte(sum.Sum(nil))
}

// Path is the name that the file was opened by.
func (f *File) Path() string { return f.path }

// Size of the file in bytes.
func (f *File) Size() int64 { return f.header.fileSize }

// Config describes the model. It must not be changed.
func (f *File) Config() *Config { return &f.config }

// Recipe is the text that says which encoding each tensor got.
func (f *File) Recipe() string { return f.recipe }

// Provenance says how the file was made.
func (f *File) Provenance() Provenance { return f.provenance }

// Tokenizer is the compiled tokenizer, empty where the file has none.
func (f *File) Tokenizer() []byte { return f.section(sectionTokenizer) }

// Tensors lists all tensors, in the order of Specs. The list must not be changed.
func (f *File) Tensors() []Tensor { return f.tensors }

// Tensor finds a tensor by its name.
func (f *File) Tensor(name string) (Tensor, bool) {
	i, ok := f.index[name]
	if !ok {
		return Tensor{}, false
	}
	return f.tensors[i], true
}

// Fingerprint identifies the model: it is the same for two files exactly if they have the same config, tokenizer and stored
// tensors, wherever they came from.
func (f *File) Fingerprint() [sha256.Size]byte { return f.fingerprint }

// Release lets the memory of b go, a part of what the file handed out, which was read and will not be soon. It can be read again.
// It keeps a program small that streams through a file larger than the machine's memory.
func (f *File) Release(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	off := int(uintptr(unsafe.Pointer(unsafe.SliceData(b))) - uintptr(unsafe.Pointer(unsafe.SliceData(f.data))))
	if len(f.data) == 0 || off < 0 || off > len(f.data) || len(b) > len(f.data)-off {
		return fmt.Errorf("release memory of %s: %d bytes that are not the file's", f.path, len(b))
	}
	if err := releasePages(f.data, off, off+len(b)); err != nil {
		return fmt.Errorf("release memory of %s: %w", f.path, err)
	}
	return nil
}

// Close unmaps the file.
func (f *File) Close() error {
	var err error
	if f.data != nil {
		err = unmapFile(f.data)
		f.data = nil
	}
	if f.file != nil {
		if cerr := f.file.Close(); err == nil {
			err = cerr
		}
		f.file = nil
	}
	if err != nil {
		return fmt.Errorf("close %s: %w", f.path, cause(err))
	}
	return nil
}
