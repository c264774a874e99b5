package main

import (
	"bytes"
	"encoding/json"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"xlstm/runtime"
)

const demoDir = "../../checkpoints/demo"

// demoModel is the demo checkpoint converted to fp16, made once for all tests.
var demoModel = sync.OnceValues(func() (string, error) {
	name := filepath.Join(filepath.Dir(program), "demo.xlstm")
	out, err := exec.Command(program, "convert", demoDir, "-o", name, "--recipe", "fp16").CombinedOutput()
	if err != nil {
		return "", &exec.Error{Name: string(out), Err: err}
	}
	return name, nil
})

func model(t *testing.T) string {
	t.Helper()
	name, err := demoModel()
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// TestGoldenLogits goes the whole way by commands alone: convert, then logits, which have to be the original's.
func TestGoldenLogits(t *testing.T) {
	for name, tolerance := range map[string]float64{"tiny-fp32": 2e-4, "tiny-fused": 2e-4, "tiny-bias": 2e-4, "tiny-nxai-layout": 5e-3} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			fixture, file, out := testdata+"/fixtures/"+name, filepath.Join(dir, "m.xlstm"), filepath.Join(dir, "out.safetensors")
			expected := fixture + "/expected.safetensors"
			must(t, "convert", fixture, "-o", file, "--recipe", "fp32")
			must(t, "verify", file)
			for _, step := range []string{"--step=false", "--step"} {
				must(t, "logits", file, "--ids", expected, "-o", out, step)
				compareLogits(t, out, expected, tolerance, tolerance)
			}
		})
	}
}

func TestInspect(t *testing.T) {
	file := model(t)
	var d description
	if err := json.Unmarshal([]byte(must(t, "inspect", file, "--json")), &d); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if d.Size != info.Size() || d.Recipe != "fp16" || d.Tokenizer == nil || d.Tokenizer.Tokens != 4096 || d.Config.VocabSize != 4096 ||
		len(d.Fingerprint) != 64 || !strings.Contains(d.Provenance.Source, "demo") || len(d.Provenance.Files) == 0 {
		t.Errorf("description %+v", d)
	}
	var weights, stored int64
	for _, k := range d.Kinds {
		weights, stored = weights+k.Weights, stored+k.Bytes
	}
	if weights != d.Weights || stored != d.Needs.Weights || d.Needs.State != 4*int64(d.Config.StateFloats()) || d.Needs.Working <= 0 {
		t.Errorf("sums: %d weights, %d bytes, needs %+v", weights, stored, d.Needs)
	}
	text, all := must(t, "inspect", file), must(t, "inspect", file, "--tensors")
	for _, word := range []string{"recipe", "fp16", "bits a weight", "SHA-256", "for the state of each sequence", "qkvo"} {
		if !strings.Contains(text, word) {
			t.Errorf("no %q in\n%s", word, text)
		}
	}
	if strings.Count(all, "\n") <= strings.Count(text, "\n") || !strings.Contains(all, "blocks.5.down") {
		t.Errorf("--tensors:\n%s", all)
	}
	if inside := must(t, "inspect", "demo"); !strings.HasPrefix(inside, "demo: ") {
		t.Errorf("demo:\n%s", inside)
	}
}

func TestBrokenFiles(t *testing.T) {
	whole, err := os.ReadFile(model(t))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	flipped := bytes.Clone(whole)
	flipped[len(flipped)/2] ^= 4
	for name, data := range map[string][]byte{"flipped": flipped, "cut": whole[:len(whole)-100], "text": []byte("not a model"), "empty": nil} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, data, 0o666); err != nil {
			t.Fatal(err)
		}
		commands := [][]string{{"verify", file}}
		if name != "flipped" { // which only verify finds
			commands = append(commands, []string{"inspect", file}, []string{"run", file, "-p", "x"}, []string{"tokenize", file},
				[]string{"perplexity", file, "-f", "main_test.go"}, []string{"bench", file})
		}
		for _, args := range commands {
			if status, stdout, stderr := call("", args...); status != 1 || stdout != "" || !isLine(stderr) || !strings.Contains(stderr, name) {
				t.Errorf("%s of %s: status %d, stdout %q, stderr %q", args[0], name, status, stdout, stderr)
			}
		}
	}
	for _, args := range [][]string{{"run", dir}, {"inspect", dir}, {"perplexity", dir, "-f", "main_test.go"}} {
		if status, _, stderr := call("", args...); status != 1 || !strings.Contains(stderr, "is a directory, expected a converted file") {
			t.Errorf("%v: status %d, stderr %q", args, status, stderr)
		}
	}
}

func TestRun(t *testing.T) {
	file := model(t)
	run := func(args ...string) string { return must(t, append([]string{"run", file, "-n", "24"}, args...)...) }
	prompt := []string{"-p", "It was a dark and"}
	text := run(append(prompt, "--seed", "7")...)
	if len(text) < 20 || !strings.HasSuffix(text, "\n") {
		t.Fatalf("text %q", text)
	}
	if again := run(append(prompt, "--seed", "7", "--threads", "1")...); again != text {
		t.Errorf("the same seed with one thread gave %q and %q", text, again)
	}
	if other := run(append(prompt, "--seed", "8")...); other == text {
		t.Errorf("another seed gave the same text %q", text)
	}
	if inside := must(t, "run", "demo", "-n", "24", "-p", prompt[1], "--seed", "7"); inside != text {
		t.Errorf("demo gave %q, the file of the same weights %q", inside, text)
	}
	if echo := run(append(prompt, "--seed", "7", "--echo")...); echo != prompt[1]+text {
		t.Errorf("--echo gave %q", echo)
	}
	greedy := run(append(prompt, "-t", "0")...)
	if word := strings.Fields(greedy)[2]; true {
		stopped := run(append(prompt, "-t", "0", "--stop", word)...)
		if want := greedy[:strings.Index(greedy, word)]; stopped != want+"\n" && stopped != want {
			t.Errorf("--stop %q gave %q of %q", word, stopped, greedy)
		}
	}
	// A prompt comes from a file and from stdin as well.
	in := filepath.Join(t.TempDir(), "prompt")
	if err := os.WriteFile(in, []byte(prompt[1]), 0o666); err != nil {
		t.Fatal(err)
	}
	if text := run("-f", in, "-t", "0"); text != greedy {
		t.Errorf("-f gave %q, want %q", text, greedy)
	}
	status, text, stderr := call(prompt[1], "run", file, "-n", "24", "-t", "0")
	if status != 0 || text != greedy || !strings.HasPrefix(stderr, "prompt: 6 tokens in ") {
		t.Errorf("stdin: status %d, text %q, stderr %q", status, text, stderr)
	}
	if _, _, stderr := call(prompt[1], "run", file, "-n", "3", "-q"); stderr != "" {
		t.Errorf("-q: stderr %q", stderr)
	}
}

func TestRunJSON(t *testing.T) {
	var g, special generation
	args := []string{"run", model(t), "-n", "9", "--json", "-p", "<|endoftext|>He said"}
	if err := json.Unmarshal([]byte(must(t, append(args, "--seed", "3")...)), &g); err != nil {
		t.Fatal(err)
	}
	if len(g.Tokens) != 9 || g.Finish != runtime.FinishLength || g.Seed == nil || *g.Seed != 3 || g.Text == "" || g.Prompt != "<|endoftext|>He said" {
		t.Errorf("%+v", g)
	}
	if err := json.Unmarshal([]byte(must(t, append(args, "--special", "-t", "0")...)), &special); err != nil {
		t.Fatal(err)
	}
	if special.Seed != nil || special.PromptTokens >= g.PromptTokens {
		t.Errorf("--special: %d tokens of prompt, as text %d; seed %v", special.PromptTokens, g.PromptTokens, special.Seed)
	}
}

// TestSavedState goes on from a saved state as if there had been no break.
func TestSavedState(t *testing.T) {
	file, dir := model(t), t.TempDir()
	state := filepath.Join(dir, "s.state")
	whole := must(t, "run", file, "-p", "It was a dark and stormy night.", "-n", "12", "-t", "0")
	if out := must(t, "run", file, "-p", "It was a dark and", "-n", "0", "--save-state", state); out != "" {
		t.Errorf("-n 0 gave %q", out)
	}
	if out := must(t, "run", file, "--load-state", state, "-p", " stormy night.", "-n", "12", "-t", "0"); out != whole {
		t.Errorf("after a saved state %q, want %q", out, whole)
	}
	other := filepath.Join(dir, "other.xlstm")
	must(t, "convert", demoDir, "-o", other, "--recipe", "bf16")
	if status, _, stderr := call("", "run", other, "--load-state", state, "-p", "x"); status != 1 || !isLine(stderr) || !strings.Contains(stderr, "s.state") {
		t.Errorf("another model's state: status %d, stderr %q", status, stderr)
	}
	for _, nowhere := range []string{filepath.Join(dir, "no", "s.state"), dir} {
		if status, stdout, stderr := call("", "run", file, "-p", "x", "--save-state", nowhere); status != 1 || stdout != "" || !isLine(stderr) {
			t.Errorf("a state saved in %s: status %d, stdout %q, stderr %q", nowhere, status, stdout, stderr)
		}
	}
	for _, bad := range []string{file, filepath.Join(dir, "missing")} {
		if status, _, stderr := call("", "run", file, "--load-state", bad, "-p", "x"); status != 1 || !isLine(stderr) {
			t.Errorf("--load-state %s: status %d, stderr %q", bad, status, stderr)
		}
	}
}

func TestPerplexity(t *testing.T) {
	file, text := model(t), testdata+"/books-valid.txt"
	var alone runtime.PerplexityResult
	if err := json.Unmarshal([]byte(must(t, "perplexity", file, "-f", text, "--limit", "40", "--window", "16", "--json")), &alone); err != nil {
		t.Fatal(err)
	}
	if alone.Tokens != 40 || alone.Sequences != 3 || !(alone.Perplexity > 2 && alone.Perplexity < 500) {
		t.Errorf("%+v", alone)
	}
	var c runtime.Comparison
	args := []string{"perplexity", file, "-f", text, "--limit", "40", "--window", "16", "--against"}
	if err := json.Unmarshal([]byte(must(t, append(args, demoDir, "--json")...)), &c); err != nil {
		t.Fatal(err)
	}
	if f := c.Files[0]; math.Abs(f.Ratio-1) > 1e-3 || f.MeanKL > 1e-5 || f.TopAgreement < 0.95 || math.Abs(f.NLL-alone.NLL) > 1e-4 {
		t.Errorf("fp16 against the original: %+v, alone %+v", f, alone)
	}
	if err := json.Unmarshal([]byte(must(t, append(args, file, "--json")...)), &c); err != nil {
		t.Fatal(err)
	}
	if f := c.Files[0]; f.Ratio != 1 || f.MaxLogitDiff > 1e-3 {
		t.Errorf("a file against itself: %+v", f)
	}
	for _, args := range [][]string{{"--stream"}, {"--against", "demo"}} {
		out := must(t, append([]string{"perplexity", file, "-f", text, "--limit", "20"}, args...)...)
		if !strings.Contains(out, "perplexity ") || !strings.Contains(out, "20 tokens in") {
			t.Errorf("%v: %s", args, out)
		}
	}
	if status, _, stderr := call("", "perplexity", file, "-f", "-"); status != 1 || !isLine(stderr) {
		t.Errorf("an empty text: status %d, stderr %q", status, stderr)
	}
}

func TestModelMisuse(t *testing.T) {
	for _, args := range []string{
		"run", "run m -p x -f y", "run m -n -2", "run m -t -1", "run m --top-p 2", "run m --top-k x", "run m --stop=", "run m --seed -1",
		"run m --threads -1", "run m --echo --json", "perplexity m", "perplexity m -f x --window 0", "perplexity m -f x --stream --window 5",
		"perplexity m -f x --limit -1", "convert", "convert d", "convert d -o -", "convert d -o x --recipe int5", "convert d -o x --tensor head",
		"convert d -o x --synthetic 7b", "convert --synthetic 8b -o x", "logits m", "logits m --ids x", "logits m --oracle d --ids x -o y",
		"logits --ids x -o y", "bench", "bench m --synthetic 7b", "bench --synthetic 9b", "bench --synthetic 7b --recipe z", "bench m --recipe int8",
		"bench m --repeat 0", "bench m --prompt 0 --generate 0", "inspect", "verify",
	} {
		status, stdout, stderr := call("", strings.Fields(args)...)
		if status != 2 || stdout != "" || !isLine(stderr) {
			t.Errorf("xlstm %s: status %d, stdout %q, stderr %q", args, status, stdout, stderr)
		}
	}
}

// TestInterruptedConversion stops a conversion that takes minutes: no file is left.
func TestInterruptedConversion(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(program, "convert", "--synthetic", "1b", "-o", filepath.Join(dir, "m.xlstm"))
	begun := make(chan struct{})
	go func() {
		defer close(begun)
		for range 1000 {
			if entries, _ := os.ReadDir(dir); len(entries) > 0 {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	status, stderr := interrupt(t, cmd, begun, syscall.SIGINT)
	entries, err := os.ReadDir(dir)
	if status != 130 || !isLine(stderr) || len(entries) > 0 || err != nil {
		t.Errorf("status %d, stderr %q, left %v (%v)", status, stderr, entries, err)
	}
}

// TestInterruptedRun stops text that would go on for ever.
func TestInterruptedRun(t *testing.T) {
	cmd := exec.Command(program, "run", model(t), "-p", "Once", "-n", "-1", "--ignore-end")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	begun := make(chan struct{})
	go func() {
		_, _ = out.Read(make([]byte, 1))
		close(begun)
		_, _ = bytes.NewBuffer(nil).ReadFrom(out)
	}()
	if status, stderr := interrupt(t, cmd, begun, syscall.SIGINT); status != 130 || !isLine(stderr) {
		t.Errorf("status %d, stderr %q", status, stderr)
	}
}
