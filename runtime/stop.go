package runtime

import (
	"errors"
	"fmt"
	"unicode/utf8"
)

// stopper cuts a stream of text before the first stop string, and holds back what may become one.
type stopper struct {
	stops   []stopString
	held    []byte // text that may be the beginning of a stop string
	stopped bool
}

// stopString is one stop string, being matched as Knuth, Morris and Pratt do.
type stopString struct {
	text    string
	fail    []int // fail[i]: length of the longest proper prefix of text[:i+1] that is its suffix
	matched int   // length of the longest prefix of text that the stream ends with
}

func newStopper(stops []string) (*stopper, error) {
	s := new(stopper)
	for _, text := range stops {
		if text == "" {
			return nil, errors.New("a stop string is empty")
		}
		if !utf8.ValidString(text) {
			return nil, fmt.Errorf("stop string %q is not UTF-8", text)
		}
		k := stopString{text: text, fail: make([]int, len(text))}
		for i := 1; i < len(text); i++ {
			k.matched = k.advance(k.matched, text[i])
			k.fail[i] = k.matched
		}
		k.matched = 0
		s.stops = append(s.stops, k)
	}
	return s, nil
}

// advance is the length of the match after c, where it was n.
func (k *stopString) advance(n int, c byte) int {
	for n > 0 && (n == len(k.text) || k.text[n] != c) {
		n = k.fail[n-1]
	}
	if k.text[n] == c {
		n++
	}
	return n
}

// next takes text, whole characters, and returns what can be shown of it and of what was held back. The first stop string to be
// complete ends the stream, the longest of those that are complete at once.
func (s *stopper) next(text string) string {
	if s.stopped {
		return ""
	}
	for i := 0; i < len(text); i++ {
		longest := 0
		for j := range s.stops {
			k := &s.stops[j]
			if k.matched = k.advance(k.matched, text[i]); k.matched == len(k.text) {
				longest = max(longest, k.matched)
			}
		}
		if longest > 0 {
			s.stopped = true
			s.held = append(s.held, text[:i+1]...)
			out := string(s.held[:len(s.held)-longest])
			s.held = nil
			return out
		}
	}
	hold := 0
	for j := range s.stops {
		hold = max(hold, s.stops[j].matched)
	}
	s.held = append(s.held, text...)
	// A stop string is UTF-8, so what is held back begins with a character's first byte.
	out := string(s.held[:len(s.held)-hold])
	s.held = append(s.held[:0], s.held[len(s.held)-hold:]...)
	return out
}

// flush is the text still held back, where the stream ends without a stop string.
func (s *stopper) flush() string {
	out := string(s.held)
	s.held = nil
	return out
}
