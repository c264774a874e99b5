package tokenizer

import "unicode/utf8"

const replacement = "\uFFFD"

// appendLossy appends b to dst as UTF-8: what is not UTF-8 becomes U+FFFD, one for each maximal part of a character (the Unicode
// standard's "substitution of maximal subparts", which Rust's from_utf8_lossy follows).
func appendLossy(dst, b []byte) []byte {
	for len(b) > 0 {
		n := validPrefix(b)
		dst = append(dst, b[:n]...)
		if b = b[n:]; len(b) > 0 {
			n, _ := subpart(b)
			dst = append(dst, replacement...)
			b = b[n:]
		}
	}
	return dst
}

// validPrefix is the length of the longest prefix of b that is whole characters.
func validPrefix(b []byte) int {
	n := 0
	for n < len(b) {
		if b[n] < utf8.RuneSelf {
			n++
			continue
		}
		r, size := utf8.DecodeRune(b[n:])
		if r == utf8.RuneError && size <= 1 {
			break
		}
		n += size
	}
	return n
}

// subpart is the length of the maximal part of a character that b, which does not begin with a character, begins with; at
// least 1. open reports that b ends within it, so that more bytes could make it a character.
func subpart(b []byte) (n int, open bool) {
	lo, hi := byte(0x80), byte(0xbf) // what the second byte may be: no overlong forms, no surrogates, nothing above U+10FFFF
	want := 0
	switch c := b[0]; {
	case c >= 0xc2 && c <= 0xdf:
		want = 2
	case c >= 0xe0 && c <= 0xef:
		want = 3
		if c == 0xe0 {
			lo = 0xa0
		}
		if c == 0xed {
			hi = 0x9f
		}
	case c >= 0xf0 && c <= 0xf4:
		want = 4
		if c == 0xf0 {
			lo = 0x90
		}
		if c == 0xf4 {
			hi = 0x8f
		}
	default:
		return 1, false
	}
	for n = 1; n < want; n++ {
		if n == len(b) {
			return n, true
		}
		if b[n] < lo || b[n] > hi {
			return n, false
		}
		lo, hi = 0x80, 0xbf
	}
	return n, false
}
