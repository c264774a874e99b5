package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"

	"github.com/nlpodyssey/safetensors"
	"github.com/spf13/cobra"
)

// follower computes logits for the tokens of one sequence: an engine's session, or the oracle's.
type follower interface {
	VocabSize() int
	Reset(ctx context.Context) error
	Forward(ctx context.Context, tokens []int32, yield func(t int, logits []float32) error) error
}

type logitsFlags struct {
	ids, out, oracle string
	step             bool
}

func newLogits(a *app) *cobra.Command {
	var l logitsFlags
	var e engineFlags
	cmd := &cobra.Command{
		Use:   "logits [MODEL]",
		Short: "Compute logits for token ids, to compare with other implementations",
		Long: `Compute the logits that a model gives for token ids, to compare with other implementations.
Reads input_ids, I64 [B,T], and writes logits, F32 [B,T,V], and nll, F32 [B,T-1]: each next token's negative log likelihood in
nats. Every row is a sequence of its own, from a fresh state; no beginning-of-text token is added. With --oracle the logits
are those of the checkpoint itself, computed by a second, slow and obvious implementation.`,
		Example: `  xlstm logits model.xlstm --ids in.safetensors -o out.safetensors
  xlstm logits model.xlstm --ids in.safetensors -o out.safetensors --step
  xlstm logits --oracle xLSTM-7b --ids in.safetensors -o original.safetensors`,
		Args:              arguments(0, 1),
		ValidArgsFunction: completeModels,
		RunE: func(cmd *cobra.Command, args []string) error {
			if l.ids == "" || l.out == "" {
				return usagef(cmd, "expected --ids and -o")
			}
			if (len(args) == 1) == (l.oracle != "") {
				return usagef(cmd, "expected either MODEL or --oracle CHECKPOINT_DIR")
			}
			if err := e.check(cmd); err != nil {
				return err
			}
			return a.logits(cmd.Context(), append(args, "")[0], l, e)
		},
	}
	f := cmd.Flags()
	f.StringVar(&l.ids, "ids", "", "safetensors file with input_ids; - is stdin")
	f.StringVarP(&l.out, "output", "o", "", "safetensors file to write; - is stdout")
	f.BoolVar(&l.step, "step", false, "feed one token at a time instead of all at once")
	f.StringVar(&l.oracle, "oracle", "", "directory of a checkpoint to compute the original's logits of")
	e.register(cmd)
	return cmd
}

func (a *app) logits(ctx context.Context, model string, l logitsFlags, e engineFlags) error {
	data, err := a.readInput(ctx, l.ids)
	if err != nil {
		return err
	}
	rows, err := readIDs(data)
	if err != nil {
		return fmt.Errorf("%s: %w", l.ids, err)
	}
	var f follower
	var closeIt func() error
	if l.oracle != "" {
		f, closeIt, err = a.openOracle(l.oracle, e)
	} else {
		f, closeIt, err = a.openFollower(ctx, model, e)
	}
	if err != nil {
		return err
	}
	defer closeIt()
	for b, row := range rows {
		for t, id := range row {
			if int(id) >= f.VocabSize() {
				return fmt.Errorf("%s: input_ids[%d,%d] is %d, outside the vocabulary of %d", l.ids, b, t, id, f.VocabSize())
			}
		}
	}
	bar := a.newBar("logits", int64(len(rows)*len(rows[0])), "tokens")
	return a.writeWhole(l.out, func(w io.Writer) error { return writeLogits(ctx, w, f, rows, l.step, bar) })
}

// readIDs reads input_ids, I64 [B,T], from a safetensors file. All rows are of one length, which is at least 1.
func readIDs(data []byte) ([][]int32, error) {
	st, err := safetensors.Deserialize(data)
	if err != nil {
		return nil, fmt.Errorf("not a safetensors file: %w", err)
	}
	t, ok := st.Tensor("input_ids")
	if !ok {
		return nil, fmt.Errorf("no tensor input_ids, found %q", st.Names())
	}
	shape, bytes := t.Shape(), t.Data()
	if t.DType() != safetensors.I64 || len(shape) != 2 || shape[0] == 0 || shape[1] == 0 {
		return nil, fmt.Errorf("input_ids is %s %v, expected I64 [B,T]", t.DType(), shape)
	}
	if n := uint64(len(bytes) / 8); shape[0] > n || shape[1] != n/shape[0] || len(bytes)%8 != 0 {
		return nil, fmt.Errorf("input_ids has %d bytes, which is not what %v needs", len(bytes), shape)
	}
	rows := make([][]int32, shape[0])
	for b := range rows {
		row := make([]int32, shape[1])
		for t := range row {
			id := int64(binary.LittleEndian.Uint64(bytes[8*(b*len(row)+t):]))
			if id < 0 || id > math.MaxInt32 {
				return nil, fmt.Errorf("input_ids[%d,%d] is %d, not a token id", b, t, id)
			}
			row[t] = int32(id)
		}
		rows[b] = row
	}
	return rows, nil
}

// writeLogits streams logits and nll of all rows as a safetensors file.
func writeLogits(ctx context.Context, w io.Writer, f follower, rows [][]int32, step bool, bar *bar) error {
	b, n, v := len(rows), len(rows[0]), f.VocabSize()
	if err := writeHeader(w, b, n, v); err != nil {
		return err
	}
	nll := make([]float32, 0, b*(n-1))
	buf := make([]byte, 0, 4*v)
	for _, row := range rows {
		if err := f.Reset(ctx); err != nil {
			return err
		}
		yield := func(t int, logits []float32) error {
			if t+1 < n {
				nll = append(nll, negLogLikelihood(logits, row[t+1]))
			}
			bar.add(1)
			_, err := w.Write(appendFloats(buf[:0], logits))
			return err
		}
		if err := feed(ctx, f, row, step, yield); err != nil {
			return err
		}
	}
	_, err := w.Write(appendFloats(nil, nll))
	return err
}

// feed gives a sequence's tokens to f, all at once or one by one.
func feed(ctx context.Context, f follower, row []int32, step bool, yield func(t int, logits []float32) error) error {
	if !step {
		return f.Forward(ctx, row, yield)
	}
	for t := range row {
		err := f.Forward(ctx, row[t:t+1], func(_ int, logits []float32) error { return yield(t, logits) })
		if err != nil {
			return err
		}
	}
	return nil
}

func writeHeader(w io.Writer, b, n, v int) error {
	type info struct {
		DType   string   `json:"dtype"`
		Shape   []int    `json:"shape"`
		Offsets [2]int64 `json:"data_offsets"`
	}
	end := 4 * int64(b) * int64(n) * int64(v)
	head, err := json.Marshal(map[string]info{
		"logits": {"F32", []int{b, n, v}, [2]int64{0, end}},
		"nll":    {"F32", []int{b, n - 1}, [2]int64{end, end + 4*int64(b)*int64(n-1)}},
	})
	if err != nil {
		return err
	}
	for len(head)%8 != 0 { // tensors begin aligned
		head = append(head, ' ')
	}
	if _, err = w.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(head)))); err == nil {
		_, err = w.Write(head)
	}
	return err
}

func appendFloats(b []byte, x []float32) []byte {
	for _, f := range x {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(f))
	}
	return b
}

// negLogLikelihood is -log softmax(logits)[target], in nats.
func negLogLikelihood(logits []float32, target int32) float32 {
	most := math.Inf(-1)
	for _, x := range logits {
		most = max(most, float64(x))
	}
	sum := 0.0
	for _, x := range logits {
		sum += math.Exp(float64(x) - most)
	}
	return float32(most + math.Log(sum) - float64(logits[target]))
}
