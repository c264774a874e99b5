//go:build cuda

package cuda

import (
	"fmt"
	"strconv"
	"unsafe"

	"gorgonia.org/cu"

	"xlstm/kernels"
	"xlstm/kernels/cuda/internal/driver"
)

// fewBuffers are the memory and the graphs of decode: one token each of at most fewTokens sequences. Activations are float32.
type fewBuffers struct {
	ok     [fewTokens + 1]bool // whether the decode kernels can take so many
	graphs [fewTokens + 1]*driver.Graph
	sample map[samplingKind]*driver.Graph

	in                               uint64 // pieces [8], tokens [8], targets [8]
	x, qkvo, gates, h, hidden, logit uint64
	logProbs                         uint64
	host                             []byte // pinned: what goes to in, then logits and log probs on their way back
	step, uniform, out               uint64 // sampling
	arrived                          uint64 // blocks of the cell that are done, a sequence and head; zero between kernels

	prepared map[preparedKind]uint64 // vectors on their way from one product to the next
}

// preparedKind is what the layout of a prepared vector follows from: the encoding and columns of the matrix that it is for.
type preparedKind struct{ enc, cols int32 }

// Layout of fewBuffers.in.
const (
	fewPieces  = 0
	fewTok     = fewTokens * 16
	fewTargets = fewTok + fewTokens*4
	fewIn      = fewTargets + fewTokens*4
)

// few allocates what decode needs.
func (e *Engine) few() error {
	c, b := e.cfg, &e.some
	for n := 1; n <= fewTokens; n++ {
		b.ok[n] = true
		for _, m := range append(e.matrices(), &e.head) {
			_, _, ok := gemvShared(m, n, e.shared)
			b.ok[n] = b.ok[n] && ok
		}
	}
	b.sample = map[samplingKind]*driver.Graph{}
	b.prepared = map[preparedKind]uint64{}
	for _, m := range append(e.matrices(), &e.head) {
		if err := e.allocPrepared(m); err != nil {
			return err
		}
	}
	for _, a := range []struct {
		to *uint64
		n  int
	}{{&b.arrived, c.NumHeads}, {&b.x, c.EmbeddingDim}, {&b.qkvo, 2*c.QKDim + 2*c.VDim}, {&b.gates, 2 * c.NumHeads}, {&b.h, c.VDim}, {&b.hidden, c.FFNDim},
		{&b.logit, c.VocabSize}, {&b.logProbs, 1}, {&b.in, fewIn}, {&b.step, 1}, {&b.uniform, maxSampled / fewTokens}, {&b.out, maxSampled / fewTokens}} {
		var err error
		if *a.to, err = e.alloc(int64(a.n) * 4 * fewTokens); err != nil {
			return err
		}
	}
	if err := cu.MemsetD32Async(cu.DevicePtr(b.arrived), 0, int64(c.NumHeads*fewTokens), e.stream); err != nil {
		return err
	}
	var err error
	b.host, err = driver.HostAlloc(fewIn + 4*fewTokens*(c.VocabSize+1))
	return err
}

// preparedBytes is the size of a prepared vector for w: two fp16 terms a value, two float32 sums each eight.
func preparedBytes(w *matArg) int { return gemvRoom(w)*4 + gemvRoom(w)/8*8 }

// oneTakes says whether the decode kernel for one vector takes a's: prepared, or so that it can prepare it itself.
func oneTakes(a *gemvArgs, sms, limit int) bool {
	if _, _, _, ok := onePlan(&a.w, sms, limit); a.n != 1 || !ok {
		return false
	}
	switch {
	case a.in != 0:
		return true
	case a.pro == proGate:
		return a.w.cols == 512*a.heads && a.normW == 0
	}
	return a.w.cols%4 == 0
}

// allocPrepared gives the vectors that m is multiplied by a place, zero behind the last value.
func (e *Engine) allocPrepared(m *matArg) error {
	kind := preparedKind{m.enc, m.cols}
	if m.enc == encF32 || e.some.prepared[kind] != 0 {
		return nil
	}
	n := int64(preparedBytes(m))
	at, err := e.alloc(n)
	if err != nil {
		return err
	}
	e.some.prepared[kind] = at
	return cu.MemsetD32Async(cu.DevicePtr(at), 0, n/4, e.stream)
}

// handOver makes a's vector come prepared, and returns how whoever computes it has to do that. It is nothing where a's kernel does not take
// one.
func (e *Engine) handOver(a *gemvArgs) nextArg {
	if _, _, _, ok := onePlan(&a.w, e.sms, e.shared); a.n != 1 || !ok {
		return nextArg{}
	}
	scale := float32(1)
	if a.pro == proPlain {
		scale = plainScale
	}
	a.in = e.some.prepared[preparedKind{a.w.enc, a.w.cols}]
	return nextArg{at: a.in, enc: a.w.enc, room: int32(gemvRoom(&a.w)), scale: scale}
}

// chain lets the product from hand its results over to the next one.
func (e *Engine) chain(from, next *gemvArgs) {
	if oneTakes(from, e.sms, e.shared) {
		from.next = e.handOver(next)
	}
}

func (b *fewBuffers) close() {
	for _, g := range b.graphs {
		if g != nil {
			g.Close()
		}
	}
	for _, g := range b.sample {
		g.Close()
	}
	if b.host != nil {
		driver.HostFree(b.host)
	}
	*b = fewBuffers{}
}

// matrices are the large matrices of the blocks.
func (e *Engine) matrices() []*matArg {
	var out []*matArg
	for i := range e.blocks {
		b := &e.blocks[i]
		out = append(out, &b.qkvo, &b.out, &b.gateUp, &b.down)
	}
	return out
}

// gemvName is the name of the decode kernels for a matrix, behind what tells the kernel for one vector from that for some.
func gemvName(w *matArg) string {
	name := map[int32]string{encF32: "f32", encF16: "f16", encI8: "i8", encI8G: "i8g", encI4: "i4g"}[w.enc]
	if w.groupShift != 0 {
		name += strconv.Itoa(1 << w.groupShift)
	}
	if w.mins != 0 {
		name += "a"
	}
	return name
}

// gemv launches a product of the decode path.
func (e *Engine) gemv(a *gemvArgs) error {
	if a.heads == 0 {
		a.heads = 1
	}
	if oneTakes(a, e.sms, e.shared) {
		blocks, shared, team, _ := onePlan(&a.w, e.sms, e.shared)
		a.teamShift = int32(team)
		return e.launch("one_"+gemvName(&a.w), driver.Grid{X: blocks, Y: 1, Z: 1}, gemvWarps*32, shared, unsafe.Pointer(a), true)
	}
	shared, split, ok := gemvShared(&a.w, int(a.n), e.shared)
	if !ok {
		return fmt.Errorf("internal: a %d x %d matrix does not fit the decode kernel for %d tokens", a.w.rows, a.w.cols, a.n)
	}
	if split {
		a.split = 1
	}
	blocks := e.sms
	if twoFit(shared, e.shared) {
		blocks *= 2
	}
	return e.launch("gemv_"+gemvName(&a.w), driver.Grid{X: blocks, Y: 1, Z: 1}, gemvWarps*32, shared, unsafe.Pointer(a), true)
}

// submitFew submits one token of n sequences through the model.
func (e *Engine) submitFew(n int) error {
	c, b := e.cfg, &e.some
	blocks, head := e.kernels(n)
	em := embedArgs{w: e.embed, tokens: b.in + fewTok, x: b.x, n: int32(n), ldx: int32(c.EmbeddingDim)}
	if err := e.launch("embed", driver.Grid{X: n, Y: 1, Z: 1}, 256, 0, unsafe.Pointer(&em), false); err != nil {
		return err
	}
	for i := range blocks {
		p := &blocks[i]
		if err := e.gemv(&p.qkvo); err != nil {
			return err
		}
		if err := e.recur(&p.cell, n, "f32", true); err != nil {
			return err
		}
		for _, a := range []*gemvArgs{&p.out, &p.gateUp, &p.down} {
			if err := e.gemv(a); err != nil {
				return err
			}
		}
	}
	return e.gemv(&head)
}

// blockKernels are the arguments of what computes a block.
type blockKernels struct {
	qkvo              gemvArgs
	cell              cellArgs
	out, gateUp, down gemvArgs
}

// kernels are the arguments of what computes a token of n sequences: the blocks, and the head.
func (e *Engine) kernels(n int) ([]blockKernels, gemvArgs) {
	c, b := e.cfg, &e.some
	d, qkvo, nn, eps := int32(c.EmbeddingDim), int32(2*c.QKDim+2*c.VDim), int32(n), float32(c.NormEps)
	o := b.qkvo + uint64(4*(2*c.QKDim+c.VDim))
	ks := make([]blockKernels, len(e.blocks))
	for i := range e.blocks {
		bl := &e.blocks[i]
		k := &ks[i]
		*k = blockKernels{
			qkvo: gemvArgs{w: bl.qkvo, gates: bl.gates, x: b.x, y: b.qkvo, gatesOut: b.gates, n: nn, ldx: d, ldy: qkvo, pro: proRMS, ep: epStore, eps: eps},
			cell: e.cellArgs(i, b.in+fewPieces, b.qkvo, b.gates, b.h),
			out: gemvArgs{w: bl.out, x: b.h, y: b.x, o: o, normW: bl.headNorm, normB: bl.headNormBias, n: nn, ldx: int32(c.VDim), ldy: d, ldo: qkvo, pro: proGate,
				ep: epAdd, heads: int32(c.NumHeads), eps: eps},
			gateUp: gemvArgs{w: bl.gateUp, x: b.x, y: b.hidden, n: nn, ldx: d, ldy: int32(c.FFNDim), pro: proRMS, ep: epSwiGLU, eps: eps},
			down:   gemvArgs{w: bl.down, x: b.hidden, y: b.x, n: nn, ldx: int32(c.FFNDim), ldy: d, pro: proPlain, ep: epAdd},
		}
		if e.shape.dv%128 == 0 && e.shape.dv <= 512 && bl.headNorm == 0 {
			k.cell.next, k.cell.arrived, k.cell.normEps = e.handOver(&k.out), b.arrived, eps
		}
		if i > 0 {
			e.chain(&ks[i-1].down, &k.qkvo)
		}
		e.chain(&k.out, &k.gateUp)
		e.chain(&k.gateUp, &k.down)
	}
	head := gemvArgs{w: e.head, x: b.x, y: b.logit, n: nn, ldx: d, ldy: int32(c.VocabSize), pro: proPlain, ep: epCap, eps: eps, cap: float32(c.OutputSoftCap)}
	if c.OutNorm {
		head.pro = proRMS
	}
	if len(ks) > 0 {
		e.chain(&ks[len(ks)-1].down, &head)
	}
	return ks, head
}

func (e *Engine) cellArgs(block int, pieces, qkvo, gates, h uint64) cellArgs {
	c, s := e.cfg, &e.shape
	return cellArgs{pieces: pieces, qkvo: qkvo, gates: gates, h: h, ld: int32(2*c.QKDim + 2*c.VDim), qkDim: int32(c.QKDim), vDim: int32(c.VDim), heads: int32(s.heads),
		dk: int32(s.dk), dv: int32(s.dv), slices: int32(s.slices), block: int32(block), stateType: int32(s.kind), cap: float32(c.GateSoftCap), eps: float32(c.CellEps)}
}

var stateSuffix = [...]string{"f32", "bf16", "f16"}

// recur launches the recurrent form over n pieces; in is the type of the activations.
func (e *Engine) recur(a *cellArgs, n int, in string, early bool) error {
	name := "recur_"
	if e.shape.dk > 256 {
		name = "recur512_"
	}
	return e.launch(name+in+"_"+stateSuffix[e.shape.kind], driver.Grid{X: e.shape.slices, Y: e.shape.heads, Z: n}, 256, 0, unsafe.Pointer(a), early)
}

// putFew fills the pinned input with a pass of single tokens.
func (b *fewBuffers) putFew(batch []kernels.Step, p *pass) {
	pieces := unsafe.Slice((*pieceArg)(unsafe.Pointer(&b.host[fewPieces])), fewTokens)
	tok := unsafe.Slice((*int32)(unsafe.Pointer(&b.host[fewTok])), fewTokens)
	targets := unsafe.Slice((*int32)(unsafe.Pointer(&b.host[fewTargets])), fewTokens)
	for i, c := range p.pieces {
		s := &batch[c.step]
		pieces[i] = pieceArg{state: uint64(s.State.(*state).at), tok: int32(i), len: 1}
		tok[i], targets[i] = s.Tokens[c.from], -1
		if s.Targets != nil {
			targets[i] = s.Targets[c.from]
		}
	}
}

// decode runs a pass of single tokens as one graph.
func (e *Engine) decode(batch []kernels.Step, p *pass) error {
	b, n, v := &e.some, p.tokens, e.cfg.VocabSize
	if b.graphs[n] == nil {
		g, err := driver.Capture(e.stream, func() error { return e.submitFew(n) })
		if err != nil {
			return err
		}
		b.graphs[n] = g
	}
	b.putFew(batch, p)
	if err := cu.MemcpyHtoDAsync(cu.DevicePtr(b.in), unsafe.Pointer(&b.host[0]), fewIn, e.stream); err != nil {
		return err
	}
	if err := b.graphs[n].Launch(e.stream); err != nil {
		return err
	}
	logits := unsafe.Slice((*float32)(unsafe.Pointer(&b.host[fewIn])), fewTokens*v)
	probs := unsafe.Slice((*float32)(unsafe.Pointer(&b.host[fewIn+4*fewTokens*v])), fewTokens)
	want := wantedRows(batch, p, v)
	scored := false
	for _, w := range want {
		scored = scored || w.target >= 0
		if w.logits {
			off := int64(w.row) * int64(v) * 4
			if err := cu.MemcpyDtoHAsync(unsafe.Pointer(&logits[int(w.row)*v]), cu.DevicePtr(b.logit+uint64(off)), int64(v)*4, e.stream); err != nil {
				return err
			}
		}
	}
	if scored {
		a := logitArgs{logits: b.logit, targets: b.in + fewTargets, out: b.logProbs, n: int32(n), vocab: int32(v), ld: int32(v)}
		if err := e.launch("log_prob", driver.Grid{X: n, Y: 1, Z: 1}, 512, 0, unsafe.Pointer(&a), false); err != nil {
			return err
		}
		if err := cu.MemcpyDtoHAsync(unsafe.Pointer(&probs[0]), cu.DevicePtr(b.logProbs), int64(n)*4, e.stream); err != nil {
			return err
		}
	}
	if err := driver.Sync(e.stream); err != nil {
		return err
	}
	for i, c := range p.pieces {
		if s := &batch[c.step]; s.LogProbs != nil {
			s.LogProbs[c.from] = 0
			if s.Targets[c.from] >= 0 {
				s.LogProbs[c.from] = probs[i]
			}
		}
	}
	for _, w := range want {
		if w.logits {
			copy(logitsOf(&batch[w.step], w.token, v), logits[int(w.row)*v:])
		}
	}
	return nil
}
