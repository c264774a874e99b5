package runtime

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"xlstm/kernels"
	"xlstm/tokenizer"
)

// encode is text's ids, without a beginning-of-text token.
func encode(t testing.TB, m *Model, text string) []int32 {
	t.Helper()
	return m.Tokenizer().Encode(text, tokenizer.Options{})
}

func prompt(t testing.TB, m *Model, s *State, text string) []int32 {
	t.Helper()
	ids, err := m.Prompt(s, text, false)
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

func TestGenerate(t *testing.T) {
	m, e := testModel(t, nil)
	answer := encode(t, m, " and the answer is 日本.\n\nQ: more")
	for _, c := range []struct {
		name    string
		script  []int32
		request Request
		text    string
		finish  Finish
	}{
		{"until the end", append(slices.Clone(answer), 0), Request{}, " and the answer is 日本.\n\nQ: more", FinishEnd},
		{"a stop string", answer, Request{Stop: []string{"never", "\n\nQ:"}}, " and the answer is 日本.", FinishStop},
		{"a length", answer, Request{MaxTokens: 2}, m.Tokenizer().Decode(answer[:2], tokenizer.Options{}), FinishLength},
		{"the end at the last token", answer[:0:0], Request{MaxTokens: 1}, "", FinishEnd},
		{"held back until the end", append(encode(t, m, "text\n\n"), 0), Request{Stop: []string{"\n\nQ:"}}, "text\n\n", FinishEnd},
		{"past the end", []int32{answer[0], 0, answer[1]}, Request{IgnoreEnd: true, MaxTokens: 3}, m.Tokenizer().Decode(answer[:2], tokenizer.Options{}), FinishLength},
		{"half a character", answer[:slices.Index(answer, encode(t, m, "日")[0])+1], Request{MaxTokens: slices.Index(answer, encode(t, m, "日")[0]) + 1}, " and the answer is \uFFFD", FinishLength},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newState(t, m)
			c.request.Prompt = prompt(t, m, s, "question")
			e.logits = script(len(c.request.Prompt), c.script)
			ids, text, finish := generate(t, m, s, c.request)
			if text != c.text || finish != c.finish {
				t.Errorf("%q, %s; expected %q, %s", text, finish, c.text, c.finish)
			}
			if want := uint64(len(c.request.Prompt) + len(ids)); s.Tokens() != want {
				t.Errorf("%d tokens in the state, expected %d", s.Tokens(), want)
			}
		})
	}
}

// The beginning-of-text token comes first at the beginning of a sequence, once, and nowhere else.
func TestBeginningOfText(t *testing.T) {
	m, e := testModel(t, script(0, nil))
	text := encode(t, m, "text")
	history := func(s *State) []int32 { return s.memory.(*fakeState).history }
	for _, c := range []struct {
		name   string
		force  bool
		bos    int
		prompt []int32
		want   []int32
	}{
		{"forced", true, 0, text, append([]int32{0}, text...)},
		{"already there", true, 0, append([]int32{0}, text...), append([]int32{0}, text...)},
		{"not forced", false, 0, text, text},
		{"not forced, but nothing else to begin with", false, 0, nil, []int32{0}},
		{"none", false, -1, text, text},
	} {
		e.cfg.ForceBOS, e.cfg.BOS = c.force, c.bos
		s := newState(t, m)
		generate(t, m, s, Request{Prompt: c.prompt, MaxTokens: 1})
		if !slices.Equal(history(s), c.want) {
			t.Errorf("%s: fed %v, expected %v", c.name, history(s), c.want)
		}
		generate(t, m, s, Request{Prompt: text, MaxTokens: 1})
		if want := slices.Concat(c.want, []int32{0}, text); !slices.Equal(history(s), want) { // 0 is the token generated
			t.Errorf("%s, going on: fed %v, expected %v", c.name, history(s), want)
		}
	}
	if _, err := m.Start(newState(t, m), Request{}); err == nil {
		t.Error("nothing to go on from, and no beginning-of-text token: accepted")
	}
}

// Plain text cannot forge an end of text.
func TestPromptSpecial(t *testing.T) {
	m, _ := testModel(t, nil)
	s := newState(t, m)
	plain := prompt(t, m, s, "a<|endoftext|>b")
	special, err := m.Prompt(s, "a<|endoftext|>b", true)
	if err != nil {
		t.Fatal(err)
	}
	if slices.Contains(plain[1:], 0) || !slices.Contains(special[1:], 0) {
		t.Errorf("plain %v, special %v", plain, special)
	}
}

// A prompt goes to the engine in bounded pieces, and progress is told.
func TestLongPrompt(t *testing.T) {
	m, e := testModel(t, script(0, nil))
	ids := slices.Repeat([]int32{5}, 2*promptPiece+10)
	var done []int
	progress := func(d, total int) {
		if total != len(ids)+1 {
			t.Errorf("total %d, expected %d", total, len(ids)+1)
		}
		done = append(done, d)
	}
	generate(t, m, newState(t, m), Request{Prompt: ids, MaxTokens: 2, IgnoreEnd: true, Progress: progress})
	if want := [][]int{{promptPiece}, {promptPiece}, {11}, {1}}; !slices.EqualFunc(e.steps, want, slices.Equal) {
		t.Errorf("steps of %v tokens, expected %v", e.steps, want)
	}
	if want := []int{promptPiece, 2 * promptPiece, len(ids) + 1}; !slices.Equal(done, want) {
		t.Errorf("progress %v, expected %v", done, want)
	}
}

// Ids that the tokenizer lacks, and those after its last one, never come out however likely they are.
func TestNeverUnknownIDs(t *testing.T) {
	m, _ := testModel(t, func([]int32) []float32 {
		out := make([]float32, testVocab)
		for id := 1024; id < testVocab; id++ {
			out[id] = 100
		}
		return out
	})
	for _, o := range []Sampling{{}, {Temperature: 1.5, Seed: 4}, {Temperature: 1, TopK: 2, TopP: 0.9}} {
		ids, _, _ := generate(t, m, newState(t, m), Request{Prompt: []int32{7}, MaxTokens: 50, IgnoreEnd: true, Sampling: o})
		for _, id := range ids {
			if !m.Tokenizer().Has(id) {
				t.Fatalf("token %d came out", id)
			}
		}
	}
}

func TestGenerateSameSeed(t *testing.T) {
	m, _ := testModel(t, func(history []int32) []float32 {
		out := make([]float32, testVocab)
		for id := range out {
			out[id] = float32((id*7919 + len(history)*31) % 97)
		}
		return out
	})
	run := func(seed uint64) string {
		_, text, _ := generate(t, m, newState(t, m), Request{Prompt: []int32{7}, MaxTokens: 30, Sampling: Sampling{Temperature: 20, Seed: seed}})
		return text
	}
	if first, again, other := run(1), run(1), run(2); first != again || first == other {
		t.Error("the seed does not determine the text")
	}
}

// Advance feeds sequences of any ages in one batch, and gives each what it gets alone.
func TestAdvanceBatch(t *testing.T) {
	m, e := testModel(t, func(history []int32) []float32 {
		out := make([]float32, testVocab)
		out[100+(int(history[len(history)-1])*3+len(history))%200] = 4
		return out
	})
	requests := []Request{{Prompt: []int32{9}, MaxTokens: 6}, {Prompt: slices.Repeat([]int32{3}, promptPiece+5), MaxTokens: 3}, {Prompt: []int32{1, 2, 3}, MaxTokens: 1}}
	var alone [][]int32
	var open []*Sequence
	got := make([][]int32, len(requests))
	index := map[*Sequence]int{}
	for i, r := range requests {
		ids, _, _ := generate(t, m, newState(t, m), r)
		alone = append(alone, ids)
		q, err := m.Start(newState(t, m), r)
		if err != nil {
			t.Fatal(err)
		}
		index[q] = i
		open = append(open, q)
	}
	e.steps = nil
	for len(open) > 0 {
		results, err := m.Advance(t.Context(), open...)
		if err != nil {
			t.Fatal(err)
		}
		for i, r := range results {
			if r.Ready {
				got[index[open[i]]] = append(got[index[open[i]]], r.Piece.Token)
			}
		}
		open = slices.DeleteFunc(open, (*Sequence).Finished)
	}
	for i := range requests {
		if !slices.Equal(got[i], alone[i]) {
			t.Errorf("sequence %d: %v in a batch, %v alone", i, got[i], alone[i])
		}
	}
	if !slices.Equal(e.steps[0], []int{2, promptPiece, 4}) {
		t.Errorf("first batch %v", e.steps[0])
	}
}

func TestGenerateErrors(t *testing.T) {
	m, e := testModel(t, script(0, nil))
	for name, r := range map[string]Request{
		"a negative length":    {Prompt: []int32{1}, MaxTokens: -1},
		"an id too high":       {Prompt: []int32{testVocab}},
		"a negative id":        {Prompt: []int32{-1}},
		"an empty stop string": {Prompt: []int32{1}, Stop: []string{""}},
		"a temperature":        {Prompt: []int32{1}, Sampling: Sampling{Temperature: -1}},
	} {
		s := newState(t, m)
		if _, err := m.Start(s, r); err == nil {
			t.Errorf("%s was accepted", name)
		}
		if s.Tokens() != 0 || len(e.steps) != 0 {
			t.Errorf("%s: the state was touched", name)
		}
	}
	e.logits = func([]int32) []float32 {
		out := make([]float32, testVocab)
		out[testVocab-1] = float32(math.NaN())
		return out
	}
	s := newState(t, m)
	if err := firstError(m.Generate(t.Context(), s, Request{Prompt: []int32{1}})); err == nil || !strings.Contains(err.Error(), "NaN") {
		t.Errorf("logits that are NaN: %v", err)
	}
	checkBroken(t, m, s)
}

func firstError(pieces func(func(Piece, error) bool)) (err error) {
	for _, err = range pieces {
		if err != nil {
			return err
		}
	}
	return nil
}

// checkBroken checks that a state whose step failed refuses everything until it is reset.
func checkBroken(t *testing.T, m *Model, s *State) {
	t.Helper()
	if _, err := s.Clone(); err == nil {
		t.Error("a broken state was cloned")
	}
	if err := s.Save(t.TempDir() + "/state"); err == nil {
		t.Error("a broken state was saved")
	}
	if err := m.Feed(t.Context(), s, []int32{1}, nil); err == nil {
		t.Error("a broken state was fed")
	}
	if _, err := m.Start(s, Request{Prompt: []int32{1}}); err == nil {
		t.Error("a broken state went on")
	}
	if err := s.Reset(); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Start(s, Request{Prompt: []int32{1}}); err != nil || s.Tokens() != 0 {
		t.Errorf("after a reset: %v, %d tokens", err, s.Tokens())
	}
}

// Cancelled between two tokens, a state can go on; cancelled in a step, it is broken.
func TestCancel(t *testing.T) {
	m, e := testModel(t, script(0, nil))
	ctx, cancel := context.WithCancel(t.Context())
	s := newState(t, m)
	count := 0
	for _, err := range m.Generate(ctx, s, Request{Prompt: []int32{1, 2}, IgnoreEnd: true}) {
		if count++; count == 3 {
			cancel()
		}
		if err != nil && (count != 4 || !errors.Is(err, context.Canceled)) {
			t.Fatalf("error %v at piece %d", err, count)
		}
	}
	if count != 4 || s.Tokens() != 6 {
		t.Errorf("%d pieces, %d tokens; expected 4 (the last an error), 6", count, s.Tokens())
	}
	generate(t, m, s, Request{MaxTokens: 1})

	ctx, cancel = context.WithCancel(t.Context())
	e.before = func([]kernels.Step) error { cancel(); return nil }
	if err := firstError(m.Generate(ctx, s, Request{MaxTokens: 5})); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled in a step: %v", err)
	}
	e.before = nil
	checkBroken(t, m, s)
}

// Leaving the loop leaves a state that goes on as if nothing had been.
func TestLeaveAndGoOn(t *testing.T) {
	logits := func(history []int32) []float32 {
		out := make([]float32, testVocab)
		out[(len(history)*37+int(history[len(history)-1]))%1000+1] = 3
		return out
	}
	m, _ := testModel(t, logits)
	want, _, _ := generate(t, m, newState(t, m), Request{Prompt: []int32{4, 5}, MaxTokens: 9})
	s := newState(t, m)
	var got []int32
	for p, err := range m.Generate(t.Context(), s, Request{Prompt: []int32{4, 5}}) {
		if err != nil {
			t.Fatal(err)
		}
		if got = append(got, p.Token); len(got) == 4 {
			break
		}
	}
	rest, _, _ := generate(t, m, s, Request{MaxTokens: 5})
	if got = append(got, rest...); !slices.Equal(got, want) {
		t.Errorf("in two parts %v, in one %v", got, want)
	}
}

func TestNewRefuses(t *testing.T) {
	cfg := testConfig()
	cfg.VocabSize = 1000
	if _, err := New(cfg, testTokenizer(t), &fakeEngine{cfg: cfg}, [32]byte{}); err == nil || !strings.Contains(err.Error(), "1024") {
		t.Errorf("a tokenizer larger than the model: %v", err)
	}
	cfg.NumHeads = 0
	if _, err := New(cfg, nil, &fakeEngine{cfg: cfg}, [32]byte{}); err == nil {
		t.Error("an impossible config was accepted")
	}
}

// A model without a tokenizer takes and gives ids.
func TestWithoutTokenizer(t *testing.T) {
	cfg := testConfig()
	e := &fakeEngine{cfg: cfg, logits: script(2, []int32{testVocab - 1, 3})}
	m, err := New(cfg, nil, e, [32]byte{})
	if err != nil {
		t.Fatal(err)
	}
	s := newState(t, m)
	if _, err := m.Prompt(s, "text", false); err == nil {
		t.Error("a text was accepted")
	}
	if _, err := m.Start(s, Request{Prompt: []int32{1}, Stop: []string{"x"}}); err == nil {
		t.Error("a stop string was accepted")
	}
	ids, text, finish := generate(t, m, s, Request{Prompt: []int32{1}, MaxTokens: 2})
	if !slices.Equal(ids, []int32{testVocab - 1, 3}) || text != "" || finish != FinishLength || m.EndOfText() != -1 {
		t.Errorf("%v, %q, %s", ids, text, finish)
	}
	if err := m.Close(); err != nil || !e.closed {
		t.Errorf("close: %v, engine closed: %v", err, e.closed)
	}
}
