//lint:file-ignore U1000 the files behind the build tag cuda use what this one declares

package cuda

// The arguments of the kernels, field for field as in the .cu files: device addresses are uint64, and every kernel has one
// struct for its only argument. The compiler of the kernels checks their sizes on its side, TestArgSizes on this one.

// Encodings of a matrix on the device. bf16 becomes fp16 while it loads.
const (
	encF32 = iota
	encF16
	encI8
	encI8G
	encI4
)

// Types of activations. xPerm is fp16 in the order in which packed integers are taken apart, xI8 is int8 with one scale a token.
const (
	xF32 = iota
	xF16
	xPerm
	xI8
)

// Prologues and epilogues of the kernels for few tokens.
const (
	proPlain = iota
	proRMS
	proGate
)
const (
	epStore = iota
	epAdd
	epSwiGLU
	epCap
)

const (
	outF32 = iota
	outF16
)

type matArg struct {
	values, scales, mins, bias uint64
	rows, cols, rowBytes       int32
	groups, groupShift, enc    int32
}

type pieceArg struct {
	state    uint64
	tok, len int32
}

type gemvArgs struct {
	w, gates                  matArg
	x, y, o                   uint64
	normW, normB              uint64
	gatesOut                  uint64
	in                        uint64
	next                      nextArg
	n, ldx, ldy, ldo, pro, ep int32
	heads, split              int32
	eps, cap                  float32
	teamShift, _              int32
}

// nextArg says where to prepare a result, and for what product.
type nextArg struct {
	at        uint64
	enc, room int32
	scale     float32
	_         int32
}

type gemmArgs struct {
	w           matArg
	x, y        uint64
	n, ldx, ldy int32
	out         int32
	add, splits int32
	alpha, cap  float32
}

type tensorMap = [128]byte

type wgArgs struct {
	g            gemmArgs
	parts, flags uint64
	_            [2]int32
	w, x         tensorMap
}

type cellArgs struct {
	pieces, qkvo, gates, h, scan, chunkInfo uint64
	ld, qkDim, vDim, heads, dk, dv, slices  int32
	block, tokens, stateType                int32
	cap, eps                                float32
	next                                    nextArg
	arrived                                 uint64
	normEps                                 float32
	_                                       int32
}

type scanArgs struct {
	pieces, gates, scan, chunkInfo, mEnd, chunkBase uint64
	heads, dk, slices, block, stateType, chunks     int32
	cap                                             float32
	_                                               int32
}

type chunkArgs struct {
	c               cellArgs
	mEnd, chunkBase uint64
	place, scores   uint64
	chunks, stages  int32
}

type embedArgs struct {
	w         matArg
	tokens, x uint64
	n, ldx    int32
}

type normArgs struct {
	x, y, o, w, b, rows           uint64
	n, cols, ldx, ldy, ldo, heads int32
	in, out                       int32
	eps, scale                    float32
}

type intArgs struct {
	w                                         matArg
	acc, ts, x, y, ys, o, hw, hb              uint64
	n, cols, ldx, ldy, ldo, heads, out, width int32
	eps, scale                                float32
}

type gatesArgs struct {
	w      matArg
	x, y   uint64
	n, ldx int32
	eps    float32
	exact  int32
}

type logitArgs struct {
	logits, targets, out uint64
	n, vocab, ld         int32
	_                    int32
}

type biasArgs struct {
	x, bias           uint64
	n, cols, ld, kind int32
	cap               float32
	_                 int32
}

type stateArgs struct {
	state, flat                              uint64
	blocks, heads, dk, dv, slices, stateType int32
	imp                                      int32
	_                                        int32
}

type dequantArgs struct {
	w               matArg
	y               uint64
	row0, rows, ldy int32
	_               int32
}

type spreadArgs struct {
	from, to                uint64
	rows, groups, padded, _ int32
}

type convertArgs struct {
	p, bad uint64
	n      int64
}

type fillArgs struct {
	p         uint64
	n         int64
	seed      uint64
	keep, set uint32
}

type sampleArgs struct {
	logits, tokens, out, step, uniform uint64
	vocab, limit, k, outLen            int32
	invTemp                            float32
	_                                  int32
}
