package quantize

import (
	"fmt"
	"math"
	"testing"
)

func mustRotate(t testing.TB, width int, seed uint64) *Rotation {
	t.Helper()
	r, err := NewRotation(width, seed)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// matrixOf applies r to the unit vectors.
func matrixOf(r *Rotation) []float64 {
	n := r.Width()
	m := make([]float64, n*n) // row i is R e_i: column i of R
	for i := range n {
		m[i*n+i] = 1
		r.Apply(m[i*n : (i+1)*n])
	}
	return m
}

func TestRotationIsOrthogonal(t *testing.T) {
	for _, n := range []int{1, 2, 3, 5, 8, 12, 15, 48, 64, 96, 160, 344} {
		m := matrixOf(mustRotate(t, n, 42))
		for i := range n {
			for j := range n {
				want := 0.0
				if i == j {
					want = 1
				}
				if d := dot(m[i*n:(i+1)*n], m[j*n:(j+1)*n]); math.Abs(d-want) > 1e-13 {
					t.Fatalf("width %d: columns %d and %d have product %v", n, i, j, d)
				}
			}
		}
	}
}

func TestRotationSpreadsOutliers(t *testing.T) {
	for _, n := range []int{64, 96, 1024, 1536} {
		r := mustRotate(t, n, 1)
		x := make([]float64, n)
		x[n/3] = 1
		r.Apply(x)
		top := 0.0
		for _, v := range x {
			top = max(top, math.Abs(v))
		}
		// For powers of two every component is 1/sqrt(n); Q, orthogonal too, makes some larger.
		if limit := math.Sqrt(float64(r.odd)) / math.Sqrt(float64(n)) * (1 + 1e-9); top > limit {
			t.Errorf("width %d: component of %v, expected at most %v", n, top, limit)
		}
	}
}

func TestRotationIsItsSeed(t *testing.T) {
	a, b, c := matrixOf(mustRotate(t, 48, 7)), matrixOf(mustRotate(t, 48, 7)), matrixOf(mustRotate(t, 48, 8))
	same := 0
	for i := range a {
		if a[i] != b[i] {
			t.Fatal("one seed, two rotations")
		}
		if a[i] == c[i] {
			same++
		}
	}
	if same == len(a) {
		t.Error("two seeds, one rotation")
	}
}

// What rotation is for: W' = W R^T reads R x as W reads x, and V' = R V writes R y where V writes y.
func TestRotationSides(t *testing.T) {
	for _, n := range []int{48, 64} {
		const m = 5
		r := mustRotate(t, n, 3)
		w := gaussian(1, m*n, 1)
		x := gaussian(2, n, 1)
		rx := make([]float64, n)
		for i, v := range x {
			rx[i] = float64(v)
		}
		r.Apply(rx)

		reads := append([]float32(nil), w...)
		r.ApplyRight(reads, m)
		for i := range m {
			want, got := 0.0, 0.0
			for j := range n {
				want += float64(w[i*n+j]) * float64(x[j])
				got += float64(reads[i*n+j]) * rx[j]
			}
			if math.Abs(want-got) > 1e-5 {
				t.Errorf("width %d: row %d gives %v, expected %v", n, i, got, want)
			}
		}

		writes := append([]float32(nil), w...) // [n, m]
		r.ApplyLeft(writes, m)
		for c := range m {
			y := make([]float64, n)
			for i := range y {
				y[i] = float64(w[i*m+c])
			}
			r.Apply(y)
			for i, v := range y {
				if math.Abs(v-float64(writes[i*m+c])) > 1e-6 {
					t.Fatalf("width %d: column %d, row %d is %v, expected %v", n, c, i, writes[i*m+c], v)
				}
			}
		}

		wide := gaussian(4, m*(n+9), 1)
		turned := append([]float32(nil), wide...)
		r.ApplyRightAt(turned, m, n+9, 4)
		for i := range m {
			part := append([]float32(nil), wide[i*(n+9)+4:][:n]...)
			r.ApplyRight(part, 1)
			for j := range n + 9 {
				want := wide[i*(n+9)+j]
				if j >= 4 && j < 4+n {
					want = part[j-4]
				}
				if got := turned[i*(n+9)+j]; got != want {
					t.Fatalf("width %d: row %d, column %d is %v, expected %v", n, i, j, got, want)
				}
			}
		}
	}
}

func TestRotationErrors(t *testing.T) {
	for _, n := range []int{0, -4, 1027, 2 * 4099} {
		if _, err := NewRotation(n, 1); err == nil {
			t.Errorf("width %d: no error", n)
		}
	}
}

func BenchmarkRotation(b *testing.B) {
	for _, n := range []int{256, 344, 4096, 10944} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			r := mustRotate(b, n, 1)
			w := gaussian(1, n, 1)
			b.SetBytes(int64(4 * n))
			for b.Loop() {
				r.ApplyRight(w, 1)
			}
		})
	}
}
