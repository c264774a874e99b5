package tokenizer

import (
	"encoding/json"
	"os"
	"slices"
	"testing"
)

func smallTokenizer(t testing.TB) *Tokenizer { return fromFile(t, "testdata/small.json") }

// goldenCase is what Hugging Face's tokenizers, version 0.23.3, give for one text and for one list of ids.
type goldenCase struct {
	Tokenizer string
	Text      string
	Special   []int32 // ids of Text, special tokens recognized
	Plain     []int32 // and not
	Decode    []int32
	Written   string `json:"text_special"` // text of Decode with its special tokens
	Skipped   string `json:"text_plain"`   // and without
}

// The tokenizers in testdata were trained on books-valid.txt: small has all bytes; drop lacks most, and they vanish; fuse and
// prefix have an unknown token for them; prefix also has a leading space, NFC and added tokens of every kind.
func TestGolden(t *testing.T) {
	var cases []goldenCase
	path := "testdata/cases.json"
	if p := os.Getenv("XLSTM_TOKENIZER_CASES"); p != "" {
		path = p // a larger set, made elsewhere
	}
	if err := json.Unmarshal(readFile(t, path), &cases); err != nil {
		t.Fatal(err)
	}
	tokenizers := map[string]*Tokenizer{"neox": loaded(t, neoxTokenizer(t))}
	for _, name := range []string{"small", "prefix", "fuse", "drop"} {
		tokenizers[name] = loaded(t, fromFile(t, "testdata/"+name+".json"))
	}
	for _, c := range cases {
		tok := tokenizers[c.Tokenizer]
		if got := tok.Encode(c.Text, Options{Special: true}); !slices.Equal(got, c.Special) {
			t.Errorf("%s: %+q: ids %v, expected %v", c.Tokenizer, c.Text, got, c.Special)
		}
		if got := tok.Encode(c.Text, Options{}); !slices.Equal(got, c.Plain) {
			t.Errorf("%s: %+q without special tokens: ids %v, expected %v", c.Tokenizer, c.Text, got, c.Plain)
		}
		if got := tok.Decode(c.Decode, Options{Special: true}); got != c.Written {
			t.Errorf("%s: %v: text %+q, expected %+q", c.Tokenizer, c.Decode, got, c.Written)
		}
		if got := tok.Decode(c.Decode, Options{}); got != c.Skipped {
			t.Errorf("%s: %v without special tokens: text %+q, expected %+q", c.Tokenizer, c.Decode, got, c.Skipped)
		}
	}
}
