package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"xlstm/report"
	"xlstm/runtime"
)

// TestCompare makes a report over few tokens: its figures are those of perplexity --against, and the page names the files.
func TestCompare(t *testing.T) {
	dir := t.TempDir()
	int8, page := filepath.Join(dir, "a <i>8.xlstm"), filepath.Join(dir, "out.html")
	must(t, "convert", "demo", "-o", int8, "--recipe", "int8", "--no-hashes")
	text := []string{"-f", testdata + "/books-valid.txt", "--against", demoDir, "--limit", "48", "--window", "16", "--json"}
	var d report.Data
	if err := json.Unmarshal([]byte(must(t, append([]string{"perplexity", "--compare", model(t), int8, "--report", page}, text...)...)), &d); err != nil {
		t.Fatal(err)
	}
	var c runtime.Comparison
	if err := json.Unmarshal([]byte(must(t, append([]string{"perplexity", model(t), int8}, text...)...)), &c); err != nil {
		t.Fatal(err)
	}
	if len(d.Files) != 2 || d.Method.Sequences != 3 || d.Method.Window != 16 || d.Method.UsedTokens != 48 || d.Method.TextTokens < 100000 ||
		d.Method.TextBytes < 500000 || d.Method.Text != "books-valid.txt" || d.Original != reportScore(c.Reference) || d.WeightsNote != "" {
		t.Errorf("data %+v", d)
	}
	for i, f := range d.Files {
		want := c.Files[i]
		if f.Name != want.Name || f.Perplexity != want.Perplexity || f.Ratio != want.Ratio || f.RatioStdErr != want.RatioStdErr ||
			f.MeanKL != want.MeanKL || f.KL999 != want.KL999 || f.TopAgreement != want.TopAgreement || f.MaxLogitDiff != want.MaxLogitDiff {
			t.Errorf("file %+v, expected the figures of %+v", f, want)
		}
	}
	half, byte8 := d.Files[0].Errors, d.Files[1].Errors
	if half == nil || byte8 == nil || half.All.Relative <= 0 || half.All.Relative > 1e-6 || byte8.All.Relative <= 1e-6 || byte8.All.Relative > 1e-3 {
		t.Errorf("weight errors %+v, %+v", half, byte8)
	}
	b, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if s := string(b); !strings.HasPrefix(s, "<!DOCTYPE html>") || !strings.Contains(s, "a &lt;i&gt;8") || !strings.Contains(s, d.Method.TextSHA256) {
		t.Error("the page does not show what was compared")
	}
}

// TestCompareOriginals compares with originals that are files.
func TestCompareOriginals(t *testing.T) {
	dir := t.TempDir()
	int8 := filepath.Join(dir, "int8.xlstm")
	must(t, "convert", "demo", "-o", int8, "--recipe", "int8", "--no-hashes")
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte("It was a dark and stormy night."), 0o600); err != nil {
		t.Fatal(err)
	}
	table := must(t, "perplexity", "--compare", model(t), int8, "-f", text, "--against", model(t))
	for _, word := range []string{"recipe", "fp16", "int8", "1.000000 ± 0.000000", "weight error", "100.000 %"} {
		if !strings.Contains(table, word) {
			t.Errorf("the table lacks %q:\n%s", word, table)
		}
	}
	if table := must(t, "perplexity", "--compare", model(t), "-f", text, "--against", int8); !strings.Contains(table, "encoded with loss") {
		t.Errorf("an int8 original: %s", table)
	}
}

func TestCompareFails(t *testing.T) {
	dir := t.TempDir()
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	page := filepath.Join(dir, "out.html")
	against := []string{"-f", text, "--against", "demo"}
	for _, c := range []struct {
		status int
		args   []string
		want   string
	}{
		{2, []string{"--compare", "-f", text}, "--against"},
		{2, []string{"--report", page, "-f", text}, "--against"},
		{2, append([]string{"--report", "-"}, against...), "name of a file"},
		{2, append([]string{"--report="}, against...), "name of a file"},
		{1, append([]string{"--report", page}, against...), "nothing to predict"},
		{1, append([]string{"--report", filepath.Join(dir, "no", "out.html")}, against...), "no such file"},
		{1, []string{"--compare", "-f", text, "--against", filepath.Join(dir, "missing")}, "missing"},
		{1, append([]string{"--compare", filepath.Join(dir, "missing.xlstm")}, against...), "missing.xlstm"},
	} {
		status, stdout, stderr := call("", append([]string{"perplexity", model(t)}, c.args...)...)
		if status != c.status || stdout != "" || !isLine(stderr) || !strings.Contains(stderr, c.want) {
			t.Errorf("%v: status %d, stdout %q, stderr %q, expected %q", c.args, status, stdout, stderr, c.want)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}
