package cpu

import (
	"context"
	"fmt"

	"xlstm/kernels"
)

// Block runs one block alone, on hidden vectors in place of tokens. Calibration works through a model with it, one block in
// memory at a time.
type Block struct {
	engine *Engine
	index  int
}

// OpenBlock makes a Block of block i of w, which needs to have no other block's tensors.
func OpenBlock(w Weights, i int, o Options) (*Block, error) {
	e, err := prepareEngine(w, &o)
	if err != nil {
		return nil, err
	}
	if i < 0 || i >= e.cfg.NumBlocks {
		return nil, fmt.Errorf("open block %d of %d", i, e.cfg.NumBlocks)
	}
	l := loader{w: w, cfg: e.cfg}
	e.blocks = make([]block, e.cfg.NumBlocks)
	e.blocks[i] = l.block(i)
	if l.err != nil {
		return nil, l.err
	}
	e.start(o)
	return &Block{engine: e, index: i}, nil
}

// Run replaces x, the hidden vectors [n, D] of a sequence from its start, by what the block makes of them.
func (b *Block) Run(ctx context.Context, x []float32) error {
	e := b.engine
	d := e.cfg.EmbeddingDim
	if len(x) == 0 || len(x)%d != 0 {
		return fmt.Errorf("run block: %d values, expected a multiple of %d", len(x), d)
	}
	s, err := e.NewState()
	if err != nil {
		return err
	}
	e.ctx = ctx
	k := &e.work
	for at := 0; at < len(x)/d && ctx.Err() == nil; at += e.piece {
		n := min(e.piece, len(x)/d-at)
		e.buf.resize(e.cfg, n)
		e.buf.x = x[at*d : (at+n)*d]
		k.block, k.index, k.n = &e.blocks[b.index], b.index, n
		k.segs = []segment{{step: &kernels.Step{State: s}, state: s.(*state), first: at, n: n}}
		e.forwardBlock()
	}
	e.buf.x, e.ctx = nil, nil
	return ctx.Err()
}

// Close ends the block's workers.
func (b *Block) Close() error { return b.engine.Close() }
