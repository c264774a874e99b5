package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestParseDevice(t *testing.T) {
	for s, want := range map[string]device{"auto": {kind: "auto"}, "cpu": {kind: "cpu"}, "cuda": {kind: "cuda"}, "cuda:0": {kind: "cuda"}, "cuda:7": {"cuda", 7}} {
		if got, err := parseDevice(s); err != nil || got != want {
			t.Errorf("parseDevice(%q) = %v, %v, expected %v", s, got, err, want)
		}
	}
	for _, s := range []string{"", "gpu", "cuda:", "cuda:-1", "cuda:x", "cuda:99999", "CPU"} {
		if got, err := parseDevice(s); err == nil {
			t.Errorf("parseDevice(%q) = %v, expected an error", s, got)
		}
	}
}

// TestHandOver puts a script in the place of xlstm-cuda: it must be run with the same arguments where a GPU is asked for, and a
// program that is not there or does not start must be an error that says so.
func TestHandOver(t *testing.T) {
	dir := t.TempDir()
	self := filepath.Join(dir, "xlstm")
	b, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(self, b, 0o755); err != nil {
		t.Fatal(err)
	}
	companion := filepath.Join(dir, "xlstm-cuda")
	for name, c := range map[string]struct{ script, want string }{
		"none":    {"", "make cuda builds it"},
		"broken":  {"#!/bin/sh\necho no driver\nexit 1\n", "does not start: no driver"},
		"working": {"#!/bin/sh\necho \"got $*\"\n", "got run demo -p hi there --device cuda:1"},
	} {
		t.Run(name, func(t *testing.T) {
			_ = os.Remove(companion) // the case before
			if c.script != "" {
				if err := os.WriteFile(companion, []byte(c.script), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			out, err := exec.Command(self, "run", "demo", "-p", "hi there", "--device", "cuda:1").CombinedOutput()
			if !strings.Contains(string(out), c.want) || (err == nil) != (name == "working") {
				t.Errorf("%v, %q, expected %q", err, out, c.want)
			}
		})
	}
}

func TestDeviceMisuse(t *testing.T) {
	for _, args := range [][]string{
		{"run", "demo", "-p", "x", "--device", "gpu"},
		{"run", "demo", "-p", "x", "--device", "cpu", "--state", "bf16"},
		{"run", "demo", "-p", "x", "--device", "cuda", "--state", "int8"},
		{"run", "demo", "-p", "x", "--device", "cpu", "--prompt-math", "fp16"},
		{"run", "demo", "-p", "x", "--device", "cuda", "--prompt-math", "bf16"},
		{"devices", "now"},
	} {
		if status, _, stderr := call("", args...); status != 2 {
			t.Errorf("%v: status %d, %q", args, status, stderr)
		}
	}
	if s := must(t, "devices"); !strings.HasPrefix(s, "cpu") {
		t.Errorf("devices begins with %q", s)
	}
}
