package runtime_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"xlstm/checkpoints"
	"xlstm/checkpoints/demo"
	"xlstm/convert"
	"xlstm/format"
	"xlstm/kernels"
	"xlstm/kernels/cpu"
	"xlstm/runtime"
)

// demoFile converts the demo checkpoint.
func demoFile(t testing.TB, recipe string) string {
	t.Helper()
	src, err := checkpoints.OpenFS(demo.FS(), "demo")
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	path := filepath.Join(t.TempDir(), recipe+".xlstm")
	if err := convert.Convert(t.Context(), src, path, convert.Options{Recipe: recipe}); err != nil {
		t.Fatal(err)
	}
	return path
}

func openModel(t testing.TB, path string, workers int) *runtime.Model {
	t.Helper()
	m, err := runtime.Open(path, func(f *format.File) (kernels.Engine, error) { return cpu.Open(f, cpu.Options{Workers: workers}) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func newState(t testing.TB, m *runtime.Model) *runtime.State {
	t.Helper()
	s, err := m.NewState()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// write generates from a prompt, which may be empty where s has something to go on from.
func write(t testing.TB, m *runtime.Model, s *runtime.State, prompt string, r runtime.Request) (string, []int32) {
	t.Helper()
	if prompt != "" {
		ids, err := m.Prompt(s, prompt, false)
		if err != nil {
			t.Fatal(err)
		}
		r.Prompt = ids
	}
	var b strings.Builder
	var ids []int32
	for p, err := range m.Generate(t.Context(), s, r) {
		if err != nil {
			t.Fatal(err)
		}
		b.WriteString(p.Text)
		ids = append(ids, p.Token)
	}
	return b.String(), ids
}

const question = "It was a dark night, and the old man in the boat said to his son:"

// Greedy generation is what the engine alone says, one token after the other.
func TestDemoGreedy(t *testing.T) {
	m := openModel(t, demoFile(t, "fp16"), 2)
	_, got := write(t, m, newState(t, m), question, runtime.Request{MaxTokens: 24})

	s := newState(t, m)
	ids, err := m.Prompt(s, question, false)
	if err != nil {
		t.Fatal(err)
	}
	if ids[0] != 0 || slices.Contains(ids[1:], 0) {
		t.Fatalf("prompt %v does not begin with the beginning-of-text token alone", ids)
	}
	memory, err := m.Engine().NewState()
	if err != nil {
		t.Fatal(err)
	}
	logits := make([]float32, m.Config().VocabSize)
	for i, want := range got {
		for _, id := range ids {
			if err := m.Forward(t.Context(), []kernels.Step{{State: memory, Tokens: []int32{id}, Logits: logits}}); err != nil {
				t.Fatal(err)
			}
		}
		best := slices.Index(logits, slices.Max(logits))
		if logits[best]-logits[want] > 1e-4 { // the prompt went another way, so that equals may differ
			t.Fatalf("token %d is %d, expected %d", i, want, best)
		}
		ids = []int32{want}
	}
}

// The same seed gives the same text whatever the number of threads, and a state saved on the way goes on as if nothing had been.
func TestDemoSeedThreadsState(t *testing.T) {
	path := demoFile(t, "fp16")
	one, two := openModel(t, path, 1), openModel(t, path, 2)
	request := func(n int) runtime.Request {
		return runtime.Request{MaxTokens: n, IgnoreEnd: true, Sampling: runtime.Sampling{Temperature: 0.9, TopP: 0.95, RepetitionPenalty: 1.1, Seed: 42}}
	}
	first, _ := write(t, one, newState(t, one), question, request(30))
	second, _ := write(t, two, newState(t, two), question, request(30))
	if first != second {
		t.Errorf("one thread wrote %q, two wrote %q", first, second)
	}

	s := newState(t, one)
	prompt, err := one.Prompt(s, question, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := one.Feed(t.Context(), s, prompt, nil); err != nil {
		t.Fatal(err)
	}
	saved := filepath.Join(t.TempDir(), "state")
	if err := s.Save(saved); err != nil {
		t.Fatal(err)
	}
	loaded, err := two.LoadState(saved)
	if err != nil {
		t.Fatal(err)
	}
	greedy := runtime.Request{MaxTokens: 12, IgnoreEnd: true}
	uninterrupted, _ := write(t, one, newState(t, one), question, greedy)
	if got, _ := write(t, two, loaded, "", greedy); got != uninterrupted {
		t.Errorf("from a saved state %q, expected %q", got, uninterrupted)
	}

	other := openModel(t, demoFile(t, "bf16"), 1)
	if _, err := other.LoadState(saved); err == nil || !strings.Contains(err.Error(), "model") {
		t.Errorf("another model's state: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bad.xlstm")
	if err := os.WriteFile(path, []byte("no model"), 0o600); err != nil {
		t.Fatal(err)
	}
	engine := func(f *format.File) (kernels.Engine, error) { return cpu.Open(f, cpu.Options{}) }
	for _, name := range []string{path, filepath.Join(t.TempDir(), "absent.xlstm")} {
		if _, err := runtime.Open(name, engine); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func BenchmarkDemoGenerate(b *testing.B) {
	m := openModel(b, demoFile(b, "fp16"), 2)
	s := newState(b, m)
	b.ResetTimer()
	write(b, m, s, question, runtime.Request{MaxTokens: b.N, IgnoreEnd: true, Sampling: runtime.Sampling{Temperature: 1, TopP: 0.95}})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "tokens/s")
}
