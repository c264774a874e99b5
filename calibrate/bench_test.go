//go:build unix

package calibrate

import (
	"math/rand/v2"
	"path/filepath"
	"syscall"
	"testing"

	"xlstm/checkpoints"
	"xlstm/convert"
	"xlstm/format"
)

// BenchmarkBlock7B calibrates one block of a random model of the 7B's shape on 1,024 tokens, and reports the processor time that each
// step takes, in seconds of one core: the same on a busy machine as on an idle one, or nearly. What grows with the samples is
// reported by the token; the rest does not depend on them. It needs 4 GB. Run it with -benchtime 1x.
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
	start := coreSeconds(b)
	lap := func(unit string, parts int) {
		now := coreSeconds(b)
		b.ReportMetric((now-start)/float64(parts), unit)
		start = now
	}
	weights, err := readBlock(b.Context(), j.src, 0)
	if err != nil {
		b.Fatal(err)
	}
	lap("core-s/reading", 1)
	if err := j.propagate(b.Context(), 0, weights, nil, 0); err != nil {
		b.Fatal(err)
	}
	lap("core-s/token-run", j.tokens)
	cols := map[string]int{}
	for _, m := range j.matrices(0) {
		cols[m.Name] = m.Cols
	}
	w := newWatcher(cols, j.tokens)
	if err := j.propagate(b.Context(), 0, weights, w.observe, 0); err != nil {
		b.Fatal(err)
	}
	lap("core-s/token-run-and-moments", j.tokens)
	for _, m := range j.matrices(0) {
		t := weights.tensors[m.Name]
		name := m.Name[len(format.BlockTensor(0, "")):]
		j.o.Progress = func(p Progress) { // the second report is the first of rounding, and ends factoring
			if p.Step == "rounding "+name {
				lap("core-s/factoring-"+name, 1)
				j.o.Progress = nil
			}
		}
		if _, err := j.encode(b.Context(), 0, m, &t, w); err != nil {
			b.Fatal(err)
		}
		lap("core-s/rounding-"+name, 1)
	}
}

// coreSeconds is the processor time of this process so far.
func coreSeconds(b *testing.B) float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	seconds := func(t syscall.Timeval) float64 { return float64(t.Sec) + float64(t.Usec)/1e6 }
	return seconds(u.Utime) + seconds(u.Stime)
}
