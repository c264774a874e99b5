package simd

import (
	"math/rand/v2"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// guarded is a copy of b that ends, less slack bytes, where memory that faults begins.
func guarded(t *testing.T, b []byte, slack int) []byte {
	t.Helper()
	page := os.Getpagesize()
	size := (len(b) + slack + page - 1) / page * page
	mem, err := unix.Mmap(-1, 0, size+page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() {
		if err := unix.Munmap(mem); err != nil {
			t.Error(err)
		}
	})
	if err := unix.Mprotect(mem[size:], unix.PROT_NONE); err != nil {
		t.Skip(err)
	}
	end := size - slack
	copy(mem[end-len(b):end], b)
	return mem[end-len(b) : end : end]
}

func guardedFloats(t *testing.T, x []float32) []float32 {
	t.Helper()
	b := guarded(t, unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(x))), 4*len(x)), 0)
	return unsafe.Slice((*float32)(unsafe.Pointer(unsafe.SliceData(b))), len(x))
}

// TestMulReadsWithin proves that products read nothing behind a matrix's parts, and that those may stand at any address.
func TestMulReadsWithin(t *testing.T) {
	eachPath(t, func(t *testing.T, p *Path) {
		r := rand.New(rand.NewPCG(20, 1))
		for _, e := range encodings {
			for _, shape := range [][2]int{{1, 32}, {3, 96}, {5, 160}, {6, 300}, {33, 64}, {5, 1088}} {
				m := randomMatrix(r, mustEncoding(e), shape[0], shape[1])
				x := randomVector(r, 20*m.Cols)
				for _, n := range []int{1, 2, 5, 20} {
					var want []float32
					for _, slack := range []int{0, 3} {
						g := *m
						if slack == 0 {
							g.Values, g.Scales, g.Mins = guarded(t, m.Values, 0), guarded(t, m.Scales, 0), guarded(t, m.Mins, 0)
						} else {
							g.Values, g.Scales, g.Mins = guarded(t, m.Values, slack), guarded(t, m.Scales, slack), guarded(t, m.Mins, slack)
						}
						var a Acts
						var s Scratch
						a.Resize(n, m.Cols, m.Enc)
						for i := range n {
							p.SetRow(&a, i, guardedFloats(t, x[i*m.Cols:(i+1)*m.Cols]))
						}
						dst := guardedFloats(t, make([]float32, n*m.Rows))
						p.Mul(&g, dst, m.Rows, &a, 0, m.Rows, &s)
						if want == nil {
							want = dst
						}
						checkSame(t, name(e, " at odd addresses")(), dst, want)
					}
				}
			}
		}
	})
}

// TestVectorsReadWithin does the same for the other operations.
func TestVectorsReadWithin(t *testing.T) {
	eachPath(t, func(t *testing.T, p *Path) {
		r := rand.New(rand.NewPCG(21, 1))
		for _, n := range lengths[1:] {
			x, y := guardedFloats(t, randomVector(r, n)), guardedFloats(t, randomVector(r, n))
			dst := guardedFloats(t, make([]float32, n))
			p.Dot(x, y)
			p.LogSumExp(x)
			p.Axpy(2, x, dst)
			p.Scale(dst, 3)
			p.RMSNorm(dst, x, 1e-6)
			p.LayerNorm(dst, x, 1e-6)
			p.Sigmoid(dst, x)
			p.SigmoidMul(dst, x, y)
			p.SiluMul(dst, x, y)
			p.SoftCap(dst, 30)
			for _, dk := range []int{1, 4, 7} {
				k, q := guardedFloats(t, randomVector(r, dk)), guardedFloats(t, randomVector(r, dk))
				c := guardedFloats(t, randomVector(r, dk*n))
				p.MLSTMStep(c, n, k, q, x, dst, 0.5, 1)
			}
			var s Scratch
			for bits := range 4 {
				const m, k = 5, 9
				a, b, c := guardedFloats(t, randomVector(r, m*k)), guardedFloats(t, randomVector(r, k*n)), guardedFloats(t, make([]float32, m*n))
				lda, ldb := k, n
				if bits&1 != 0 {
					lda = m
				}
				if bits&2 != 0 {
					ldb = k
				}
				p.Gemm(bits&1 != 0, bits&2 != 0, m, n, k, 1, a, lda, b, ldb, 0, c, n, &s)
			}
			if b := guarded(t, make([]byte, n), 0); p.streamRead(b) != 0 {
				t.Fatalf("sum of %d zeros is not zero", n)
			}
		}
	})
}
