//go:build cuda

package cuda

import (
	"fmt"

	"xlstm/format"
	"xlstm/kernels/cuda/internal/driver"
)

// buffers are the memory of a pass of many tokens. They are made when the first such pass comes and grow with passes, up to
// Options.Piece tokens.
type buffers struct {
	tokens int // that there is room for
	pieces int
	rows   int // of logits that there is room for

	x, xn, gates               uint64
	wide                       uint64 // what no two products need at the same time: qkvo and h, gate and up, int32 results, logits
	qkvo, h                    uint64 // in wide
	scalesX, scalesH           uint64 // of int8 activations: of norms, and of what blocks compute
	scan, info, mEnd, scores   uint64
	in                         uint64 // pieces, chunk bases, tokens, places of chunks
	headX, probs, headIn       uint64 // headIn: rows, targets
	workspace, splits, scratch uint64
	ld                         int // of qkvo
	padD, padV, padF           int
	all                        []uint64
	graphs                     map[passKey]*driver.Graph // of passes, nil for those that came once
}

const (
	headRows     = 256      // rows of logits that are computed together
	splitSpace   = 32 << 20 // bytes for partial sums
	scratchSpace = 64 << 20 // bytes for weights on their way to cuBLASLt
	packedTokens = 256      // tokens up to which integer weights stay packed although cuBLASLt is there
	packedHopper = 512      // the same where the kernels of wgmma.cu are there
)

// packed is the number of tokens up to which integer weights stay packed.
func (e *Engine) packed() int {
	if e.hopper {
		return packedHopper
	}
	return packedTokens
}

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
	b.dropGraphs()
	for _, q := range b.all {
		e.release(q)
	}
	*b = buffers{graphs: map[passKey]*driver.Graph{}, rows: min(headRows, tokens), ld: 2*c.QKDim + 2*c.VDim,
		padD: format.PaddedCols(c.EmbeddingDim), padV: format.PaddedCols(c.VDim), padF: format.PaddedCols(c.FFNDim)}
	t, r, act := int64(tokens), int64(b.rows), e.actBytes()
	chunks := t/chunkLen + int64(pieces)
	up := func(n int64) int64 { return (n + 255) &^ 255 }
	ints, sumsQKVO := int64(0), int64(0)
	if e.ints != 0 {
		ints = 4
	}
	if e.ints&forQKVO != 0 {
		sumsQKVO = up(4 * t * int64(b.ld))
	}
	qkvo := up(act * t * int64(b.ld))
	wide := max(max(act, ints)*t*int64(2*c.FFNDim), ints*t*int64(c.EmbeddingDim), sumsQKVO+qkvo+act*t*int64(c.VDim), 4*r*int64(c.VocabSize))
	for _, a := range []struct {
		to *uint64
		n  int64
	}{
		{&b.x, 4 * t * int64(c.EmbeddingDim)},
		{&b.xn, max(e.inBytes()*t*int64(max(b.padD, b.padV)), e.hiddenBytes(tokens))},
		{&b.wide, wide},
		{&b.gates, 4 * t * int64(2*c.NumHeads)},
		{&b.scan, 16 * t * int64(c.NumHeads)},
		{&b.info, 8 * chunks * int64(c.NumHeads)},
		{&b.mEnd, 4 * int64(pieces*c.NumHeads)},
		{&b.scores, 2 * chunkLen * chunkLen * chunks * int64(c.NumHeads)},
		{&b.in, int64(pieces)*20 + 4*t + 8*chunks},
		{&b.headX, e.inBytes() * r * int64(b.padD)},
		{&b.probs, 4 * r},
		{&b.headIn, 8 * r},
		{&b.scalesX, 4 * t},
		{&b.scalesH, 4 * t},
	} {
		if err := b.add(e, a.to, a.n); err != nil {
			return fmt.Errorf("a pass of %d tokens: %w", tokens, err)
		}
	}
	b.qkvo = b.wide + uint64(sumsQKVO)
	b.h = b.qkvo + uint64(qkvo)
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

// hiddenForm is the form of n tokens' hidden values of the feed-forward, and whether they take the place of what they are computed from.
func (e *Engine) hiddenForm(w *matArg, n int) (form int32, inPlace bool) {
	form = e.takes(forDown, w, n)
	return form, e.half && form == xF16 && e.cfg.FFNDim == e.buf.padF
}

// hiddenBytes is the memory that hidden values of up to n tokens need outside wide.
func (e *Engine) hiddenBytes(n int) int64 {
	if !e.half {
		return 4 * int64(n) * int64(e.buf.padF)
	}
	most := int64(0)
	for i := range e.blocks {
		for _, m := range []int{n, min(n, e.packed()), min(n, intFrom-1)} {
			form, inPlace := e.hiddenForm(&e.blocks[i].down, m)
			switch {
			case form == xI8:
				most = max(most, int64(m)*int64(e.buf.padF))
			case !inPlace:
				most = max(most, 2*int64(m)*int64(e.buf.padF))
			}
		}
	}
	return most
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
