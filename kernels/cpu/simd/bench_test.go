package simd

import (
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"xlstm/format"
)

// Benchmarks of what is bound by memory report share, the rate as a part of what StreamRead reaches: medians over rounds that
// alternate between the two, on GOMAXPROCS workers, over matrices far larger than the caches. Those of what is bound by
// arithmetic report GOP/s, two operations a weight and vector.

// workers runs f on all workers, each with its part of n.
func workers(n int, f func(w, lo, hi int)) {
	count := runtime.GOMAXPROCS(0)
	var wg sync.WaitGroup
	for w := range count {
		wg.Go(func() { f(w, n*w/count, n*(w+1)/count) })
	}
	wg.Wait()
}

// bigMatrix has at least size bytes of values, of no particular meaning, but for half's of floats, which are finite.
func bigMatrix(enc format.Encoding, cols, size int) *Matrix {
	r := rand.New(rand.NewPCG(1, 1))
	rows := size / int(enc.ValueRowBytes(cols)) &^ 3
	m := randomMatrix(r, enc, 64, cols)
	s := enc.Sizes(rows, cols)
	big := &Matrix{Enc: enc, Rows: rows, Cols: cols}
	for _, p := range []struct {
		to   *[]byte
		from []byte
		row  int64
	}{{&big.Values, m.Values, s.ValueRow}, {&big.Scales, m.Scales, s.ScaleRow}, {&big.Mins, m.Mins, s.MinRow}} {
		*p.to = make([]byte, 0, int64(rows)*p.row+int64(len(p.from)))
		for len(p.from) > 0 && int64(len(*p.to)) < int64(rows)*p.row {
			*p.to = append(*p.to, p.from...)
		}
	}
	return big
}

func BenchmarkDecode(b *testing.B) {
	for _, e := range []string{"fp32", "fp16", "bf16", "int8", "int8g64", "int4g32", "int4g64", "int4g128", "int4g64a"} {
		b.Run(e, func(b *testing.B) { benchmarkDecode(b, mustEncoding(e), 4096, 1) })
	}
	b.Run("int8-10944", func(b *testing.B) { benchmarkDecode(b, mustEncoding("int8"), 10944, 1) })
	b.Run("int4-10944", func(b *testing.B) { benchmarkDecode(b, mustEncoding("int4"), 10944, 1) })
}

func BenchmarkBatch(b *testing.B) {
	for _, e := range []string{"fp16", "int8", "int4"} {
		for _, n := range []int{2, 4, 8, 16} {
			b.Run(name(e, "/", n)(), func(b *testing.B) { benchmarkDecode(b, mustEncoding(e), 4096, n) })
		}
	}
}

func benchmarkDecode(b *testing.B, enc format.Encoding, cols, n int) {
	m := bigMatrix(enc, cols, 256<<20)
	var a Acts
	a.Set(randomVector(rand.New(rand.NewPCG(2, 2)), n*cols), cols, n, cols, enc)
	dst := make([]float32, n*m.Rows)
	scratch := make([]Scratch, runtime.GOMAXPROCS(0))
	var shares, rates []float64
	b.SetBytes(int64(len(m.Values) + len(m.Scales) + len(m.Mins)))
	for b.Loop() {
		start := time.Now()
		workers(m.Rows/4, func(w, lo, hi int) { m.Mul(dst, m.Rows, &a, 4*lo, 4*hi, &scratch[w]) })
		product := time.Since(start).Seconds() / float64(len(m.Values)+len(m.Scales)+len(m.Mins))
		b.StopTimer()
		start = time.Now()
		workers(len(m.Values), func(_, lo, hi int) { StreamRead(m.Values[lo:hi]) })
		stream := time.Since(start).Seconds() / float64(len(m.Values))
		b.StartTimer()
		shares = append(shares, stream/product)
		rates = append(rates, 1e-9/stream)
	}
	b.ReportMetric(median(shares), "share")
	b.ReportMetric(median(rates), "stream-GB/s")
}

func median(x []float64) float64 {
	slices.Sort(x)
	return x[len(x)/2]
}

func BenchmarkPrompt(b *testing.B) {
	for _, e := range []string{"fp32", "fp16", "int8", "int8g64", "int4g32", "int4g64", "int4g64a"} {
		for _, n := range []int{64, 512} {
			b.Run(name(e, "/", n)(), func(b *testing.B) { benchmarkPrompt(b, mustEncoding(e), n) })
		}
	}
}

func benchmarkPrompt(b *testing.B, enc format.Encoding, n int) {
	const rows, cols = 2048, 4096
	m := randomMatrix(rand.New(rand.NewPCG(1, 1)), enc, rows, cols)
	var a Acts
	a.Set(randomVector(rand.New(rand.NewPCG(2, 2)), n*cols), cols, n, cols, enc)
	dst := make([]float32, n*rows)
	scratch := make([]Scratch, runtime.GOMAXPROCS(0))
	for b.Loop() {
		workers(rows/128, func(w, lo, hi int) { m.Mul(dst, rows, &a, 128*lo, 128*hi, &scratch[w]) })
	}
	b.ReportMetric(2e-9*rows*cols*float64(n)*float64(b.N)/b.Elapsed().Seconds(), "GOP/s")
}

func BenchmarkGemm(b *testing.B) {
	for _, g := range []struct {
		name           string
		transA, transB bool
		m, n, k        int
	}{{"scores", false, true, 64, 64, 256}, {"values", false, false, 64, 512, 64}, {"readout", false, false, 64, 512, 256}, {"update", true, false, 256, 512, 64}} {
		b.Run(g.name, func(b *testing.B) {
			r := rand.New(rand.NewPCG(1, 1))
			x, y, z := randomVector(r, g.m*g.k), randomVector(r, g.k*g.n), randomVector(r, g.m*g.n)
			lda, ldb := g.k, g.n
			if g.transA {
				lda = g.m
			}
			if g.transB {
				ldb = g.k
			}
			var s Scratch
			for b.Loop() {
				Gemm(g.transA, g.transB, g.m, g.n, g.k, 1, x, lda, y, ldb, 0, z, g.n, &s)
			}
			b.ReportMetric(2e-9*float64(g.m*g.n*g.k)*float64(b.N)/b.Elapsed().Seconds(), "GOP/s")
		})
	}
}

// BenchmarkStep is the step of the 7B model's heads: 256 x 512, over 128 MB of states.
func BenchmarkStep(b *testing.B) {
	const dk, dv, heads = 256, 512, 256
	r := rand.New(rand.NewPCG(1, 1))
	c := make([]float32, heads*dk*dv)
	k, q, v, h := randomVector(r, dk), randomVector(r, dk), randomVector(r, dv), make([]float32, 2*dv)
	b.SetBytes(int64(2 * 4 * len(c)))
	for b.Loop() {
		workers(heads, func(w, lo, hi int) {
			for i := lo; i < hi; i++ {
				MLSTMStep(c[i*dk*dv:(i+1)*dk*dv], dv, k, q, v, h[w%2*dv:][:dv], 0.9, 0.1)
			}
		})
	}
}

func BenchmarkVector(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 1))
	x, y, z := randomVector(r, 10944), randomVector(r, 10944), make([]float32, 10944)
	for _, op := range []struct {
		name string
		run  func()
	}{
		{"dot", func() { Dot(x, y) }},
		{"rmsnorm", func() { RMSNorm(z, x, 1e-6) }},
		{"layernorm", func() { LayerNorm(z, x, 1e-6) }},
		{"silumul", func() { SiluMul(z, x, y) }},
		{"softcap", func() { SoftCap(z, 30) }},
		{"logsumexp", func() { LogSumExp(x) }},
	} {
		b.Run(op.name, func(b *testing.B) {
			b.SetBytes(4 * 10944)
			for b.Loop() {
				op.run()
			}
		})
	}
	for _, e := range []string{"fp16", "int8", "int4"} {
		b.Run("prepare-"+e, func(b *testing.B) {
			var a Acts
			b.SetBytes(4 * 10944)
			for b.Loop() {
				a.Set(x, 10944, 1, 10944, mustEncoding(e))
			}
		})
	}
}
