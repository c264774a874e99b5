package tokenizer

import (
	"sort"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// shortSegment is the number of characters up to which a segment is x/text's to normalize: a character decomposes into at most
// four, three of them non-starters, so such a segment stays below the 30 non-starters after which x/text inserts a U+034F.
const shortSegment = 8

// toNFC is s, which is UTF-8, in Unicode normalization form C as Hugging Face's normalizer sees it: x/text's, except that it is
// that of Unicode 9, and that nothing is ever inserted.
func toNFC(s string) string {
	if norm.NFC.QuickSpanString(s) == len(s) {
		return s
	}
	var b strings.Builder
	b.Grow(len(s) + 16)
	for {
		n := strings.IndexFunc(s, isLaterMark)
		if n < 0 {
			appendNFC(&b, s)
			return b.String()
		}
		appendNFC(&b, s[:n])
		_, size := utf8.DecodeRuneInString(s[n:])
		b.WriteString(s[n : n+size])
		s = s[n+size:]
	}
}

func appendNFC(b *strings.Builder, s string) {
	for {
		n := norm.NFC.QuickSpanString(s)
		b.WriteString(s[:n])
		if s = s[n:]; s == "" {
			return
		}
		n = segment(s)
		b.WriteString(segmentNFC(s[:n]))
		s = s[n:]
	}
}

func isLaterMark(r rune) bool { return r >= 0x7fd && unicode.Is(laterMarks, r) }

// segment is the length of s's first segment, which normalizes alone: up to the next character that nothing before it changes.
func segment(s string) int {
	_, n := utf8.DecodeRuneInString(s)
	for n < len(s) && !norm.NFC.PropertiesString(s[n:]).BoundaryBefore() {
		_, size := utf8.DecodeRuneInString(s[n:])
		n += size
	}
	return n
}

func segmentNFC(s string) string {
	if utf8.RuneCountInString(s) <= shortSegment {
		return norm.NFC.String(s)
	}
	return longNFC(s)
}

// mark is a character and its canonical combining class.
type mark struct {
	r   rune
	ccc uint8
}

// longNFC normalizes as the Unicode standard defines it (UAX 15): decompose, order, compose.
func longNFC(s string) string {
	var cs []mark
	for _, r := range s {
		for _, d := range norm.NFD.String(string(r)) {
			cs = append(cs, mark{d, norm.NFD.PropertiesString(string(d)).CCC()})
		}
	}
	for i := 0; i < len(cs); i++ {
		j := i
		for j < len(cs) && cs[j].ccc != 0 {
			j++
		}
		sort.SliceStable(cs[i:j], func(a, b int) bool { return cs[i+a].ccc < cs[i+b].ccc })
		i = j
	}
	return composed(cs)
}

// composed joins each character with the last starter before it where the pair has a composition and nothing blocks it.
func composed(cs []mark) string {
	starter, n := -1, 0 // cs[:n] is the result
	for _, c := range cs {
		if starter >= 0 && (n == starter+1 || cs[n-1].ccc < c.ccc && cs[n-1].ccc != 0) {
			if r, ok := compose(cs[starter].r, c.r); ok {
				cs[starter].r = r
				continue
			}
		}
		if c.ccc == 0 {
			starter = n
		}
		cs[n] = c
		n++
	}
	var b strings.Builder
	for _, c := range cs[:n] {
		b.WriteRune(c.r)
	}
	return b.String()
}

// compose is the one character that a and b compose to.
func compose(a, b rune) (rune, bool) {
	s := norm.NFC.String(string(a) + string(b))
	r, n := utf8.DecodeRuneInString(s)
	return r, n == len(s)
}
