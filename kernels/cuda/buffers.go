//go:build cuda

package cuda

import (
	"fmt"

	"xlstm/format"
)

// buffers are the memory of a pass of many tokens. They are made when the first such pass comes and grow with passes, up to
// Options.Piece tokens.
type buffers struct {
	tokens int // that there is room for
	pieces int
	rows   int // of logits that there is room for

	x, xn, qkvo, gates, h, gateUp uint64
	scan, info, mEnd, scores      uint64
	in                            uint64 // pieces, chunk bases, tokens, places of chunks
	headX, logits, probs, headIn  uint64 // headIn: rows, targets
	workspace, splits, scratch    uint64
	ld                            int // of qkvo
	padD, padV, padF              int
	all                           []uint64
}

const (
	headRows     = 256      // rows of logits that are computed together
	splitSpace   = 32 << 20 // bytes for partial sums
	scratchSpace = 64 << 20 // bytes for weights on their way to cuBLASLt
	packedTokens = 256      // tokens up to which integer weights stay packed
)

// actBytes is the size of an activation between the products.
func (e *Engine) actBytes() int64 {
	if e.half {
		return 2
	}
	return 4
}

// grow makes room for a pass.
func (e *Engine) grow(p *pass) error {
	b, c := &e.buf, e.cfg
	if p.tokens <= b.tokens && len(p.pieces) <= b.pieces {
		return nil
	}
	tokens := max(b.tokens, min((p.tokens+255)/256*256, e.opt.Piece))
	pieces := max(b.pieces, (len(p.pieces)+63)/64*64)
	for _, q := range b.all {
		e.release(q)
	}
	*b = buffers{rows: min(headRows, tokens), ld: 2*c.QKDim + 2*c.VDim,
		padD: format.PaddedCols(c.EmbeddingDim), padV: format.PaddedCols(c.VDim), padF: format.PaddedCols(c.FFNDim)}
	t, r, act := int64(tokens), int64(b.rows), e.actBytes()
	chunks := t/chunkLen + int64(pieces)
	for _, a := range []struct {
		to *uint64
		n  int64
	}{
		{&b.x, 4 * t * int64(c.EmbeddingDim)},
		{&b.xn, e.inBytes() * t * int64(max(b.padD, b.padV, b.padF))},
		{&b.qkvo, act * t * int64(b.ld)},
		{&b.gates, 4 * t * int64(2*c.NumHeads)},
		{&b.h, act * t * int64(c.VDim)},
		{&b.gateUp, act * t * int64(2*c.FFNDim)},
		{&b.scan, 16 * t * int64(c.NumHeads)},
		{&b.info, 8 * chunks * int64(c.NumHeads)},
		{&b.mEnd, 4 * int64(pieces*c.NumHeads)},
		{&b.scores, 2 * chunkLen * chunkLen * chunks * int64(c.NumHeads)},
		{&b.in, int64(pieces)*20 + 4*t + 8*chunks},
		{&b.headX, e.inBytes() * r * int64(b.padD)},
		{&b.logits, 4 * r * int64(c.VocabSize)},
		{&b.probs, 4 * r},
		{&b.headIn, 8 * r},
		{&b.splits, splitSpace},
	} {
		if err := b.add(e, a.to, a.n); err != nil {
			return fmt.Errorf("a pass of %d tokens: %w", tokens, err)
		}
	}
	b.tokens, b.pieces = tokens, pieces
	return nil
}

func (b *buffers) add(e *Engine, to *uint64, n int64) error {
	p, err := e.alloc(n)
	if err != nil {
		return err
	}
	*to = p
	b.all = append(b.all, p)
	return nil
}

// inBytes is the size of a product's input value: float32 where any product is.
func (e *Engine) inBytes() int64 {
	if !e.half {
		return 4
	}
	for _, m := range append(e.matrices(), &e.head) {
		if m.enc == encF32 {
			return 4
		}
	}
	return 2
}
