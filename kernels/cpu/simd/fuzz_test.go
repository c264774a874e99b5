package simd

import (
	"math"
	"math/rand/v2"
	"testing"
)

// FuzzMul holds every path's products against the plain path's, for any encoding, shape, share of rows and distribution of
// magnitudes.
func FuzzMul(f *testing.F) {
	for i := range encodings {
		f.Add(uint64(i), uint8(i), uint8(5), uint16(100), uint8(1), uint8(2))
		f.Add(uint64(i), uint8(i), uint8(40), uint16(700), uint8(20), uint8(9))
	}
	f.Fuzz(func(t *testing.T, seed uint64, e, rows uint8, cols uint16, n, spread uint8) {
		if rows == 0 || cols == 0 || cols > 1500 || n == 0 || n > 40 {
			return
		}
		r := rand.New(rand.NewPCG(seed, 0))
		m := randomMatrix(r, mustEncoding(encodings[int(e)%len(encodings)]), int(rows), int(cols))
		x := randomVector(r, int(n)*m.Cols)
		for i := range x {
			x[i] *= float32(math.Exp(r.NormFloat64() * float64(spread%32) / 4))
		}
		r0 := r.IntN(m.Rows)
		r1 := r0 + 1 + r.IntN(m.Rows-r0)
		results := make([][]float32, 0, 3)
		for _, p := range Paths() {
			var a Acts
			var s Scratch
			p.resizeAndSet(&a, x, m.Cols, int(n), m.Enc)
			dst := make([]float32, int(n)*m.Rows)
			p.Mul(m, dst, m.Rows, &a, r0, r1, &s)
			results = append(results, dst)
		}
		for i := range int(n) {
			_, size := product(m, x[i*m.Cols:(i+1)*m.Cols])
			for j := range m.Rows {
				want := results[0][i*m.Rows+j]
				for k, got := range results {
					checkClose(t, name(Paths()[k].Name(), " ", m.Enc, " ", rows, "x", cols, " vector ", i, "/", n, " row ", j), got[i*m.Rows+j], float64(want), size[j], 4e-6)
				}
			}
		}
	})
}

// FuzzGates holds the gates of every path against the plain path's, for any bits.
func FuzzGates(f *testing.F) {
	for _, v := range special {
		f.Add(math.Float32bits(v), math.Float32bits(1))
	}
	f.Add(uint32(0x7fc00000), uint32(1))
	f.Add(uint32(0x7f800000), uint32(0xff800000))
	f.Fuzz(func(t *testing.T, u, v uint32) {
		x, y := math.Float32frombits(u), math.Float32frombits(v)
		for _, p := range Paths()[1:] {
			for what, op := range map[string]func(p *Path, dst, x, y []float32){
				"sigmoid product": func(p *Path, dst, x, y []float32) { p.SigmoidMul(dst, y, x) },
				"silu product":    func(p *Path, dst, x, y []float32) { p.SiluMul(dst, x, y) },
				"soft cap": func(p *Path, dst, x, y []float32) {
					dst[0] = x[0]
					p.SoftCap(dst, 15)
				},
			} {
				var got, want [1]float32
				op(p, got[:], []float32{x}, []float32{y})
				op(Paths()[0], want[:], []float32{x}, []float32{y})
				g, w := float64(got[0]), float64(want[0])
				limit := 1e-6*math.Abs(w) + 1e-36*(1+math.Abs(float64(x)*float64(y))+math.Abs(float64(y)))
				if same := g == w || g != g && w != w; !same && !(math.Abs(g-w) <= limit) {
					t.Fatalf("%s: %s of %v, %v: %v, expected %v", p.Name(), what, x, y, g, w)
				}
			}
		}
	})
}
