// Package kernels defines Engine, the interface of a device that runs one converted model. Implementations live in the
// packages below it; everything above it is device-independent.
package kernels

import (
	"context"
	"errors"
	"fmt"
)

// Engine runs one converted model on one device. Forward may be called by one goroutine at a time; NewState and the methods of
// states that are not in a running Forward may be called at any time.
type Engine interface {
	// NewState makes one sequence's memory, zeroed. Its size never grows.
	NewState() (State, error)
	// Forward feeds each step's tokens to its sequence. A state appears at most once in a batch. On an error, a cancelled
	// context's included, the states of the batch are undefined until they are reset or imported into.
	Forward(ctx context.Context, batch []Step) error
	// Close frees what the engine holds on its device. States must not be used after it.
	Close() error
}

// State is one sequence's recurrent memory on an engine's device: C [dk, dv], n [dk] and m of every head of every block.
type State interface {
	// CopyFrom makes the state equal to src, a state of the same engine.
	CopyFrom(src State) error
	// Reset makes the state that of a sequence's start: all zeros.
	Reset() error
	// Export writes the state to dst, Config.StateFloats() long: for each block, all heads' C (head, dk, dv), then all
	// heads' n (head, dk), then all heads' m. It is the same on every engine.
	Export(dst []float32) error
	// Import is Export's inverse.
	Import(src []float32) error
	// Close frees the state.
	Close() error
}

// Step feeds tokens to one sequence. One token is a decode step, many are a prompt; a batch may mix both.
type Step struct {
	State  State
	Tokens []int32
	// Logits is nil, or V long (after the last token), or len(Tokens)*V long (after every token).
	Logits []float32
	// Targets, optional, one a token: LogProbs[i] becomes log p(Targets[i] | Tokens[..i]), in nats, computed on the device.
	// A target of -1 is skipped and its LogProb set to 0.
	Targets  []int32
	LogProbs []float32
}

// CheckBatch reports the first thing wrong with a batch for a vocabulary of vocab tokens.
func CheckBatch(batch []Step, vocab int) error {
	if len(batch) == 0 {
		return errors.New("forward: empty batch")
	}
	var seen map[State]bool
	if len(batch) > 1 { // decoding one sequence allocates nothing
		seen = make(map[State]bool, len(batch))
	}
	for i := range batch {
		s := &batch[i]
		if s.State == nil || seen[s.State] {
			return fmt.Errorf("forward: step %d has no state of its own", i)
		}
		if seen != nil {
			seen[s.State] = true
		}
		if err := s.check(vocab); err != nil {
			return fmt.Errorf("forward: step %d: %w", i, err)
		}
	}
	return nil
}

func (s *Step) check(vocab int) error {
	n := len(s.Tokens)
	if n == 0 {
		return errors.New("no tokens")
	}
	for _, t := range s.Tokens {
		if t < 0 || int(t) >= vocab {
			return fmt.Errorf("token %d is outside the vocabulary of %d", t, vocab)
		}
	}
	if l := len(s.Logits); l != 0 && l != vocab && l != n*vocab {
		return fmt.Errorf("logits have %d values, expected 0, %d or %d", l, vocab, n*vocab)
	}
	if s.Targets == nil && s.LogProbs == nil {
		return nil
	}
	if len(s.Targets) != n || len(s.LogProbs) != n {
		return fmt.Errorf("%d targets and %d log probs for %d tokens", len(s.Targets), len(s.LogProbs), n)
	}
	for _, t := range s.Targets {
		if t < -1 || int(t) >= vocab {
			return fmt.Errorf("target %d is outside the vocabulary of %d", t, vocab)
		}
	}
	return nil
}
