package tokenizer

import (
	"slices"
	"strings"
	"testing"
)

const minimalJSON = `{"version":"1.0","truncation":null,"padding":null,"added_tokens":[{"id":3,"content":"</s>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],"normalizer":null,"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},"post_processor":null,"decoder":{"type":"ByteLevel"},"model":{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,"ignore_merges":false,"vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]}}`

func TestFromJSONAccepts(t *testing.T) {
	for _, c := range []struct{ name, old, new string }{
		{"as it is", "", ""},
		{"merges as lists", `["a b"]`, `[["a","b"]]`},
		{"empty affixes, as GPT-2 has them", `"continuing_subword_prefix":null,"end_of_word_suffix":null`, `"continuing_subword_prefix":"","end_of_word_suffix":""`},
		{"an old file, which does not name its model", `"type":"BPE",`, ``},
		{"no dropout", `"dropout":null`, `"dropout":0.0`},
		{"older files have no use_regex", `,"use_regex":true`, ``},
		{"a sequence of normalizers", `"normalizer":null`, `"normalizer":{"type":"Sequence","normalizers":[{"type":"NFC"}]}`},
		{"a sequence of one", `{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}`, `{"type":"Sequence","pretokenizers":[{"type":"ByteLevel","add_prefix_space":false}]}`},
		{"a template that adds nothing", `"post_processor":null`, `"post_processor":{"type":"TemplateProcessing","single":[{"Sequence":{"id":"A","type_id":0}}],"pair":[],"special_tokens":{}}`},
	} {
		tok, err := FromJSON([]byte(strings.Replace(minimalJSON, c.old, c.new, 1)))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got, want := tok.Encode("abba</s>c", Options{Special: true}), []int32{2, 1, 0, 3}; !slices.Equal(got, want) {
			t.Errorf("%s: ids %v, expected %v", c.name, got, want)
		}
		if tok.EndOfText() != 3 || tok.VocabSize() != 4 {
			t.Errorf("%s: end of text %d of %d", c.name, tok.EndOfText(), tok.VocabSize())
		}
	}
}

// Everything that would change ids and is not implemented is refused by name, never ignored.
func TestFromJSONRefuses(t *testing.T) {
	for _, c := range []struct{ name, old, new, says string }{
		{"not JSON", `{"version"`, `{version`, "invalid character"},
		{"two values", `}}`, `}}{}`, "more than one"},
		{"version", `"1.0"`, `"2.0"`, "version"},
		{"unknown key", `"truncation"`, `"fusion"`, "fusion"},
		{"truncation", `"truncation":null`, `"truncation":{"max_length":5}`, "truncation"},
		{"padding", `"padding":null`, `"padding":{"strategy":"BatchLongest"}`, "padding"},
		{"normalizer", `"normalizer":null`, `"normalizer":{"type":"NFKC"}`, `normalizer: type "NFKC"`},
		{"normalizer in a sequence", `"normalizer":null`, `"normalizer":{"type":"Sequence","normalizers":[{"type":"Lowercase"}]}`, `"Lowercase"`},
		{"normalizer's setting", `"normalizer":null`, `"normalizer":{"type":"NFC","strip":true}`, `"strip"`},
		{"pre-tokenizer", `{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}`, `{"type":"Whitespace"}`, `pre_tokenizer: type "Whitespace"`},
		{"no pre-tokenizer", `{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}`, `null`, "pre_tokenizer"},
		{"pre-tokenizers", `{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}`, `{"type":"Sequence","pretokenizers":[{"type":"Digits"},{"type":"ByteLevel","add_prefix_space":false}]}`, "sequence of 2"},
		{"pre-tokenizer's setting", `"use_regex":true`, `"use_regexp":true`, "use_regexp"},
		{"pre-tokenizer's value", `"use_regex":true`, `"use_regex":1`, "use_regex"},
		{"post-processor", `"post_processor":null`, `"post_processor":{"type":"BertProcessing"}`, "BertProcessing"},
		{"template", `"post_processor":null`, `"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"</s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}]}`, "adds tokens"},
		{"decoder", `"decoder":{"type":"ByteLevel"}`, `"decoder":{"type":"Metaspace"}`, "Metaspace"},
		{"no decoder", `"decoder":{"type":"ByteLevel"}`, `"decoder":null`, "decoder"},
		{"model", `"type":"BPE"`, `"type":"WordPiece"`, "WordPiece"},
		{"a model without a name that is no BPE", `"type":"BPE",`, `"max_input_chars_per_word":100,`, "max_input_chars_per_word"},
		{"dropout", `"dropout":null`, `"dropout":0.1`, "dropout"},
		{"prefix", `"continuing_subword_prefix":null`, `"continuing_subword_prefix":"##"`, "continuing_subword_prefix"},
		{"suffix", `"end_of_word_suffix":null`, `"end_of_word_suffix":"</w>"`, "end_of_word_suffix"},
		{"byte fallback", `"byte_fallback":false`, `"byte_fallback":true`, "byte_fallback"},
		{"ignore merges", `"ignore_merges":false`, `"ignore_merges":true`, "ignore_merges"},
		{"model's setting", `"dropout":null`, `"dropin":null`, "dropin"},
		{"no vocabulary", `"vocab":{"a":0,"b":1,"ab":2}`, `"vocab":{}`, "vocab"},
		{"an id that is none", `"ab":2`, `"ab":2.5`, "2.5"},
		{"a negative id", `"ab":2`, `"ab":-2`, "-2"},
		{"a huge id", `"ab":2`, `"ab":1e300`, "1e+300"},
		{"an id too high", `"ab":2`, `"ab":9999999`, "9999999"},
		{"an id twice", `"ab":2`, `"ab":1`, "two tokens"},
		{"unknown token", `"unk_token":null`, `"unk_token":"<unk>"`, "<unk>"},
		{"a merge of nothing", `"a b"`, `"a c"`, `"c"`},
		{"half a merge", `"a b"`, `"a"`, "merge 0"},
		{"three in a merge", `["a b"]`, `[["a","b","c"]]`, "merge 0"},
		{"no merges", `["a b"]`, `null`, "merges"},
		{"an added token's id", `"id":3`, `"id":7`, "expected 3"},
		{"an added token of the vocabulary", `"id":3,"content":"</s>"`, `"id":3,"content":"ab"`, "expected 2"},
		{"an empty added token", `"</s>"`, `""`, "no content"},
		{"an added token's setting", `"special":true`, `"special":true,"fuzzy":true`, "fuzzy"},
	} {
		if !strings.Contains(minimalJSON, c.old) {
			t.Fatalf("%s: the definition has no %s", c.name, c.old)
		}
		_, err := FromJSON([]byte(strings.Replace(minimalJSON, c.old, c.new, 1)))
		if err == nil {
			t.Errorf("%s: accepted", c.name)
		} else if !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v; expected one line with %q", c.name, err, c.says)
		}
	}
}

func TestEndOfText(t *testing.T) {
	for _, c := range []struct {
		old, new string
		want     int32
	}{
		{`"</s>"`, `"<|endoftext|>"`, 3},
		{`"</s>"`, `"<pad>"`, -1},
		{`"special":true`, `"special":false`, -1},
		{`"vocab":{"a":0,"b":1,"ab":2}`, `"vocab":{"a":0,"b":1,"ab":2,"</s>":3}`, 3},
	} {
		tok, err := FromJSON([]byte(strings.Replace(minimalJSON, c.old, c.new, 1)))
		if err != nil {
			t.Fatal(err)
		}
		if got := tok.EndOfText(); got != c.want {
			t.Errorf("%s: end of text %d, expected %d", c.new, got, c.want)
		}
	}
}
