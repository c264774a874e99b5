package cpu

import (
	"sync/atomic"

	"xlstm/format"
	"xlstm/kernels/cpu/simd"
)

// buffers is the engine's working memory. It grows to the largest piece seen and is kept.
type buffers struct {
	x       []float32 // [n, D] residual stream
	u       []float32 // [n, D] normed input of a product
	qkvo    []float32 // [n, 2*QKDim+2*VDim]
	gates   []float32 // [n, 2*H]
	h       []float32 // [n, VDim] read-outs, then normed and gated
	gateUp  []float32 // [n, 2*F]; the first F of a row become silu(gate)*up
	rows    []int     // tokens of the piece whose logits are wanted
	logits  []float32 // [m, V] of up to headRows tokens
	acts    simd.Acts // input of the product at work
	gateIn  simd.Acts // input of the gates' product
	scratch []scratch // one a worker
}

// work is what the running phase works on; it is set before each phase, so that phases need no closures.
type work struct {
	block   *block
	index   int // of the block
	segs    []segment
	n       int          // tokens in the piece
	parts   int          // shares of a head's columns
	next    atomic.Int64 // cell task
	shares  shares       // of rows
	rows    []int
	in      []float32 // input of prepare, its distance between vectors and its width
	ld      int
	cols    int
	tokenOp func(e *Engine, i int)
	tokens  int
}

// phases are the bound methods that workers run, bound once.
type phases struct{ tokens, mix, cells, out, gateUp, down, head func(worker int) }

// headRows is how many tokens' logits are computed together; with V = 50304 they take 6.4 MB.
const headRows = 32

// serialTokens is the number of tokens up to which norms are computed by the calling worker, since waking others costs more.
const serialTokens = 2

func (b *buffers) init(cfg *format.Config, workers int) {
	b.scratch = make([]scratch, workers)
	for i := range b.scratch {
		b.scratch[i].init(cfg)
	}
}

// resize makes room for a piece of n tokens; its sizes are those that WorkingMemory adds up.
func (b *buffers) resize(cfg *format.Config, n int) {
	w := widthsOf(cfg)
	b.x = grow(b.x, n*w.x)
	b.u = grow(b.u, n*w.x)
	b.qkvo = grow(b.qkvo, n*w.qkvo)
	b.gates = grow(b.gates, n*w.gates)
	b.h = grow(b.h, n*w.h)
	b.gateUp = grow(b.gateUp, n*w.gateUp)
}

func grow(s []float32, n int) []float32 {
	if cap(s) < n {
		return make([]float32, n)
	}
	return s[:n]
}

func (e *Engine) stop() bool { return e.ctx.Err() != nil }

// forwardPiece runs one piece through all blocks and the head.
func (e *Engine) forwardPiece(p *pieces) {
	cfg, b := e.cfg, &e.buf
	d := cfg.EmbeddingDim
	b.resize(cfg, p.n)
	for _, s := range p.segs {
		for i := range s.n {
			e.embed.Row(b.x[(s.at+i)*d:(s.at+i+1)*d], int(s.step.Tokens[s.first+i]))
		}
	}
	for i := range e.blocks {
		e.work.block, e.work.index, e.work.segs, e.work.n = &e.blocks[i], i, p.segs, p.n
		e.forwardBlock()
		if e.stop() {
			return
		}
	}
	e.forwardHead(p)
}

// tokens calls op for each of n tokens, on all workers where that pays. op is a method expression: it takes what it works on
// from e.work, so that no closure is allocated.
func (e *Engine) tokens(n int, op func(e *Engine, i int)) {
	if n <= serialTokens {
		for i := range n {
			op(e, i)
		}
		return
	}
	e.work.tokenOp, e.work.tokens = op, n
	e.pool.run(e.phases.tokens)
}

func (e *Engine) tokenPhase(w int) {
	lo, hi := split(e.work.tokens, 1, w, e.pool.n)
	for i := lo; i < hi; i++ {
		e.work.tokenOp(e, i)
	}
}

// prepare makes x, n vectors of l's columns with distance ld, the input of products with l, through an RMS norm where norm is set.
func (e *Engine) prepare(l *linear, x []float32, ld, n int, norm bool) {
	k := &e.work
	k.in, k.ld, k.cols = x, ld, l.w.Cols
	e.buf.acts.Resize(n, l.w.Cols, l.w.Enc)
	if norm {
		e.tokens(n, (*Engine).normToken)
		k.in, k.ld = e.buf.u, k.cols
	} else {
		e.tokens(n, (*Engine).setToken)
	}
	if e.observe != nil {
		e.observeInput(l, n)
	}
}

func (e *Engine) normToken(i int) {
	k := &e.work
	u := e.buf.u[i*k.cols : (i+1)*k.cols]
	simd.RMSNorm(u, k.in[i*k.ld:i*k.ld+k.cols], float32(e.cfg.NormEps))
	e.buf.acts.SetRow(i, u)
}

func (e *Engine) setToken(i int) {
	k := &e.work
	e.buf.acts.SetRow(i, k.in[i*k.ld:i*k.ld+k.cols])
}

// observeInput shows the input of products with l to the observer, packed.
func (e *Engine) observeInput(l *linear, n int) {
	k := &e.work
	x := make([]float32, n*k.cols)
	for i := range n {
		copy(x[i*k.cols:(i+1)*k.cols], k.in[i*k.ld:])
	}
	e.observe(l.name, x, n, k.cols)
}

// share runs a phase in which workers take shares of l's rows.
func (e *Engine) share(l *linear, phase func(worker int)) { e.shareRows(l.w.Rows, l, phase) }

// shareRows does the same with rows of which each stands for as many of l as l has more.
func (e *Engine) shareRows(rows int, l *linear, phase func(worker int)) {
	e.work.shares.reset(rows, int(l.w.Enc.ValueRowBytes(l.w.Cols))*(l.w.Rows/rows), e.buf.acts.N(), e.pool.n)
	e.pool.run(phase)
}

// take is a worker's next share of rows, empty at the end and where the context has ended.
func (e *Engine) take() (lo, hi int) {
	if e.stop() {
		return 0, 0
	}
	return e.work.shares.take()
}

// product computes rows [lo, hi) of l for all vectors of a: dst[i*ldd+r] = W[r] x[i] + b[r], added to dst where add is set.
func (e *Engine) product(l *linear, a *simd.Acts, dst []float32, ldd int, add bool, lo, hi, w int) {
	if add {
		l.w.MulAdd(dst, ldd, a, lo, hi, &e.buf.scratch[w].mul)
	} else {
		l.w.Mul(dst, ldd, a, lo, hi, &e.buf.scratch[w].mul)
	}
	if l.bias == nil {
		return
	}
	for i := range a.N() {
		row := dst[i*ldd+lo : i*ldd+hi]
		for j, v := range l.bias[lo:hi] {
			row[j] += v
		}
	}
}

// forwardHead computes what the piece's steps ask for: logits, and log probabilities of targets.
func (e *Engine) forwardHead(p *pieces) {
	v := e.cfg.VocabSize
	b := &e.buf
	b.rows = b.rows[:0]
	for _, s := range p.segs {
		for i := range s.n {
			if s.wants(i, v) {
				b.rows = append(b.rows, s.at+i)
			}
		}
	}
	for lo := 0; lo < len(b.rows) && !e.stop(); lo += headRows {
		e.headRun(b.rows[lo:min(lo+headRows, len(b.rows))])
	}
}

// wants reports whether token i of the segment has logits or a log probability to be computed.
func (s *segment) wants(i, vocab int) bool {
	if s.step.LogProbs != nil || len(s.step.Logits) == len(s.step.Tokens)*vocab {
		return true
	}
	return s.step.Logits != nil && s.first+i == len(s.step.Tokens)-1
}

func (e *Engine) headRun(rows []int) {
	cfg, b := e.cfg, &e.buf
	d, v := cfg.EmbeddingDim, cfg.VocabSize
	for j, i := range rows { // rows ascend, so that no token is overwritten before it is read
		copy(b.x[j*d:(j+1)*d], b.x[i*d:(i+1)*d])
	}
	e.prepare(&e.head, b.x, d, len(rows), cfg.OutNorm)
	b.logits = grow(b.logits, len(rows)*v)
	e.work.rows = rows
	e.share(&e.head, e.phases.head)
	if e.stop() {
		return
	}
	e.tokens(len(rows), (*Engine).deliver)
}

func (e *Engine) headPhase(w int) {
	v, b := e.cfg.VocabSize, &e.buf
	for lo, hi := e.take(); lo < hi; lo, hi = e.take() {
		e.product(&e.head, &b.acts, b.logits, v, false, lo, hi, w)
		if e.cfg.OutputSoftCap == 0 {
			continue
		}
		for j := range e.work.rows {
			simd.SoftCap(b.logits[j*v+lo:j*v+hi], float32(e.cfg.OutputSoftCap))
		}
	}
}

// deliver hands logits j of the head's run to the step that asked for them.
func (e *Engine) deliver(j int) {
	v, i := e.cfg.VocabSize, e.work.rows[j]
	logits := e.buf.logits[j*v : (j+1)*v]
	for _, s := range e.pieces.segs {
		if i < s.at || i >= s.at+s.n {
			continue
		}
		k := s.first + i - s.at
		if len(s.step.Logits) == len(s.step.Tokens)*v {
			copy(s.step.Logits[k*v:], logits)
		} else if s.step.Logits != nil && k == len(s.step.Tokens)-1 {
			copy(s.step.Logits, logits)
		}
		if s.step.LogProbs != nil {
			s.step.LogProbs[k] = 0
			if t := s.step.Targets[k]; t >= 0 {
				s.step.LogProbs[k] = float32(float64(logits[t]) - simd.LogSumExp(logits))
			}
		}
	}
}
