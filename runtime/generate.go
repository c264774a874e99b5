package runtime

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"

	"xlstm/kernels"
	"xlstm/tokenizer"
)

// Request is one text to generate.
type Request struct {
	// Prompt is what the sequence goes on with, see Model.Prompt. It may be empty where the state has something to go on from.
	Prompt []int32
	// MaxTokens is the most tokens to generate. 0: until the text ends.
	MaxTokens int
	// Stop strings end the text, which does not hold them. The first to be complete counts.
	Stop []string
	// IgnoreEnd goes on after an end of text, which then is a token without text, like every special token.
	IgnoreEnd bool
	Sampling  Sampling
	// Progress, if set, is told how many of the prompt's tokens have been consumed. Requests of one batch may call at the same time.
	Progress func(done, total int)
}

// Finish says why a text ended.
type Finish string

const (
	FinishEnd    Finish = "end"    // the end-of-text token
	FinishStop   Finish = "stop"   // a stop string
	FinishLength Finish = "length" // MaxTokens
)

// Piece is one generated token and the text that it completes: whole characters only, and nothing that may be the beginning of a
// stop string, so Text may be empty and may belong to earlier tokens. The last piece has a Finish.
type Piece struct {
	Token  int32
	Text   string
	Finish Finish
}

// Sequence is a request in progress. Model.Advance moves any number of them on together.
type Sequence struct {
	state    *State
	request  Request
	todo     []int32 // tokens to be fed before the next one can be chosen
	total    int     // tokens of the prompt
	sampler  *Sampler
	decoder  *tokenizer.Decoder // nil without a tokenizer
	stop     *stopper
	logits   []float32
	count    int // tokens generated
	finished bool
}

// Start prepares a request that goes on from s. Nothing runs before Advance.
func (m *Model) Start(s *State, r Request) (*Sequence, error) {
	if s.broken != nil {
		return nil, s.broken
	}
	if r.MaxTokens < 0 {
		return nil, fmt.Errorf("the most tokens to generate are %d, expected 0 or more", r.MaxTokens)
	}
	if err := m.checkIDs(r.Prompt); err != nil {
		return nil, fmt.Errorf("prompt: %w", err)
	}
	q := &Sequence{state: s, request: r, logits: make([]float32, m.cfg.VocabSize)}
	q.todo = append(append(q.todo, s.pending...), m.Begin(s, r.Prompt)...)
	if len(q.todo) == 0 {
		return nil, errors.New("there is no prompt, and nothing to go on from")
	}
	q.total = len(q.todo)
	var err error
	if q.sampler, err = m.NewSampler(r.Sampling); err != nil {
		return nil, err
	}
	seen := r.Prompt
	if s.Tokens() == 0 && m.cfg.ForceBOS && len(seen) > 0 && seen[0] == int32(m.cfg.BOS) {
		seen = seen[1:] // not the text's own
	}
	q.sampler.Accept(seen...)
	if q.stop, err = newStopper(r.Stop); err != nil {
		return nil, err
	}
	if m.tok == nil && len(r.Stop) > 0 {
		return nil, errors.New("the model has no tokenizer: there is no text for stop strings")
	}
	if m.tok != nil {
		q.decoder = m.tok.NewDecoder(tokenizer.Options{})
	}
	return q, nil
}

// Finished reports whether the last piece has been given.
func (q *Sequence) Finished() bool { return q.finished }

// State is the sequence's state. While the request is in progress it must not be used otherwise.
func (q *Sequence) State() *State { return q.state }

// Result is what one Advance gave for one sequence: nothing while its prompt is being fed, then one piece each time, or an error
// that ended it.
type Result struct {
	Piece Piece
	Ready bool // Piece is there
	Err   error
}

// Advance moves each sequence on by one piece of its prompt or one token, all in one batch, and returns a result for each. No
// sequence may be finished, and no two may share a state. An error in the middle, a cancelled context's included, ends all of them
// and leaves their states unusable until they are reset; if nothing ran, all are as they were. What concerns one sequence alone
// is in its result.
func (m *Model) Advance(ctx context.Context, sequences ...*Sequence) ([]Result, error) {
	batch := make([]kernels.Step, len(sequences))
	for i, q := range sequences {
		if q.finished {
			return nil, errors.New("advance: a sequence is finished")
		}
		n := min(promptPiece, len(q.todo))
		batch[i] = kernels.Step{State: q.state.memory, Tokens: q.todo[:n]}
		if n == len(q.todo) {
			batch[i].Logits = q.logits
		}
	}
	if began, err := m.forward(ctx, batch); err != nil {
		for _, q := range sequences {
			if began {
				q.finished = true
				q.state.broke(err)
			}
		}
		return nil, fmt.Errorf("generate: %w", err)
	}
	results := make([]Result, len(sequences))
	if len(sequences) == 1 {
		results[0] = sequences[0].fed(m, len(batch[0].Tokens))
		return results, nil
	}
	var wg sync.WaitGroup // choosing tokens takes long enough to be shared among cores
	for i, q := range sequences {
		wg.Go(func() { results[i] = q.fed(m, len(batch[i].Tokens)) })
	}
	wg.Wait()
	return results, nil
}

// fed notes that the first n tokens to do are done, and chooses the next one where none is left.
func (q *Sequence) fed(m *Model, n int) Result {
	s := q.state
	s.fed += uint64(n)
	q.todo = q.todo[n:]
	s.pending = q.todo
	if q.count == 0 && q.request.Progress != nil {
		q.request.Progress(q.total-len(q.todo), q.total)
	}
	if len(q.todo) > 0 {
		return Result{}
	}
	id, err := q.sampler.Sample(q.logits)
	if err != nil {
		q.finished = true
		s.broke(err)
		return Result{Err: err}
	}
	s.pending = []int32{id}
	q.todo = s.pending
	q.count++
	return Result{Piece: q.piece(m, id), Ready: true}
}

// piece is what token id shows.
func (q *Sequence) piece(m *Model, id int32) Piece {
	p := Piece{Token: id}
	if id == m.EndOfText() && !q.request.IgnoreEnd {
		p.Finish = FinishEnd
	} else if q.decoder != nil {
		p.Text = q.stop.next(q.decoder.Next(id))
	}
	if p.Finish == "" && !q.stop.stopped && q.count == q.request.MaxTokens {
		p.Finish = FinishLength
	}
	if p.Finish != "" && q.decoder != nil {
		p.Text += q.stop.next(q.decoder.Flush())
	}
	if q.stop.stopped {
		p.Finish = FinishStop
	}
	if p.Finish != "" {
		q.finished = true
		p.Text += q.stop.flush()
	}
	return p
}

// Generate feeds the request's prompt to s and generates, token by token, until the text ends. The sequence in s then ends with
// the last piece's token; so it does after leaving the loop early or where the context is cancelled between two tokens, and s can
// go on from there. Any other error ends the loop and leaves s unusable until it is reset.
func (m *Model) Generate(ctx context.Context, s *State, r Request) iter.Seq2[Piece, error] {
	return func(yield func(Piece, error) bool) {
		q, err := m.Start(s, r)
		if err != nil {
			yield(Piece{}, err)
			return
		}
		for !q.finished {
			results, err := m.Advance(ctx, q)
			if err == nil {
				err = results[0].Err
			}
			if err != nil {
				yield(Piece{}, err)
				return
			}
			if results[0].Ready && !yield(results[0].Piece, nil) {
				return
			}
		}
	}
}
