package quantize

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"xlstm/format"
)

// correlated makes n inputs of cols values that share few common causes, as activations do.
func correlated(seed uint64, n, cols int) []float32 {
	rng := rand.New(rand.NewPCG(seed, 2))
	const causes = 12
	mix := make([]float64, causes*cols)
	for i := range mix {
		mix[i] = rng.NormFloat64()
	}
	x := make([]float32, n*cols)
	for i := range n {
		var z [causes]float64
		for k := range z {
			z[k] = rng.NormFloat64()
		}
		for j := range cols {
			v := 0.3 * rng.NormFloat64()
			for k, u := range z {
				v += u * mix[k*cols+j]
			}
			x[i*cols+j] = float32(v)
		}
	}
	return x
}

func momentsOf(t testing.TB, x []float32, n, cols int) *Moments {
	t.Helper()
	m := NewMoments(cols)
	if err := m.Add(x, n); err != nil {
		t.Fatal(err)
	}
	return m
}

func compensatorOf(t testing.TB, m *Moments, opt CompensatorOptions) *Compensator {
	t.Helper()
	c, err := NewCompensator(m, opt)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// outputError is the mean square of (w - y) X over rows, from the inputs themselves.
func outputError(w, y, x []float32, rows, n, cols int) float64 {
	total := 0.0
	for r := range rows {
		for i := range n {
			d := 0.0
			for j := range cols {
				d += float64(w[r*cols+j]-y[r*cols+j]) * float64(x[i*cols+j])
			}
			total += d * d
		}
	}
	return total / float64(n*rows)
}

func TestMoments(t *testing.T) {
	const n, cols = 150, 70
	x := correlated(1, n, cols)
	m := momentsOf(t, x[:100*cols], 100, cols)
	if err := m.Add(x[100*cols:], 50); err != nil {
		t.Fatal(err)
	}
	if m.Count() != n || m.Cols() != cols {
		t.Fatalf("%d inputs of %d", m.Count(), m.Cols())
	}
	e := gaussian(5, cols, 1)
	quad := 0.0
	for i := range cols {
		for j := i; j < cols; j++ {
			want := 0.0
			for k := range n {
				want += float64(x[k*cols+i]) * float64(x[k*cols+j])
			}
			if got := float64(m.sum[i*cols+j]); math.Abs(got-want) > 1e-6*m.diag[i]+1e-4 {
				t.Fatalf("moment %d, %d is %v, expected %v", i, j, got, want)
			}
			if i == j {
				quad += want * float64(e[i]) * float64(e[i]) / n
				if w := float64(m.Weights()[i]); math.Abs(w-want/n) > 1e-5*want {
					t.Fatalf("weight %d is %v, expected %v", i, w, want/n)
				}
			} else {
				quad += 2 * want * float64(e[i]) * float64(e[j]) / n
			}
		}
	}
	if got := m.Quadratic(e); math.Abs(got-quad) > 1e-5*quad {
		t.Errorf("quadratic form is %v, expected %v", got, quad)
	}
	if zero := make([]float32, cols); outputError(e, zero, x, 1, n, cols)/quad-1 > 1e-5 {
		t.Error("the quadratic form is not the mean square of the output")
	}
	if err := m.Add(x[:cols+1], 1); err == nil {
		t.Error("wrong length: no error")
	}
	x[3] = float32(math.Inf(1))
	if err := m.Add(x[:cols], 1); err == nil || m.Count() != n {
		t.Error("infinite input: no error")
	}
}

func TestMomentsAcrossTiles(t *testing.T) {
	const n, cols = momentDeep + 3, momentCols + 40
	x := gaussian(1, n*cols, 1)
	m := momentsOf(t, x, n, cols)
	for _, c := range [][2]int{{0, 0}, {0, momentCols - 1}, {0, momentCols}, {momentCols - 1, momentCols}, {momentCols + 1, momentCols + 39}, {20, 2000}} {
		want := 0.0
		for k := range n {
			want += float64(x[k*cols+c[0]]) * float64(x[k*cols+c[1]])
		}
		if got := float64(m.sum[c[0]*cols+c[1]]); math.Abs(got-want) > 1e-3 {
			t.Errorf("moment %v is %v, expected %v", c, got, want)
		}
	}
}

// Where inputs are uncorrelated there is nothing to compensate.
func TestCompensationOfIdentityIsRounding(t *testing.T) {
	const rows, cols = 70, 200
	w := gaussian(1, rows*cols, 0.1)
	for _, name := range []string{"int8", "int8g32", "int4g32", "int4g64a", "int4g128"} {
		enc := mustParse(t, name)
		for _, act := range []bool{false, true} {
			m := NewMoments(cols)
			for i := range cols {
				m.sum[i*cols+i], m.diag[i] = 4, 4
			}
			m.count = 1
			c := compensatorOf(t, m, CompensatorOptions{ActOrder: act})
			got, want := MakeRows(enc, rows, cols), MakeRows(enc, rows, cols)
			if err := c.EncodeRows(context.Background(), got, enc, w, rows, Options{}); err != nil {
				t.Fatal(err)
			}
			if err := EncodeRows(want, enc, w, rows, cols, Options{Scale: LeastSquares}); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Values, want.Values) || !bytes.Equal(got.Scales, want.Scales) || !bytes.Equal(got.Mins, want.Mins) {
				t.Errorf("%s, act order %v: compensation without correlation differs from rounding", name, act)
			}
		}
	}
}

func TestCompensationLowersOutputError(t *testing.T) {
	const rows, cols, n = 20, 300, 500
	x := correlated(3, n, cols)
	w := gaussian(1, rows*cols, 0.1)
	for _, tc := range []struct {
		name string
		most float64
	}{{"int8", 0.5}, {"int8g64", 0.5}, {"int4g32", 0.5}, {"int4g64", 0.5}, {"int4g128a", 0.5}} {
		enc := mustParse(t, tc.name)
		plain := outputError(w, encodeDecode(t, enc, w, rows, cols, Options{Scale: LeastSquares}), x, rows, n, cols)
		for _, act := range []bool{false, true} {
			c := compensatorOf(t, momentsOf(t, x, n, cols), CompensatorOptions{ActOrder: act})
			dst := MakeRows(enc, rows, cols)
			if err := c.EncodeRows(context.Background(), dst, enc, w, rows, Options{}); err != nil {
				t.Fatal(err)
			}
			y := make([]float32, len(w))
			if err := DecodeRows(y, enc, dst, rows, cols); err != nil {
				t.Fatal(err)
			}
			got := outputError(w, y, x, rows, n, cols)
			t.Logf("%s, act order %v: output error %.3g, rounding's %.3g", tc.name, act, got, plain)
			if !(got < tc.most*plain) {
				t.Errorf("%s, act order %v: output error %v, rounding's is %v", tc.name, act, got, plain)
			}
		}
	}
}

// gptq is the algorithm as the paper states it: round a column, spread its error by the inverse of H over the columns that
// are left, remove the column from the inverse. Codes are int8 with given scales.
func gptq(w []float64, h [][]float64, scale float64) []float64 {
	n := len(w)
	inv := invert(h)
	q := make([]float64, n)
	w = append([]float64(nil), w...)
	for i := range n {
		q[i] = math.Min(math.Max(math.RoundToEven(w[i]/scale), -127), 127) * scale
		e := (w[i] - q[i]) / inv[i][i]
		for j := i; j < n; j++ {
			w[j] -= e * inv[i][j]
		}
		for a := i + 1; a < n; a++ {
			for b := i + 1; b < n; b++ {
				inv[a][b] -= inv[a][i] * inv[i][b] / inv[i][i]
			}
		}
	}
	return q
}

// invert by Gauss and Jordan.
func invert(h [][]float64) [][]float64 {
	n := len(h)
	a := make([][]float64, n)
	for i := range a {
		a[i] = append(append([]float64(nil), h[i]...), make([]float64, n)...)
		a[i][n+i] = 1
	}
	for i := range n {
		p := a[i][i]
		for j := range a[i] {
			a[i][j] /= p
		}
		for k := range n {
			if f := a[k][i]; k != i {
				for j := range a[k] {
					a[k][j] -= f * a[i][j]
				}
			}
		}
	}
	for i := range a {
		a[i] = a[i][n:]
	}
	return a
}

func TestCompensationIsGPTQ(t *testing.T) {
	const rows, cols, n = 5, 150, 400
	x := correlated(8, n, cols)
	w := gaussian(2, rows*cols, 0.1)
	for i := range w {
		w[i] = float32(math.Round(float64(w[i])*4)) / 8 // few steps of a coarse grid, so that rounding matters
		w[i] += float32(i%7) * 0.001
	}
	enc := mustParse(t, "int8")
	m := momentsOf(t, x, n, cols)
	h := make([][]float64, cols)
	mean := 0.0
	for i := range h {
		h[i] = make([]float64, cols)
		for j := range h[i] {
			h[i][j] = float64(m.sum[min(i, j)*cols+max(i, j)])
		}
		mean += m.diag[i] / cols
	}
	for i := range h {
		h[i][i] = m.diag[i] + 0.01*mean
	}
	c := compensatorOf(t, m, CompensatorOptions{})
	dst := MakeRows(enc, rows, cols)
	if err := c.EncodeRows(context.Background(), dst, enc, w, rows, Options{}); err != nil {
		t.Fatal(err)
	}
	y := make([]float32, len(w))
	if err := DecodeRows(y, enc, dst, rows, cols); err != nil {
		t.Fatal(err)
	}
	differ := 0
	for r := range rows {
		row := make([]float64, cols)
		for j := range row {
			row[j] = float64(w[r*cols+j])
		}
		for j, q := range gptq(row, h, float64(loadParams(enc, dst.Slice(enc, cols, r, r+1), 0).scale)) {
			if math.Abs(q-float64(y[r*cols+j])) > 1e-6 {
				differ++
			}
		}
	}
	if differ > 0 {
		t.Errorf("%d of %d values differ from the paper's algorithm", differ, len(w))
	}
}

func TestCompensatorErrors(t *testing.T) {
	const cols = 40
	if _, err := NewCompensator(NewMoments(cols), CompensatorOptions{}); err == nil {
		t.Error("moments of zero: no error")
	}
	x := correlated(1, 100, cols)
	if _, err := NewCompensator(momentsOf(t, x, 100, cols), CompensatorOptions{Damping: 2}); err == nil {
		t.Error("damping of 2: no error")
	}
	// Fewer inputs than columns: singular moments, which damping makes regular.
	c := compensatorOf(t, momentsOf(t, x[:3*cols], 3, cols), CompensatorOptions{})
	w := gaussian(1, 70*cols, 1)
	w[66*cols+7] = float32(math.NaN())
	for _, name := range []string{"int4g32", "int8", "fp16"} {
		enc := mustParse(t, name)
		err := c.EncodeRows(context.Background(), MakeRows(enc, 70, cols), enc, w, 70, Options{FirstRow: 1000})
		var ve *ValueError
		if !errors.As(err, &ve) || !strings.Contains(err.Error(), "row 1066, column 7: weight is NaN") {
			t.Errorf("%s: error %v", name, err)
		}
	}
	w[66*cols+7] = 1e7
	enc := mustParse(t, "int4g32")
	if err := c.EncodeRows(context.Background(), MakeRows(enc, 70, cols), enc, w, 70, Options{}); err == nil || !strings.Contains(err.Error(), "row 66, columns 0 to 31: scale") {
		t.Errorf("scale of 1e6: error %v", err)
	}
	w[66*cols+7] = 1
	if err := c.EncodeRows(context.Background(), MakeRows(enc, 69, cols), enc, w, 70, Options{}); err == nil {
		t.Error("storage of one row too few: no error")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := c.EncodeRows(ctx, MakeRows(enc, 70, cols), enc, w, 70, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: error %v", err)
	}
}

func TestCollector(t *testing.T) {
	c := NewCollector(map[string]int{"blocks.0.down": 4, "blocks.0.out": 2})
	c.Observe("blocks.0.down", []float32{1, 2, 3, 4, 5, 6, 7, 8}, 2, 4)
	c.Observe("blocks.1.down", []float32{1}, 1, 1)
	m, err := c.Take("blocks.0.down", 2)
	if err != nil || m.Count() != 2 || m.Weights()[0] != 13 {
		t.Fatalf("moments %+v, error %v", m, err)
	}
	if _, err := c.Take("blocks.0.down", 2); err == nil {
		t.Error("taken twice")
	}
	if _, err := c.Take("blocks.0.out", 1); err == nil || !strings.Contains(err.Error(), "too short") {
		t.Errorf("no inputs: error %v", err)
	}
	c.Observe("blocks.0.out", []float32{1, 2, 3}, 1, 3)
	c.Observe("blocks.0.out", []float32{1, 2}, 1, 2)
	if _, err := c.Take("blocks.0.out", 1); err == nil || !strings.Contains(err.Error(), "inputs are 3 wide, expected 2") {
		t.Errorf("wrong width: error %v", err)
	}
}

func BenchmarkMoments(b *testing.B) {
	for _, cols := range []int{1024, 4096} {
		b.Run(fmt.Sprint(cols), func(b *testing.B) {
			const n = 64
			x := gaussian(1, n*cols, 1)
			m := NewMoments(cols)
			b.SetBytes(int64(4 * n * cols))
			for b.Loop() {
				if err := m.Add(x, n); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(n*float64(cols)*float64(cols)/2*float64(b.N)/b.Elapsed().Seconds()/1e9, "Gmac/s")
		})
	}
}

func BenchmarkCompensator(b *testing.B) {
	for _, cols := range []int{1024, 4096, 10944} {
		x := correlated(1, 64, cols)
		m := momentsOf(b, x, 64, cols)
		sum := m.sum
		b.Run(fmt.Sprintf("factor/%d", cols), func(b *testing.B) {
			for b.Loop() {
				c := *m
				c.sum = append([]float32(nil), sum...)
				compensatorOf(b, &c, CompensatorOptions{})
			}
		})
		c := compensatorOf(b, m, CompensatorOptions{})
		const rows = 128
		w := gaussian(1, rows*cols, 0.02)
		for _, enc := range []format.Encoding{mustParse(b, "int8"), mustParse(b, "int4g64"), mustParse(b, "int4g64a")} {
			b.Run(fmt.Sprintf("encode/%s/%d", enc, cols), func(b *testing.B) {
				dst := MakeRows(enc, rows, cols)
				b.SetBytes(int64(4 * rows * cols))
				for b.Loop() {
					if err := c.EncodeRows(context.Background(), dst, enc, w, rows, Options{}); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
