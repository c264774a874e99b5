// Package oracle computes what a checkpoint computes: the recurrent form of arXiv 2503.13427, one token after another, straight
// from the checkpoint's own tensors. Nothing is folded, cut into chunks or quantized, and nothing is shared with the engines that
// are held against it. Products are float32, sums float64, activations and the state are stored as float32. It is slow; but every
// weight is read once for a whole piece of tokens and then let go, so that a model much larger than memory can be followed.
package oracle

import (
	"context"
	"fmt"
	"math"
	"runtime"

	"golang.org/x/sync/errgroup"

	"xlstm/checkpoints"
	"xlstm/format"
)

// Tokens whose activations are kept at once, and whose logits are. Both bound memory alone: for the 7B about 1 GB and 26 MB.
const (
	pieceTokens = 2048
	headTokens  = 128
)

// Oracle follows one checkpoint. It may be used by one goroutine at a time for each State.
type Oracle struct {
	checkpoint *checkpoints.Checkpoint
	config     *format.Config
	options    Options
}

// Options of an oracle; all may be zero.
type Options struct {
	Workers int                    // goroutines, GOMAXPROCS where it is 0. They do not change results.
	OnBlock func(done, blocks int) // called after each block of a piece of tokens; the head counts as one, for progress bars
}

// New makes the oracle of c, which must stay open as long as it is used.
func New(c *checkpoints.Checkpoint, options Options) *Oracle {
	if options.Workers <= 0 {
		options.Workers = runtime.GOMAXPROCS(0)
	}
	return &Oracle{checkpoint: c, config: c.Config(), options: options}
}

// VocabSize is V, the length of the logits.
func (o *Oracle) VocabSize() int { return o.config.VocabSize }

// Forward feeds tokens to the sequence whose memory is state, which it updates. yield is called for each token in order with the
// logits after it, V values that are good until yield returns; an error of yield's ends Forward with it. A nil yield saves
// computing logits. After an error the state is undefined.
func (o *Oracle) Forward(ctx context.Context, tokens []int32, state *State, yield func(t int, logits []float32) error) error {
	for i, id := range tokens {
		if id < 0 || int(id) >= o.config.VocabSize {
			return fmt.Errorf("oracle: token %d is %d, outside the vocabulary of %d", i, id, o.config.VocabSize)
		}
	}
	if len(state.Blocks) != o.config.NumBlocks || len(state.Blocks[0].C) != o.config.NumHeads*o.config.HeadQKDim()*o.config.HeadVDim() {
		return fmt.Errorf("oracle: the state is another model's")
	}
	for t := 0; t < len(tokens); t += pieceTokens {
		piece := tokens[t:min(t+pieceTokens, len(tokens))]
		at := func(i int, logits []float32) error { return yield(t+i, logits) }
		if yield == nil {
			at = nil
		}
		if err := o.piece(ctx, piece, state, at); err != nil {
			return fmt.Errorf("oracle: %w", err)
		}
	}
	return nil
}

func (o *Oracle) piece(ctx context.Context, tokens []int32, state *State, yield func(int, []float32) error) error {
	d := o.config.EmbeddingDim
	x := make([]float32, len(tokens)*d)
	embeddings, err := o.tensor("embeddings.weight")
	if err != nil {
		return err
	}
	for t, id := range tokens {
		if err := embeddings.ReadRows(x[t*d:(t+1)*d], int(id), int(id)+1); err != nil {
			return err
		}
	}
	for i := range o.config.NumBlocks {
		if err := o.block(ctx, fmt.Sprintf("blocks.%d.", i), x, &state.Blocks[i]); err != nil {
			return err
		}
		o.done(i + 1)
	}
	if yield == nil {
		return nil
	}
	if o.config.OutNorm {
		if x, err = o.rmsNorm("out_norm", x); err != nil {
			return err
		}
	}
	if err := o.head(ctx, x, yield); err != nil {
		return err
	}
	o.done(o.config.NumBlocks + 1)
	return nil
}

func (o *Oracle) done(blocks int) {
	if o.options.OnBlock != nil {
		o.options.OnBlock(blocks, o.config.NumBlocks+1)
	}
}

// block adds one block's two halves to the residual stream x [T, D].
func (o *Oracle) block(ctx context.Context, b string, x []float32, state *BlockState) error {
	u, err := o.rmsNorm(b+"norm_mlstm", x)
	if err != nil {
		return err
	}
	y, err := o.mlstm(ctx, b+"mlstm_layer.", u, state)
	if err != nil {
		return err
	}
	add(x, y)
	if u, err = o.rmsNorm(b+"norm_ffn", x); err != nil {
		return err
	}
	if y, err = o.feedForward(ctx, b+"ffn.", u); err != nil {
		return err
	}
	add(x, y)
	return nil
}

// feedForward is Wdown (silu(Wgate u) * (Wup u)).
func (o *Oracle) feedForward(ctx context.Context, b string, u []float32) ([]float32, error) {
	gate, err := o.linear(ctx, b+"proj_up_gate", u)
	if err != nil {
		return nil, err
	}
	up, err := o.linear(ctx, b+"proj_up", u)
	if err != nil {
		return nil, err
	}
	for i, g := range gate {
		up[i] *= float32(float64(g) * sigmoid(float64(g)))
	}
	return o.linear(ctx, b+"proj_down", up)
}

// mlstm is Wout (sigmoid(o) * y), y being the normed output of the cells.
func (o *Oracle) mlstm(ctx context.Context, b string, u []float32, state *BlockState) ([]float32, error) {
	in := map[string][]float32{}
	for _, name := range []string{"q", "k", "v", "ogate_preact", "igate_preact", "fgate_preact"} {
		var err error
		if in[name], err = o.linear(ctx, b+name, u); err != nil {
			return nil, err
		}
	}
	weight, err := o.vector(b + "multihead_norm.weight")
	if err != nil {
		return nil, err
	}
	bias, err := o.optional(b + "multihead_norm.bias")
	if err != nil {
		return nil, err
	}
	y := make([]float32, len(in["v"]))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(o.options.Workers)
	for head := range o.config.NumHeads {
		g.Go(func() error { return o.cell(gctx, head, in, weight, bias, y, state) })
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for i, z := range in["ogate_preact"] {
		y[i] *= float32(sigmoid(float64(z)))
	}
	return o.linear(ctx, b+"out_proj", y)
}

// cell takes one head through all tokens and writes its normed output, weight and bias applied, into its place of y [T, VDim].
func (o *Oracle) cell(ctx context.Context, head int, in map[string][]float32, weight, bias, y []float32, state *BlockState) error {
	c := o.config
	dk, dv, heads := c.HeadQKDim(), c.HeadVDim(), c.NumHeads
	memory, norm := state.C[head*dk*dv:(head+1)*dk*dv], state.N[head*dk:(head+1)*dk]
	h := make([]float64, dv)
	for t := range len(y) / c.VDim {
		if err := ctx.Err(); err != nil {
			return err
		}
		q, k := in["q"][t*c.QKDim+head*dk:][:dk], in["k"][t*c.QKDim+head*dk:][:dk]
		v := in["v"][t*c.VDim+head*dv:][:dv]
		i := softCap(float64(in["igate_preact"][t*heads+head]), c.GateSoftCap)
		f := softCap(float64(in["fgate_preact"][t*heads+head]), c.GateSoftCap)

		m := float64(state.M[head])
		lf := logSigmoid(f)
		next := max(lf+m, i)
		keep, write := math.Exp(lf+m-next), math.Exp(i-next)
		state.M[head] = float32(next)

		clear(h)
		dot := 0.0 // n . s, with s = q / sqrt(dk)
		for r := range dk {
			s := float32(float64(q[r]) / math.Sqrt(float64(dk)))
			kr := write * float64(k[r])
			row := memory[r*dv : (r+1)*dv]
			for j := range row {
				row[j] = float32(keep*float64(row[j]) + kr*float64(v[j]))
				h[j] += float64(row[j] * s)
			}
			norm[r] = float32(keep*float64(norm[r]) + kr)
			dot += float64(norm[r] * s)
		}
		scale := 1 / (max(math.Abs(dot), math.Exp(-next)) + c.CellEps)
		for j := range h {
			h[j] *= scale
		}
		headNorm(y[t*c.VDim+head*dv:][:dv], h, c.NormEps)
	}
	for i := range y {
		if j := i % c.VDim; j/dv == head {
			y[i] *= weight[j]
			if bias != nil {
				y[i] += bias[j]
			}
		}
	}
	return nil
}

// headNorm is the per-head layer norm, without weight: mean and biased variance over the head's values.
func headNorm(dst []float32, h []float64, eps float64) {
	mean, variance := 0.0, 0.0
	for _, x := range h {
		mean += x / float64(len(h))
	}
	for _, x := range h {
		variance += (x - mean) * (x - mean) / float64(len(h))
	}
	for j, x := range h {
		dst[j] = float32((x - mean) / math.Sqrt(variance+eps))
	}
}

// rmsNorm norms each row of x [T, D]; there is no mean subtraction.
func (o *Oracle) rmsNorm(name string, x []float32) ([]float32, error) {
	weight, err := o.vector(name + ".weight")
	if err != nil {
		return nil, err
	}
	bias, err := o.optional(name + ".bias")
	if err != nil {
		return nil, err
	}
	y := make([]float32, len(x))
	d := len(weight)
	for t := 0; t < len(x); t += d {
		sum := 0.0
		for _, v := range x[t : t+d] {
			sum += float64(v) * float64(v)
		}
		scale := 1 / math.Sqrt(sum/float64(d)+o.config.NormEps)
		for j := range d {
			y[t+j] = float32(float64(x[t+j])*scale) * weight[j]
			if bias != nil {
				y[t+j] += bias[j]
			}
		}
	}
	return y, nil
}

// head yields the capped logits of normed activations x [T, D], few tokens at a time.
func (o *Oracle) head(ctx context.Context, x []float32, yield func(int, []float32) error) error {
	d, vocab := o.config.EmbeddingDim, o.config.VocabSize
	for t := 0; t < len(x)/d; t += headTokens {
		logits, err := o.linear(ctx, "lm_head", x[t*d:min((t+headTokens)*d, len(x))])
		if err != nil {
			return err
		}
		for i, z := range logits {
			logits[i] = float32(softCap(float64(z), o.config.OutputSoftCap))
		}
		for i := range len(logits) / vocab {
			if err := yield(t+i, logits[i*vocab:(i+1)*vocab]); err != nil {
				return err
			}
		}
	}
	return nil
}

func add(x, y []float32) {
	for i := range x {
		x[i] += y[i]
	}
}

// softCap is c*tanh(z/c); a c of 0 means that there is no cap.
func softCap(z, c float64) float64 {
	if c == 0 {
		return z
	}
	return c * math.Tanh(z/c)
}

func sigmoid(z float64) float64 { return 1 / (1 + math.Exp(-z)) }

// logSigmoid is log(1 / (1 + exp(-z))), without overflow.
func logSigmoid(z float64) float64 { return min(z, 0) - math.Log1p(math.Exp(-math.Abs(z))) }
