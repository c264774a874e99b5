package simd

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"xlstm/format"
)

var shapes = []struct{ rows, cols int }{
	{1, 32}, {2, 1}, {3, 33}, {4, 64}, {5, 95}, {6, 96}, {7, 128}, {8, 160}, {9, 255}, {4, 256}, {4, 257}, {13, 320}, {33, 416},
	{65, 544}, {10, 1056}, {5, 1090}, {6, 2080}, {2, 4096}, {9, 4384}, {1, 10944},
}

var batches = []int{1, 2, 3, 5, 8, 16, 17, 25, 32, 33, 65}

// TestMul holds every path, shape and batch against float64 over the decoded weights and the quantized activations.
func TestMul(t *testing.T) {
	eachPath(t, func(t *testing.T, p *Path) {
		for _, e := range encodings {
			t.Run(e, func(t *testing.T) { testMul(t, p, mustEncoding(e)) })
		}
	})
}

func testMul(t *testing.T, p *Path, enc format.Encoding) {
	r := rand.New(rand.NewPCG(1, uint64(enc.Group)))
	var a Acts
	var s Scratch
	tolerance := 2e-6
	if enc.Kind == format.FP32 {
		tolerance = 2e-7 // sums in float64, rounded at the end and each 256 terms
	}
	for _, shape := range shapes {
		m := randomMatrix(r, enc, shape.rows, shape.cols)
		if err := m.Check(); err != nil {
			t.Fatal(err)
		}
		const distinct = 5 // vectors: batches repeat them
		x := randomVector(r, distinct*shape.cols)
		want, size := make([][]float64, distinct), make([][]float64, distinct)
		for i := range want {
			want[i], size[i] = product(m, quantized(enc, x[i*shape.cols:(i+1)*shape.cols]))
		}
		for range batches[len(batches)-1] / distinct {
			x = append(x, x[:distinct*shape.cols]...)
		}
		for _, n := range batches {
			p.resizeAndSet(&a, x, shape.cols, n, enc)
			ldd := shape.rows + 3
			dst := make([]float32, n*ldd)
			p.Mul(m, dst, ldd, &a, 0, shape.rows, &s)
			sum := randomVector(r, n*ldd)
			before := append([]float32(nil), sum...)
			p.MulAdd(m, sum, ldd, &a, 0, shape.rows, &s)
			for i := range n {
				for j := range shape.rows {
					at := func() string {
						return fmt.Sprintf("%d x %d, vector %d of %d, row %d", shape.rows, shape.cols, i, n, j)
					}
					checkClose(t, at, dst[i*ldd+j], want[i%distinct][j], size[i%distinct][j], tolerance)
					if sum[i*ldd+j] != before[i*ldd+j]+dst[i*ldd+j] {
						t.Fatalf("%s: MulAdd is %v, expected %v + %v", at(), sum[i*ldd+j], before[i*ldd+j], dst[i*ldd+j])
					}
				}
				for j := shape.rows; j < ldd; j++ {
					if dst[i*ldd+j] != 0 || sum[i*ldd+j] != before[i*ldd+j] {
						t.Fatalf("%d x %d, vector %d of %d: wrote behind the last row", shape.rows, shape.cols, i, n)
					}
				}
			}
		}
	}
}

func (p *Path) resizeAndSet(a *Acts, x []float32, cols, n int, enc format.Encoding) {
	a.Resize(n, cols, enc)
	for i := range n {
		p.SetRow(a, i, x[i*cols:(i+1)*cols])
	}
}

// TestMulSplit proves that a result depends neither on how rows are shared out nor, within one way, on the number of vectors.
func TestMulSplit(t *testing.T) {
	eachPath(t, func(t *testing.T, p *Path) {
		r := rand.New(rand.NewPCG(2, 2))
		for _, e := range encodings {
			enc := mustEncoding(e)
			const rows, cols = 75, 608
			m := randomMatrix(r, enc, rows, cols)
			x := randomVector(r, 40*cols)
			var first [2][]float32 // of the two ways
			for _, n := range []int{40, 17, 33, 16, 1, 3} {
				var a Acts
				var s Scratch
				p.resizeAndSet(&a, x, cols, n, enc)
				whole, parts := make([]float32, n*rows), make([]float32, n*rows)
				p.Mul(m, whole, rows, &a, 0, rows, &s)
				for r0 := 0; r0 < rows; {
					r1 := min(r0+1+r.IntN(40), rows)
					p.Mul(m, parts, rows, &a, r0, r1, &s)
					r0 = r1
				}
				way := 0
				if n > SmallBatch(enc) {
					way = 1
				}
				if first[way] == nil {
					first[way] = whole
				}
				for i, v := range whole {
					if parts[i] != v {
						t.Fatalf("%s: %d vectors: row %d depends on the share of rows: %v and %v", e, n, i%rows, parts[i], v)
					}
					if first[way][i] != v {
						t.Fatalf("%s: vector %d: row %d depends on the number of vectors %d: %v and %v", e, i/rows, i%rows, n, first[way][i], v)
					}
				}
			}
		}
	})
}

// TestMulExtremes proves that integer sums do not overflow and that scales and offsets of any size come through.
func TestMulExtremes(t *testing.T) {
	eachPath(t, func(t *testing.T, p *Path) {
		const rows, cols = 5, 1024
		for _, e := range encodings {
			enc := mustEncoding(e)
			if enc.Kind != format.Int8 && enc.Kind != format.Int4 {
				continue
			}
			for _, value := range []int{-127, 127} {
				m := randomMatrix(rand.New(rand.NewPCG(3, 3)), enc, rows, cols)
				for i := range m.Values {
					switch {
					case enc.Kind == format.Int8:
						m.Values[i] = byte(value)
					case value > 0:
						m.Values[i] = 0xff
					default:
						m.Values[i] = 0
					}
				}
				for _, size := range []float32{1e-28, 1, -1, 1e20} {
					x := make([]float32, cols)
					for i := range x {
						x[i] = size // each is quantized to the largest integer
					}
					want, sums := product(m, quantized(enc, x))
					for _, n := range []int{1, 3, 20} {
						var a Acts
						var s Scratch
						a.Resize(n, cols, enc)
						for i := range n {
							p.SetRow(&a, i, x)
						}
						dst := make([]float32, n*rows)
						p.Mul(m, dst, rows, &a, 0, rows, &s)
						for i, v := range dst {
							at := func() string { return fmt.Sprintf("%s, %d vectors, weights %d, activations %g", e, n, value, size) }
							checkClose(t, at, v, want[i%rows], sums[i%rows], 2e-6)
						}
					}
				}
			}
		}
	})
}

// TestMulNotFinite proves that what is not finite in a vector shows in its products, and in no other vector's.
func TestMulNotFinite(t *testing.T) {
	eachPath(t, func(t *testing.T, p *Path) {
		r := rand.New(rand.NewPCG(4, 4))
		for _, e := range encodings {
			for _, bad := range []float64{math.NaN(), math.Inf(1), math.Inf(-1)} {
				for _, n := range []int{1, 2, 20} {
					const rows, cols = 6, 300
					m := randomMatrix(r, mustEncoding(e), rows, cols)
					x := randomVector(r, n*cols)
					x[r.IntN(cols)] = float32(bad)
					var a Acts
					var s Scratch
					p.resizeAndSet(&a, x, cols, n, m.Enc)
					dst := make([]float32, n*rows)
					p.Mul(m, dst, rows, &a, 0, rows, &s)
					for i, v := range dst {
						if finite := v-v == 0; finite != (i >= rows) {
							t.Fatalf("%s: %v in vector 0: vector %d of %d has %v", e, bad, i/rows, n, v)
						}
					}
				}
			}
		}
	})
}

// TestActsError bounds the error of quantized activations by half a step, of which a block's largest magnitude has wordMax or byteMax:
// a 65278th or a 254th of it, and a little for the rounding of products and scales in float32.
func TestActsError(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	for _, e := range []string{"int8", "int4g32", "int4g64", "int8g128"} {
		enc := mustEncoding(e)
		x := randomVector(r, 1000)
		for i := range x {
			x[i] *= float32(math.Exp(10 * r.NormFloat64()))
		}
		block := enc.Group
		if block == 0 {
			block = actBlock
		}
		part := 65245.
		if enc.Kind == format.Int4 {
			part = 253.9
		}
		y := quantized(enc, x)
		for i := range x {
			top := float32(0)
			for _, v := range x[i/block*block : min(i/block*block+block, len(x))] {
				top = max(top, float32(math.Abs(float64(v))))
			}
			if d := math.Abs(float64(x[i] - y[i])); d > float64(top)/part {
				t.Fatalf("%s: value %d of %v became %v in a block of up to %v", e, i, x[i], y[i], top)
			}
		}
	}
}

// TestPrepare holds the paths' quantized activations against the plain path's, bit for bit.
func TestPrepare(t *testing.T) {
	plain := genericPath()
	eachPath(t, func(t *testing.T, p *Path) {
		r := rand.New(rand.NewPCG(6, 6))
		for _, e := range encodings {
			for _, cols := range []int{1, 31, 32, 100, 255, 256, 257, 512, 1000} {
				for _, n := range []int{1, SmallBatch(mustEncoding(e)) + 1} {
					x := randomVector(r, n*cols)
					for i := range x {
						x[i] *= float32(math.Exp(4 * r.NormFloat64()))
						if r.IntN(20) == 0 {
							x[i] = 0
						}
					}
					if cols > 300 {
						clear(x[:256])
						x[260] = 1e-35
					}
					var a, b Acts
					p.resizeAndSet(&a, x, cols, n, mustEncoding(e))
					plain.resizeAndSet(&b, x, cols, n, mustEncoding(e))
					checkSame(t, name(e, " words ", cols)(), a.words, b.words)
					checkSame(t, name(e, " bytes ", cols)(), a.bytes, b.bytes)
					checkSame(t, name(e, " starts ", cols)(), a.starts, b.starts)
					checkSame(t, name(e, " scales ", cols)(), a.s, b.s)
					checkSame(t, name(e, " floats ", cols)(), a.f, b.f)
					checkSame(t, name(e, " sums ", cols)(), a.sums, b.sums)
				}
			}
		}
	})
}

func checkSame[T int8 | int16 | int32 | float32](t *testing.T, what string, got, want []T) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d, expected %d", what, len(got), len(want))
	}
	for i, v := range got {
		if v != want[i] {
			t.Fatalf("%s: number %d is %v, expected %v", what, i, v, want[i])
		}
	}
}

func TestCheck(t *testing.T) {
	for _, e := range encodings {
		m := newMatrix(mustEncoding(e), 7, 100)
		if err := m.Check(); err != nil {
			t.Error(err)
		}
		m.Values = m.Values[1:]
		if m.Check() == nil {
			t.Errorf("%s: missing values went unnoticed", e)
		}
		m = newMatrix(mustEncoding(e), 7, 100)
		if len(m.Scales) > 0 {
			m.Scales = m.Scales[1:]
			if m.Check() == nil {
				t.Errorf("%s: missing scales went unnoticed", e)
			}
		}
	}
}

// TestMulAllocates proves that products in steady state allocate nothing.
func TestMulAllocates(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	for _, e := range encodings {
		for _, n := range []int{1, 8, 20} {
			const rows, cols = 40, 300
			m := randomMatrix(r, mustEncoding(e), rows, cols)
			x := randomVector(r, n*cols)
			dst := make([]float32, n*rows)
			var a Acts
			var s Scratch
			if got := testing.AllocsPerRun(5, func() {
				a.Set(x, cols, n, cols, m.Enc)
				m.Mul(dst, rows, &a, 0, rows, &s)
			}); got != 0 {
				t.Errorf("%s, %d vectors: %v allocations", e, n, got)
			}
		}
	}
}
