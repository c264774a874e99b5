// Package tokenizer turns text into token ids and back, exactly as Hugging Face's tokenizers do for byte-level BPE: the kind
// that GPT-2, GPT-NeoX and small tokenizers trained on a corpus are. FromJSON compiles a tokenizer.json; MarshalBinary and Load
// carry the compiled tables in a model file.
package tokenizer

import (
	"strings"
	"sync"
	"unicode/utf8"
)

// Tokenizer holds compiled tables. It never changes once made, and any number of goroutines may use it at the same time.
type Tokenizer struct {
	nfc         bool // normalize text to NFC before it is split
	prefixSpace bool // put a space before a piece that does not begin with one
	splitWords  bool // split pieces into words by GPT-2's pattern
	fuseUnknown bool // one unknown token for a run of bytes without tokens

	byteIDs [256]int32 // token of one byte, noToken where the vocabulary lacks it
	unknown int32      // token of a byte that has none, noToken: such bytes are dropped
	eot     int32      // end of text, noToken where there is none

	offsets []uint32 // token i's bytes are blob[offsets[i]:offsets[i+1]]
	blob    []byte
	present []uint64 // bitset of the ids that exist
	special []uint64 // bitset of the special added tokens

	rules []rule // merges, lowest rank first: what the file stores
	pairs pairTable

	added      []addedToken
	raw        matcher // added tokens looked for in the text as it is
	normalized matcher // added tokens looked for in normalized text

	words sync.Pool // *merger: scratch memory of BPE
}

const noToken = -1

// Options says how special tokens are treated.
type Options struct {
	// Special makes Encode recognize the texts of special tokens, and Decode write them. Without it they are plain text for
	// Encode, so that a text cannot forge an end of text, and Decode leaves special tokens out.
	Special bool
}

// VocabSize is the number of ids: every id is below it. Not every id below it has to exist, see Has.
func (t *Tokenizer) VocabSize() int { return len(t.offsets) - 1 }

// Has reports whether id is a token of t.
func (t *Tokenizer) Has(id int32) bool {
	return id >= 0 && int(id) < t.VocabSize() && bit(t.present, int(id))
}

// IsSpecial reports whether id is a special token, one that stands for something other than its text.
func (t *Tokenizer) IsSpecial(id int32) bool { return t.Has(id) && bit(t.special, int(id)) }

// EndOfText is the id that ends a text, or -1. It is the first of these texts that is a special token, or else the first that is
// in the vocabulary: <|endoftext|>, <|end_of_text|>, <|eos|>, <eos>, </s>, [EOS].
func (t *Tokenizer) EndOfText() int32 { return t.eot }

// TokenBytes is the text of one token as bytes, which need not be whole characters; nil for an id that t lacks. The caller must
// not change it.
func (t *Tokenizer) TokenBytes(id int32) []byte {
	if !t.Has(id) {
		return nil
	}
	lo, hi := t.offsets[id], t.offsets[id+1]
	return t.blob[lo:hi:hi]
}

func bit(set []uint64, i int) bool { return set[i/64]>>(i%64)&1 != 0 }
func setBit(set []uint64, i int)   { set[i/64] |= 1 << (i % 64) }

// Encode turns text into ids. Added tokens that are not special are always recognized, special ones as o says. Nothing is added
// that the text does not hold. Bytes of text that are not UTF-8 count as U+FFFD, one for each maximal part of a character that
// they hold, as Rust's from_utf8_lossy does.
func (t *Tokenizer) Encode(text string, o Options) []int32 {
	return t.AppendEncode(nil, text, o)
}

// AppendEncode is Encode that appends to dst.
func (t *Tokenizer) AppendEncode(dst []int32, text string, o Options) []int32 {
	if !utf8.ValidString(text) {
		text = string(appendLossy(nil, []byte(text)))
	}
	m, _ := t.words.Get().(*merger)
	if m == nil {
		m = new(merger)
	}
	e := encoder{t: t, ids: dst, merger: m}
	t.raw.split(text, o.Special, e.id, func(piece string) {
		if t.nfc {
			piece = toNFC(piece)
		}
		t.normalized.split(piece, o.Special, e.id, e.piece)
	})
	t.words.Put(m)
	return e.ids
}

// encoder is one Encode in progress.
type encoder struct {
	t      *Tokenizer
	ids    []int32
	merger *merger
	seen   map[string]span // words met before, and where in ids theirs are
}

type span struct{ start, end int }

// Bounds of the memory of words already encoded: short ones, which recur, and not more than fit a few megabytes.
const (
	maxSeen     = 1 << 16
	maxSeenWord = 48
)

func (e *encoder) id(id int32) { e.ids = append(e.ids, id) }

func (e *encoder) piece(s string) {
	if e.t.prefixSpace && !strings.HasPrefix(s, " ") {
		s = " " + s
	}
	if !e.t.splitWords {
		e.word(s)
		return
	}
	for len(s) > 0 {
		n := wordLen(s)
		e.word(s[:n])
		s = s[n:]
	}
}

func (e *encoder) word(s string) {
	if len(s) == 1 {
		if id := e.t.byteIDs[s[0]]; id != noToken {
			e.ids = append(e.ids, id)
			return
		}
	}
	if len(s) > maxSeenWord {
		e.ids = e.t.appendWord(e.ids, s, e.merger)
		return
	}
	if at, ok := e.seen[s]; ok {
		e.ids = append(e.ids, e.ids[at.start:at.end]...)
		return
	}
	start := len(e.ids)
	e.ids = e.t.appendWord(e.ids, s, e.merger)
	if e.seen == nil {
		e.seen = make(map[string]span)
	}
	if len(e.seen) < maxSeen {
		e.seen[s] = span{start, len(e.ids)}
	}
}

// appendWord appends the ids of one word, which BPE never merges across.
func (t *Tokenizer) appendWord(ids []int32, s string, m *merger) []int32 {
	start := len(ids)
	afterUnknown := false
	for i := 0; i < len(s); i++ {
		id := t.byteIDs[s[i]]
		if id == noToken {
			if t.unknown != noToken && !(afterUnknown && t.fuseUnknown) {
				ids = append(ids, t.unknown)
			}
			afterUnknown = true
			continue
		}
		afterUnknown = false
		ids = append(ids, id)
	}
	n := m.merge(&t.pairs, ids[start:])
	return ids[:start+n]
}

// maxVocab bounds ids, in files and in definitions; far above every known vocabulary.
const maxVocab = 1 << 24
