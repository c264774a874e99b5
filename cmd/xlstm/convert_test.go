package main

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestConvertWithTokenizer gives a checkpoint that has no tokenizer one of another place.
func TestConvertWithTokenizer(t *testing.T) {
	out, definition := filepath.Join(t.TempDir(), "m.xlstm"), "../../checkpoints/demo/tokenizer.json"
	must(t, "convert", "--synthetic", "5m", "-o", out, "--tokenizer", definition)
	if got, want := must(t, "tokenize", out, "-f", definition), must(t, "tokenize", definition, "-f", definition); got != want {
		t.Error("the file's tokenizer gives other ids than the definition's")
	}
	if s := must(t, "inspect", out); !strings.Contains(s, "tokenizer=sha256:") {
		t.Errorf("inspect does not name the tokenizer: %s", s)
	}
	for _, wrong := range []string{testdata + "/xlstm-7b/tokenizer.json", testdata + "/xlstm-7b/config.json", "missing.json"} {
		status, _, stderr := call("", "convert", "--synthetic", "5m", "-o", out, "--tokenizer", wrong)
		if status != 1 || !strings.Contains(stderr, "json") {
			t.Errorf("--tokenizer %s: status %d, %q", wrong, status, stderr)
		}
	}
}
