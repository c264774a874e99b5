// Package runtime runs a model as text: states, prompts, sampling, stopping. It knows no device and no checkpoint: it drives a
// kernels.Engine.
package runtime

import (
	"context"
	"errors"
	"fmt"

	"xlstm/format"
	"xlstm/kernels"
	"xlstm/tokenizer"
)

// Model is a converted model on an engine, with its tokenizer. Any number of goroutines may use it, each with states of its own;
// the engine runs for one of them at a time.
type Model struct {
	cfg         *format.Config
	tok         *tokenizer.Tokenizer // nil: the model has ids and no text
	engine      kernels.Engine
	fingerprint [32]byte
	ids         int     // ids from here on are not the tokenizer's
	holes       []int32 // ids below that which are not either
	running     chan struct{}
	closers     []func() error
}

// promptPiece is how many tokens of a prompt an engine gets at once: enough to share each reading of the weights, and few enough
// that cancelling is quick and the engine's working memory small.
const promptPiece = 512

// New makes a model of its parts. tok may be nil: such a model takes and gives ids only. fingerprint identifies the weights, and
// binds saved states to them. Close closes the engine, and nothing else.
func New(cfg *format.Config, tok *tokenizer.Tokenizer, engine kernels.Engine, fingerprint [32]byte) (*Model, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	m := &Model{cfg: cfg, tok: tok, engine: engine, fingerprint: fingerprint, ids: cfg.VocabSize, running: make(chan struct{}, 1)}
	m.closers = append(m.closers, engine.Close)
	if tok == nil {
		return m, nil
	}
	if m.ids = tok.VocabSize(); m.ids > cfg.VocabSize {
		return nil, fmt.Errorf("the tokenizer has %d ids, the model only %d", m.ids, cfg.VocabSize)
	}
	for id := range int32(m.ids) {
		if !tok.Has(id) {
			m.holes = append(m.holes, id)
		}
	}
	return m, nil
}

// Open opens a converted file and makes an engine for it, which may use the file's mapping until it is closed. Errors name the
// file; those of engine are returned as they are.
func Open(path string, engine func(*format.File) (kernels.Engine, error)) (m *Model, err error) {
	f, err := format.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	var tok *tokenizer.Tokenizer
	if section := f.Tokenizer(); len(section) > 0 {
		if tok, err = tokenizer.Load(section); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	e, err := engine(f)
	if err != nil {
		return nil, err // names the file itself
	}
	if m, err = New(f.Config(), tok, e, f.Fingerprint()); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), e.Close())
	}
	m.closers = append(m.closers, f.Close)
	return m, nil
}

// Config is the model's description. It must not be changed.
func (m *Model) Config() *format.Config { return m.cfg }

// Tokenizer is the model's tokenizer, nil where it has none.
func (m *Model) Tokenizer() *tokenizer.Tokenizer { return m.tok }

// Engine is the device that the model runs on. Use Forward rather than the engine's own where others may use the model too.
func (m *Model) Engine() kernels.Engine { return m.engine }

// Fingerprint identifies the model's weights.
func (m *Model) Fingerprint() [32]byte { return m.fingerprint }

// EndOfText is the id that ends a text: the tokenizer's, whatever a config says. -1 where there is none.
func (m *Model) EndOfText() int32 {
	if m.tok == nil {
		return -1
	}
	return m.tok.EndOfText()
}

// Forward runs the engine when it is free.
func (m *Model) Forward(ctx context.Context, batch []kernels.Step) error {
	_, err := m.forward(ctx, batch)
	return err
}

// forward also reports whether the engine began: if not, the states are as they were.
func (m *Model) forward(ctx context.Context, batch []kernels.Step) (began bool, err error) {
	select {
	case m.running <- struct{}{}:
	case <-ctx.Done():
		return false, ctx.Err()
	}
	defer func() { <-m.running }()
	if err := ctx.Err(); err != nil {
		return false, err
	}
	return true, m.engine.Forward(ctx, batch)
}

// Close frees the engine and what Open opened. States must not be used after it.
func (m *Model) Close() error {
	m.running <- struct{}{} // until no Forward runs
	defer func() { <-m.running }()
	var errs []error
	for _, c := range m.closers {
		errs = append(errs, c())
	}
	m.closers = nil
	return errors.Join(errs...)
}

// Prompt turns a prompt into ids, as what s goes on with: at the beginning of a sequence the beginning-of-text token comes first
// where the model was trained so, unless the prompt brings it. special makes the texts of special tokens in text count as such.
func (m *Model) Prompt(s *State, text string, special bool) ([]int32, error) {
	if m.tok == nil {
		return nil, errors.New("the model has no tokenizer: prompts have to be ids")
	}
	return m.Begin(s, m.tok.Encode(text, tokenizer.Options{Special: special})), nil
}

// Begin puts the beginning-of-text token before ids where Prompt does.
func (m *Model) Begin(s *State, ids []int32) []int32 {
	if s.Tokens() > 0 || m.cfg.BOS < 0 {
		return ids
	}
	bos := int32(m.cfg.BOS)
	if len(ids) == 0 || m.cfg.ForceBOS && ids[0] != bos {
		return append([]int32{bos}, ids...)
	}
	return ids
}
