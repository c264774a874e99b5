package tokenizer

import (
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"

	sugarme "github.com/sugarme/tokenizer"
)

// tables is what a definition or a file's section says, before it is checked as a whole and indexed.
type tables struct {
	nfc, prefixSpace, splitWords, fuseUnknown bool

	byteIDs [256]int32
	unknown int32
	eot     int32
	tokens  []token // by id, ascending
	rules   []rule
	added   []addedToken // special ones first, each kind in the definition's order
}

type token struct {
	id    int32
	bytes []byte
}

// byteChars maps each byte to the character that stands for it in a byte-level vocabulary: printable Latin-1 stands for itself,
// the other bytes, in order, for the characters from U+0100 on.
var byteChars = func() (t [256]rune) {
	next := rune(256)
	for b := range t {
		if b >= '!' && b <= '~' || b >= 0xa1 && b <= 0xac || b >= 0xae {
			t[b] = rune(b)
			continue
		}
		t[b] = next
		next++
	}
	return t
}()

var charBytes = func() map[rune]byte {
	m := make(map[rune]byte, 256)
	for b, r := range byteChars {
		m[r] = byte(b)
	}
	return m
}()

// tokenBytes is what a token's text in the vocabulary decodes to: the bytes that its characters stand for, or, where one of them
// stands for none, the text as it is. Added tokens go the same way, as in Hugging Face's decoder.
func tokenBytes(text string) []byte {
	b := make([]byte, 0, len(text))
	for _, r := range text {
		c, ok := charBytes[r]
		if !ok {
			return []byte(text)
		}
		b = append(b, c)
	}
	return b
}

// readTokens takes the vocabulary's tokens, the bytes' ids and the unknown token.
func (c *tables) readTokens(vocab map[string]int32, unknown string, hasUnknown bool) error {
	for text, id := range vocab {
		c.tokens = append(c.tokens, token{id, tokenBytes(text)})
	}
	for b, r := range byteChars {
		c.byteIDs[b] = noToken
		if id, ok := vocab[string(r)]; ok {
			c.byteIDs[b] = id
		}
	}
	c.unknown = noToken
	if hasUnknown {
		id, ok := vocab[unknown]
		if !ok {
			return fmt.Errorf("unk_token %q is not in the vocab", unknown)
		}
		c.unknown = id
	}
	return nil
}

// endTexts are the texts of tokens that end a text, the likeliest first.
var endTexts = [...]string{"<|endoftext|>", "<|end_of_text|>", "<|eos|>", "<eos>", "</s>", "[EOS]"}

// readAdded takes the added tokens. One that is in the vocabulary too must have the same id there, and the others must come after
// it without a hole: Hugging Face gives them ids in this way, whatever their definition says.
func (c *tables) readAdded(defs []sugarme.TokenConfig, vocab map[string]int32) error {
	ids := make(map[string]int32, len(defs))
	last := int32(-1)
	for _, d := range defs {
		if d.Content == "" {
			return fmt.Errorf("token %d has no content", d.Id)
		}
		if _, ok := ids[d.Content]; ok {
			return fmt.Errorf("%q is there twice", d.Content)
		}
		want, ok := vocab[d.Content]
		if !ok {
			want = max(int32(len(vocab)), last+1)
			c.tokens = append(c.tokens, token{want, tokenBytes(d.Content)})
		}
		if d.Id != int64(want) {
			return fmt.Errorf("%q has id %d, expected %d", d.Content, d.Id, want)
		}
		if text := toNFC(d.Content); c.nfc && d.Normalized && text != d.Content {
			c.setBytes(want, tokenBytes(text)) // Hugging Face keeps the normalized text alone
		}
		last = max(last, want)
		ids[d.Content] = want
		c.added = append(c.added, addedToken{want, d.Special, d.SingleWord, d.Lstrip, d.Rstrip, d.Normalized, d.Content})
	}
	slices.SortStableFunc(c.added, func(a, b addedToken) int {
		switch {
		case a.special == b.special:
			return 0
		case a.special:
			return -1
		}
		return 1
	})
	c.eot = noToken
	for _, texts := range []func(string) (int32, bool){
		func(s string) (int32, bool) { return c.specialID(s) },
		func(s string) (int32, bool) { id, ok := vocab[s]; return id, ok },
	} {
		for _, text := range endTexts {
			if id, ok := texts(text); ok {
				c.eot = id
				return nil
			}
		}
	}
	return nil
}

func (c *tables) setBytes(id int32, b []byte) {
	for i := range c.tokens {
		if c.tokens[i].id == id {
			c.tokens[i].bytes = b
		}
	}
}

func (c *tables) specialID(text string) (int32, bool) {
	for _, a := range c.added {
		if a.special && a.content == text {
			return a.id, true
		}
	}
	return noToken, false
}

// tokenizer checks the tables and indexes them.
func (c *tables) tokenizer() (*Tokenizer, error) {
	t := &Tokenizer{
		nfc: c.nfc, prefixSpace: c.prefixSpace, splitWords: c.splitWords, fuseUnknown: c.fuseUnknown,
		byteIDs: c.byteIDs, unknown: c.unknown, eot: c.eot, rules: c.rules, added: c.added,
	}
	if err := t.layOut(c.tokens); err != nil {
		return nil, err
	}
	for _, id := range append(c.byteIDs[:], c.unknown, c.eot) {
		if id != noToken && !t.Has(id) {
			return nil, fmt.Errorf("id %d is no token", id)
		}
	}
	for _, r := range c.rules {
		if !t.Has(r.left) || !t.Has(r.right) || !t.Has(r.result) {
			return nil, fmt.Errorf("merge of %d and %d into %d: not all of them are tokens", r.left, r.right, r.result)
		}
	}
	t.pairs = newPairTable(c.rules)
	return t, t.indexAdded()
}

// layOut puts the tokens' bytes end to end, in the order of their ids.
func (t *Tokenizer) layOut(tokens []token) error {
	if len(tokens) == 0 {
		return errors.New("there are no tokens")
	}
	slices.SortFunc(tokens, func(a, b token) int { return int(a.id - b.id) })
	n := int(tokens[len(tokens)-1].id) + 1
	if n > maxVocab || n > 1024+16*len(tokens) {
		return fmt.Errorf("id %d is too high for %d tokens", n-1, len(tokens))
	}
	t.offsets = make([]uint32, 1, n+1)
	t.present, t.special = make([]uint64, (n+63)/64), make([]uint64, (n+63)/64)
	for i, tok := range tokens {
		if i > 0 && tokens[i-1].id == tok.id {
			return fmt.Errorf("two tokens have id %d", tok.id)
		}
		for len(t.offsets) <= int(tok.id) {
			t.offsets = append(t.offsets, uint32(len(t.blob)))
		}
		t.blob = append(t.blob, tok.bytes...)
		if len(t.blob) > maxText {
			return fmt.Errorf("tokens have more than %d bytes", maxText)
		}
		t.offsets = append(t.offsets, uint32(len(t.blob)))
		setBit(t.present, int(tok.id))
	}
	return nil
}

// maxText bounds the bytes of all tokens together.
const maxText = 1 << 30

// indexAdded builds what finds the added tokens.
func (t *Tokenizer) indexAdded() error {
	var raw, normalized []addedToken
	var rawTexts, normalizedTexts []string
	for _, a := range t.added {
		if a.content == "" || !utf8.ValidString(a.content) || !t.Has(a.id) {
			return fmt.Errorf("added token %d has a text %q that is empty, not UTF-8 or of no token", a.id, a.content)
		}
		if a.special {
			setBit(t.special, int(a.id))
		}
		if !a.normalized {
			raw, rawTexts = append(raw, a), append(rawTexts, a.content)
			continue
		}
		text := a.content
		if t.nfc {
			text = toNFC(text)
		}
		normalized, normalizedTexts = append(normalized, a), append(normalizedTexts, text)
	}
	t.raw, t.normalized = newMatcher(raw, rawTexts), newMatcher(normalized, normalizedTexts)
	return nil
}
