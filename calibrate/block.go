package calibrate

import (
	"context"
	"fmt"
	"runtime"
	"strings"

	"golang.org/x/sync/errgroup"

	"xlstm/convert"
	"xlstm/format"
	"xlstm/quantize"
)

// blockWeights is one block's tensors in float32, in memory: 809 MB of the 7B. It implements cpu.Weights.
type blockWeights struct {
	config  *format.Config
	tensors map[string]format.Tensor
}

func (b *blockWeights) Config() *format.Config { return b.config }

func (b *blockWeights) Tensor(name string) (format.Tensor, bool) {
	t, ok := b.tensors[name]
	return t, ok
}

// readBlock reads the tensors of block i.
func readBlock(ctx context.Context, src *convert.Source, i int) (*blockWeights, error) {
	b := &blockWeights{config: src.Config(), tensors: map[string]format.Tensor{}}
	prefix := format.BlockTensor(i, "")
	for _, spec := range src.Tensors() {
		if !strings.HasPrefix(spec.Name, prefix) {
			continue
		}
		t, err := readTensor(ctx, src, spec)
		if err != nil {
			return nil, err
		}
		b.tensors[spec.Name] = t
	}
	return b, nil
}

// readTensor reads a whole tensor, as fp32.
func readTensor(ctx context.Context, src *convert.Source, spec format.TensorSpec) (format.Tensor, error) {
	out := format.Tensor{Name: spec.Name, Encoding: format.Encoding{Kind: format.FP32}, Rows: spec.Rows, Cols: spec.Cols}
	out.Data = make([]byte, out.Encoding.Sizes(spec.Rows, spec.Cols).Total)
	all, err := quantize.RowsOf(out.Data, out.Encoding, spec.Rows, spec.Cols)
	if err != nil {
		return out, err
	}
	return out, eachPiece(ctx, src, spec, func(values []float32, first, rows int) error {
		return quantize.EncodeRows(all.Slice(out.Encoding, spec.Cols, first, first+rows), out.Encoding, values, rows, spec.Cols,
			quantize.Options{FirstRow: first})
	})
}

// pieceFloats is how many values of a tensor are read at a time: 16 MB by each worker.
const pieceFloats = 4 << 20

// eachPiece reads a tensor's rows, several runs of them at the same time.
func eachPiece(ctx context.Context, src *convert.Source, spec format.TensorSpec, use func(values []float32, first, rows int) error) error {
	t, ok := src.Tensor(spec.Name)
	if !ok {
		return fmt.Errorf("tensor %s is missing", spec.Name)
	}
	piece := min(max(pieceFloats/(spec.Cols*t.Step()), 1)*t.Step(), spec.Rows)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for first := 0; first < spec.Rows; first += piece {
		rows := min(piece, spec.Rows-first)
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			values := make([]float32, rows*spec.Cols)
			if err := t.ReadRows(values, first, first+rows); err != nil {
				return err
			}
			if err := use(values, first, rows); err != nil {
				return fmt.Errorf("tensor %s: %w", spec.Name, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// floats decodes rows of an fp32 tensor.
func floats(dst []float32, t *format.Tensor, first, rows int) error {
	all, err := quantize.RowsOf(t.Data, t.Encoding, t.Rows, t.Cols)
	if err != nil {
		return err
	}
	return quantize.DecodeRows(dst, t.Encoding, all.Slice(t.Encoding, t.Cols, first, first+rows), rows, t.Cols)
}
