package tokenizer

import (
	"unicode"
	"unicode/utf8"
)

// class of a character in GPT-2's pattern.
type class uint8

const (
	other class = iota
	letter
	number
	space
)

// asciiClass is every ASCII character's class.
var asciiClass = func() (t [utf8.RuneSelf]class) {
	for r := range t {
		t[r] = slowClass(rune(r))
	}
	return t
}()

func slowClass(r rune) class {
	switch {
	case unicode.IsLetter(r) || unicode.Is(newLetters, r):
		return letter
	case unicode.Is(unicode.N, r) || unicode.Is(newNumbers, r):
		return number
	case unicode.Is(unicode.White_Space, r):
		return space
	}
	return other
}

// next is the class of s's first character and its length; s is not empty.
func next(s string) (class, int) {
	if c := s[0]; c < utf8.RuneSelf {
		return asciiClass[c], 1
	}
	r, n := utf8.DecodeRuneInString(s)
	return slowClass(r), n
}

// wordLen is the length of s's first word, in bytes; s is not empty. It is what this pattern, GPT-2's, matches:
//
//	's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//
// One pass, no backtracking: white space before something else gives its last character to what follows, to be that word's
// leading space or a word of its own.
func wordLen(s string) int {
	if s[0] == '\'' {
		if n := contraction(s); n > 0 {
			return n
		}
	}
	c, n := next(s)
	if c != space {
		return run(s, c, n)
	}
	if s[0] == ' ' && len(s) > 1 {
		if c, m := next(s[1:]); c != space {
			return run(s, c, 1+m)
		}
	}
	last := 0 // where the run's last character begins
	for n < len(s) {
		c, m := next(s[n:])
		if c != space {
			if last == 0 {
				return n // a single white space
			}
			return last
		}
		last = n
		n += m
	}
	return n
}

// run is the end of the run of class c in s that goes on at n.
func run(s string, c class, n int) int {
	for n < len(s) {
		d, m := next(s[n:])
		if d != c {
			break
		}
		n += m
	}
	return n
}

// contraction is the length of the English contraction that s begins with, or 0; s begins with an apostrophe.
func contraction(s string) int {
	if len(s) < 2 {
		return 0
	}
	switch s[1] {
	case 's', 't', 'm', 'd':
		return 2
	}
	if len(s) < 3 {
		return 0
	}
	switch s[1:3] {
	case "re", "ve", "ll":
		return 3
	}
	return 0
}
