// Package cpu is the engine that runs on CPUs: recurrent for single tokens, chunkwise for prompts, batches of any mix of the
// two. Products with weights are shared among a fixed pool of workers by rows, so that a row's sum is computed in one order
// whatever the number of workers: the same input gives the same bits with any of them.
package cpu

import (
	"context"
	"errors"
	"fmt"
	"runtime"

	"xlstm/format"
	"xlstm/kernels"
	"xlstm/kernels/cpu/simd"
)

// Weights is where an engine takes its tensors from: a *format.File, or tensors in memory.
type Weights interface {
	Config() *format.Config
	Tensor(name string) (format.Tensor, bool)
}

// Options of an engine. The zero value is what most want.
type Options struct {
	Workers int // goroutines that compute; 0 is one a core that the process may use
	Piece   int // tokens that pass through the blocks together, 0 is DefaultPiece; bounds the working memory
	// Observe, if set, sees the input of every product with a tensor: n vectors of cols values, x[i*cols+c].
	Observe func(tensor string, x []float32, n, cols int)
}

// DefaultPiece is how many tokens pass through the blocks together. More of them share each reading of a weight.
const DefaultPiece = 512

// Engine implements kernels.Engine.
type Engine struct {
	cfg     *format.Config
	embed   simd.Matrix
	head    linear
	blocks  []block
	pool    *pool
	piece   int
	observe func(string, []float32, int, int)
	buf     buffers
	ctx     context.Context // of the running Forward; workers look at it between runs of rows
	pieces  pieces
	work    work
	phases  phases
}

// linear is y = W x + b; bias is nil where there is none.
type linear struct {
	name string
	w    simd.Matrix
	bias []float32
}

// block is one block's weights. headNorm and headNormBias are nil where the norm's weight is folded into out.
type block struct {
	qkvo, gates, out, gateUp, down linear
	headNorm, headNormBias         []float32
}

// Open makes an engine for w, whose tensors must stay mapped until Close.
func Open(w Weights, o Options) (*Engine, error) {
	e, err := prepareEngine(w, &o)
	if err != nil {
		return nil, err
	}
	if err := e.load(w); err != nil {
		return nil, err
	}
	e.start(o)
	return e, nil
}

// prepareEngine checks what an engine is made of and fills in the options' defaults.
func prepareEngine(w Weights, o *Options) (*Engine, error) {
	cfg := w.Config()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if o.Workers < 0 || o.Piece < 0 {
		return nil, fmt.Errorf("open engine: %d workers and pieces of %d tokens", o.Workers, o.Piece)
	}
	if o.Workers == 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	if o.Piece == 0 {
		o.Piece = DefaultPiece
	}
	return &Engine{cfg: cfg, piece: o.Piece, observe: o.Observe}, nil
}

func (e *Engine) start(o Options) {
	e.phases = phases{e.tokenPhase, e.mixPhase, e.cellPhase, e.outPhase, e.gateUpPhase, e.downPhase, e.headPhase}
	e.pool = newPool(o.Workers)
	e.buf.init(e.cfg, o.Workers)
}

// Close ends the engine's workers.
func (e *Engine) Close() error {
	if e.pool == nil {
		return errors.New("close engine: already closed")
	}
	e.pool.close()
	e.pool = nil
	return nil
}

// Workers is the number of goroutines that compute.
func (e *Engine) Workers() int { return e.pool.n }

func (e *Engine) load(w Weights) error {
	cfg := e.cfg
	l := loader{w: w, cfg: cfg}
	v, d := cfg.VocabSize, cfg.EmbeddingDim
	e.embed = l.matrix(format.TensorEmbed, v, d)
	e.head = linear{name: format.TensorHead, w: l.matrix(format.TensorHead, v, d)}
	if _, ok := w.Tensor(format.TensorHeadBias); ok {
		e.head.bias = l.vector(format.TensorHeadBias, v)
	}
	e.blocks = make([]block, cfg.NumBlocks)
	for i := range e.blocks {
		e.blocks[i] = l.block(i)
	}
	return l.err
}

// loader takes tensors from a file and keeps the first error.
type loader struct {
	w   Weights
	cfg *format.Config
	err error
}

func (l *loader) block(i int) block {
	c := l.cfg
	b := block{
		qkvo:   l.linear(i, format.TensorQKVO, format.TensorQKVOBias, 2*c.QKDim+2*c.VDim, c.EmbeddingDim, c.UseBias),
		gates:  l.linear(i, format.TensorGates, format.TensorGatesBias, 2*c.NumHeads, c.EmbeddingDim, true),
		out:    l.linear(i, format.TensorOut, format.TensorOutBias, c.EmbeddingDim, c.VDim, c.UseBias),
		gateUp: l.linear(i, format.TensorGateUp, format.TensorGateUpBias, 2*c.FFNDim, c.EmbeddingDim, c.UseBias),
		down:   l.linear(i, format.TensorDown, format.TensorDownBias, c.EmbeddingDim, c.FFNDim, c.UseBias),
	}
	if c.UseBias {
		b.headNorm = l.vector(format.BlockTensor(i, format.TensorHeadNorm), c.VDim)
		b.headNormBias = l.vector(format.BlockTensor(i, format.TensorHeadNormBias), c.VDim)
	}
	return b
}

func (l *loader) tensor(name string, rows, cols int) format.Tensor {
	t, ok := l.w.Tensor(name)
	switch {
	case l.err != nil:
	case !ok:
		l.err = fmt.Errorf("tensor %s is missing", name)
	case t.Rows != rows || t.Cols != cols:
		l.err = fmt.Errorf("tensor %s is %d x %d, expected %d x %d", name, t.Rows, t.Cols, rows, cols)
	default:
		return t
	}
	return format.Tensor{}
}

func (l *loader) matrix(name string, rows, cols int) simd.Matrix {
	t := l.tensor(name, rows, cols)
	if l.err != nil {
		return simd.Matrix{}
	}
	_, mapped := l.w.(*format.File)
	advise(t.Data, mapped)
	return simd.Matrix{Enc: t.Encoding, Rows: rows, Cols: cols, Values: t.Values(), Scales: t.Scales(), Mins: t.Mins()}
}

func (l *loader) vector(name string, n int) []float32 {
	m := l.matrix(name, 1, n)
	if l.err != nil {
		return nil
	}
	v := make([]float32, n)
	m.Row(v, 0)
	return v
}

func (l *loader) linear(i int, name, bias string, rows, cols int, biased bool) linear {
	name = format.BlockTensor(i, name)
	out := linear{name: name, w: l.matrix(name, rows, cols)}
	if biased {
		out.bias = l.vector(format.BlockTensor(i, bias), rows)
	}
	return out
}

// Forward implements kernels.Engine. A cancelled context stops it within some milliseconds.
func (e *Engine) Forward(ctx context.Context, batch []kernels.Step) error {
	if err := kernels.CheckBatch(batch, e.cfg.VocabSize); err != nil {
		return err
	}
	for i := range batch {
		if s, ok := batch[i].State.(*state); !ok || s.engine != e {
			return fmt.Errorf("forward: the state of step %d is of another engine", i)
		}
	}
	if e.pool == nil {
		return errors.New("forward: the engine is closed")
	}
	e.ctx = ctx
	p := &e.pieces
	*p = pieces{batch: batch, size: e.piece, segs: p.segs}
	for ctx.Err() == nil && p.next() {
		e.forwardPiece(p)
	}
	*p = pieces{segs: p.segs[:0]}
	e.ctx = nil
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("forward: %w", err)
	}
	return nil
}

// segment is a run of tokens of one step within a piece.
type segment struct {
	step  *kernels.Step
	state *state
	first int // index of its first token in the step
	at, n int // its place in the piece and its length, in tokens
}

// pieces cuts a batch into pieces of at most size tokens. A long step goes on in the next piece.
type pieces struct {
	batch []kernels.Step
	size  int
	i, at int // next step, and next token of it
	segs  []segment
	n     int // tokens in the piece
}

func (p *pieces) next() bool {
	p.segs, p.n = p.segs[:0], 0
	for p.i < len(p.batch) && p.n < p.size {
		s := &p.batch[p.i]
		n := min(len(s.Tokens)-p.at, p.size-p.n)
		p.segs = append(p.segs, segment{step: s, state: s.State.(*state), first: p.at, at: p.n, n: n})
		p.n += n
		p.at += n
		if p.at == len(s.Tokens) {
			p.i, p.at = p.i+1, 0
		}
	}
	return p.n > 0
}
