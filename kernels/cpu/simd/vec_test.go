package simd

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

var lengths = []int{0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 1000}

// special values that gates may meet, beside random ones.
var special = []float32{0, float32(math.Copysign(0, -1)), 1, -1, 1e-30, -1e-30, 1e-8, 20, -20, 50, -50, 87, -87, 88.7, -88.7, 89, -89,
	100, -100, 104, -104, 500, -500, 1e10, -1e10, math.MaxFloat32, -math.MaxFloat32}

// gateInputs is n values: special ones, then random ones of several sizes.
func gateInputs(r *rand.Rand, n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		if i < len(special) {
			x[i] = special[i]
		} else {
			x[i] = float32(r.NormFloat64() * math.Pow(10, float64(i%4-1)))
		}
	}
	return x
}

func TestReductions(t *testing.T) {
	eachPath(t, func(t *testing.T, p *Path) {
		r := rand.New(rand.NewPCG(10, 1))
		for _, n := range lengths {
			x, y := randomVector(r, n), randomVector(r, n)
			var dot, size, sum, sumExp float64
			top := math.Inf(-1)
			for i := range x {
				dot += float64(x[i]) * float64(y[i])
				size += math.Abs(float64(x[i]) * float64(y[i]))
				sum += float64(x[i])
				sumExp += math.Exp(float64(x[i]))
				top = max(top, float64(x[i]))
			}
			checkClose(t, name("dot ", n), p.Dot(x, y), dot, size, 1e-6)
			if got, want := p.LogSumExp(x), math.Log(sumExp); got != want && !(math.Abs(got-want) <= 1e-6) {
				t.Errorf("log sum exp of %d: %v, expected %v", n, got, want)
			}
			if n == 0 {
				continue
			}
			if got := p.max(x); float64(got) != top {
				t.Errorf("max of %d: %v, expected %v", n, got, top)
			}
			mean, variance, squares := sum/float64(n), 0.0, 0.0
			for _, v := range x {
				variance += (float64(v) - mean) * (float64(v) - mean) / float64(n)
				squares += float64(v) * float64(v) / float64(n)
			}
			rms, layer := make([]float32, n), slices.Clone(x)
			p.RMSNorm(rms, x, 1e-6)
			p.LayerNorm(layer, layer, 1e-5)
			for i, v := range x {
				checkClose(t, name("rms norm ", n), rms[i], float64(v)/math.Sqrt(squares+1e-6), 1, 3e-6)
				checkClose(t, name("layer norm ", n), layer[i], (float64(v)-mean)/math.Sqrt(variance+1e-5), 1, 3e-5)
			}
		}
	})
}

// TestLayerNormOffset proves that the variance is taken about the mean: a large common offset must not drown it.
func TestLayerNormOffset(t *testing.T) {
	eachPath(t, func(t *testing.T, p *Path) {
		x := make([]float32, 512)
		for i := range x {
			x[i] = 1000 + float32(i%2) // mean 1000.5, standard deviation 0.5
		}
		p.LayerNorm(x, x, 0)
		for i, v := range x {
			checkClose(t, name("value ", i), v, float64(i%2*2-1), 1, 1e-3)
		}
	})
}

func TestElementwise(t *testing.T) {
	eachPath(t, func(t *testing.T, p *Path) {
		r := rand.New(rand.NewPCG(11, 1))
		for _, n := range lengths {
			x, y := gateInputs(r, n), randomVector(r, n)
			got := slices.Clone(y)
			p.Axpy(0.7, x, got)
			for i := range got {
				checkClose(t, name("axpy ", n), got[i], float64(y[i])+float64(float32(0.7))*float64(x[i]), math.Abs(float64(x[i]))+math.Abs(float64(y[i])), 1e-6)
			}
			got = slices.Clone(x)
			p.Scale(got, 0.3)
			for i := range got {
				if got[i] != 0.3*x[i] {
					t.Fatalf("scale: %v, expected %v", got[i], 0.3*x[i])
				}
			}
		}
	})
}

// checkGate compares with a relative tolerance, and an absolute one where exp(-x) overflows: a sigmoid below 1e-38 is zero.
func checkGate(t *testing.T, what string, x, got float32, want float64) {
	t.Helper()
	if w := float32(want); got == w || math.Abs(float64(got)-want) <= 5e-7*math.Abs(want)+1e-36 {
		return
	}
	t.Fatalf("%s of %v: %v, expected %v", what, x, got, want)
}

func TestGates(t *testing.T) {
	sigmoid := func(x float32) float64 { return 1 / (1 + math.Exp(-float64(x))) }
	eachPath(t, func(t *testing.T, p *Path) {
		r := rand.New(rand.NewPCG(12, 1))
		for _, n := range lengths {
			x, y := gateInputs(r, n), randomVector(r, n)
			got := slices.Clone(x)
			p.Sigmoid(got, got)
			for i, v := range x {
				checkGate(t, "sigmoid", v, got[i], sigmoid(v))
			}
			p.SigmoidMul(got, y, x)
			for i, v := range x {
				checkGate(t, "sigmoid product", v, got[i], float64(y[i])*sigmoid(v))
			}
			p.SiluMul(got, x, y)
			for i, v := range x {
				checkGate(t, "silu product", v, got[i], float64(y[i])*float64(v)*sigmoid(v))
			}
			copy(got, x)
			p.SoftCap(got, 15)
			for i, v := range x {
				checkGate(t, "soft cap", v, got[i], 15*math.Tanh(float64(v)))
			}
			copy(got, y)
			p.SigmoidMul(got, got, x)
			for i, v := range x {
				checkGate(t, "sigmoid product in place", v, got[i], float64(y[i])*sigmoid(v))
			}
		}
	})
}

// TestGatesDense goes over many inputs, small ones above all, where tanh must keep its relative precision.
func TestGatesDense(t *testing.T) {
	eachPath(t, func(t *testing.T, p *Path) {
		r := rand.New(rand.NewPCG(13, 1))
		x := make([]float32, 1<<16)
		for i := range x {
			x[i] = float32(r.NormFloat64() * math.Pow(10, r.Float64()*10-8))
		}
		got := slices.Clone(x)
		p.SoftCap(got, 1)
		for i, v := range x {
			checkGate(t, "tanh", v, got[i], math.Tanh(float64(v)))
		}
		p.Sigmoid(got, x)
		for i, v := range x {
			checkGate(t, "sigmoid", v, got[i], 1/(1+math.Exp(-float64(v))))
		}
	})
}

func TestGatesNaN(t *testing.T) {
	nan := float32(math.NaN())
	eachPath(t, func(t *testing.T, p *Path) {
		for _, n := range []int{1, 8, 40} {
			for at := range n {
				x, y := make([]float32, n), make([]float32, n)
				x[at] = nan
				for i := range y {
					y[i] = 1
				}
				check := func(what string, v []float32) {
					t.Helper()
					for i := range v {
						if isNaN := v[i] != v[i]; isNaN != (i == at) {
							t.Fatalf("%s of NaN at %d of %d: value %d is %v", what, at, n, i, v[i])
						}
					}
				}
				got := make([]float32, n)
				p.Sigmoid(got, x)
				check("sigmoid", got)
				p.SiluMul(got, x, y)
				check("silu", got)
				p.SigmoidMul(got, y, x)
				check("sigmoid product", got)
				copy(got, x)
				p.SoftCap(got, 30)
				check("soft cap", got)
				if v := p.LogSumExp(x); v == v {
					t.Fatalf("log sum exp of NaN at %d of %d is %v", at, n, v)
				}
			}
		}
	})
}

// TestLogSumExpLarge: logits far from zero neither overflow nor vanish.
func TestLogSumExpLarge(t *testing.T) {
	eachPath(t, func(t *testing.T, p *Path) {
		x := make([]float32, 50304)
		for _, base := range []float32{0, 1000, -1000} {
			for i := range x {
				x[i] = base
			}
			want := float64(base) + math.Log(float64(len(x)))
			if got := p.LogSumExp(x); !(math.Abs(got-want) < 1e-6*max(1, math.Abs(want))) {
				t.Errorf("base %v: %v, expected %v", base, got, want)
			}
		}
	})
}

func TestMLSTMStep(t *testing.T) {
	eachPath(t, func(t *testing.T, p *Path) {
		r := rand.New(rand.NewPCG(14, 1))
		for _, dk := range []int{1, 2, 3, 4, 5, 8, 9, 16, 31, 64} {
			for _, dv := range lengths {
				ldc := dv + 5
				c := randomVector(r, dk*ldc)
				before := slices.Clone(c)
				k, q, v := randomVector(r, dk), randomVector(r, dk), randomVector(r, dv)
				h := make([]float32, dv)
				for i := range h {
					h[i] = 99
				}
				a, b := float32(0.9), float32(0.2)
				p.MLSTMStep(c, ldc, k, q, v, h, a, b)
				for j := range dv {
					sum, size := 0.0, 0.0
					for i := range dk {
						want := float64(a)*float64(before[i*ldc+j]) + float64(b)*float64(k[i])*float64(v[j])
						checkClose(t, name("C ", dk, " ", dv), c[i*ldc+j], want, math.Abs(float64(before[i*ldc+j]))+math.Abs(float64(k[i]*v[j])), 1e-6)
						sum += float64(q[i]) * want
						size += math.Abs(float64(q[i]) * want)
					}
					checkClose(t, name("h ", dk, " ", dv), h[j], sum, size+1, 2e-6)
				}
				for i := range c {
					if i%ldc >= dv && c[i] != before[i] {
						t.Fatalf("dk %d, dv %d: wrote outside the columns", dk, dv)
					}
				}
			}
		}
	})
}

// TestMLSTMStepColumns proves that shares of the columns give the same as all of them, bit for bit, where they are multiples of 32.
func TestMLSTMStepColumns(t *testing.T) {
	eachPath(t, func(t *testing.T, p *Path) {
		r := rand.New(rand.NewPCG(15, 1))
		const dk, dv = 20, 256
		c := randomVector(r, dk*dv)
		parts := slices.Clone(c)
		k, q, v := randomVector(r, dk), randomVector(r, dk), randomVector(r, dv)
		h, hp := make([]float32, dv), make([]float32, dv)
		p.MLSTMStep(c, dv, k, q, v, h, 0.5, 2)
		for j := 0; j < dv; j += 32 {
			p.MLSTMStep(parts[j:], dv, k, q, v[j:j+32], hp[j:j+32], 0.5, 2)
		}
		checkSame(t, "C", parts, c)
		checkSame(t, "h", hp, h)
	})
}

func TestGemm(t *testing.T) {
	eachPath(t, func(t *testing.T, p *Path) {
		r := rand.New(rand.NewPCG(16, 1))
		var s Scratch
		for _, d := range [][3]int{{1, 1, 1}, {2, 3, 4}, {5, 33, 7}, {12, 32, 16}, {13, 31, 17}, {25, 64, 64}, {64, 64, 256}, {63, 130, 300}, {3, 257, 513}, {70, 5, 1}, {4, 4, 0}} {
			m, n, k := d[0], d[1], d[2]
			for bits := range 4 {
				for _, f := range [][2]float32{{1, 0}, {1, 1}, {0.5, -2}} {
					for _, s.Exact = range []bool{false, true} {
						testGemm(t, p, r, &s, bits&1 != 0, bits&2 != 0, m, n, k, f[0], f[1])
					}
				}
			}
		}
	})
}

func testGemm(t *testing.T, p *Path, r *rand.Rand, s *Scratch, transA, transB bool, m, n, k int, alpha, beta float32) {
	lda, ldb, ldc := k+2, n+1, n+3
	a, b, c := randomVector(r, max(m, k)*(max(m, k)+2)), randomVector(r, (max(n, k)+1)*(max(n, k)+1)), randomVector(r, m*ldc)
	if transA {
		lda = m + 2
	}
	if transB {
		ldb = k + 1
	}
	if beta == 0 {
		for i := range c {
			c[i] = float32(math.NaN()) // must not be read
		}
	}
	before := slices.Clone(c)
	tolerance := 2e-6
	if s.Exact {
		tolerance = 2e-7
	}
	p.Gemm(transA, transB, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, s)
	for i := range m {
		for j := range ldc {
			if j >= n {
				if v, w := c[i*ldc+j], before[i*ldc+j]; v != w && w == w {
					t.Fatalf("%d %d %d: wrote behind a row", m, n, k)
				}
				continue
			}
			sum, size := 0.0, 0.0
			for l := range k {
				ai, bi := i*lda+l, l*ldb+j
				if transA {
					ai = l*lda + i
				}
				if transB {
					bi = j*ldb + l
				}
				product := float64(a[ai]) * float64(b[bi])
				sum += product
				size += math.Abs(product)
			}
			sum *= float64(alpha)
			if beta != 0 {
				sum += float64(beta) * float64(before[i*ldc+j])
				size += math.Abs(float64(beta * before[i*ldc+j]))
			}
			checkClose(t, name("gemm ", transA, transB, " ", m, " ", n, " ", k), c[i*ldc+j], sum, size, tolerance)
		}
	}
}

func TestStreamRead(t *testing.T) {
	eachPath(t, func(t *testing.T, p *Path) {
		b := make([]byte, 1<<13)
		r := rand.New(rand.NewPCG(17, 1))
		for i := range b {
			b[i] = byte(r.IntN(256))
		}
		for _, n := range []int{0, 1, 31, 32, 33, 255, 1000, 4096, 5001, 1 << 13} {
			// Every byte counts: a change of any one changes the sum.
			whole := p.streamRead(b[:n])
			for range 50 {
				if n == 0 {
					break
				}
				i := r.IntN(n)
				b[i]++
				if p.streamRead(b[:n]) == whole {
					t.Fatalf("%d bytes: byte %d was not read", n, i)
				}
				b[i]--
			}
		}
	})
}

func TestChoose(t *testing.T) {
	ps := Paths()
	if got := choose("generic", ps); got.Name() != "generic" {
		t.Errorf("generic: got %s", got.Name())
	}
	for _, s := range []string{"", "nonsense"} {
		if got := choose(s, ps); got != ps[len(ps)-1] {
			t.Errorf("%q: got %s, expected the best", s, got.Name())
		}
	}
}
