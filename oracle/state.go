package oracle

import (
	"context"

	"xlstm/format"
)

// State is one sequence's memory.
type State struct{ Blocks []BlockState }

// BlockState is one block's part of it: for each head its matrix C [dk, dv], its vector n [dk] and its stabilizer m.
type BlockState struct {
	C []float32 // [H, dk, dv]
	N []float32 // [H, dk]
	M []float32 // [H]
}

// NewState makes the memory of a sequence before its first token: all zeros.
func (o *Oracle) NewState() *State { return newState(o.config) }

func newState(c *format.Config) *State {
	s := &State{Blocks: make([]BlockState, c.NumBlocks)}
	for i := range s.Blocks {
		s.Blocks[i] = BlockState{
			C: make([]float32, c.NumHeads*c.HeadQKDim()*c.HeadVDim()),
			N: make([]float32, c.NumHeads*c.HeadQKDim()),
			M: make([]float32, c.NumHeads),
		}
	}
	return s
}

// Reset makes the state that of a sequence's start.
func (s *State) Reset() {
	for _, b := range s.Blocks {
		clear(b.C)
		clear(b.N)
		clear(b.M)
	}
}

// Floats is the state in the order in which engines export theirs: for each block all heads' C, then n, then m.
func (s *State) Floats() []float32 {
	var f []float32
	for _, b := range s.Blocks {
		f = append(append(append(f, b.C...), b.N...), b.M...)
	}
	return f
}

// Session is an oracle with the state of one sequence: the original's side of a comparison.
type Session struct {
	oracle *Oracle
	state  *State
}

// NewSession begins a sequence.
func (o *Oracle) NewSession() *Session { return &Session{oracle: o, state: o.NewState()} }

// VocabSize is V, the length of the logits.
func (s *Session) VocabSize() int { return s.oracle.VocabSize() }

// Reset begins a new sequence.
func (s *Session) Reset(context.Context) error {
	s.state.Reset()
	return nil
}

// Forward is Oracle.Forward on the session's sequence.
func (s *Session) Forward(ctx context.Context, tokens []int32, yield func(t int, logits []float32) error) error {
	return s.oracle.Forward(ctx, tokens, s.state, yield)
}
