package main

import (
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"

	"xlstm/format"
	"xlstm/kernels/cpu/simd"
)

// metric is a ratio: how fast the first loop was, as a part of how fast the second was at the same amount of work.
type metric struct {
	name, what string
	make       func(worker int) (loop, reference func(turn int))
	factor     float64 // what the ratio of times is multiplied by
}

func metrics() []metric {
	var all []metric
	for _, e := range []string{"fp32", "fp16", "bf16", "int8", "int8g64", "int4", "int4g32", "int4g64a"} {
		all = append(all, metric{"decode/" + e, "of reading the same bytes", decode(e, 4096), 1})
	}
	for _, e := range []string{"fp16", "int8", "int4"} {
		all = append(all, metric{"decode-10944/" + e, "of reading the same bytes", decode(e, 10944), 1})
	}
	for _, e := range []string{"fp16", "int8", "int4"} {
		for _, n := range []int{4, 16} {
			all = append(all, batch(e, n))
		}
	}
	for _, e := range []string{"fp16", "int8", "int4"} {
		all = append(all, metric{"prompt/" + e, "of the peak of its arithmetic", prompt(e), 1})
	}
	return append(all, metric{"state", "of reading the same bytes, which it writes back, too", state, 1})
}

// measure runs both loops by turns on all workers and gives the median of all ratios of times.
func (m *metric) measure(turns int) float64 {
	var ratios []float64
	var lock sync.Mutex
	var all sync.WaitGroup
	for w := range runtime.GOMAXPROCS(0) {
		all.Go(func() {
			runtime.LockOSThread()
			loop, reference := m.make(w)
			loop(0)
			reference(0)
			for turn := range turns {
				t0 := seconds()
				loop(turn)
				t1 := seconds()
				reference(turn)
				t2 := seconds()
				lock.Lock()
				ratios = append(ratios, m.factor*(t2-t1)/(t1-t0))
				lock.Unlock()
			}
		})
	}
	all.Wait()
	slices.Sort(ratios)
	return ratios[len(ratios)/2]
}

const (
	arena = 96 << 20 // bytes of a worker's weights: no cache holds them
	part  = 8 << 20  // bytes that a turn takes of them
)

// weights fills a matrix of at least the given size of values with numbers without meaning, finite in every encoding.
func weights(e string, cols, size int) *simd.Matrix {
	enc, err := format.ParseEncoding(e)
	if err != nil {
		panic(err) // the names stand above
	}
	rows := max(32, size/int(enc.ValueRowBytes(cols))&^31)
	s := enc.Sizes(rows, cols)
	m := &simd.Matrix{Enc: enc, Rows: rows, Cols: cols}
	m.Values = noise(int64(rows) * s.ValueRow)
	m.Scales = noise(int64(rows) * s.ScaleRow)
	m.Mins = noise(int64(rows) * s.MinRow)
	return m
}

// noise is bytes of which any two, four or eight are a float of moderate size.
func noise(n int64) []byte {
	r := rand.New(rand.NewPCG(1, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
		if i%2 == 1 {
			b[i] = b[i]&0x83 | 0x2c
		}
	}
	return b
}

func vector(n int) []float32 {
	r := rand.New(rand.NewPCG(2, 2))
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	return x
}

// product is one worker's matrix and its product with n vectors, a part of the rows a turn.
type product struct {
	m       *simd.Matrix
	acts    simd.Acts
	dst     []float32
	scratch simd.Scratch
	rows    int // of a part
}

func newProduct(e string, cols, size, bytes, n int) *product {
	p := &product{m: weights(e, cols, size)}
	p.acts.Set(vector(n*cols), cols, n, cols, p.m.Enc)
	p.dst = make([]float32, n*p.m.Rows)
	p.rows = min(max(32, bytes/int(p.m.Enc.ValueRowBytes(cols))&^31), p.m.Rows)
	return p
}

// first is the first row of a turn's part.
func (p *product) first(turn int) int { return turn % (p.m.Rows / p.rows) * p.rows }

func (p *product) run(turn int) {
	r := p.first(turn)
	p.m.Mul(p.dst, p.m.Rows, &p.acts, r, r+p.rows, &p.scratch)
}

// read reads what run reads, half the matrix further on.
func (p *product) read(turn int) {
	r := p.first(turn + p.m.Rows/p.rows/2)
	for _, b := range [][]byte{p.m.Values, p.m.Scales, p.m.Mins} {
		row := len(b) / p.m.Rows
		simd.StreamRead(b[r*row : (r+p.rows)*row])
	}
}

func decode(e string, cols int) func(int) (func(int), func(int)) {
	return func(int) (func(int), func(int)) {
		p := newProduct(e, cols, arena, part, 1)
		return p.run, p.read
	}
}

// batch compares n vectors together with one: n times the one's time, as a multiple of theirs.
func batch(e string, n int) metric {
	return metric{
		name: "batch" + map[int]string{4: "4", 16: "16"}[n] + "/" + e, what: "times as fast as one after the other", factor: float64(n),
		make: func(int) (func(int), func(int)) {
			many := newProduct(e, 4096, arena, part, n)
			one := newProduct(e, 4096, arena, part, 1)
			one.m = many.m
			return many.run, func(turn int) { one.run(turn + one.m.Rows/one.rows/2) }
		},
	}
}

// prompt is a product of 128 vectors beside as many operations of the kind that it consists of, in registers.
func prompt(e string) func(int) (func(int), func(int)) {
	return func(int) (func(int), func(int)) {
		const n = 128
		p := newProduct(e, 4096, 1<<20, 1<<20, n)
		operations := 2 * p.rows * p.m.Cols * n
		peak := simd.PeakFloat
		switch p.m.Enc.Kind {
		case format.Int8:
			peak = simd.PeakWords
		case format.Int4:
			peak = simd.PeakBytes
		}
		return p.run, func(int) { peak(operations) }
	}
}

// state is the mLSTM step of one head a turn, beside reading its matrix.
func state(int) (func(int), func(int)) {
	const dk, dv, heads = 256, 512, 64
	c := make([]float32, heads*dk*dv)
	asBytes := noise(int64(4 * len(c)))
	k, q, v, h := vector(dk), vector(dk), vector(dv), make([]float32, dv)
	return func(turn int) {
			for i := range 8 {
				at := (8*turn + i) % heads * dk * dv
				simd.MLSTMStep(c[at:at+dk*dv], dv, k, q, v, h, 0.9, 0.1)
			}
		}, func(turn int) {
			for i := range 8 {
				at := (8*turn + i) % heads * 4 * dk * dv
				simd.StreamRead(asBytes[at : at+4*dk*dv])
			}
		}
}
