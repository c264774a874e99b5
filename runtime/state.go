package runtime

import (
	"context"
	"errors"
	"fmt"

	"xlstm/kernels"
)

// State is one sequence: the memory of the tokens that it has consumed, and the tokens that wait to be. The last one always does,
// because feeding it is what gives the logits of what follows. One goroutine may use it at a time.
type State struct {
	model   *Model
	memory  kernels.State
	fed     uint64  // tokens in the memory
	pending []int32 // tokens of the sequence that are not in the memory yet
	broken  error   // set once a failed step has left the memory undefined
}

// NewState makes an empty sequence.
func (m *Model) NewState() (*State, error) {
	memory, err := m.engine.NewState()
	if err != nil {
		return nil, fmt.Errorf("new state: %w", err)
	}
	return &State{model: m, memory: memory}, nil
}

// Tokens is the number of tokens of the sequence, beginning-of-text tokens included.
func (s *State) Tokens() uint64 { return s.fed + uint64(len(s.pending)) }

// Clone makes a state that goes on from where s is, independently of it.
func (s *State) Clone() (*State, error) {
	if s.broken != nil {
		return nil, s.broken
	}
	c, err := s.model.NewState()
	if err != nil {
		return nil, err
	}
	if err := c.memory.CopyFrom(s.memory); err != nil {
		return nil, errors.Join(fmt.Errorf("clone state: %w", err), c.Close())
	}
	c.fed, c.pending = s.fed, append([]int32(nil), s.pending...)
	return c, nil
}

// Reset makes the sequence empty, also after an error.
func (s *State) Reset() error {
	if err := s.memory.Reset(); err != nil {
		return fmt.Errorf("reset state: %w", err)
	}
	s.fed, s.pending, s.broken = 0, nil, nil
	return nil
}

// Close frees the state.
func (s *State) Close() error { return s.memory.Close() }

// broke notes that a step failed and left the memory undefined.
func (s *State) broke(err error) {
	s.broken = fmt.Errorf("the state is undefined since an earlier step failed: %w", err)
}

// Feed adds tokens to the sequence without generating: what a saved state is made of. progress, which may be nil, is told how many
// of them have been consumed. An error in the middle, a cancelled context's included, leaves the state unusable until it is reset;
// cancelled between two pieces, the rest of the tokens wait in it.
func (m *Model) Feed(ctx context.Context, s *State, tokens []int32, progress func(done, total int)) error {
	if s.broken != nil {
		return s.broken
	}
	if len(tokens) == 0 {
		return nil
	}
	if err := m.checkIDs(tokens); err != nil {
		return err
	}
	s.pending = append(append([]int32(nil), s.pending...), tokens...)
	total := len(s.pending) - 1
	for len(s.pending) > 1 {
		n := min(promptPiece, len(s.pending)-1)
		if began, err := m.forward(ctx, []kernels.Step{{State: s.memory, Tokens: s.pending[:n]}}); err != nil {
			if began {
				s.broke(err)
			}
			return fmt.Errorf("feed tokens: %w", err)
		}
		s.fed += uint64(n)
		s.pending = s.pending[n:]
		if progress != nil {
			progress(total+1-len(s.pending), total)
		}
	}
	return nil
}

func (m *Model) checkIDs(tokens []int32) error {
	for _, id := range tokens {
		if id < 0 || int(id) >= m.cfg.VocabSize {
			return fmt.Errorf("token %d is outside the vocabulary of %d", id, m.cfg.VocabSize)
		}
	}
	return nil
}
