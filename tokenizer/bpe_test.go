package tokenizer

import (
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// plainMerge is BPE as it is defined: while there is a pair with a rule, merge the leftmost one of the lowest rank.
func plainMerge(rules []rule, ids []int32) []int32 {
	for {
		best, at := len(rules), 0
		for i := 0; i+1 < len(ids); i++ {
			for rank, r := range rules {
				if r.left == ids[i] && r.right == ids[i+1] && rank < best {
					best, at = rank, i
				}
			}
		}
		if best == len(rules) {
			return ids
		}
		ids = slices.Concat(ids[:at], []int32{rules[best].result}, ids[at+2:])
	}
}

func TestMergeAgainstDefinition(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		alphabet := 1 + rng.IntN(4)
		var rules []rule
		seen := map[[2]int32]bool{}
		for next := int32(alphabet); len(rules) < rng.IntN(30); next++ {
			r := rule{rng.Int32N(next), rng.Int32N(next), next}
			if !seen[[2]int32{r.left, r.right}] {
				rules = append(rules, r)
			}
			seen[[2]int32{r.left, r.right}] = true
		}
		ids := make([]int32, 1+rng.IntN(shortWord))
		for i := range ids {
			ids[i] = rng.Int32N(int32(alphabet))
		}
		table, m := newPairTable(rules), new(merger)
		want := plainMerge(rules, slices.Clone(ids))
		for name, merge := range map[string]func(*pairTable, []int32) int{"short": m.mergeShort, "long": m.mergeLong} {
			got := slices.Clone(ids)
			if got = got[:merge(&table, got)]; !slices.Equal(got, want) {
				t.Fatalf("%s: %v with %v: %v, expected %v", name, ids, rules, got, want)
			}
		}
	}
}

// A word longer than the switch to the heap, and one far longer: the same ids as from pieces that no merge crosses.
func TestLongWords(t *testing.T) {
	tok := smallTokenizer(t)
	for _, n := range []int{shortWord, shortWord + 1, 1000, 1 << 18} {
		word := strings.Repeat("x", n)
		ids := make([]int32, n)
		for i := range ids {
			ids[i] = tok.byteIDs['x']
		}
		want := ids
		if n <= 1000 {
			want = plainMerge(tok.rules, ids)
		}
		if got := tok.Encode(word, Options{}); !slices.Equal(got, want) {
			t.Errorf("%d: %d ids, expected %d", n, len(got), len(want))
		}
	}
}

var wordPattern = regexp.MustCompile(`^(?:'s|'t|'re|'ve|'m|'ll|'d| ?\pL+| ?\pN+| ?[^\s\x{b}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}\pL\pN]+)`)

// patternLen is wordLen by regular expression; Go's has no lookahead, so the two alternatives of white space are spelled out.
func patternLen(s string) int {
	if n := len(wordPattern.FindString(s)); n > 0 {
		return n
	}
	rest := strings.TrimLeftFunc(s, unicode.IsSpace)
	n := len(s) - len(rest)
	_, last := utf8.DecodeLastRuneInString(s[:n])
	if rest != "" && n > last {
		n -= last
	}
	return n
}

func TestWordLenAgainstPattern(t *testing.T) {
	parts := []string{"'", "'s", "'ll", "'re", "r", "e", "l", " ", "  ", "\n", "\t", "\u00a0", "\u3000", "\u0085", "\v", "a", "é", "中", "1", "²", "Ⅷ", "!", "-", "😀", "\u0301", "\x00"}
	rng := rand.New(rand.NewPCG(3, 4))
	for range 100000 {
		var b strings.Builder
		for range 1 + rng.IntN(8) {
			b.WriteString(parts[rng.IntN(len(parts))])
		}
		if s := b.String(); wordLen(s) != patternLen(s) {
			t.Fatalf("%q: %d, expected %d", s, wordLen(s), patternLen(s))
		}
	}
}
