package runtime

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"
	"testing"

	"xlstm/format"
	"xlstm/kernels"
	"xlstm/tokenizer"
)

// fakeEngine is an engine whose logits are a function of the tokens that a state has seen.
type fakeEngine struct {
	cfg    *format.Config
	logits func(history []int32) []float32

	mu      sync.Mutex
	running bool
	steps   [][]int // lengths of the steps of each batch
	closed  bool
	before  func(batch []kernels.Step) error // called in Forward, may fail it
}

type fakeState struct {
	engine  *fakeEngine
	history []int32
}

func (e *fakeEngine) NewState() (kernels.State, error) { return &fakeState{engine: e}, nil }
func (e *fakeEngine) Close() error                     { e.closed = true; return nil }

func (e *fakeEngine) Forward(ctx context.Context, batch []kernels.Step) error {
	e.mu.Lock()
	if e.running {
		e.mu.Unlock()
		return errors.New("Forward runs already")
	}
	e.running = true
	e.mu.Unlock()
	defer func() { e.mu.Lock(); e.running = false; e.mu.Unlock() }()
	if err := kernels.CheckBatch(batch, e.cfg.VocabSize); err != nil {
		return err
	}
	var lengths []int
	for _, s := range batch {
		lengths = append(lengths, len(s.Tokens))
	}
	e.steps = append(e.steps, lengths)
	if e.before != nil {
		if err := e.before(batch); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	for _, s := range batch {
		state := s.State.(*fakeState)
		state.history = append(state.history, s.Tokens...)
		if len(s.Logits) > 0 {
			copy(s.Logits, e.logits(state.history))
		}
	}
	return nil
}

func (s *fakeState) CopyFrom(src kernels.State) error {
	s.history = slices.Clone(src.(*fakeState).history)
	return nil
}
func (s *fakeState) Reset() error { s.history = nil; return nil }
func (s *fakeState) Close() error { return nil }

// Export writes the history's length and the history: enough for states of a few hundred tokens.
func (s *fakeState) Export(dst []float32) error {
	if len(s.history) >= len(dst) {
		return errors.New("history too long for the test")
	}
	clear(dst)
	dst[0] = float32(len(s.history))
	for i, id := range s.history {
		dst[1+i] = float32(id)
	}
	return nil
}

func (s *fakeState) Import(src []float32) error {
	s.history = nil
	for _, v := range src[1 : 1+int(src[0])] {
		s.history = append(s.history, int32(v))
	}
	return nil
}

// testVocab is a little more than the tokenizer's 1,024 ids.
const testVocab = 1030

func testConfig() *format.Config {
	return &format.Config{
		VocabSize: testVocab, EmbeddingDim: 32, NumBlocks: 1, NumHeads: 1, QKDim: 32, VDim: 32, FFNDim: 32,
		NormEps: 1e-6, CellEps: 1e-6, BOS: 0, ForceBOS: true,
	}
}

func testTokenizer(t testing.TB) *tokenizer.Tokenizer {
	t.Helper()
	data, err := os.ReadFile("../tokenizer/testdata/small.json")
	if err != nil {
		t.Fatal(err)
	}
	tok, err := tokenizer.FromJSON(data)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// testModel is a model whose logits are logits(history).
func testModel(t testing.TB, logits func(history []int32) []float32) (*Model, *fakeEngine) {
	t.Helper()
	e := &fakeEngine{cfg: testConfig(), logits: logits}
	m, err := New(e.cfg, testTokenizer(t), e, [32]byte{1, 2, 3})
	if err != nil {
		t.Fatal(err)
	}
	return m, e
}

// script makes logits whose likeliest token, after n tokens of prompt, is the next one of ids.
func script(prompt int, ids []int32) func(history []int32) []float32 {
	return func(history []int32) []float32 {
		out := make([]float32, testVocab)
		if n := len(history) - prompt; n >= 0 && n < len(ids) {
			out[ids[n]] = 5
		}
		return out
	}
}

func newState(t testing.TB, m *Model) *State {
	t.Helper()
	s, err := m.NewState()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// generate collects a request's pieces.
func generate(t testing.TB, m *Model, s *State, r Request) (ids []int32, text string, finish Finish) {
	t.Helper()
	for p, err := range m.Generate(t.Context(), s, r) {
		if err != nil {
			t.Fatal(err)
		}
		if finish != "" {
			t.Fatalf("a piece after the last one: %+v", p)
		}
		ids, text, finish = append(ids, p.Token), text+p.Text, p.Finish
	}
	return ids, text, finish
}
