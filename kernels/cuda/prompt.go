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
	b := &e.buf
	bases := b.in + uint64(b.pieces)*16
	tokensAt := bases + uint64(b.pieces)*4
	places := tokensAt + uint64(b.tokens)*4
	if err := e.putPass(batch, p, bases, tokensAt, places); err != nil {
		return err
	}
	if err := e.submitOrReplay(p, bases, tokensAt, places); err != nil {
		return err
	}
	if err := e.readOut(batch, p); err != nil {
		return err
	}
	return driver.Sync(e.stream)
}

// passKey is what the launches of a pass depend on.
type passKey struct{ tokens, pieces, recurrent, chunks int }

const maxGraphs = 16

// submitOrReplay submits a pass; what comes a second time is captured as a graph. The first time makes buffers and measures algorithms,
// which a capture cannot.
func (e *Engine) submitOrReplay(p *pass, bases, tokens, places uint64) error {
	b := &e.buf
	key := passKey{p.tokens, len(p.pieces), p.recurrent, p.chunks}
	g, seen := b.graphs[key]
	if !seen {
		if len(b.graphs) >= maxGraphs {
			b.dropGraphs()
		}
		if err := e.submit(p, bases, tokens, places); err != nil {
			return err
		}
		b.graphs[key] = nil
		return nil
	}
	if g == nil {
		var err error
		e.capturing = true
		g, err = driver.Capture(e.stream, func() error { return e.submit(p, bases, tokens, places) })
		e.capturing = false
		if err != nil {
			return err
		}
		b.graphs[key] = g
	}
	return g.Launch(e.stream)
}

func (b *buffers) dropGraphs() {
	for _, g := range b.graphs {
		if g != nil {
			g.Close()
		}
	}
	b.graphs = map[passKey]*driver.Graph{}
}

// submit submits a pass from its tokens to the residual stream behind the last block.
func (e *Engine) submit(p *pass, bases, tokens, places uint64) error {
	b, n, d := &e.buf, p.tokens, e.cfg.EmbeddingDim
	e.due = nil
	em := embedArgs{w: e.embed, tokens: tokens, x: b.x, n: int32(n), ldx: int32(d)}
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
	if e.due != nil {
		return e.addNorm(n, -1)
	}
	return nil
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
	bl, n := &e.blocks[i], p.tokens
	norm := func() error { return e.norm(e.takes(forQKVO, &bl.qkvo, n), n) }
	gates := func() error { return e.startGates(i, p, bases) }
	first, second := gates, norm
	if e.due != nil { // the gates take the sum
		first, second = norm, gates
	}
	for _, f := range []func() error{first, second, func() error { return e.project(bl, n) }, func() error { return e.stream.Wait(e.gated, 0) },
		func() error { return e.cells(i, p, bases, places) }} {
		if err := f(); err != nil {
			return err
		}
	}
	return e.mixOut(bl, n)
}

// project computes q, k, v and the output gate's preactivations from xn.
func (e *Engine) project(bl *blockArgs, n int) error {
	b := &e.buf
	if e.takes(forQKVO, &bl.qkvo, n) == xI8 {
		if err := e.multiplyInt(&bl.qkvo, b.xn, n); err != nil {
			return err
		}
		return e.rescale(&bl.qkvo, n)
	}
	_, out := e.actType()
	return e.multiply(&product{w: &bl.qkvo, x: b.xn, y: b.qkvo, n: n, ldx: b.padD, ldy: b.ld, out: out, beside: gateBlocks(n)})
}

// mixOut gates the cells' read-outs and projects them onto the residual stream.
func (e *Engine) mixOut(bl *blockArgs, n int) error {
	b, c := &e.buf, e.cfg
	form := e.takes(forOut, &bl.out, n)
	if form == xI8 {
		if err := e.headGateInt(bl, n); err != nil {
			return err
		}
		e.due = &bl.out
		return e.multiplyInt(&bl.out, b.xn, n)
	}
	in, _ := e.actType()
	a := normArgs{x: b.h, y: b.xn, o: b.qkvo + uint64(e.actBytes())*uint64(2*c.QKDim+c.VDim), w: bl.headNorm, b: bl.headNormBias, n: int32(n), cols: int32(c.VDim),
		ldx: int32(c.VDim), ldy: int32(b.padV), ldo: int32(b.ld), heads: int32(c.NumHeads), in: in, out: form, eps: float32(c.NormEps)}
	if err := e.launch("head_gate", driver.Grid{X: n, Y: 1, Z: 1}, 32*min(c.NumHeads, 8), 0, unsafe.Pointer(&a), true); err != nil {
		return err
	}
	return e.multiply(&product{w: &bl.out, x: b.xn, y: b.x, n: n, ldx: b.padV, ldy: c.EmbeddingDim, out: outF32, add: true})
}

// norm leaves the normed residual stream in xn in form out, and first adds what is due to it.
func (e *Engine) norm(out int32, n int) error {
	b, c := &e.buf, e.cfg
	if e.half && rowShared(b.padD)+1024 <= e.shared {
		return e.addNorm(n, out)
	}
	a := normArgs{x: b.x, y: b.xn, n: int32(n), cols: int32(c.EmbeddingDim), ldx: int32(c.EmbeddingDim), ldy: int32(b.padD), out: out, eps: float32(c.NormEps)}
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
	if !e.half {
		g.exact = 1
	}
	if err := e.launchOn(e.side, "gates_many", driver.Grid{X: (n + gateTokens - 1) / gateTokens, Y: 1, Z: 1}, 512, 0, unsafe.Pointer(&g), false); err != nil {
		return err
	}
	if chunked := len(p.pieces) - p.recurrent; chunked > 0 {
		sc := scanArgs{pieces: b.in + uint64(p.recurrent)*16, gates: b.gates, scan: b.scan, chunkInfo: b.info, mEnd: b.mEnd, chunkBase: bases + uint64(p.recurrent)*4,
			heads: int32(s.heads), dk: int32(s.dk), slices: int32(s.slices), block: int32(i), stateType: int32(s.kind), chunks: int32(p.chunks), cap: float32(c.GateSoftCap)}
		if err := e.launchOn(e.side, "gate_scan", driver.Grid{X: s.heads, Y: chunked, Z: 1}, 1024, 0, unsafe.Pointer(&sc), true); err != nil {
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
	return e.launch(name+stateSuffix[s.kind], driver.Grid{X: s.slices, Y: s.heads, Z: n}, 512, chunkShared(s.dk, int(ch.stages)), unsafe.Pointer(&ch), true)
}

// feedForward is the second half of block i: x += Wdown(silu(gate) * up).
func (e *Engine) feedForward(i, n int) error {
	b, c, bl := &e.buf, e.cfg, &e.blocks[i]
	_, out := e.actType()
	in := e.takes(forGateUp, &bl.gateUp, n)
	if err := e.norm(in, n); err != nil {
		return err
	}
	var err error
	if in == xI8 {
		err = e.multiplyInt(&bl.gateUp, b.xn, n)
	} else {
		err = e.multiply(&product{w: &bl.gateUp, x: b.xn, y: b.wide, n: n, ldx: b.padD, ldy: 2 * c.FFNDim, out: out})
	}
	if err != nil {
		return err
	}
	return e.feedBack(bl, n, in == xI8)
}

// feedBack computes the hidden values from gate and up in wide, int32 where sums is set, and projects them onto the residual stream.
func (e *Engine) feedBack(bl *blockArgs, n int, sums bool) error {
	b, c := &e.buf, e.cfg
	form, inPlace := e.hiddenForm(&bl.down, n)
	y, ld, scale := b.xn, b.padF, float32(1)
	if inPlace {
		y, ld = b.wide, 2*c.FFNDim
		if sums {
			ld *= 2
		}
	}
	if form == xF16 || form == xPerm {
		scale = downScale
	}
	var err error
	if sums || form == xI8 {
		err = e.swigluInt(&bl.gateUp, n, sums, y, ld, form, scale)
	} else {
		in, _ := e.actType()
		a := normArgs{x: b.wide, y: y, n: int32(n), cols: int32(c.FFNDim), ldx: int32(2 * c.FFNDim), ldy: int32(ld), ldo: int32(b.padF), in: in, out: form, scale: scale}
		err = e.launch("swiglu", driver.Grid{X: n, Y: min(8, (b.padF+2047)/2048), Z: 1}, 256, 0, unsafe.Pointer(&a), true)
	}
	if err != nil {
		return err
	}
	if form == xI8 {
		e.due = &bl.down
		return e.multiplyInt(&bl.down, y, n)
	}
	return e.multiply(&product{w: &bl.down, x: y, y: b.x, n: n, ldx: ld, ldy: c.EmbeddingDim, out: outF32, add: true, alpha: 1 / scale})
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
	if err := e.multiply(&product{w: &e.head, x: b.headX, y: b.wide, n: n, ldx: b.padD, ldy: c.VocabSize, out: outF32, cap: float32(c.OutputSoftCap)}); err != nil {
		return err
	}
	if scored {
		l := logitArgs{logits: b.wide, targets: b.headIn + uint64(4*n), out: b.probs, n: int32(n), vocab: int32(c.VocabSize), ld: int32(c.VocabSize)}
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
			if err := cu.MemcpyDtoH(unsafe.Pointer(&dst[0]), cu.DevicePtr(b.wide+uint64(i)*uint64(v)*4), int64(v)*4); err != nil {
				return err
			}
		}
	}
	return nil
}
