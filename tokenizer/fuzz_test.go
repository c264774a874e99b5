package tokenizer

import (
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// Any bytes encode without a panic; a tokenizer without normalization gives them back, as UTF-8; a streaming decoder gives, piece by
// piece, what Decode gives at once.
func FuzzRoundTrip(f *testing.F) {
	for _, s := range []string{
		"", "Hello, world!", "<|endoftext|>x", "a\xffb\xe2\x82", "e\u0301\u0323", strings.Repeat(" ", 70) + "x", "\n\n \u3000y", "'s 'll '", "日本語 [END] <sep> word",
	} {
		f.Add(s, true)
		f.Add(s, false)
	}
	var tokenizers []*Tokenizer
	for _, name := range []string{"small", "prefix", "fuse", "drop"} {
		tokenizers = append(tokenizers, fromFile(f, "testdata/"+name+".json"))
	}
	f.Fuzz(func(t *testing.T, text string, special bool) {
		for i, tok := range tokenizers {
			o := Options{Special: special}
			ids := tok.Encode(text, o)
			for _, id := range ids {
				if !tok.Has(id) {
					t.Fatalf("%q: id %d is no token", text, id)
				}
			}
			all := tok.Decode(ids, Options{Special: true})
			if want := string(appendLossy(nil, []byte(text))); i == 0 && all != want {
				t.Fatalf("%q came back as %q", text, all)
			}
			checkStream(t, tok, ids)
		}
	})
}

func checkStream(t *testing.T, tok *Tokenizer, ids []int32) {
	t.Helper()
	for _, o := range []Options{{}, {Special: true}} {
		d := tok.NewDecoder(o)
		var b strings.Builder
		for _, id := range ids {
			s := d.Next(id)
			if !utf8.ValidString(s) {
				t.Fatalf("%v: part of a character in %q", ids, s)
			}
			b.WriteString(s)
		}
		b.WriteString(d.Flush())
		if got, want := b.String(), tok.Decode(ids, o); got != want {
			t.Fatalf("%v: streamed %q, expected %q", ids, got, want)
		}
	}
}

// Any ids stream as they decode.
func FuzzDecode(f *testing.F) {
	f.Add([]byte("\xf0\x9f\x98\x80"))
	f.Add([]byte("a\xf0\x9f\x98a\xe2\x82\xac\xed\xa0\x80\xc3"))
	tok := fromFile(f, "testdata/small.json")
	f.Fuzz(func(t *testing.T, data []byte) {
		ids := make([]int32, len(data))
		for i, c := range data {
			ids[i] = tok.byteIDs[c]
		}
		if got := tok.AppendBytes(nil, ids, Options{}); string(got) != string(data) {
			t.Fatalf("bytes %q, expected %q", got, data)
		}
		checkStream(t, tok, ids)
		checkStream(t, tok, append(ids, 0, -1, 1<<30, int32(len(data))))
	})
}

// Whatever Load accepts works, and is written as it was read.
func FuzzLoad(f *testing.F) {
	for _, name := range []string{"small", "prefix"} {
		data, err := fromFile(f, "testdata/"+name+".json").MarshalBinary()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
		f.Add(data[:len(data)/2])
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		tok, err := Load(data)
		if err != nil {
			return
		}
		again, err := tok.MarshalBinary()
		if err != nil || !slices.Equal(again, data) {
			t.Fatalf("written again as %d other bytes, %v", len(again), err)
		}
		ids := tok.Encode("Hello   <sep> wörld <|endoftext|>\n日本"+strings.Repeat("ab", 40), Options{Special: true})
		tok.Decode(ids, Options{})
	})
}

func FuzzFromJSON(f *testing.F) {
	for _, name := range []string{"small", "prefix", "fuse"} {
		f.Add(readFile(f, "testdata/"+name+".json"))
	}
	f.Add([]byte(minimalJSON))
	f.Fuzz(func(t *testing.T, data []byte) {
		tok, err := FromJSON(data)
		if err != nil {
			return
		}
		ids := loaded(t, tok).Encode("Hello <sep> abc", Options{Special: true})
		if !slices.Equal(ids, tok.Encode("Hello <sep> abc", Options{Special: true})) {
			t.Fatal("a compiled tokenizer gives other ids")
		}
	})
}
