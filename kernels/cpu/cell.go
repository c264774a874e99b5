package cpu

import (
	"math"

	"xlstm/format"
	"xlstm/kernels/cpu/simd"
)

// chunk is the number of tokens that the chunkwise form takes together, and recurrentTokens the number below which the
// recurrent form does less work.
const (
	chunk           = 64
	recurrentTokens = 8
)

// scratch is one worker's memory.
type scratch struct {
	mul   simd.Scratch
	n     []float32 // [dk] the head's n while a task runs
	keys  []float32 // [chunk, dk] keys weighted by their part in the next state
	query []float32 // [chunk, dk] queries weighted by the old state's part in the read-out
	s     []float32 // [chunk, chunk] weighted scores
	// Of a chunk's tokens: the gates' log values, the cumulative log forget gate b_t, the stabilizer m_t and den_t.
	lf, ig, b, m, den [chunk]float64
}

func (s *scratch) init(cfg *format.Config) {
	dk := cfg.HeadQKDim()
	s.n = make([]float32, dk)
	s.keys = make([]float32, chunk*dk)
	s.query = make([]float32, chunk*dk)
	s.s = make([]float32, chunk*chunk)
}

// runCells runs the mLSTM cells of all heads of all segments over the piece, then the per-head norm and the output gate.
// Where there are fewer (segment, head) pairs than workers, the columns of C are shared out too.
func (e *Engine) runCells() {
	cfg, k := e.cfg, &e.work
	pairs := len(k.segs) * cfg.NumHeads
	k.parts = min(max(1, e.pool.n/pairs), max(1, cfg.HeadVDim()/rowUnit))
	k.next.Store(0)
	e.pool.run(e.phases.cells)
	dk := cfg.HeadQKDim()
	for i := range k.segs {
		c := k.segs[i].state.cell(cfg, k.index)
		next := k.segs[i].state.next
		copy(c.n, next[:cfg.NumHeads*dk])
		copy(c.m, next[cfg.NumHeads*dk:])
	}
	if k.parts > 1 {
		e.tokens(k.n, (*Engine).gateToken)
	}
}

// gateToken applies norm and output gate to all heads of token i.
func (e *Engine) gateToken(i int) {
	for head := range e.cfg.NumHeads {
		e.gateHead(i, head)
	}
}

// cellPhase takes tasks, each one head (or part of a head's columns) of one segment, until none is left.
func (e *Engine) cellPhase(w int) {
	cfg, k := e.cfg, &e.work
	total := len(k.segs) * cfg.NumHeads * k.parts
	for {
		t := int(k.next.Add(1)) - 1
		if t >= total || e.stop() {
			return
		}
		task := cellTask{seg: &k.segs[t/(cfg.NumHeads*k.parts)], head: t / k.parts % cfg.NumHeads, part: t % k.parts}
		e.runCell(&task, &e.buf.scratch[w])
		if k.parts == 1 {
			for i := range task.seg.n {
				e.gateHead(task.seg.at+i, task.head)
			}
		}
	}
}

// cellTask is one head of one segment, and of that head the columns of its part.
type cellTask struct {
	seg        *segment
	head, part int
	// Set by runCell. The matrices begin at the segment's first token and the head's (or part's) first column.
	q, k, v, h []float32
	gates      []float32 // i at 0, f at NumHeads
	ld         int       // distance between tokens in q, k and v
	c          []float32 // [dk, dv] from the part's first column
	cols       int       // columns of the part
	m          float64
}

func (e *Engine) runCell(t *cellTask, s *scratch) {
	cfg, b := e.cfg, &e.buf
	dk, dv := cfg.HeadQKDim(), cfg.HeadVDim()
	t.ld = 2*cfg.QKDim + 2*cfg.VDim
	lo, hi := split(dv, rowUnit, t.part, e.work.parts)
	t.cols = hi - lo
	row := b.qkvo[t.seg.at*t.ld:]
	t.q = row[t.head*dk:]
	t.k = row[cfg.QKDim+t.head*dk:]
	t.v = row[2*cfg.QKDim+t.head*dv+lo:]
	t.h = b.h[t.seg.at*cfg.VDim+t.head*dv+lo:]
	t.gates = b.gates[t.seg.at*2*cfg.NumHeads+t.head:]
	cell := t.seg.state.cell(cfg, e.work.index)
	t.c = cell.c[t.head*dk*dv+lo : (t.head+1)*dk*dv]
	t.m = float64(cell.m[t.head])
	copy(s.n, cell.n[t.head*dk:(t.head+1)*dk])
	for at := 0; at < t.seg.n; at += chunk {
		n := min(chunk, t.seg.n-at)
		e.readGates(t, s, at, n)
		if n < recurrentTokens {
			e.recur(t, s, at, n)
		} else {
			e.chunkwise(t, s, at, n)
		}
	}
	if t.part == 0 { // the other parts have computed the same
		next := t.seg.state.next
		copy(next[t.head*dk:], s.n)
		next[cfg.NumHeads*dk+t.head] = float32(t.m)
	}
}

// readGates computes log sigmoid(f~) and i~ of the n tokens from at.
func (e *Engine) readGates(t *cellTask, s *scratch, at, n int) {
	h, c := e.cfg.NumHeads, e.cfg.GateSoftCap
	for j := range n {
		g := t.gates[(at+j)*2*h:]
		s.ig[j] = softCap(float64(g[0]), c)
		f := softCap(float64(g[h]), c)
		s.lf[j] = min(f, 0) - math.Log1p(math.Exp(-math.Abs(f)))
	}
}

// softCap is c*tanh(z) of a preactivation that is divided by c already, or z where there is no cap.
func softCap(z, c float64) float64 {
	if c == 0 {
		return z
	}
	return c * math.Tanh(z)
}

// kept rounds a stabilizer to what the state keeps of it, so that C and n are scaled by exactly that.
func kept(m float64) float64 { return float64(float32(m)) }

// recur is the recurrent form (arXiv 2503.13427): one pass over C a token.
func (e *Engine) recur(t *cellTask, s *scratch, at, n int) {
	dk, dv, vdim := e.cfg.HeadQKDim(), e.cfg.HeadVDim(), e.cfg.VDim
	for j := range n {
		i := at + j
		q, k := t.q[i*t.ld:i*t.ld+dk], t.k[i*t.ld:i*t.ld+dk]
		v, h := t.v[i*t.ld:i*t.ld+t.cols], t.h[i*vdim:i*vdim+t.cols]
		m := kept(max(s.lf[j]+t.m, s.ig[j]))
		a, b := float32(math.Exp(s.lf[j]+t.m-m)), float32(math.Exp(s.ig[j]-m))
		t.m = m
		simd.MLSTMStep(t.c, dv, k, q, v, h, a, b)
		for c, kc := range k {
			s.n[c] = a*s.n[c] + b*kc
		}
		den := math.Max(math.Abs(float64(simd.Dot(s.n, q))), math.Exp(-m)) + e.cfg.CellEps
		simd.Scale(h, float32(1/den))
	}
}

// chunkwise is the chunkwise form (arXiv 2503.13427) over n tokens from at: matrix products in place of n passes over C.
func (e *Engine) chunkwise(t *cellTask, s *scratch, at, n int) {
	dk, dv, vdim := e.cfg.HeadQKDim(), e.cfg.HeadVDim(), e.cfg.VDim
	q, k, v, h := t.q[at*t.ld:], t.k[at*t.ld:], t.v[at*t.ld:], t.h[at*vdim:]
	simd.Gemm(false, true, n, n, dk, 1, q, t.ld, k, t.ld, 0, s.s, chunk, &s.mul)
	e.weighScores(t, s, n)
	for j := range n {
		w := float32(math.Exp(s.b[j] + t.m - s.m[j]))
		query := s.query[j*dk : (j+1)*dk]
		for c, qc := range q[j*t.ld : j*t.ld+dk] {
			query[c] = w * qc
		}
		s.den[j] += float64(simd.Dot(query, s.n))
	}
	simd.Gemm(false, false, n, t.cols, dk, 1, s.query, dk, t.c, dv, 0, h, vdim, &s.mul)
	simd.Gemm(false, false, n, t.cols, n, 1, s.s, chunk, v, t.ld, 1, h, vdim, &s.mul)
	for j := range n {
		den := math.Max(math.Abs(s.den[j]), math.Exp(-s.m[j])) + e.cfg.CellEps
		simd.Scale(h[j*vdim:j*vdim+t.cols], float32(1/den))
	}
	e.nextState(t, s, k, v, n)
}

// weighScores fills b_t, m_t, makes the scores S_ts (zero above the diagonal), and begins den_t with their sum.
func (e *Engine) weighScores(t *cellTask, s *scratch, n int) {
	sum, top := 0.0, math.Inf(-1) // b_t, and the maximum of i~_s - b_s over s <= t
	for j := range n {
		sum += s.lf[j]
		s.b[j] = sum
		top = max(top, s.ig[j]-sum)
		s.m[j] = sum + max(t.m, top)
		row := s.s[j*chunk : j*chunk+n]
		den := 0.0
		for i := range j + 1 {
			row[i] *= float32(math.Exp(sum - s.b[i] + s.ig[i] - s.m[j]))
			den += float64(row[i])
		}
		clear(row[j+1:])
		s.den[j] = den
	}
}

// nextState moves C, n and m to the end of the chunk.
func (e *Engine) nextState(t *cellTask, s *scratch, k, v []float32, n int) {
	dk, dv := e.cfg.HeadQKDim(), e.cfg.HeadVDim()
	g, top := s.b[n-1], math.Inf(-1)
	for j := range n {
		top = max(top, g-s.b[j]+s.ig[j])
	}
	m := kept(max(g+t.m, top))
	old := float32(math.Exp(g + t.m - m))
	simd.Scale(s.n, old)
	for j := range n {
		w := float32(math.Exp(g - s.b[j] + s.ig[j] - m))
		key := s.keys[j*dk : (j+1)*dk]
		for c, kc := range k[j*t.ld : j*t.ld+dk] {
			key[c] = w * kc
			s.n[c] += key[c]
		}
	}
	simd.Gemm(true, false, dk, t.cols, n, 1, s.keys, dk, v, t.ld, old, t.c, dv, &s.mul)
	t.m = m
}

// gateHead replaces the read-out of one head of token i by sigmoid(o) * norm(h).
func (e *Engine) gateHead(i, head int) {
	cfg, b, bl := e.cfg, &e.buf, e.work.block
	dv, ld := cfg.HeadVDim(), 2*cfg.QKDim+2*cfg.VDim
	lo := head * dv
	h := b.h[i*cfg.VDim+lo : i*cfg.VDim+lo+dv]
	simd.LayerNorm(h, h, float32(cfg.NormEps))
	if bl.headNorm != nil {
		for c := range h {
			h[c] = h[c]*bl.headNorm[lo+c] + bl.headNormBias[lo+c]
		}
	}
	o := b.qkvo[i*ld+2*cfg.QKDim+cfg.VDim+lo:]
	simd.SigmoidMul(h, h, o[:dv])
}
