// Package cuda is the engine that runs on NVIDIA GPUs. Everything that calls a driver is behind the build tag cuda; docs/CUDA.md
// says how to build it. Without the tag the package has only what plans memory and work, and the compiled kernels.
package cuda

import (
	"fmt"
	"math/bits"

	"xlstm/format"
	"xlstm/kernels"
)

// Weights is where an engine takes its tensors from: a *format.File, or tensors in memory.
type Weights interface {
	Config() *format.Config
	Tensor(name string) (format.Tensor, bool)
}

// StateType is how C, the large part of a state, is stored. n and m are float32 always, and all arithmetic is.
type StateType int

// The state types; the values are the kernels'.
const (
	StateFP32 StateType = iota
	StateBF16
	StateFP16
)

// ParseStateType reads fp32, bf16 or fp16.
func ParseStateType(s string) (StateType, error) {
	for t, name := range stateNames {
		if s == name {
			return StateType(t), nil
		}
	}
	return 0, fmt.Errorf("unknown state type %q, expected fp32, bf16 or fp16", s)
}

var stateNames = [...]string{"fp32", "bf16", "fp16"}

func (t StateType) String() string { return stateNames[t] }

// PromptMath is the arithmetic of prompts with int8 weights of one scale a row.
type PromptMath int

// PromptAuto computes in int8, each token's activations with one scale, where cuBLASLt is found and measurements allow it;
// PromptFP16 never, PromptInt8 wherever it can be done.
const (
	PromptAuto PromptMath = iota
	PromptFP16
	PromptInt8
)

// ParsePromptMath reads auto, fp16 or int8.
func ParsePromptMath(s string) (PromptMath, error) {
	for m, name := range promptMathNames {
		if s == name {
			return PromptMath(m), nil
		}
	}
	return 0, fmt.Errorf("unknown arithmetic of prompts %q, expected auto, fp16 or int8", s)
}

var promptMathNames = [...]string{"auto", "fp16", "int8"}

func (m PromptMath) String() string { return promptMathNames[m] }

// blockProduct is one of a block's products, or a set of them.
type blockProduct int

const (
	forQKVO blockProduct = 1 << iota
	forOut
	forGateUp
	forDown
	allProducts = forQKVO | forOut | forGateUp | forDown
)

// products are those that are computed in int8.
func (m PromptMath) products() blockProduct {
	switch m {
	case PromptFP16:
		return 0
	case PromptInt8:
		return allProducts
	}
	return allProducts
}

// Limits of the kernels.
const (
	sliceWidth = 32 // columns of C that one thread block has
	chunkLen   = 64 // tokens that the chunkwise form takes together
	maxDK      = 512
	fewTokens  = 8  // tokens that the decode kernels take together
	intFrom    = 16 // tokens from which on int8 activations pay
)

// stateShape is the layout of one sequence's state on the device: for each block, head and slice of 32 columns one record of
// C [dk, 32], n [dk] and m. Each slice has its own copy of n and m.
type stateShape struct {
	blocks, heads, dk, dv, slices int
	kind                          StateType
}

func newStateShape(c *format.Config, kind StateType) stateShape {
	dv := c.HeadVDim()
	return stateShape{c.NumBlocks, c.NumHeads, c.HeadQKDim(), dv, (dv + sliceWidth - 1) / sliceWidth, kind}
}

func (s *stateShape) recordBytes() int64 {
	elem := int64(4)
	if s.kind != StateFP32 {
		elem = 2
	}
	return int64(s.dk)*sliceWidth*elem + int64(s.dk)*4 + 128
}

func (s *stateShape) records() int { return s.blocks * s.heads * s.slices }

func (s *stateShape) bytes() int64 { return int64(s.records()) * s.recordBytes() }

// supported reports what of a model the kernels cannot run.
func supported(c *format.Config) error {
	if err := c.Validate(); err != nil {
		return err
	}
	if dk := c.HeadQKDim(); dk%4 != 0 || dk > maxDK {
		return fmt.Errorf("the CUDA engine runs heads with up to %d key values, in multiples of 4; this model has %d", maxDK, dk)
	}
	return nil
}

// chunkable says whether the chunkwise kernel can take a model's heads.
func chunkable(c *format.Config) bool {
	return c.HeadQKDim()%16 == 0 && c.HeadQKDim() <= 256 && c.HeadVDim()%8 == 0
}

// deviceEncoding is the kernels' word for an encoding.
func deviceEncoding(e format.Encoding) int32 {
	switch e.Kind {
	case format.FP32:
		return encF32
	case format.Int8:
		if e.Group != 0 {
			return encI8G
		}
		return encI8
	case format.Int4:
		return encI4
	}
	return encF16
}

// matrixArg describes a tensor whose stored bytes begin at device address at.
func matrixArg(t *format.Tensor, at uint64) matArg {
	s := t.Encoding.Sizes(t.Rows, t.Cols)
	m := matArg{values: at, rows: int32(t.Rows), cols: int32(t.Cols), rowBytes: int32(s.ValueRow), enc: deviceEncoding(t.Encoding)}
	m.groups = int32(t.Encoding.Groups(t.Cols))
	if g := t.Encoding.Group; g > 0 {
		m.groupShift = int32(bits.TrailingZeros(uint(g)))
	}
	if s.ScaleRow > 0 {
		m.scales = at + uint64(s.ScalesOffset)
	}
	if s.MinRow > 0 {
		m.mins = at + uint64(s.MinsOffset)
	}
	return m
}

// Shape of the decode kernels.
const (
	gemvWarps  = 16
	gemvStages = 2
	plainScale = 0.125 // of activations that no norm has bounded, on their way into fp16
	stageBytes = 16 * 128
)

// gemvShared is the shared memory that the decode kernel needs for n tokens and matrix w, and whether activations are split into
// two terms; ok is false where it does not fit into limit bytes.
func gemvShared(w *matArg, n, limit int) (bytes int, split, ok bool) {
	if n < 1 || n > fewTokens {
		return 0, false, false
	}
	if w.enc == encF32 {
		bytes = 4 * (gemvWarps*8 + 8 + n*int(w.rowBytes)/4)
		return bytes, false, bytes <= limit
	}
	values := gemvValues[w.enc]
	size := func(cols int) int {
		stretches, cols2 := gemvStretches(w), (cols+1)&^1
		b := gemvWarps*gemvStages*stageBytes + cols*(gemvRoom(w)*2+16)
		b += 4 * (2*gemvWarps*16*cols2 + gemvWarps*8 + 8)
		switch {
		case w.enc == encI8:
			b += 4*max(gemvWarps, stretches)*cols2 + 4*fewTokens
		case w.mins != 0:
			b += 8 * stretches * (values >> w.groupShift) * cols2
		case w.groupShift != 0:
			b += 4 * stretches * (values >> w.groupShift) * cols2
		}
		return b
	}
	if 2*n <= fewTokens && size(2*n) <= limit {
		return size(2 * n), true, true
	}
	bytes = size(n)
	return bytes, false, bytes <= limit
}

// gemvValues is how many values of a row are in 128 bytes.
var gemvValues = [...]int{encF16: 64, encI8: 128, encI8G: 128, encI4: 256}

// gemvStretches is how many stretches of 128 bytes a row of w has.
func gemvStretches(w *matArg) int { return (int(w.rowBytes) + 127) / 128 }

// gemvRoom is the number of values that a vector for w is padded to.
func gemvRoom(w *matArg) int { return gemvStretches(w) * gemvValues[w.enc] }

// stretchGroups is how many groups of a row of w are in a stretch.
func stretchGroups(w *matArg) int { return gemvValues[w.enc] >> w.groupShift }

// onePlan is how the decode kernel for one vector runs: its blocks, shared memory, and log2 of the warps that share a tile. ok is false
// where there is none for w: it takes whole tiles of rows, a stretch of them for every warp of a team, and distances of less than 4 GB.
// Two blocks fill a multiprocessor: one computes while the other waits at a barrier, and every one that ends makes room for exactly one
// of the next kernel.
func onePlan(w *matArg, sms, limit int) (blocks, shared, teamShift int, ok bool) {
	s := gemvStretches(w)
	if w.enc == encF32 || w.rows%16 != 0 || s < 2 || int64(w.rows)*int64(w.rowBytes) >= 1<<32 {
		return 0, 0, 0, false
	}
	teamShift = bits.Len(uint(min(s, gemvWarps))) - 1
	for blocks = 2 * sms; ; blocks /= 2 {
		parts := 1
		if int(w.rows)/16 > blocks*gemvWarps>>teamShift {
			parts = 2
		}
		shared = oneShared(w, parts)
		if blocks == sms || twoFit(shared, limit) {
			return blocks, shared, teamShift, shared <= limit
		}
	}
}

// twoFit says whether two blocks of so much shared memory fit on a multiprocessor, where one can have limit bytes and each costs 1 KB more.
func twoFit(shared, limit int) bool { return 2*(shared+1024) <= limit+1024 }

// oneShared is the shared memory that the decode kernel for one vector needs, with parts buffers of partial sums.
func oneShared(w *matArg, parts int) int {
	stage, sums := stageBytes, 0
	switch {
	case w.enc == encI8:
		sums = gemvWarps
	case w.groupShift != 0:
		sums = gemvRoom(w) >> w.groupShift
		scales := 2 * stretchGroups(w)
		if w.mins != 0 {
			sums *= 2
			scales *= 2
		}
		if stretchGroups(w) > 1 {
			stage += 16 * scales
		}
	}
	return gemvWarps*gemvStages*stage + 2*(gemvRoom(w)*2+16) + 4*(gemvWarps+16+sums+parts*gemvWarps*16)
}

// chunkShared is the shared memory of the chunkwise kernel with stages buffers.
func chunkShared(dk, stages int) int {
	const vs = sliceWidth + 8
	stage := 2*chunkLen*(dk+8)*2 + chunkLen*vs*2 + chunkLen*16
	return stages*stage + dk*vs*2 + 4*(chunkLen+32)
}

// scoresShared is the shared memory of the kernel for a chunk's scores.
func scoresShared(dk int) int { return 2*chunkLen*(dk+8)*2 + chunkLen*16 }

// gemmStages is the number of stretches that the matrix kernel has in flight or in use: as many as leave room for two blocks.
func gemmStages(enc int32) int {
	if enc == encI4 {
		return 2
	}
	return 3
}

// gemmShared is the shared memory of the matrix kernel for an encoding.
func gemmShared(enc int32) int {
	values := map[int32]int{encF16: 64, encI8: 128, encI8G: 128, encI4: 256}[enc]
	return gemmStages(enc)*(128*128+64*values*2) + 2*2*128*8
}

// piece is a run of one step's tokens that passes through the blocks at once.
type piece struct {
	step, from, len int // tokens [from, from+len) of the step
	tok             int // the first one's place among the pass's tokens
}

// pass is what goes through the blocks together. Its pieces that take the recurrent form come first.
type pass struct {
	pieces    []piece
	recurrent int // pieces that take the recurrent form
	tokens    int
	chunks    int
}

// shortPiece is the length below which the recurrent form does less work than one chunk.
const shortPiece = 12

// planPasses cuts a batch into passes of at most limit tokens. A step's tokens stay in order; every pass but the last is full.
func planPasses(batch []kernels.Step, limit int, chunkwise bool) []pass {
	var out []pass
	cur := []piece{}
	room := limit
	flush := func() {
		if len(cur) > 0 {
			out = append(out, arrange(cur, chunkwise))
			cur, room = []piece{}, limit
		}
	}
	for i := range batch {
		for from, n := 0, len(batch[i].Tokens); from < n; {
			take := min(n-from, room)
			cur = append(cur, piece{step: i, from: from, len: take})
			from, room = from+take, room-take
			if room == 0 {
				flush()
			}
		}
	}
	flush()
	return out
}

func arrange(pieces []piece, chunkwise bool) pass {
	p := pass{}
	for _, recurrent := range []bool{true, false} {
		for _, c := range pieces {
			if (!chunkwise || c.len < shortPiece) == recurrent {
				c.tok = p.tokens
				p.tokens += c.len
				p.pieces = append(p.pieces, c)
				if recurrent {
					p.recurrent++
				} else {
					p.chunks += (c.len + chunkLen - 1) / chunkLen
				}
			}
		}
	}
	return p
}

// wanted is one token whose logits or log probability is asked for.
type wanted struct {
	row    int32 // among the pass's tokens
	step   int
	token  int // of the step
	logits bool
	target int32 // -1: none
}

// wantedRows lists, in the order of their rows, what a pass has to give back.
func wantedRows(batch []kernels.Step, p *pass, vocab int) []wanted {
	var out []wanted
	for _, c := range p.pieces {
		s := &batch[c.step]
		n := len(s.Tokens)
		for i := range c.len {
			t := c.from + i
			w := wanted{row: int32(c.tok + i), step: c.step, token: t, target: -1}
			w.logits = len(s.Logits) != 0 && (t == n-1 || len(s.Logits) == n*vocab && n > 1)
			if s.Targets != nil {
				w.target = s.Targets[t]
			}
			if w.logits || w.target >= 0 {
				out = append(out, w)
			}
		}
	}
	return out
}

// logitsOf is where the logits of a step's token go.
func logitsOf(s *kernels.Step, token, vocab int) []float32 {
	if len(s.Logits) == vocab {
		return s.Logits
	}
	return s.Logits[token*vocab : (token+1)*vocab]
}

// splitsFor is the number of parts of K that a product of the own matrix kernel is cut into, so that all multiprocessors have
// work; space is the room for partial sums in bytes.
func splitsFor(w *matArg, n, processors, space int) int {
	tiles := ((int(w.rows) + 127) / 128) * ((n + 63) / 64)
	stretches := (int(w.rowBytes) + 127) / 128
	s := max(1, 2*processors/tiles)
	s = min(s, max(1, stretches/4), max(1, space/(4*n*int(w.rows))))
	if tiles >= processors || s < 2 {
		return 1
	}
	return s
}
