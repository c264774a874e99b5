package tokenizer

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// The compiled section, version 1. Everything is little-endian; u32 counts come before what they count; ids are u32, and
// 0xffffffff stands for none.
//
//	magic "XTOK", version u32, flags u32 (1 NFC, 2 prefix space, 4 split into words, 8 fuse unknown)
//	unknown id, end-of-text id, 256 ids of the bytes
//	tokens: count u32, then for each, by ascending id: id; then for each: length of its bytes u32; then all the bytes
//	merges: count u32, then for each, lowest rank first: left id, right id, result id
//	added:  count u32, then for each: id, flags u32 (1 special, 2 single word, 4 lstrip, 8 rstrip, 16 normalized), length u32, text
//
// Nothing follows. The same tokenizer always gives the same bytes.
const (
	sectionMagic   = "XTOK"
	sectionVersion = 1
)

func flags(bits ...bool) (f uint32) {
	for i, b := range bits {
		if b {
			f |= 1 << i
		}
	}
	return f
}

// MarshalBinary is the compiled section of a model file; Load reads it. The error is always nil.
func (t *Tokenizer) MarshalBinary() ([]byte, error) {
	le := binary.LittleEndian
	b := append([]byte(nil), sectionMagic...)
	b = le.AppendUint32(b, sectionVersion)
	b = le.AppendUint32(b, flags(t.nfc, t.prefixSpace, t.splitWords, t.fuseUnknown))
	b = le.AppendUint32(le.AppendUint32(b, uint32(t.unknown)), uint32(t.eot))
	for _, id := range t.byteIDs {
		b = le.AppendUint32(b, uint32(id))
	}
	var ids, lengths []byte
	count := 0
	for id := int32(0); int(id) < t.VocabSize(); id++ {
		if t.Has(id) {
			ids = le.AppendUint32(ids, uint32(id))
			lengths = le.AppendUint32(lengths, t.offsets[id+1]-t.offsets[id])
			count++
		}
	}
	b = le.AppendUint32(b, uint32(count))
	b = append(append(append(b, ids...), lengths...), t.blob...)
	b = le.AppendUint32(b, uint32(len(t.rules)))
	for _, r := range t.rules {
		b = le.AppendUint32(le.AppendUint32(le.AppendUint32(b, uint32(r.left)), uint32(r.right)), uint32(r.result))
	}
	b = le.AppendUint32(b, uint32(len(t.added)))
	for _, a := range t.added {
		b = le.AppendUint32(b, uint32(a.id))
		b = le.AppendUint32(b, flags(a.special, a.singleWord, a.lstrip, a.rstrip, a.normalized))
		b = append(le.AppendUint32(b, uint32(len(a.content))), a.content...)
	}
	return b, nil
}

// section reads a compiled section from its front. After an error it gives zeros.
type section struct {
	data []byte
	err  error
}

var errShort = errors.New("it ends too early")

func (s *section) bytes(n int) []byte {
	if n < 0 || n > len(s.data) {
		s.data, s.err = nil, errShort
		return nil
	}
	b := s.data[:n]
	s.data = s.data[n:]
	return b
}

func (s *section) u32() uint32 {
	b := s.bytes(4)
	if b == nil {
		return 0
	}
	return binary.LittleEndian.Uint32(b)
}

// list reads a count of items of size bytes each, and those items: it never gives more than there is.
func (s *section) list(size int) (count int, items []byte) {
	n := int64(s.u32())
	if n*int64(size) > int64(len(s.data)) {
		s.data, s.err = nil, errShort
		return 0, nil
	}
	return int(n), s.bytes(int(n) * size)
}

// id reads an id. Those that no tokenizer has become maxVocab, which is none's.
func toID(v uint32) int32 {
	if v == ^uint32(0) {
		return noToken
	}
	return int32(min(v, maxVocab))
}

// Load reads a compiled section. It keeps nothing of data. Bytes that MarshalBinary did not write are an error, and cost no more
// memory than a small multiple of their number.
func Load(data []byte) (*Tokenizer, error) {
	s := &section{data: data}
	if string(s.bytes(4)) != sectionMagic {
		return nil, fmt.Errorf("tokenizer section: no magic %q", sectionMagic)
	}
	if v := s.u32(); s.err == nil && v != sectionVersion {
		return nil, fmt.Errorf("tokenizer section: version %d, expected %d", v, sectionVersion)
	}
	var c tables
	err := c.read(s)
	if err == nil {
		err = s.err
	}
	if err == nil && len(s.data) > 0 {
		err = fmt.Errorf("%d bytes follow its end", len(s.data))
	}
	if err != nil {
		return nil, fmt.Errorf("tokenizer section: %w", err)
	}
	t, err := c.tokenizer()
	if err != nil {
		return nil, fmt.Errorf("tokenizer section: %w", err)
	}
	return t, nil
}

func (c *tables) read(s *section) error {
	f := s.u32()
	if f >= 1<<4 {
		return fmt.Errorf("unknown flags %#x", f)
	}
	c.nfc, c.prefixSpace, c.splitWords, c.fuseUnknown = f&1 != 0, f&2 != 0, f&4 != 0, f&8 != 0
	c.unknown, c.eot = toID(s.u32()), toID(s.u32())
	for i := range c.byteIDs {
		c.byteIDs[i] = toID(s.u32())
	}
	if err := c.readTokenList(s); err != nil {
		return err
	}
	le := binary.LittleEndian
	n, items := s.list(12)
	c.rules = make([]rule, n)
	for i := range c.rules {
		r := items[12*i:]
		c.rules[i] = rule{toID(le.Uint32(r)), toID(le.Uint32(r[4:])), toID(le.Uint32(r[8:]))}
	}
	return c.readAddedList(s)
}

func (c *tables) readTokenList(s *section) error {
	le := binary.LittleEndian
	n, items := s.list(8)
	ids, lengths := items[:4*n], items[4*n:]
	c.tokens = make([]token, n)
	for i := range c.tokens {
		id := toID(le.Uint32(ids[4*i:]))
		if id == noToken || i > 0 && id <= c.tokens[i-1].id {
			return fmt.Errorf("token %d is not above the one before it", id)
		}
		length := le.Uint32(lengths[4*i:])
		if int64(length) > int64(len(s.data)) {
			return errShort
		}
		c.tokens[i] = token{id, s.bytes(int(length))}
	}
	return nil
}

func (c *tables) readAddedList(s *section) error {
	for n := s.u32(); n > 0 && s.err == nil; n-- {
		a := addedToken{id: toID(s.u32())}
		f := s.u32()
		if f >= 1<<5 {
			return fmt.Errorf("added token %d has unknown flags %#x", a.id, f)
		}
		a.special, a.singleWord, a.lstrip, a.rstrip, a.normalized = f&1 != 0, f&2 != 0, f&4 != 0, f&8 != 0, f&16 != 0
		a.content = string(s.bytes(int(s.u32())))
		c.added = append(c.added, a)
	}
	return nil
}
