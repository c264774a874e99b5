package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

const testdata = "../../testdata"

// program is the built binary, for what cannot be seen inside one process.
var program string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "xlstm-test")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	program = filepath.Join(dir, "xlstm")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", program, ".")
	build.Stderr = os.Stderr
	status := 1
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "go build:", err)
	} else {
		status = m.Run()
	}
	_ = os.RemoveAll(dir) // in the temporary directory
	os.Exit(status)
}

// call runs a command line in this process.
func call(stdin string, args ...string) (status int, stdout, stderr string) {
	var out, errs bytes.Buffer
	status = run(context.Background(), args, strings.NewReader(stdin), &out, &errs)
	return status, out.String(), errs.String()
}

// must runs a command line that has to succeed.
func must(t *testing.T, args ...string) (stdout string) {
	t.Helper()
	status, stdout, stderr := call("", args...)
	if status != 0 {
		t.Fatalf("xlstm %s: status %d: %s", strings.Join(args, " "), status, stderr)
	}
	return stdout
}

// commands lists every command of the program.
func commands() []*cobra.Command {
	root := newRoot(&app{out: &output{}})
	root.InitDefaultHelpCmd()
	return append(root.Commands(), root)
}

func TestHelp(t *testing.T) {
	for _, c := range commands() {
		if c.Short == "" || c.Example == "" || !strings.Contains(c.Example, "xlstm ") {
			t.Errorf("%s: its help lacks a summary or an example", c.Name())
		}
		args := []string{"help", c.Name()}
		if !c.HasParent() {
			args = args[:1]
		}
		text := must(t, args...)
		if !strings.Contains(text, "Usage:") || !strings.Contains(text, strings.TrimSpace(c.Example)) {
			t.Errorf("%s: help does not show usage and examples:\n%s", c.Name(), text)
		}
		if flag := must(t, append(args[1:], "--help")...); flag != text && c.HasParent() {
			t.Errorf("%s: help and --help differ", c.Name())
		}
		for _, line := range strings.Split(text, "\n") {
			if len(line) > 160 {
				t.Errorf("%s: a help line of %d characters: %s", c.Name(), len(line), line)
			}
		}
	}
}

// TestMisuse looks at command lines that cannot be meant: status 2 and one line on stderr, nothing on stdout.
func TestMisuse(t *testing.T) {
	lines := [][]string{
		{}, {"nonsense"}, {"--nonsense"}, {"help", "nonsense"}, {"completion"}, {"completion", "tcsh"}, {"version", "x"},
		{"pull"}, {"pull", "a/b", "c"}, {"tokenize"}, {"tokenize", "a", "b"}, {"tokenize", "x.json", "--decode", "--json"},
		{"tokenize", "--file"}, {"plan", "7b"},
	}
	for _, c := range commands() {
		if c.HasParent() && c.Name() != "help" {
			lines = append(lines, []string{c.Name(), "--nonsense"}, []string{c.Name(), "a", "b", "c", "d"})
		}
	}
	for _, args := range lines {
		status, stdout, stderr := call("", args...)
		if status != 2 || stdout != "" || !isLine(stderr) || !strings.Contains(stderr, "--help)") {
			t.Errorf("xlstm %s: status %d, stdout %q, stderr %q", strings.Join(args, " "), status, stdout, stderr)
		}
	}
	if _, _, stderr := call("", "tokenise"); !strings.Contains(stderr, "did you mean tokenize?") {
		t.Errorf("no suggestion: %q", stderr)
	}
}

// TestReadAtMost reads streams, whose size is not known before: what has no end is an error, and not all of the memory.
func TestReadAtMost(t *testing.T) {
	for _, c := range []struct {
		text, want string
		limit      int64
	}{{"abc", "abc", 3}, {"abc", "abc", 4}, {"", "", 0}} {
		if b, err := readAtMost(strings.NewReader(c.text), "stdin", 0, c.limit); err != nil || string(b) != c.want {
			t.Errorf("%q up to %d bytes: %q, %v", c.text, c.limit, b, err)
		}
	}
	if b, err := readAtMost(strings.NewReader("abcd"), "stdin", 0, 3); err == nil || b != nil {
		t.Errorf("4 bytes where 3 are the limit: %q, %v", b, err)
	}
}

// isLine reports whether s is one line as errors are written.
func isLine(s string) bool {
	return strings.HasPrefix(s, "xlstm: ") && strings.Count(s, "\n") == 1 && strings.HasSuffix(s, "\n")
}

// TestFailure looks at command lines that are well meant and cannot work: status 1 and one line that names what is wrong.
func TestFailure(t *testing.T) {
	dir := t.TempDir()
	junk := filepath.Join(dir, "junk.json")
	if err := os.WriteFile(junk, []byte("{\"x\":\x00\n\n"), 0o666); err != nil {
		t.Fatal(err)
	}
	missing, huge := filepath.Join(dir, "missing"), filepath.Join(dir, "huge")
	if err := os.WriteFile(huge, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(huge, maxInput+1); err != nil {
		t.Skip(err) // a disk without sparse files
	}
	for _, c := range []struct {
		stdin string
		args  []string
		want  string
	}{
		{"", []string{"tokenize", missing}, "missing"},
		{"", []string{"tokenize", junk}, "junk.json"},
		{"", []string{"tokenize", testdata + "/xlstm-7b", "-f", missing}, "missing"},
		{"x", []string{"tokenize", testdata + "/xlstm-7b", "--decode"}, `found "x", expected token ids`},
		{"99999", []string{"tokenize", testdata + "/xlstm-7b", "--decode"}, "no id 99999"},
		{"", []string{"tokenize", testdata + "/xlstm-7b", "-f", huge}, "huge: 2147483649 bytes, expected at most 2147483648"},
		{"", []string{"pull", "no repository"}, "no repository"},
	} {
		status, stdout, stderr := call(c.stdin, c.args...)
		if status != 1 || stdout != "" || !isLine(stderr) || !strings.Contains(stderr, c.want) {
			t.Errorf("xlstm %s: status %d, stdout %q, stderr %q, want %q", strings.Join(c.args, " "), status, stdout, stderr, c.want)
		}
	}
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if text := must(t, "completion", shell); !strings.Contains(text, "xlstm") || len(text) < 1000 {
			t.Errorf("%s: no script:\n%s", shell, text)
		}
	}
	if text := must(t, "__complete", "tok"); !strings.HasPrefix(text, "tokenize\t") {
		t.Errorf("tok: %q", text)
	}
	if text := must(t, "__complete", "tokenize", ""); !strings.HasPrefix(text, "xlstm\njson\n:8") {
		t.Errorf("tokenize: %q", text)
	}
}

func TestTokenize(t *testing.T) {
	const text = "Hello  world<|endoftext|>naïve \xf0\x9f\xa6\x89"
	model := testdata + "/xlstm-7b/tokenizer.json"
	status, ids, stderr := call(text, "tokenize", model)
	if status != 0 || !strings.HasPrefix(ids, "12092\n") || !strings.Contains(ids, "\n0\n") {
		t.Fatalf("status %d, ids %q, %s", status, ids, stderr)
	}
	_, list, _ := call(text, "tokenize", testdata+"/xlstm-7b", "--json")
	if want := "[" + strings.Join(strings.Fields(ids), ",") + "]\n"; list != want {
		t.Errorf("--json: %q, want %q", list, want)
	}
	for _, in := range []string{ids, list} {
		if _, back, _ := call(in, "tokenize", model, "--decode"); back != text {
			t.Errorf("decoded %q, want %q", back, text)
		}
	}
	if _, plain, _ := call(text, "tokenize", model, "--special=false"); strings.Contains(plain, "\n0\n") {
		t.Errorf("--special=false: ids %q hold the end of text", plain)
	}
}

// TestFullDisk writes to a device that is full, which only the last write may find out.
func TestFullDisk(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer full.Close()
	for _, args := range [][]string{{"version"}, {"help"}, {"tokenize", testdata + "/xlstm-7b", "-f", "main_test.go"}} {
		cmd := exec.Command(program, args...)
		var errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = full, &errs
		if status := exitStatus(t, cmd.Run()); status != 1 || !isLine(errs.String()) || !strings.Contains(errs.String(), "no space left") {
			t.Errorf("%v: status %d, stderr %q", args, status, errs.String())
		}
	}
}

func exitStatus(t *testing.T, err error) int {
	t.Helper()
	var e *exec.ExitError
	if err == nil {
		return 0
	}
	if !errors.As(err, &e) {
		t.Fatal(err)
	}
	return e.ExitCode()
}

// TestClosedPipe has a reader that goes away: a quiet end.
func TestClosedPipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	defer w.Close()
	cmd := exec.Command(program, "tokenize", testdata+"/xlstm-7b", "-f", "main_test.go")
	var errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = w, &errs
	if status := exitStatus(t, cmd.Run()); status != 141 || errs.Len() > 0 {
		t.Errorf("status %d, stderr %q, want 141 and silence", status, errs.String())
	}
}

func TestOneLine(t *testing.T) {
	if got := oneLine("a\n\tb\r\nc\x1b[31m"); got != "a; b; c?[31m" {
		t.Errorf("%q", got)
	}
	for n, want := range map[int64]string{0: "0 B", 999: "999 B", 1000: "1.00 kB", 13_730_000_000: "13.7 GB", 999_999: "1.00 MB", 123_456_789: "123 MB"} {
		if got := size(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}
