package tokenizer

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
)

const neoxJSON = "../testdata/xlstm-7b/tokenizer.json"

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func fromFile(t testing.TB, path string) *Tokenizer {
	t.Helper()
	tok, err := FromJSON(readFile(t, path))
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// loaded is a tokenizer after a round through its compiled section.
func loaded(t testing.TB, tok *Tokenizer) *Tokenizer {
	t.Helper()
	data, err := tok.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	again, err := Load(data)
	if err != nil {
		t.Fatal(err)
	}
	return again
}

var neox = sync.OnceValues(func() (*Tokenizer, error) {
	data, err := os.ReadFile(neoxJSON)
	if err != nil {
		return nil, err
	}
	return FromJSON(data)
})

func neoxTokenizer(t testing.TB) *Tokenizer {
	t.Helper()
	tok, err := neox()
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func TestNeoXCases(t *testing.T) {
	var cases []struct {
		Text string
		IDs  []int32
	}
	if err := json.Unmarshal(readFile(t, "../testdata/tokenizer/gpt-neox-20b.json"), &cases); err != nil {
		t.Fatal(err)
	}
	if len(cases) != 422 {
		t.Fatalf("%d cases, expected 422", len(cases))
	}
	for name, tok := range map[string]*Tokenizer{"definition": neoxTokenizer(t), "section": loaded(t, neoxTokenizer(t))} {
		for _, c := range cases {
			if got := tok.Encode(c.Text, Options{Special: true}); !slices.Equal(got, c.IDs) {
				t.Errorf("%s: %q: ids %v, expected %v", name, c.Text, got, c.IDs)
			}
			if got, want := toNFC(tok.Decode(c.IDs, Options{Special: true})), toNFC(c.Text); got != want {
				t.Errorf("%s: decoded %q, expected %q", name, got, want)
			}
		}
	}
}

func TestNeoXWiki(t *testing.T) {
	text := string(readFile(t, "../testdata/wiki.test.raw"))
	ids := neoxTokenizer(t).Encode(text, Options{Special: true})
	var b []byte
	for _, id := range ids {
		b = binary.LittleEndian.AppendUint32(b, uint32(id))
	}
	sum := sha256.Sum256(b)
	if got, want := hex.EncodeToString(sum[:]), "973595d9c7c580360a39eedde7297ec050f362a521940f7527eca4a00ea85278"; len(ids) != 287159 || got != want {
		t.Errorf("%d ids with hash %s, expected 287159 with %s", len(ids), got, want)
	}
	if neoxTokenizer(t).Decode(ids, Options{}) != text {
		t.Error("decoding does not give the text back")
	}
}

func TestNeoXVocabulary(t *testing.T) {
	tok := loaded(t, neoxTokenizer(t))
	if tok.VocabSize() != 50277 || tok.EndOfText() != 0 {
		t.Errorf("size %d, end of text %d; expected 50277, 0", tok.VocabSize(), tok.EndOfText())
	}
	for id, want := range map[int32]bool{-1: false, 0: true, 50276: true, 50277: false, 1 << 30: false} {
		if tok.Has(id) != want {
			t.Errorf("Has(%d) is %v", id, !want)
		}
	}
	for id, want := range map[int32]bool{-1: false, 0: true, 1: true, 2: false, 50254: false, 50277: false} {
		if tok.IsSpecial(id) != want {
			t.Errorf("IsSpecial(%d) is %v", id, !want)
		}
	}
	for id, want := range map[int32]string{0: "<|endoftext|>", 2: "!", 253: " the", 50254: strings.Repeat(" ", 24), 50277: ""} {
		if got := string(tok.TokenBytes(id)); got != want {
			t.Errorf("token %d is %q, expected %q", id, got, want)
		}
	}
}

// A special token's text is nothing special unless asked for, and a decoder leaves special tokens out unless asked for.
func TestSpecial(t *testing.T) {
	tok := neoxTokenizer(t)
	const text = "one<|endoftext|>two"
	with, without := tok.Encode(text, Options{Special: true}), tok.Encode(text, Options{})
	if !slices.Contains(with, 0) || slices.Contains(without, 0) {
		t.Errorf("ids %v with special tokens, %v without", with, without)
	}
	if got := tok.Decode(without, Options{}); got != text {
		t.Errorf("plain text came back as %q", got)
	}
	if got := tok.Decode(with, Options{}); got != "onetwo" {
		t.Errorf("decoded %q without special tokens", got)
	}
	if got := tok.Decode(with, Options{Special: true}); got != text {
		t.Errorf("decoded %q with special tokens", got)
	}
}

func TestEncodeInvalidUTF8(t *testing.T) {
	tok := neoxTokenizer(t)
	for _, c := range [][2]string{
		{"\xff", "\uFFFD"}, {"a\xe2\x82b", "a\uFFFDb"}, {"\xf0\x9f\x98", "\uFFFD"}, {"\xed\xa0\x80", "\uFFFD\uFFFD\uFFFD"},
		{"\xc0\x80", "\uFFFD\uFFFD"}, {"\xf4\x90\x80\x80", "\uFFFD\uFFFD\uFFFD\uFFFD"}, {"\xe0\xa0", "\uFFFD"}, {"\xe0\x80", "\uFFFD\uFFFD"},
	} {
		got, want := tok.Encode(c[0], Options{}), tok.Encode(c[1], Options{})
		if !slices.Equal(got, want) {
			t.Errorf("%q: ids %v, expected those of %q, %v", c[0], got, c[1], want)
		}
	}
}

func TestSectionIsDeterministic(t *testing.T) {
	first, err := neoxTokenizer(t).MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	for name, tok := range map[string]*Tokenizer{"again from the definition": fromFile(t, neoxJSON), "from the section": loaded(t, neoxTokenizer(t))} {
		second, err := tok.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(first, second) {
			t.Errorf("%s: another section", name)
		}
	}
}

func TestLoadRefuses(t *testing.T) {
	good, err := smallTokenizer(t).MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	for n := range good {
		if _, err := Load(good[:n]); err == nil {
			t.Fatalf("the first %d of %d bytes were accepted", n, len(good))
		}
	}
	if _, err := Load(append(slices.Clone(good), 0)); err == nil {
		t.Error("a byte after the end was accepted")
	}
	for _, c := range []struct {
		name   string
		offset int
		value  uint32
	}{
		{"magic", 0, 0}, {"version", 4, 2}, {"flags", 8, 1 << 4}, {"unknown id", 12, 1 << 20}, {"end of text", 16, 1 << 20},
		{"byte id", 20, 1 << 20}, {"token count", 20 + 1024, 1 << 31}, {"first id", 24 + 1024, 1 << 23},
	} {
		bad := slices.Clone(good)
		binary.LittleEndian.PutUint32(bad[c.offset:], c.value)
		if _, err := Load(bad); err == nil {
			t.Errorf("%s: %#x was accepted", c.name, c.value)
		}
	}
}

// Goroutines share one tokenizer: the race detector watches.
func TestConcurrentUse(t *testing.T) {
	tok := neoxTokenizer(t)
	text := string(readFile(t, "../testdata/wiki.test.raw")[:20000])
	want := tok.Encode(text, Options{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if !reflect.DeepEqual(tok.Encode(text, Options{}), want) {
				t.Error("other ids")
			}
		})
	}
	wg.Wait()
}

func BenchmarkEncode(b *testing.B) {
	tok := neoxTokenizer(b)
	for name, text := range map[string]string{
		"english": string(readFile(b, "../testdata/books-valid.txt")),
		"wiki":    string(readFile(b, "../testdata/wiki.test.raw")),
		"chinese": strings.Repeat("昔者庄周梦为胡蝶，栩栩然胡蝶也。自喻适志与！不知周也。", 4000),
		"a":       strings.Repeat("a", 1<<20),
		"spaces":  strings.Repeat(" ", 1<<20),
		"marks":   "a" + strings.Repeat("\u0301\u0323", 1<<18),
		"short":   "The quick brown fox jumps over the lazy dog.",
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			b.ReportAllocs()
			for b.Loop() {
				tok.Encode(text, Options{})
			}
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	tok := neoxTokenizer(b)
	ids := tok.Encode(string(readFile(b, "../testdata/wiki.test.raw")), Options{})
	b.SetBytes(int64(len(tok.Decode(ids, Options{}))))
	for b.Loop() {
		tok.Decode(ids, Options{})
	}
}

func BenchmarkLoad(b *testing.B) {
	data, err := neoxTokenizer(b).MarshalBinary()
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := Load(data); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFromJSON(b *testing.B) {
	data := readFile(b, neoxJSON)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := FromJSON(data); err != nil {
			b.Fatal(err)
		}
	}
}
