package runtime

import (
	"context"
	"fmt"
	"math"
	"time"

	"xlstm/kernels"
)

// DefaultWindow is how many tokens of text are scored together where nothing else is asked for.
const DefaultWindow = 512

// scorePiece is how many tokens an engine gets at once when only log probabilities are wanted.
const scorePiece = 512

// Scoring says how a text is scored; docs/PERPLEXITY.md is the protocol.
type Scoring struct {
	VocabSize int  // V
	BOS       int  // beginning-of-text id that each sequence begins with; -1 where there is none
	Window    int  // tokens of text in a window; 0 is DefaultWindow. Each window is a sequence of its own.
	Stream    bool // the whole text is one sequence; Window is not used
	Batch     int  // windows that an engine scores at the same time; 0 is 1. Compare and Stream score one sequence at a time.

	Progress func(done, total int) // scored tokens so far; may be nil
}

// Score is how well a text was predicted.
type Score struct {
	Tokens           int     `json:"tokens"`            // that were scored
	NLL              float64 `json:"nll"`               // mean of -log p(token | tokens before it), in nats
	NLLStdErr        float64 `json:"nll_stderr"`        // its standard error, taking tokens as independent
	Perplexity       float64 `json:"perplexity"`        // exp(NLL)
	PerplexityStdErr float64 `json:"perplexity_stderr"` // Perplexity * NLLStdErr, to first order
}

// Run says what was run to get a score.
type Run struct {
	Sequences int  `json:"sequences"` // windows, or 1 with Stream
	Window    int  `json:"window"`    // tokens of text in a window, 0 with Stream
	Stream    bool `json:"stream"`
	BOS       int  `json:"bos"` // -1: none
}

// Speed is what an engine needed for it.
type Speed struct {
	Seconds         float64 `json:"seconds"` // in the engine
	TokensPerSecond float64 `json:"tokens_per_second"`
}

// PerplexityResult is the perplexity of a text.
type PerplexityResult struct {
	Run
	Score
	Speed
}

// sequence is tokens that begin from a fresh state: targets[i] is to be predicted after inputs[..i].
type sequence struct{ inputs, targets []int32 }

// sequences splits a text. Every token of it is a target once, but for the first of each sequence where there is no
// beginning-of-text token to predict it from.
func (s *Scoring) sequences(tokens []int32) ([]sequence, int, error) {
	window := s.Window
	switch {
	case s.Stream:
		window = max(len(tokens), 1)
	case window == 0:
		window = DefaultWindow
	case window < 0:
		return nil, 0, fmt.Errorf("score: the window is %d, expected 1 or more", window)
	}
	if s.BOS < -1 || s.BOS >= s.VocabSize {
		return nil, 0, fmt.Errorf("score: beginning-of-text id %d is outside the vocabulary of %d", s.BOS, s.VocabSize)
	}
	for i, id := range tokens {
		if id < 0 || int(id) >= s.VocabSize {
			return nil, 0, fmt.Errorf("score: token %d of the text is %d, outside the vocabulary of %d", i, id, s.VocabSize)
		}
	}
	var all []sequence
	total := 0
	for start := 0; start < len(tokens); start += window {
		text := tokens[start:min(start+window, len(tokens))]
		q := sequence{inputs: text[:len(text)-1], targets: text[1:]}
		if s.BOS >= 0 {
			q.inputs = append([]int32{int32(s.BOS)}, q.inputs...)
			q.targets = text
		}
		if len(q.targets) > 0 {
			all = append(all, q)
			total += len(q.targets)
		}
	}
	if total == 0 {
		return nil, 0, fmt.Errorf("score: %d tokens in windows of %d leave nothing to predict", len(tokens), window)
	}
	return all, total, nil
}

func (s *Scoring) run(sequences int) Run {
	r := Run{Sequences: sequences, Window: s.Window, Stream: s.Stream, BOS: s.BOS}
	if s.Window == 0 {
		r.Window = DefaultWindow
	}
	if s.Stream {
		r.Window = 0
	}
	return r
}

func (s *Scoring) progress(done, total int) {
	if s.Progress != nil {
		s.Progress(done, total)
	}
}

// Perplexity scores a text on an engine.
func Perplexity(ctx context.Context, engine kernels.Engine, tokens []int32, s Scoring) (*PerplexityResult, error) {
	todo, total, err := s.sequences(tokens)
	if err != nil {
		return nil, err
	}
	r := &PerplexityResult{Run: s.run(len(todo))}
	p := &scorer{engine: engine, scoring: &s, total: total}
	defer p.close()
	for range min(max(s.Batch, 1), len(todo)) {
		state, err := engine.NewState()
		if err != nil {
			return nil, fmt.Errorf("score: %w", err)
		}
		p.states = append(p.states, state)
	}
	for len(todo) > 0 {
		n := min(len(p.states), len(todo))
		if err := p.score(ctx, todo[:n]); err != nil {
			return nil, fmt.Errorf("score: %w", err)
		}
		todo = todo[n:]
	}
	r.Score, r.Speed = p.nll.score(), speed(p.spent, total)
	return r, nil
}

func speed(spent time.Duration, tokens int) Speed {
	s := Speed{Seconds: spent.Seconds()}
	if s.Seconds > 0 {
		s.TokensPerSecond = float64(tokens) / s.Seconds
	}
	return s
}

// scorer feeds sequences to an engine.
type scorer struct {
	engine  kernels.Engine
	scoring *Scoring
	states  []kernels.State
	total   int
	nll     mean
	spent   time.Duration
}

func (p *scorer) close() {
	for _, s := range p.states {
		s.Close()
	}
}

// score scores as many sequences as there are states, or fewer, side by side.
func (p *scorer) score(ctx context.Context, seqs []sequence) error {
	for i := range seqs {
		if err := p.states[i].Reset(); err != nil {
			return err
		}
	}
	piece := max(scorePiece/len(seqs), 1)
	for at, more := 0, true; more; at += piece {
		var batch []kernels.Step
		more = false
		for i, q := range seqs {
			if at >= len(q.inputs) {
				continue
			}
			end := min(at+piece, len(q.inputs))
			more = more || end < len(q.inputs)
			batch = append(batch, kernels.Step{
				State: p.states[i], Tokens: q.inputs[at:end], Targets: q.targets[at:end], LogProbs: make([]float32, end-at),
			})
		}
		start := time.Now()
		if err := p.engine.Forward(ctx, batch); err != nil {
			return err
		}
		p.spent += time.Since(start)
		if err := p.take(batch); err != nil {
			return err
		}
	}
	return nil
}

func (p *scorer) take(batch []kernels.Step) error {
	for _, step := range batch {
		for i, lp := range step.LogProbs {
			if x := float64(lp); math.IsNaN(x) || math.IsInf(x, 0) {
				return fmt.Errorf("the log probability of token %d is %v: the model's logits are not numbers", step.Targets[i], lp)
			}
			p.nll.add(-float64(lp))
		}
	}
	p.scoring.progress(p.nll.n, p.total)
	return nil
}

// mean gathers values for their mean and its standard error, as B. P. Welford does (Technometrics 4, 1962): without the loss of
// digits of a sum of squares.
type mean struct {
	n           int
	mean, sumSq float64
}

func (m *mean) add(x float64) {
	m.n++
	d := x - m.mean
	m.mean += d / float64(m.n)
	m.sumSq += d * (x - m.mean)
}

// stdErr is the standard error of the mean, 0 for a single value.
func (m *mean) stdErr() float64 {
	if m.n < 2 {
		return 0
	}
	return math.Sqrt(m.sumSq / float64(m.n-1) / float64(m.n))
}

func (m *mean) score() Score {
	s := Score{Tokens: m.n, NLL: m.mean, NLLStdErr: m.stdErr(), Perplexity: math.Exp(m.mean)}
	s.PerplexityStdErr = s.Perplexity * s.NLLStdErr
	return s
}
