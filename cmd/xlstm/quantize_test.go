package main

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"xlstm/format"
)

const calibrationText = testdata + "/books-calibrate.txt"

func TestQuantize(t *testing.T) {
	if raceEnabled {
		t.Skip("some minutes under the race detector")
	}
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	must(t, "convert", demoDir, "-o", file("fp32.xlstm"), "--recipe", "fp32")
	few := []string{"--calibrate", calibrationText, "--samples", "4", "--length", "32"}
	for name, args := range map[string][]string{
		"searched":   {demoDir, "--recipe", "int8"},
		"plain":      {"demo", "--recipe", "int4", "--plain", "--tensor", "head=fp16"},
		"rotated":    {file("fp32.xlstm"), "--rotate", "--seed", "7"},
		"calibrated": append([]string{demoDir, "--recipe", "int4g32a", "--act-order", "--damping", "0.02", "--threads", "2"}, few...),
	} {
		out := must(t, append([]string{"quantize", "-o", file(name)}, args...)...)
		if !strings.Contains(out, "bits a weight") || !strings.Contains(out, "weight error") ||
			strings.Contains(out, "output error") != (name == "calibrated") {
			t.Errorf("%s: printed %s", name, out)
		}
		must(t, "verify", file(name))
	}
	// The same from a checkpoint and from its file: calibration sees the same weights, and the tensors are the same bytes.
	must(t, append([]string{"quantize", demoDir, "-o", file("a"), "--rotate"}, few...)...)
	must(t, append([]string{"quantize", file("fp32.xlstm"), "-o", file("b"), "--rotate"}, few...)...)
	sameTensors(t, file("a"), file("b"))
	must(t, "quantize", "demo", "-o", file("c"), "--recipe", "int8", "--tokenizer", demoDir+"/tokenizer.json")
	if out := must(t, "inspect", file("c")); !strings.Contains(out, "tokenizer=sha256:") {
		t.Errorf("inspect does not name the tokenizer: %s", out)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 8 {
		t.Errorf("files left are %v (%v)", entries, err)
	}
}

func sameTensors(t *testing.T, a, b string) {
	t.Helper()
	x, err := format.Open(a)
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	y, err := format.Open(b)
	if err != nil {
		t.Fatal(err)
	}
	defer y.Close()
	for _, want := range x.Tensors() {
		if got, ok := y.Tensor(want.Name); !ok || got.SHA256 != want.SHA256 || got.Encoding != want.Encoding {
			t.Errorf("tensor %s differs", want.Name)
		}
	}
}

func TestQuantizeReport(t *testing.T) {
	dir := t.TempDir()
	text, html := filepath.Join(dir, "t.txt"), filepath.Join(dir, "r.html")
	if err := os.WriteFile(text, []byte("It was a dark and stormy night."), 0o600); err != nil {
		t.Fatal(err)
	}
	out := must(t, "quantize", "demo", "-o", filepath.Join(dir, "m.xlstm"), "--recipe", "int8", "--report", html, "-f", text, "--limit", "8")
	b, err := os.ReadFile(html)
	if err != nil || !strings.Contains(string(b), "<html") || !strings.Contains(string(b), "int8") || !strings.Contains(out, html) {
		t.Errorf("report is %.200s (%v), output %s", b, err, out)
	}
}

func TestQuantizeMisuse(t *testing.T) {
	dir := t.TempDir()
	out := filepath.Join(dir, "m.xlstm")
	for _, c := range []struct {
		args   []string
		status int
		words  string
	}{
		{[]string{"demo"}, 2, "-o"},
		{[]string{"-o", out}, 2, "CHECKPOINT_DIR"},
		{[]string{"demo", "-o", out, "--recipe", "int5"}, 2, "int5"},
		{[]string{"demo", "-o", out, "--samples", "3"}, 2, "--calibrate"},
		{[]string{"demo", "-o", out, "--limit", "3"}, 2, "--report"},
		{[]string{"demo", "-o", out, "--seed", "3"}, 2, "--rotate"},
		{[]string{"demo", "-o", out, "--report", "r.html"}, 2, "-f"},
		{[]string{"demo", "-o", out, "--calibrate", "x", "--samples", "0"}, 2, "--samples"},
		{[]string{"demo", "-o", out, "--calibrate", "x", "--length", "1"}, 2, "--length"},
		{[]string{"demo", "-o", out, "--calibrate", "x", "--damping", "NaN"}, 2, "--damping"},
		{[]string{"demo", "-o", out, "--calibrate", "x", "--plain"}, 2, "exclude"},
		{[]string{"demo", "-o", out, "--calibrate", filepath.Join(dir, "none")}, 1, "none"},
		{[]string{"demo", "-o", out, "--report", filepath.Join(dir, "r.html"), "-f", filepath.Join(dir, "none")}, 1, "none"},
		{[]string{"demo", "-o", out, "--calibrate", calibrationText, "--samples", "9999"}, 1, "too short"},
		{[]string{"demo", "-o", out, "--calibrate", calibrationText, "--recipe", "bf16"}, 1, "nothing to calibrate"},
		{[]string{testdata + "/fixtures/tiny-fp32", "-o", out, "--calibrate", calibrationText}, 1, "tokenizer"},
		{[]string{filepath.Join(dir, "none"), "-o", out}, 1, "none"},
		{[]string{testdata + "/fixtures/tiny-fp32", "-o", out, "--tokenizer", demoDir + "/tokenizer.json"}, 1, "expected at most the model's"},
		{[]string{"demo", "-o", out, "--tokenizer", demoDir + "/config.json"}, 1, "config.json"},
	} {
		status, _, stderr := call("", append([]string{"quantize"}, c.args...)...)
		if status != c.status || !isLine(stderr) || !strings.Contains(stderr, c.words) {
			t.Errorf("quantize %q: status %d, stderr %q, expected %d and %q", c.args, status, stderr, c.status, c.words)
		}
	}
	if entries, err := os.ReadDir(dir); len(entries) > 0 || err != nil {
		t.Errorf("left %v (%v)", entries, err)
	}
	name := filepath.Join(dir, "in.xlstm")
	must(t, "quantize", "demo", "-o", name, "--recipe", "fp16")
	for args, words := range map[string]string{name: "is what is read", filepath.Join(dir, "int8.xlstm"): "expected fp32, fp16 or bf16"} {
		if args != name {
			must(t, "quantize", name, "-o", args, "--recipe", "int8")
		}
		status, _, stderr := call("", "quantize", args, "-o", name)
		if status != 1 || !isLine(stderr) || !strings.Contains(stderr, words) {
			t.Errorf("quantize %s: status %d, stderr %q, expected %q", args, status, stderr, words)
		}
	}
}

// TestInterruptedCalibration stops a calibration after its first block, and lets the same command go on.
func TestInterruptedCalibration(t *testing.T) {
	dir := t.TempDir()
	out := filepath.Join(dir, "m.xlstm")
	args := []string{"quantize", demoDir, "-o", out, "--calibrate", calibrationText, "--samples", "8", "--length", "64"}
	begun := make(chan struct{})
	go func() {
		defer close(begun)
		for range 6000 {
			if _, err := os.Stat(filepath.Join(out+".calibration", "block-0000.bin")); err == nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	status, stderr := interrupt(t, exec.Command(program, args...), begun, syscall.SIGINT)
	if _, err := os.Stat(out); status != 130 || !isLine(stderr) || !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("status %d, stderr %q, output %v", status, stderr, err)
	}
	if printed := must(t, args...); !strings.Contains(printed, "finished before") {
		t.Errorf("printed %s", printed)
	}
	must(t, "verify", out)
}
