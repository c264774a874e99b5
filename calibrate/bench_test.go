package calibrate

import (
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"xlstm/checkpoints"
	"xlstm/convert"
	"xlstm/format"
)

// BenchmarkBlock7B calibrates one block of a random model of the 7B's shape on 1,024 tokens, and reports what each step takes. What
// grows with the samples is reported by the token; the rest does not depend on them. It needs 4 GB. Run it with -benchtime 1x.
func BenchmarkBlock7B(b *testing.B) {
	src, err := convert.FromCheckpoint(checkpoints.Synthetic(checkpoints.Config7B(), 1))
	if err != nil {
		b.Fatal(err)
	}
	samples := randomSamples(src.Config(), 1, 2, 512)
	for b.Loop() {
		j, err := newJob(src, samples, filepath.Join(b.TempDir(), "7b.xlstm"), Options{Convert: convert.Options{Recipe: "int4"}})
		if err != nil {
			b.Fatal(err)
		}
		rng := rand.New(rand.NewPCG(1, 1))
		for _, ids := range samples {
			x := make([]float32, len(ids)*j.config.EmbeddingDim)
			for i := range x {
				x[i] = float32(rng.NormFloat64())
			}
			j.hidden = append(j.hidden, x)
		}
		benchmarkBlock(b, j)
	}
}

func benchmarkBlock(b *testing.B, j *job) {
	start := time.Now()
	lap := func(unit string, parts int) {
		b.ReportMetric(time.Since(start).Seconds()/float64(parts), unit)
		start = time.Now()
	}
	weights, err := readBlock(b.Context(), j.src, 0)
	if err != nil {
		b.Fatal(err)
	}
	lap("s/reading", 1)
	if err := j.propagate(b.Context(), 0, weights, nil, 0); err != nil {
		b.Fatal(err)
	}
	lap("s/token-run", j.tokens)
	cols := map[string]int{}
	for _, m := range j.matrices(0) {
		cols[m.Name] = m.Cols
	}
	w := newWatcher(cols, j.tokens)
	if err := j.propagate(b.Context(), 0, weights, w.observe, 0); err != nil {
		b.Fatal(err)
	}
	lap("s/token-run-and-moments", j.tokens)
	for _, m := range j.matrices(0) {
		t := weights.tensors[m.Name]
		factored := time.Duration(0)
		j.o.Progress = func(p Progress) { // the second report is that of rounding
			if factored == 0 && p.Step != "factoring the moments of "+m.Name[len(format.BlockTensor(0, "")):] {
				factored = time.Since(start)
			}
		}
		if _, err := j.encode(b.Context(), 0, m, &t, w); err != nil {
			b.Fatal(err)
		}
		name := m.Name[len(format.BlockTensor(0, "")):]
		b.ReportMetric(factored.Seconds(), "s/factoring-"+name)
		b.ReportMetric((time.Since(start) - factored).Seconds(), "s/rounding-"+name)
		start = time.Now()
	}
}
