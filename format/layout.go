package format

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
)

// Version is the version of the format that this package writes, and the only one that it reads.
const Version = 1

// SectionAlign is the alignment of sections, in bytes: a multiple of the page sizes of x86-64 (4 KiB) and of arm64 (4 or 16 KiB).
const SectionAlign = 16 << 10

// magic begins every file. Its first byte is no text's, and its line ends are what careless copying as text changes.
const magic = "\x89XLSTM\r\n"

// The header's places and sizes, in bytes.
const (
	headerSize   = 512
	headerSumAt  = headerSize - sha256.Size
	sectionsAt   = 32
	sectionSize  = 16 + sha256.Size
	entrySize    = 128
	entryNameLen = 56
)

// The sections, in the order in which they lie in a file.
const (
	sectionConfig = iota
	sectionRecipe
	sectionTokenizer
	sectionDirectory
	sectionTensors // its checksum is zero: every tensor has one of its own, in the directory
	sectionProvenance
	numSections
)

var sectionNames = [numSections]string{"config", "recipe", "tokenizer", "directory", "tensors", "provenance"}

// sectionMax are the largest lengths that a reader accepts; those of the directory and the tensors follow from the config.
var sectionMax = [numSections]int64{
	sectionConfig: 64 << 10, sectionRecipe: 64 << 10, sectionTokenizer: 1 << 30,
	sectionDirectory: maxBlocks * 16 * entrySize, sectionTensors: 1 << 60, sectionProvenance: 16 << 20,
}

// section is a range of a file and the SHA-256 of its bytes.
type section struct {
	offset, length int64
	sum            [sha256.Size]byte
}

func (s *section) end() int64 { return s.offset + s.length }

// header is a file's first headerSize bytes.
type header struct {
	fileSize int64
	sections [numSections]section
}

// place puts the sections one after the other, given their lengths, and sets the file's size.
func (h *header) place() {
	end := int64(headerSize)
	for i := range h.sections {
		h.sections[i].offset = alignUp(end, SectionAlign)
		end = h.sections[i].end()
	}
	h.fileSize = end
}

func (h *header) marshal() []byte {
	b := make([]byte, headerSize)
	le := binary.LittleEndian
	copy(b, magic)
	le.PutUint32(b[8:], Version)
	le.PutUint64(b[16:], uint64(h.fileSize))
	for i := range h.sections {
		s, p := &h.sections[i], b[sectionsAt+i*sectionSize:]
		le.PutUint64(p, uint64(s.offset))
		le.PutUint64(p[8:], uint64(s.length))
		copy(p[16:], s.sum[:])
	}
	sum := sha256.Sum256(b[:headerSumAt])
	copy(b[headerSumAt:], sum[:])
	return b
}

// parseHeader reads and checks the header of a file of size bytes, of which b is the beginning. Offsets and lengths of the
// result lie within the file, in order, exactly where place puts them.
func parseHeader(b []byte, size int64) (*header, error) {
	if n := min(len(b), len(magic)); n == 0 || string(b[:n]) != magic[:n] {
		return nil, fmt.Errorf("not an .xlstm file: it begins with %q, expected %q", b[:n], magic)
	}
	if len(b) < headerSize {
		return nil, fmt.Errorf("truncated: %d bytes, expected at least a header of %d", size, headerSize)
	}
	le := binary.LittleEndian
	if v := le.Uint32(b[8:]); v != Version {
		return nil, fmt.Errorf("format version %d, expected %d", v, Version)
	}
	if sum := sha256.Sum256(b[:headerSumAt]); !bytes.Equal(sum[:], b[headerSumAt:headerSize]) {
		return nil, fmt.Errorf("header is damaged: checksum %x, expected %x", sum[:8], b[headerSumAt:headerSumAt+8])
	}
	h := &header{}
	for i := range h.sections {
		s, p := &h.sections[i], b[sectionsAt+i*sectionSize:]
		length := le.Uint64(p[8:])
		if length > uint64(sectionMax[i]) {
			return nil, fmt.Errorf("section %s has %d bytes, expected at most %d", sectionNames[i], length, sectionMax[i])
		}
		s.length = int64(length)
		copy(s.sum[:], p[16:])
	}
	h.place()
	if !bytes.Equal(h.marshal(), b[:headerSize]) {
		return nil, h.misplaced(b)
	}
	if h.sections[sectionTensors].sum != [sha256.Size]byte{} {
		return nil, errors.New("checksum of section tensors is not zero")
	}
	if size != h.fileSize {
		return nil, fmt.Errorf("%d bytes, expected %d: truncated, or something was appended", size, h.fileSize)
	}
	return h, nil
}

// misplaced says where b, a header with a valid checksum, is not what h marshals to.
func (h *header) misplaced(b []byte) error {
	le := binary.LittleEndian
	for i := range h.sections {
		if at := le.Uint64(b[sectionsAt+i*sectionSize:]); at != uint64(h.sections[i].offset) {
			return fmt.Errorf("section %s begins at byte %d, expected %d", sectionNames[i], at, h.sections[i].offset)
		}
	}
	if n := le.Uint64(b[16:]); n != uint64(h.fileSize) {
		return fmt.Errorf("header gives a file size of %d, expected %d by its sections", n, h.fileSize)
	}
	return errors.New("reserved bytes of the header are not zero")
}

// putEntry writes a tensor's directory entry to b[:entrySize].
func putEntry(b []byte, t *TensorSpec, offset int64, sum [sha256.Size]byte) {
	le := binary.LittleEndian
	clear(b[:entrySize])
	copy(b[:entryNameLen], t.Name)
	b[56] = byte(t.Encoding.Kind)
	if t.Encoding.Asymmetric {
		b[57] = 1
	}
	le.PutUint16(b[58:], uint16(t.Encoding.Group))
	le.PutUint64(b[64:], uint64(t.Rows))
	le.PutUint64(b[72:], uint64(t.Cols))
	le.PutUint64(b[80:], uint64(offset))
	le.PutUint64(b[88:], uint64(t.Size()))
	copy(b[96:], sum[:])
}

// entryEncoding reads the encoding of a directory entry.
func entryEncoding(b []byte) (Encoding, error) {
	e := Encoding{Kind: Kind(b[56]), Group: int(binary.LittleEndian.Uint16(b[58:])), Asymmetric: b[57] == 1}
	if b[57] > 1 {
		return e, fmt.Errorf("byte for asymmetric is %d, expected 0 or 1", b[57])
	}
	return e, e.Validate()
}

// checkEntry compares a directory entry with the one that is expected.
func checkEntry(b []byte, want *TensorSpec, offset int64) error {
	name := string(bytes.TrimRight(b[:entryNameLen], "\x00"))
	if name != want.Name {
		return fmt.Errorf("is %q, expected %q", name, want.Name)
	}
	le := binary.LittleEndian
	for _, f := range []struct {
		name string
		at   int
		want int64
	}{{"rows", 64, int64(want.Rows)}, {"columns", 72, int64(want.Cols)}, {"offset", 80, offset}, {"length", 88, want.Size()}} {
		if got := le.Uint64(b[f.at:]); got != uint64(f.want) {
			return fmt.Errorf("%s: %s %d, expected %d", name, f.name, got, f.want)
		}
	}
	if le.Uint32(b[60:]) != 0 {
		return fmt.Errorf("%s: reserved bytes are not zero", name)
	}
	return nil
}
