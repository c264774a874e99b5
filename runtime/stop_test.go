package runtime

import (
	"math/rand/v2"
	"strings"
	"testing"
	"unicode/utf8"
)

// plainStop is where the first stop string to be complete begins, and whether there is one.
func plainStop(text string, stops []string) (string, bool) {
	for end := 1; end <= len(text); end++ {
		longest := -1
		for _, s := range stops {
			if strings.HasSuffix(text[:end], s) {
				longest = max(longest, len(s))
			}
		}
		if longest >= 0 {
			return text[:end-longest], true
		}
	}
	return text, false
}

func TestStopperAgainstDefinition(t *testing.T) {
	rng := rand.New(rand.NewPCG(12, 13))
	letters := []string{"a", "b", "é", "ê", "\n"}
	word := func(n int) string {
		var b strings.Builder
		for range n {
			b.WriteString(letters[rng.IntN(len(letters))])
		}
		return b.String()
	}
	for range 20000 {
		stops := []string{word(1 + rng.IntN(5))}
		for range rng.IntN(3) {
			stops = append(stops, word(1+rng.IntN(5)))
		}
		text := word(rng.IntN(25))
		want, stopped := plainStop(text, stops)
		s, err := newStopper(stops)
		if err != nil {
			t.Fatal(err)
		}
		var got strings.Builder
		for rest := text; rest != ""; {
			n := 0
			for range 1 + rng.IntN(3) {
				_, size := utf8.DecodeRuneInString(rest[n:])
				n += size
			}
			shown := s.next(rest[:n])
			if !utf8.ValidString(shown) {
				t.Fatalf("part of a character in %q", shown)
			}
			got.WriteString(shown)
			if !strings.HasPrefix(want, got.String()) {
				t.Fatalf("%q with stops %q: showed %q, expected %q", text, stops, got.String(), want)
			}
			rest = rest[n:]
		}
		got.WriteString(s.flush())
		if got.String() != want || s.stopped != stopped {
			t.Fatalf("%q with stops %q: %q, %v; expected %q, %v", text, stops, got.String(), s.stopped, want, stopped)
		}
	}
}

// Only what may become a stop string is held back.
func TestStopperHoldsBackNoMore(t *testing.T) {
	s, err := newStopper([]string{"\n\nQ:"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range [][2]string{{"one", "one"}, {"\n", ""}, {"\n", ""}, {"\n", "\n"}, {"Q", ""}, {" two", "\n\nQ two"}, {"\n\nQ: three", ""}, {"four", ""}} {
		if got := s.next(c[0]); got != c[1] {
			t.Errorf("%q showed %q, expected %q", c[0], got, c[1])
		}
	}
	if !s.stopped {
		t.Error("not stopped")
	}
}

func TestStopperRefuses(t *testing.T) {
	for _, stop := range []string{"", "\xff", "a\xe2\x82"} {
		if _, err := newStopper([]string{"fine", stop}); err == nil {
			t.Errorf("%q was accepted", stop)
		}
	}
}
