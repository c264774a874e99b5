package tokenizer

import (
	"hash/crc32"
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// The tables were compared with Hugging Face's for every character there is; these sums are of the tables that agreed. Go and
// x/text get new Unicode versions: then the sums change, and the corrections in unicode.go have to be made anew.
func TestUnicodeTables(t *testing.T) {
	classes, words, decomposed := crc32.NewIEEE(), crc32.NewIEEE(), crc32.NewIEEE()
	for r := rune(0); r <= utf8.MaxRune; r++ {
		if !utf8.ValidRune(r) {
			continue
		}
		classes.Write([]byte{byte(slowClass(r))})
		words.Write([]byte{byte(flags(isWord(r)))})
		if !isLaterMark(r) {
			p := norm.NFC.PropertiesString(string(r))
			decomposed.Write(p.Decomposition())
			decomposed.Write([]byte{p.CCC(), byte(flags(p.BoundaryBefore()))})
		}
	}
	for _, c := range []struct {
		name      string
		got, want uint32
	}{{"classes", classes.Sum32(), 0xe3722510}, {"word characters", words.Sum32(), 0x4643d8c8}, {"normalization", decomposed.Sum32(), 0x9bf1107b}} {
		if c.got != c.want {
			t.Errorf("%s: sum %#x, expected %#x", c.name, c.got, c.want)
		}
	}
}

// longNFC is the standard's algorithm; for texts that x/text takes as they are the two must agree.
func TestLongNFC(t *testing.T) {
	for r := rune(0x80); r <= utf8.MaxRune; r++ {
		if !utf8.ValidRune(r) || isLaterMark(r) {
			continue
		}
		if s := string(r); norm.NFD.String(s) != s || norm.NFC.PropertiesString(s).CCC() != 0 {
			for _, s := range []string{s, "e" + s, "\u1100" + s + "\u0301", s + "\u0323\u0301", "a\u0301" + s + "\u0323"} {
				if got, want := longNFC(s), norm.NFC.String(s); got != want {
					t.Fatalf("%+q: %+q, expected %+q", s, got, want)
				}
			}
		}
	}
}

func TestToNFC(t *testing.T) {
	long := strings.Repeat("\u0301", 40)
	for _, c := range [][2]string{
		{"", ""}, {"plain", "plain"}, {"e\u0301", "\u00e9"}, {"e\u0301" + long, "\u00e9" + long}, {"e" + long + "\u0323", "\u1eb9" + long},
		{"a\u0323\u0302", "\u1ead"}, {"\u1100\u1161\u11a8", "\uac01"}, {"\U00010efd\u0334", "\U00010efd\u0334"}, {"\u0958", "\u0915\u093c"},
		{"<|x|>\u0338", "<|x|\u226f"}, {"a\U00010efde\u0301", "a\U00010efd\u00e9"},
	} {
		if got := toNFC(c[0]); got != c[1] {
			t.Errorf("%+q: %+q, expected %+q", c[0], got, c[1])
		}
	}
}
