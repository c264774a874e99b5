//go:build cuda

package cuda

import (
	"unsafe"

	"gorgonia.org/cu"

	"xlstm/kernels"
	"xlstm/kernels/cuda/internal/driver"
)

// downScale keeps the feed-forward's hidden values, which no norm bounds, in the range of fp16.
const downScale = 1.0 / 8

// prompt runs a pass of any tokens: pieces of any number of sequences, packed one behind the other.
func (e *Engine) prompt(batch []kernels.Step, p *pass) error {
	if err := e.grow(p); err != nil {
		return err
	}
	b, c := &e.buf, e.cfg
	bases := b.in + uint64(b.pieces)*16
	tokensAt := bases + uint64(b.pieces)*4
	places := tokensAt + uint64(b.tokens)*4
	if err := e.putPass(batch, p, bases, tokensAt, places); err != nil {
		return err
	}
	n, d := p.tokens, c.EmbeddingDim
	em := embedArgs{w: e.embed, tokens: tokensAt, x: b.x, n: int32(n), ldx: int32(d)}
	if err := e.launch("embed", driver.Grid{X: n, Y: 1, Z: 1}, 256, 0, unsafe.Pointer(&em), false); err != nil {
		return err
	}
	for i := range e.blocks {
		if err := e.mix(i, p, bases, places); err != nil {
			return err
		}
		if err := e.feedForward(i, n); err != nil {
			return err
		}
	}
	if err := e.readOut(batch, p); err != nil {
		return err
	}
	return driver.Sync(e.stream)
}

// putPass copies a pass's description to the device.
func (e *Engine) putPass(batch []kernels.Step, p *pass, bases, tokensAt, places uint64) error {
	pieces := make([]pieceArg, len(p.pieces))
	base := make([]int32, len(p.pieces))
	tokens := make([]int32, p.tokens)
	place := make([]int32, 0, 2*p.chunks)
	for i, c := range p.pieces {
		pieces[i] = pieceArg{state: uint64(batch[c.step].State.(*state).at), tok: int32(c.tok), len: int32(c.len)}
		copy(tokens[c.tok:], batch[c.step].Tokens[c.from:c.from+c.len])
		if i >= p.recurrent {
			base[i] = int32(len(place) / 2)
			for at := 0; at < c.len; at += chunkLen {
				place = append(place, int32(i-p.recurrent), int32(at))
			}
		}
	}
	if err := copyIn(e, e.buf.in, pieces); err != nil {
		return err
	}
	if err := copyIn(e, bases, base); err != nil {
		return err
	}
	if err := copyIn(e, places, place); err != nil {
		return err
	}
	return copyIn(e, tokensAt, tokens)
}

func (e *Engine) actType() (in, out int32) {
	if e.half {
		return xF16, outF16
	}
	return xF32, outF32
}

// mix is the first half of block i: x += Wout(gate * cell(norm(x))).
func (e *Engine) mix(i int, p *pass, bases, places uint64) error {
	b, c, bl, n := &e.buf, e.cfg, &e.blocks[i], p.tokens
	in, out := e.actType()
	if err := e.startGates(i, p, bases); err != nil {
		return err
	}
	if err := e.norm(&bl.qkvo, n); err != nil {
		return err
	}
	if err := e.multiply(&product{w: &bl.qkvo, x: b.xn, y: b.qkvo, n: n, ldx: b.padD, ldy: b.ld, out: out, spare: b.qkvo}); err != nil {
		return err
	}
	if err := e.stream.Wait(e.gated, 0); err != nil {
		return err
	}
	if err := e.cells(i, p, bases, places); err != nil {
		return err
	}
	a := normArgs{x: b.h, y: b.xn, o: b.qkvo + uint64(e.actBytes())*uint64(2*c.QKDim+c.VDim), w: bl.headNorm, b: bl.headNormBias, n: int32(n), cols: int32(c.VDim),
		ldx: int32(c.VDim), ldy: int32(b.padV), ldo: int32(b.ld), heads: int32(c.NumHeads), in: in, out: e.inputType(&bl.out, n), eps: float32(c.NormEps)}
	if err := e.launch("head_gate", driver.Grid{X: n, Y: 1, Z: 1}, 32*min(c.NumHeads, 8), 0, unsafe.Pointer(&a), true); err != nil {
		return err
	}
	return e.multiply(&product{w: &bl.out, x: b.xn, y: b.x, n: n, ldx: b.padV, ldy: c.EmbeddingDim, out: outF32, add: true, spare: e.spareFor(n)})
}

// spareFor is memory that n rows of the residual stream fit in and that holds nothing outside the feed-forward's first product.
func (e *Engine) spareFor(n int) uint64 {
	if e.actBytes()*int64(2*e.cfg.FFNDim) < 4*int64(e.cfg.EmbeddingDim) {
		return 0
	}
	return e.buf.gateUp
}

// norm leaves the normed residual stream in xn, as w takes it.
func (e *Engine) norm(w *matArg, n int) error {
	b, c := &e.buf, e.cfg
	a := normArgs{x: b.x, y: b.xn, n: int32(n), cols: int32(c.EmbeddingDim), ldx: int32(c.EmbeddingDim), ldy: int32(b.padD), out: e.inputType(w, n), eps: float32(c.NormEps)}
	return e.launch("rms_norm", driver.Grid{X: n, Y: 1, Z: 1}, 256, 0, unsafe.Pointer(&a), true)
}

// startGates computes the gates of block i, and what the chunkwise form needs of them, beside the product that comes next: nothing of
// either keeps the card busy alone.
func (e *Engine) startGates(i int, p *pass, bases uint64) error {
	b, c, s, n := &e.buf, e.cfg, &e.shape, p.tokens
	if err := e.ready.Record(e.stream); err != nil {
		return err
	}
	if err := e.side.Wait(e.ready, 0); err != nil {
		return err
	}
	g := gatesArgs{w: e.blocks[i].gates, x: b.x, y: b.gates, n: int32(n), ldx: int32(c.EmbeddingDim), eps: float32(c.NormEps)}
	if err := e.launchOn(e.side, "gates_many", driver.Grid{X: (n + 7) / 8, Y: 1, Z: 1}, 256, 0, unsafe.Pointer(&g), false); err != nil {
		return err
	}
	if chunked := len(p.pieces) - p.recurrent; chunked > 0 {
		sc := scanArgs{pieces: b.in + uint64(p.recurrent)*16, gates: b.gates, scan: b.scan, chunkInfo: b.info, mEnd: b.mEnd, chunkBase: bases + uint64(p.recurrent)*4,
			heads: int32(s.heads), dk: int32(s.dk), slices: int32(s.slices), block: int32(i), stateType: int32(s.kind), chunks: int32(p.chunks), cap: float32(c.GateSoftCap)}
		if err := e.launchOn(e.side, "gate_scan", driver.Grid{X: s.heads, Y: chunked, Z: 1}, 32, 0, unsafe.Pointer(&sc), true); err != nil {
			return err
		}
	}
	return e.gated.Record(e.side)
}

// cells runs the mLSTM cells of block i over the pass.
func (e *Engine) cells(i int, p *pass, bases, places uint64) error {
	b, s := &e.buf, &e.shape
	in := "f32"
	if e.half {
		in = "f16"
	}
	a := e.cellArgs(i, b.in, b.qkvo, b.gates, b.h)
	a.scan, a.chunkInfo, a.tokens = b.scan, b.info, int32(p.tokens)
	if p.recurrent > 0 {
		if err := e.recur(&a, p.recurrent, in, false); err != nil {
			return err
		}
	}
	n := len(p.pieces) - p.recurrent
	if n == 0 {
		return nil
	}
	a.pieces += uint64(p.recurrent) * 16
	ch := chunkArgs{c: a, mEnd: b.mEnd, chunkBase: bases + uint64(p.recurrent)*4, place: places, scores: b.scores, chunks: int32(p.chunks), stages: 2}
	if chunkShared(s.dk, 2) > e.shared {
		ch.stages = 1
	}
	if err := e.launch("scores", driver.Grid{X: p.chunks, Y: s.heads, Z: 1}, 128, scoresShared(s.dk), unsafe.Pointer(&ch), false); err != nil {
		return err
	}
	name := "chunk1_"
	if s.dk > 128 {
		name = "chunk2_"
	}
	return e.launch(name+stateSuffix[s.kind], driver.Grid{X: s.slices, Y: s.heads, Z: n}, 256, chunkShared(s.dk, int(ch.stages)), unsafe.Pointer(&ch), true)
}

// feedForward is the second half of block i: x += Wdown(silu(gate) * up).
func (e *Engine) feedForward(i, n int) error {
	b, c, bl := &e.buf, e.cfg, &e.blocks[i]
	in, out := e.actType()
	if err := e.norm(&bl.gateUp, n); err != nil {
		return err
	}
	if err := e.multiply(&product{w: &bl.gateUp, x: b.xn, y: b.gateUp, n: n, ldx: b.padD, ldy: 2 * c.FFNDim, out: out, spare: b.gateUp}); err != nil {
		return err
	}
	a := normArgs{x: b.gateUp, y: b.xn, n: int32(n), cols: int32(c.FFNDim), ldx: int32(2 * c.FFNDim), ldy: int32(b.padF), in: in, out: e.inputType(&bl.down, n), scale: 1}
	if a.out != xF32 {
		a.scale = downScale
	}
	if err := e.launch("swiglu", driver.Grid{X: n, Y: min(8, (b.padF+2047)/2048), Z: 1}, 256, 0, unsafe.Pointer(&a), true); err != nil {
		return err
	}
	return e.multiply(&product{w: &bl.down, x: b.xn, y: b.x, n: n, ldx: b.padF, ldy: c.EmbeddingDim, out: outF32, add: true, alpha: 1 / a.scale, spare: e.spareFor(n)})
}

// readOut computes the logits and log probabilities that the batch asks for.
func (e *Engine) readOut(batch []kernels.Step, p *pass) error {
	v := e.cfg.VocabSize
	for _, c := range p.pieces {
		if s := &batch[c.step]; s.LogProbs != nil {
			clear(s.LogProbs[c.from : c.from+c.len])
		}
	}
	want := wantedRows(batch, p, v)
	for len(want) > 0 {
		n := min(len(want), e.buf.rows)
		if err := e.readRows(batch, want[:n]); err != nil {
			return err
		}
		want = want[n:]
	}
	return nil
}

func (e *Engine) readRows(batch []kernels.Step, want []wanted) error {
	b, c, n := &e.buf, e.cfg, len(want)
	in := make([]int32, 2*n)
	scored := false
	for i, w := range want {
		in[i], in[n+i] = w.row, w.target
		scored = scored || w.target >= 0
	}
	if err := driver.Sync(e.stream); err != nil { // the rows before may still be in use
		return err
	}
	if err := copyIn(e, b.headIn, in); err != nil {
		return err
	}
	a := normArgs{x: b.x, y: b.headX, rows: b.headIn, n: int32(n), cols: int32(c.EmbeddingDim), ldx: int32(c.EmbeddingDim), ldy: int32(b.padD),
		out: e.inputType(&e.head, n), eps: -1}
	if c.OutNorm {
		a.eps = float32(c.NormEps)
	}
	if err := e.launch("rms_norm", driver.Grid{X: n, Y: 1, Z: 1}, 256, 0, unsafe.Pointer(&a), true); err != nil {
		return err
	}
	if err := e.multiply(&product{w: &e.head, x: b.headX, y: b.logits, n: n, ldx: b.padD, ldy: c.VocabSize, out: outF32, cap: float32(c.OutputSoftCap)}); err != nil {
		return err
	}
	if scored {
		l := logitArgs{logits: b.logits, targets: b.headIn + uint64(4*n), out: b.probs, n: int32(n), vocab: int32(c.VocabSize), ld: int32(c.VocabSize)}
		if err := e.launch("log_prob", driver.Grid{X: n, Y: 1, Z: 1}, 512, 0, unsafe.Pointer(&l), false); err != nil {
			return err
		}
	}
	if err := driver.Sync(e.stream); err != nil {
		return err
	}
	return e.copyOut(batch, want, scored)
}

// copyOut copies logits and log probabilities to where the batch wants them.
func (e *Engine) copyOut(batch []kernels.Step, want []wanted, scored bool) error {
	b, v := &e.buf, e.cfg.VocabSize
	if scored {
		probs := make([]float32, len(want))
		if err := cu.MemcpyDtoH(unsafe.Pointer(&probs[0]), cu.DevicePtr(b.probs), int64(len(want))*4); err != nil {
			return err
		}
		for i, w := range want {
			if w.target >= 0 {
				batch[w.step].LogProbs[w.token] = probs[i]
			}
		}
	}
	for i, w := range want {
		if w.logits {
			dst := logitsOf(&batch[w.step], w.token, v)
			if err := cu.MemcpyDtoH(unsafe.Pointer(&dst[0]), cu.DevicePtr(b.logits+uint64(i)*uint64(v)*4), int64(v)*4); err != nil {
				return err
			}
		}
	}
	return nil
}
