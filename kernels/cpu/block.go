package cpu

import "xlstm/kernels/cpu/simd"

// forwardBlock runs the piece through e.work.block: x += Wout(gate * cell(norm(x))), x += Wdown(swiglu(norm(x))).
// Five phases, each one wake-up of the workers; the norms between them add one each where there are many tokens.
func (e *Engine) forwardBlock() {
	cfg, b, k := e.cfg, &e.buf, &e.work
	n, d := k.n, cfg.EmbeddingDim
	b.gateIn.Resize(n, d, k.block.gates.w.Enc)
	e.prepare(&k.block.qkvo, b.x, d, n, true)
	e.tokens(n, (*Engine).setGateToken)
	e.share(&k.block.qkvo, e.phases.mix)

	e.runCells()

	e.prepare(&k.block.out, b.h, cfg.VDim, n, false)
	e.share(&k.block.out, e.phases.out)

	e.prepare(&k.block.gateUp, b.x, d, n, true)
	e.shareRows(cfg.FFNDim, &k.block.gateUp, e.phases.gateUp)

	e.prepare(&k.block.down, b.gateUp, 2*cfg.FFNDim, n, false)
	e.share(&k.block.down, e.phases.down)
}

// setGateToken makes the normed vector of token i, which prepare left in u, the gates' input too: their rows are float32
// whatever the encoding of the others.
func (e *Engine) setGateToken(i int) {
	d := e.cfg.EmbeddingDim
	e.buf.gateIn.SetRow(i, e.buf.u[i*d:(i+1)*d])
}

func (e *Engine) mixPhase(w int) {
	cfg, b, bl := e.cfg, &e.buf, e.work.block
	for lo, hi := e.take(); lo < hi; lo, hi = e.take() {
		if lo == 0 { // whoever begins
			e.product(&bl.gates, &b.gateIn, b.gates, 2*cfg.NumHeads, false, 0, 2*cfg.NumHeads, w)
		}
		e.product(&bl.qkvo, &b.acts, b.qkvo, bl.qkvo.w.Rows, false, lo, hi, w)
	}
}

func (e *Engine) outPhase(w int) { e.residualPhase(&e.work.block.out, w) }

func (e *Engine) downPhase(w int) { e.residualPhase(&e.work.block.down, w) }

// residualPhase adds l's product to the residual stream.
func (e *Engine) residualPhase(l *linear, w int) {
	for lo, hi := e.take(); lo < hi; lo, hi = e.take() {
		e.product(l, &e.buf.acts, e.buf.x, l.w.Rows, true, lo, hi, w)
	}
}

// gateUpPhase computes the same rows of gate and of up, and with them silu(gate)*up.
func (e *Engine) gateUpPhase(w int) {
	f, b, l := e.cfg.FFNDim, &e.buf, &e.work.block.gateUp
	for lo, hi := e.take(); lo < hi; lo, hi = e.take() {
		e.product(l, &b.acts, b.gateUp, 2*f, false, lo, hi, w)
		e.product(l, &b.acts, b.gateUp, 2*f, false, f+lo, f+hi, w)
		for i := range e.work.n {
			row := b.gateUp[i*2*f : (i+1)*2*f]
			simd.SiluMul(row[lo:hi], row[lo:hi], row[f+lo:f+hi])
		}
	}
}
