package calibrate

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"strings"

	"xlstm/convert"
	"xlstm/format"
	"xlstm/kernels/cpu"
	"xlstm/kernels/cpu/simd"
	"xlstm/quantize"
)

// encoded is a matrix with its encoding.
type encoded struct {
	spec   format.TensorSpec
	data   []byte // as in a file
	result TensorResult
}

// block runs the samples through block i, encodes its matrices and stores them, and the hidden vectors after it.
func (j *job) block(ctx context.Context, i int) error {
	if err := j.reach(ctx, i); err != nil {
		return err
	}
	j.report(i, "reading")
	weights, err := readBlock(ctx, j.src, i)
	if err != nil {
		return err
	}
	matrices := j.matrices(i)
	cols := map[string]int{}
	for _, m := range matrices {
		cols[m.Name] = m.Cols
	}
	w := newWatcher(cols, j.tokens)
	if err := j.propagate(ctx, i, weights, w.observe, j.cost.run); err != nil {
		return err
	}
	var done []encoded
	for _, m := range matrices {
		t := weights.tensors[m.Name]
		delete(weights.tensors, m.Name)
		e, err := j.encode(ctx, i, m, &t, w)
		if err != nil {
			return err
		}
		done = append(done, *e)
	}
	j.report(i, "storing")
	if err := j.save(ctx, blockName(i), done); err != nil {
		return err
	}
	return j.dir.saveHidden(ctx, i+1, j.hidden)
}

// reach makes j.hidden the hidden vectors that block i reads: those that are stored last, taken through the blocks in between.
func (j *job) reach(ctx context.Context, i int) error {
	if j.hidden == nil {
		j.report(i, "reading hidden vectors")
		j.hidden = make([][]float32, len(j.samples))
		for s, ids := range j.samples {
			j.hidden[s] = make([]float32, len(ids)*j.config.EmbeddingDim)
		}
		for j.hiddenFor = i; j.hiddenFor > 0 && !j.dir.has(hiddenName(j.hiddenFor)); {
			j.hiddenFor--
		}
		var err error
		if j.hiddenFor > 0 {
			err = j.dir.loadHidden(ctx, j.hiddenFor, j.hidden)
		} else {
			err = embed(ctx, j.src, j.samples, j.hidden)
		}
		if err != nil {
			return err
		}
	}
	for j.hiddenFor < i {
		weights, err := readBlock(ctx, j.src, j.hiddenFor)
		if err != nil {
			return err
		}
		if err := j.propagate(ctx, j.hiddenFor, weights, nil, 0); err != nil {
			return err
		}
	}
	return nil
}

// embed makes hidden vectors of tokens: rows of the embedding, which is read once.
func embed(ctx context.Context, src *convert.Source, samples [][]int32, hidden [][]float32) error {
	places := map[int32][][]float32{}
	for s, ids := range samples {
		d := len(hidden[s]) / len(ids)
		for t, id := range ids {
			places[id] = append(places[id], hidden[s][t*d:(t+1)*d])
		}
	}
	for _, spec := range src.Tensors() {
		if spec.Name != format.TensorEmbed {
			continue
		}
		return eachPiece(ctx, src, spec, func(values []float32, first, rows int) error {
			for r := range rows {
				for _, x := range places[int32(first+r)] {
					copy(x, values[r*spec.Cols:])
				}
			}
			return nil
		})
	}
	return fmt.Errorf("tensor %s is missing", format.TensorEmbed)
}

// propagate takes the hidden vectors through block i. flops is what that adds to the work done.
func (j *job) propagate(ctx context.Context, i int, weights *blockWeights, observe func(string, []float32, int, int), flops int64) error {
	b, err := cpu.OpenBlock(weights, i, cpu.Options{Observe: observe})
	if err != nil {
		return err
	}
	defer b.Close()
	for s, x := range j.hidden {
		j.report(i, "running")
		if err := b.Run(ctx, x); err != nil {
			return err
		}
		if !finite(x) {
			return fmt.Errorf("hidden vectors of sample %d are not finite after it: the weights are broken, or overflow", s)
		}
		j.add(flops * int64(len(j.samples[s])) / int64(j.tokens))
	}
	j.hiddenFor = i + 1
	return nil
}

// finite reports whether no value of x is infinite or not a number.
func finite(x []float32) bool {
	for _, v := range x {
		if v-v != 0 {
			return false
		}
	}
	return true
}

// encode rounds the matrix t with error compensation.
func (j *job) encode(ctx context.Context, i int, spec format.TensorSpec, t *format.Tensor, w *watcher) (*encoded, error) {
	_, name, ok := strings.Cut(strings.TrimPrefix(spec.Name, "blocks."), ".")
	if !ok {
		name = spec.Name
	}
	moments, err := w.moments.Take(spec.Name, 1)
	if err != nil {
		return nil, err
	}
	j.report(i, "factoring the moments of "+name)
	c, err := compensator(ctx, moments, quantize.CompensatorOptions{Damping: j.o.Damping, ActOrder: j.o.ActOrder})
	if err != nil {
		return nil, fmt.Errorf("tensor %s: %w", spec.Name, err)
	}
	j.add(factorFlops(spec))
	e := &encoded{spec: spec, data: make([]byte, spec.Size())}
	all, err := quantize.RowsOf(e.data, spec.Encoding, spec.Rows, spec.Cols)
	if err != nil {
		return nil, err
	}
	var loss outputError
	chunk := min(spec.Rows, rowsPerWorker*runtime.GOMAXPROCS(0))
	values, back := make([]float32, chunk*spec.Cols), make([]float32, chunk*spec.Cols)
	for first := 0; first < spec.Rows; first += chunk {
		j.report(i, "rounding "+name)
		rows := min(chunk, spec.Rows-first)
		values, back, dst := values[:rows*spec.Cols], back[:rows*spec.Cols], all.Slice(spec.Encoding, spec.Cols, first, first+rows)
		if err := floats(values, t, first, rows); err != nil {
			return nil, err
		}
		if err := c.EncodeRows(ctx, dst, spec.Encoding, values, rows, quantize.Options{FirstRow: first}); err != nil {
			return nil, fmt.Errorf("tensor %s: %w", spec.Name, err)
		}
		if err := quantize.DecodeRows(back, spec.Encoding, dst, rows, spec.Cols); err != nil {
			return nil, err
		}
		loss.add(values, back, rows, w.kept[spec.Name])
		j.add(roundFlops(spec) * int64(rows) / int64(spec.Rows))
	}
	e.result = TensorResult{
		Name: spec.Name, Encoding: spec.Encoding.String(), Rows: spec.Rows, Cols: spec.Cols, OutputError: loss.relative(), Damping: c.Damping(),
	}
	return e, nil
}

// rowsPerWorker is how many rows are rounded between reports of progress, for each core: two tiles of the Compensator's.
const rowsPerWorker = 128

// compensator factors moments. It takes minutes for wide inputs and cannot be stopped; when the context ends, it is left to finish
// by itself.
func compensator(ctx context.Context, m *quantize.Moments, o quantize.CompensatorOptions) (*quantize.Compensator, error) {
	type result struct {
		c   *quantize.Compensator
		err error
	}
	done := make(chan result, 1)
	go func() {
		c, err := quantize.NewCompensator(m, o)
		done <- result{c, err}
	}()
	select {
	case r := <-done:
		return r.c, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// head encodes the output head, whose inputs are the hidden vectors after the last block and its norm.
func (j *job) head(ctx context.Context, spec format.TensorSpec) error {
	n, d := j.config.NumBlocks, j.config.EmbeddingDim
	if err := j.reach(ctx, n); err != nil {
		return err
	}
	j.report(n, "gathering moments")
	w := newWatcher(map[string]int{spec.Name: d}, j.tokens)
	for _, h := range j.hidden {
		if err := ctx.Err(); err != nil {
			return err
		}
		x := h
		if j.config.OutNorm {
			x = make([]float32, len(h))
			for at := 0; at < len(h); at += d {
				simd.RMSNorm(x[at:at+d], h[at:at+d], float32(j.config.NormEps))
			}
		}
		w.observe(spec.Name, x, len(x)/d, d)
	}
	j.report(n, "reading")
	t, err := readTensor(ctx, j.src, spec)
	if err != nil {
		return err
	}
	e, err := j.encode(ctx, n, spec, &t, w)
	if err != nil {
		return err
	}
	return j.save(ctx, headName, []encoded{*e})
}

// finished is where an encoded matrix lies.
type finished struct {
	spec   format.TensorSpec
	record *record
	at     int64 // in the record's body
}

// tensorsHead is the head of a record of matrices, which follow each other in its body.
type tensorsHead struct {
	Tensors []TensorResult `json:"tensors"`
}

// save stores matrices, and opens the record for their rows to be served.
func (j *job) save(ctx context.Context, name string, all []encoded) error {
	var head tensorsHead
	var specs []format.TensorSpec
	for _, e := range all {
		head.Tensors = append(head.Tensors, e.result)
		specs = append(specs, e.spec)
	}
	err := writeRecord(ctx, j.dir.file(name), j.dir.key, head, func(w io.Writer) error {
		for _, e := range all {
			if _, err := w.Write(e.data); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return j.load(ctx, name, specs)
}

// load opens a record of the matrices specs.
func (j *job) load(ctx context.Context, name string, specs []format.TensorSpec) error {
	var head tensorsHead
	r, err := openRecord(ctx, j.dir.file(name), j.dir.key, &head)
	if err != nil {
		return err
	}
	j.records = append(j.records, r)
	if len(head.Tensors) != len(specs) {
		return fmt.Errorf("%s: %d tensors, expected %d", j.dir.file(name), len(head.Tensors), len(specs))
	}
	at := int64(0)
	for i, s := range specs {
		t := head.Tensors[i]
		if t.Name != s.Name || t.Encoding != s.Encoding.String() || t.Rows != s.Rows || t.Cols != s.Cols || at+s.Size() > r.size {
			return fmt.Errorf("%s: tensor %s, %d x %d in %s, expected %s, %d x %d in %s", j.dir.file(name), t.Name, t.Rows, t.Cols, t.Encoding,
				s.Name, s.Rows, s.Cols, s.Encoding)
		}
		j.finished[s.Name] = finished{s, r, at}
		at += s.Size()
	}
	j.result.Tensors = append(j.result.Tensors, head.Tensors...)
	return nil
}

// rows reads n encoded rows.
func (f finished) rows(dst quantize.Rows, first, n int) error {
	sizes := f.spec.Encoding.Sizes(f.spec.Rows, f.spec.Cols)
	for _, p := range []struct {
		dst     []byte
		at, row int64
	}{{dst.Values, 0, sizes.ValueRow}, {dst.Scales, sizes.ScalesOffset, sizes.ScaleRow}, {dst.Mins, sizes.MinsOffset, sizes.MinRow}} {
		if int64(len(p.dst)) != p.row*int64(n) {
			return fmt.Errorf("tensor %s: room for %d bytes of %d rows, expected %d", f.spec.Name, len(p.dst), n, p.row*int64(n))
		}
		if len(p.dst) == 0 {
			continue
		}
		if err := f.record.readAt(p.dst, f.at+p.at+int64(first)*p.row); err != nil {
			return err
		}
	}
	return nil
}
