// Package feed gives tokens to engines in tests, in every split.
package feed

import (
	"math/rand/v2"
	"testing"

	"xlstm/kernels"
)

// Tokens gives tokens to a state in pieces whose lengths size returns, and collects all logits.
func Tokens(t testing.TB, e kernels.Engine, s kernels.State, tokens []int32, vocab int, size func(left int) int) []float32 {
	t.Helper()
	all := make([]float32, len(tokens)*vocab)
	for at := 0; at < len(tokens); {
		n := size(len(tokens) - at)
		step := kernels.Step{State: s, Tokens: tokens[at : at+n], Logits: all[at*vocab : (at+n)*vocab]}
		if err := e.Forward(t.Context(), []kernels.Step{step}); err != nil {
			t.Fatal(err)
		}
		at += n
	}
	return all
}

// Whole is the size of one piece.
func Whole(left int) int { return left }

// Single is the size of single tokens.
func Single(int) int { return 1 }

// Random gives pieces of 1 to 90 tokens.
func Random(seed uint64) func(int) int {
	r := rand.New(rand.NewPCG(seed, 1))
	return func(left int) int { return min(left, 1+r.IntN(90)) }
}
