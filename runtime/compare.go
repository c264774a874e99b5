package runtime

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"xlstm/kernels"
)

// comparePiece is how many tokens' logits of each file are kept while they are compared: 12.9 MB for V = 50304.
const comparePiece = 64

// Reference computes what files are compared with: the original checkpoint's logits, or another engine's. It holds one sequence.
type Reference interface {
	VocabSize() int
	// Reset begins a new sequence.
	Reset(ctx context.Context) error
	// Forward feeds tokens and calls yield for each of them in order with the V logits after it, which are good until yield
	// returns. It ends with yield's error.
	Forward(ctx context.Context, tokens []int32, yield func(t int, logits []float32) error) error
}

// Candidate is a file to compare.
type Candidate struct {
	Name   string
	Engine kernels.Engine
}

// Comparison is how files predict a text beside their original.
type Comparison struct {
	Run
	Reference Score      `json:"reference"`
	Files     []Compared `json:"files"` // in the order in which they were given
}

// Compared is one file's side of a comparison. p is the original's distribution of the next token, q the file's.
type Compared struct {
	Name string `json:"name"`
	Score
	Speed
	Ratio        float64 `json:"ratio"`          // of the file's perplexity to the original's
	RatioStdErr  float64 `json:"ratio_stderr"`   // from the differences of nll token by token
	MeanKL       float64 `json:"kl_mean"`        // mean of KL(p || q), in nats
	MeanKLStdErr float64 `json:"kl_mean_stderr"` // its standard error
	KL999        float64 `json:"kl_p999"`        // the 99.9th percentile of KL(p || q) over tokens, in nats
	TopAgreement float64 `json:"top_agreement"`  // share of tokens after which p and q have the same most likely token
	MaxLogitDiff float64 `json:"max_logit_diff"` // largest difference of any logit after any token
}

// Compare scores a text on a reference and on any number of files, all over the same sequences in one pass. Logits are compared
// in full; those of a few tokens are kept at a time.
func Compare(ctx context.Context, ref Reference, files []Candidate, tokens []int32, s Scoring) (*Comparison, error) {
	if len(files) == 0 {
		return nil, errors.New("compare: no files")
	}
	if v := ref.VocabSize(); v != s.VocabSize {
		return nil, fmt.Errorf("compare: the original's vocabulary has %d tokens, the file's %d", v, s.VocabSize)
	}
	todo, total, err := s.sequences(tokens)
	if err != nil {
		return nil, err
	}
	c := &comparer{scoring: &s, total: total, p: make([]float64, s.VocabSize), q: make([]float64, s.VocabSize)}
	defer c.close()
	for _, f := range files {
		state, err := f.Engine.NewState()
		if err != nil {
			return nil, fmt.Errorf("compare: %s: %w", f.Name, err)
		}
		c.sides = append(c.sides, &side{Candidate: f, state: state, logits: make([]float32, comparePiece*s.VocabSize)})
	}
	for _, q := range todo {
		if err := c.sequence(ctx, ref, q); err != nil {
			return nil, fmt.Errorf("compare: %w", err)
		}
	}
	result := &Comparison{Run: s.run(len(todo)), Reference: c.nll.score()}
	for _, side := range c.sides {
		result.Files = append(result.Files, side.result())
	}
	return result, nil
}

type comparer struct {
	scoring *Scoring
	total   int
	sides   []*side
	nll     mean      // the reference's
	p, q    []float64 // log probabilities after one token
}

// side is one file's.
type side struct {
	Candidate
	state  kernels.State
	logits []float32 // of a piece
	spent  time.Duration

	nll, diff, kl mean
	kls           []float64
	agree         int
	maxDiff       float64
}

func (c *comparer) close() {
	for _, s := range c.sides {
		s.state.Close()
	}
}

// sequence runs the reference over a whole sequence, and the files a piece ahead of it at a time.
func (c *comparer) sequence(ctx context.Context, ref Reference, q sequence) error {
	if err := ref.Reset(ctx); err != nil {
		return err
	}
	for _, s := range c.sides {
		if err := s.state.Reset(); err != nil {
			return fmt.Errorf("%s: %w", s.Name, err)
		}
	}
	seen := 0
	err := ref.Forward(ctx, q.inputs, func(t int, logits []float32) error {
		if t != seen || t >= len(q.inputs) || len(logits) != c.scoring.VocabSize {
			return fmt.Errorf("the reference gave %d logits after token %d, expected %d after token %d", len(logits), t, c.scoring.VocabSize, seen)
		}
		seen++
		if t%comparePiece == 0 {
			if err := c.forward(ctx, q.inputs[t:min(t+comparePiece, len(q.inputs))]); err != nil {
				return err
			}
			c.scoring.progress(c.nll.n, c.total)
		}
		return c.token(t%comparePiece, logits, q.targets[t])
	})
	if err != nil {
		return err
	}
	if seen != len(q.inputs) {
		return fmt.Errorf("the reference gave logits after %d tokens of %d", seen, len(q.inputs))
	}
	c.scoring.progress(c.nll.n, c.total)
	return nil
}

// forward gets all files' logits of the next tokens.
func (c *comparer) forward(ctx context.Context, tokens []int32) error {
	for _, s := range c.sides {
		start := time.Now()
		step := kernels.Step{State: s.state, Tokens: tokens, Logits: s.logits[:len(tokens)*c.scoring.VocabSize]}
		if err := s.Engine.Forward(ctx, []kernels.Step{step}); err != nil {
			return fmt.Errorf("%s: %w", s.Name, err)
		}
		s.spent += time.Since(start)
	}
	return ctx.Err()
}

// token compares the logits after one token, the i-th of the piece.
func (c *comparer) token(i int, logits []float32, target int32) error {
	top, err := logSoftmax(c.p, logits)
	if err != nil {
		return fmt.Errorf("the original: %w", err)
	}
	nll := -c.p[target]
	c.nll.add(nll)
	v := c.scoring.VocabSize
	for _, s := range c.sides {
		mine := s.logits[i*v : (i+1)*v]
		myTop, err := logSoftmax(c.q, mine)
		if err != nil {
			return fmt.Errorf("%s: %w", s.Name, err)
		}
		s.nll.add(-c.q[target])
		s.diff.add(-c.q[target] - nll)
		kl := divergence(c.p, c.q)
		s.kl.add(kl)
		s.kls = append(s.kls, kl)
		if top == myTop {
			s.agree++
		}
		for j, z := range logits {
			s.maxDiff = max(s.maxDiff, math.Abs(float64(z)-float64(mine[j])))
		}
	}
	return nil
}

func (s *side) result() Compared {
	c := Compared{
		Name: s.Name, Score: s.nll.score(), Speed: speed(s.spent, s.nll.n),
		Ratio: math.Exp(s.diff.mean), MeanKL: s.kl.mean, MeanKLStdErr: s.kl.stdErr(), KL999: percentile999(s.kls),
		TopAgreement: float64(s.agree) / float64(s.nll.n), MaxLogitDiff: s.maxDiff,
	}
	c.RatioStdErr = c.Ratio * s.diff.stdErr()
	return c
}

// logSoftmax writes the log probabilities of logits to dst, and returns the most likely token, the first of equals.
func logSoftmax(dst []float64, logits []float32) (int, error) {
	top := 0
	for i, z := range logits {
		if x := float64(z); math.IsNaN(x) || math.IsInf(x, 0) {
			return 0, fmt.Errorf("logit %d is %v: the weights are broken, or overflow", i, z)
		}
		if z > logits[top] {
			top = i
		}
	}
	sum := 0.0
	highest := float64(logits[top])
	for _, z := range logits {
		sum += math.Exp(float64(z) - highest)
	}
	logSum := highest + math.Log(sum)
	for i, z := range logits {
		dst[i] = float64(z) - logSum
	}
	return top, nil
}

// divergence is KL(p || q) of log probabilities, in nats. Rounding may take it below 0, where it never is.
func divergence(p, q []float64) float64 {
	kl := 0.0
	for i, lp := range p {
		kl += math.Exp(lp) * (lp - q[i])
	}
	return max(kl, 0)
}

// percentile999 is the smallest value that at least 999 of 1000 values do not exceed (nearest rank). It sorts values.
func percentile999(values []float64) float64 {
	slices.Sort(values)
	n := len(values)
	return values[n-n/1000-1]
}

// EngineReference makes an engine the reference, for comparing files with another file. Close frees its state, not the engine.
type EngineReference struct {
	engine kernels.Engine
	state  kernels.State
	vocab  int
	logits []float32
}

// NewEngineReference is a reference on an engine of a model with vocab tokens.
func NewEngineReference(engine kernels.Engine, vocab int) (*EngineReference, error) {
	state, err := engine.NewState()
	if err != nil {
		return nil, err
	}
	return &EngineReference{engine: engine, state: state, vocab: vocab, logits: make([]float32, comparePiece*vocab)}, nil
}

// VocabSize is V.
func (r *EngineReference) VocabSize() int { return r.vocab }

// Reset begins a new sequence.
func (r *EngineReference) Reset(context.Context) error { return r.state.Reset() }

// Forward feeds tokens and yields the logits after each.
func (r *EngineReference) Forward(ctx context.Context, tokens []int32, yield func(t int, logits []float32) error) error {
	for at := 0; at < len(tokens); at += comparePiece {
		piece := tokens[at:min(at+comparePiece, len(tokens))]
		logits := r.logits[:len(piece)*r.vocab]
		if err := r.engine.Forward(ctx, []kernels.Step{{State: r.state, Tokens: piece, Logits: logits}}); err != nil {
			return err
		}
		for i := range piece {
			if err := yield(at+i, logits[i*r.vocab:(i+1)*r.vocab]); err != nil {
				return err
			}
		}
	}
	return nil
}

// Close frees the state.
func (r *EngineReference) Close() error { return r.state.Close() }
