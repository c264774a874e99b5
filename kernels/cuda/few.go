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
}

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
	for _, a := range []struct {
		to *uint64
		n  int
	}{{&b.x, c.EmbeddingDim}, {&b.qkvo, 2*c.QKDim + 2*c.VDim}, {&b.gates, 2 * c.NumHeads}, {&b.h, c.VDim}, {&b.hidden, c.FFNDim},
		{&b.logit, c.VocabSize}, {&b.logProbs, 1}, {&b.in, fewIn}, {&b.step, 1}, {&b.uniform, maxSampled / fewTokens}, {&b.out, maxSampled / fewTokens}} {
		var err error
		if *a.to, err = e.alloc(int64(a.n) * 4 * fewTokens); err != nil {
			return err
		}
	}
	var err error
	b.host, err = driver.HostAlloc(fewIn + 4*fewTokens*(c.VocabSize+1))
	return err
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

// gemvName is the decode kernel for a matrix.
func gemvName(w *matArg) string {
	name := map[int32]string{encF32: "gemv_f32", encF16: "gemv_f16", encI8: "gemv_i8", encI8G: "gemv_i8g", encI4: "gemv_i4g"}[w.enc]
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
	shared, split, ok := gemvShared(&a.w, int(a.n), e.shared)
	if !ok {
		return fmt.Errorf("internal: a %d x %d matrix does not fit the decode kernel for %d tokens", a.w.rows, a.w.cols, a.n)
	}
	a.split = 0
	if split {
		a.split = 1
	}
	if a.heads == 0 {
		a.heads = 1
	}
	// Two blocks fill a multiprocessor: one computes while the other waits at a barrier, and every one that ends makes room for exactly
	// one of the next kernel.
	blocks := e.sms
	if 2*(shared+1024) <= e.shared+1024 {
		blocks *= 2
	}
	return e.launch(gemvName(&a.w), driver.Grid{X: blocks, Y: 1, Z: 1}, gemvWarps*32, shared, unsafe.Pointer(a), true)
}

// submitFew submits one token of n sequences through the model.
func (e *Engine) submitFew(n int) error {
	c, b := e.cfg, &e.some
	d, qkvo, nn := int32(c.EmbeddingDim), int32(2*c.QKDim+2*c.VDim), int32(n)
	em := embedArgs{w: e.embed, tokens: b.in + fewTok, x: b.x, n: nn, ldx: d}
	if err := e.launch("embed", driver.Grid{X: n, Y: 1, Z: 1}, 256, 0, unsafe.Pointer(&em), false); err != nil {
		return err
	}
	eps := float32(c.NormEps)
	for i := range e.blocks {
		bl := &e.blocks[i]
		if err := e.gemv(&gemvArgs{w: bl.qkvo, gates: bl.gates, x: b.x, y: b.qkvo, gatesOut: b.gates, n: nn, ldx: d, ldy: qkvo, pro: proRMS, ep: epStore, eps: eps}); err != nil {
			return err
		}
		ca := e.cellArgs(i, b.in+fewPieces, b.qkvo, b.gates, b.h)
		if err := e.recur(&ca, n, "f32", true); err != nil {
			return err
		}
		o := b.qkvo + uint64(4*(2*c.QKDim+c.VDim))
		if err := e.gemv(&gemvArgs{w: bl.out, x: b.h, y: b.x, o: o, normW: bl.headNorm, normB: bl.headNormBias, n: nn, ldx: int32(c.VDim), ldy: d, ldo: qkvo,
			pro: proGate, ep: epAdd, heads: int32(c.NumHeads), eps: eps}); err != nil {
			return err
		}
		if err := e.gemv(&gemvArgs{w: bl.gateUp, x: b.x, y: b.hidden, n: nn, ldx: d, ldy: int32(c.FFNDim), pro: proRMS, ep: epSwiGLU, eps: eps}); err != nil {
			return err
		}
		if err := e.gemv(&gemvArgs{w: bl.down, x: b.hidden, y: b.x, n: nn, ldx: int32(c.FFNDim), ldy: d, pro: proPlain, ep: epAdd}); err != nil {
			return err
		}
	}
	head := gemvArgs{w: e.head, x: b.x, y: b.logit, n: nn, ldx: d, ldy: int32(c.VocabSize), pro: proPlain, ep: epCap, eps: eps, cap: float32(c.OutputSoftCap)}
	if c.OutNorm {
		head.pro = proRMS
	}
	return e.gemv(&head)
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
