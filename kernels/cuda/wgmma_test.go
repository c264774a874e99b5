//go:build cuda

package cuda_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"

	"xlstm/format"
	"xlstm/internal/feed"
	"xlstm/kernels/cuda"
	"xlstm/quantize"
)

// wgCase is a product and what it has to give.
type wgCase struct {
	cuda.WgProduct
	what   string
	before []float32 // what is in y [N, Ldy]; from W.Rows on it has to stay
	want   []float64 // [N, W.Rows]
}

func half16(v float32) float32 { return quantize.FromFP16(quantize.ToFP16(v)) }

func randomTensor(t *testing.T, r *rand.Rand, enc format.Encoding, rows, cols int) format.Tensor {
	t.Helper()
	w := make([]float32, rows*cols)
	for i := range w {
		w[i] = float32(r.NormFloat64()) / float32(math.Sqrt(float64(cols)))
	}
	x := format.Tensor{Encoding: enc, Rows: rows, Cols: cols, Data: make([]byte, enc.Sizes(rows, cols).Total)}
	to, err := quantize.RowsOf(x.Data, enc, rows, cols)
	if err == nil {
		err = quantize.EncodeRows(to, enc, w, rows, cols, quantize.Options{})
	}
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// takenApart are a tensor's weights as the kernel has them: scales of groups go into fp16 weights, with a minimum moved by 8 scales.
func takenApart(t *testing.T, x *format.Tensor) []float32 {
	t.Helper()
	w := make([]float32, x.Rows*x.Cols)
	from, err := quantize.RowsOf(x.Data, x.Encoding, x.Rows, x.Cols)
	if err == nil {
		err = quantize.DecodeRows(w, x.Encoding, from, x.Rows, x.Cols)
	}
	if err != nil {
		t.Fatal(err)
	}
	group := x.Encoding.Group
	if group == 0 {
		return w
	}
	u16 := binary.LittleEndian.Uint16
	groups, row := x.Encoding.Groups(x.Cols), int(x.Encoding.ValueRowBytes(x.Cols))
	for i := range w {
		r, k := i/x.Cols, i%x.Cols
		if !x.Encoding.Asymmetric {
			w[i] = half16(w[i])
			continue
		}
		q := x.Values()[r*row+k/32*16+k%16]
		if k%32 < 16 {
			q &= 15
		} else {
			q >>= 4
		}
		at := 2 * (r*groups + k/group)
		s, m := quantize.FromFP16(u16(x.Scales()[at:])), quantize.FromFP16(u16(x.Mins()[at:]))
		w[i] = half16(float32(int(q)-8)*s + half16(m+8*s))
	}
	return w
}

// newWgCase makes product number i of a kernel: which rows, tokens and options it has depends on i alone.
func newWgCase(t *testing.T, k cuda.WgKernel, i int) *wgCase {
	r := rand.New(rand.NewPCG(uint64(i), 4))
	enc := format.Encoding{Kind: k.Kind}
	if k.Grouped {
		enc.Group = []int{64, 32, 128}[i%3]
		enc.Asymmetric = k.Kind == format.Int4 && i%2 == 1
	}
	rows, cols := []int{1, 77, 300, 515, 130}[i%5], []int{96, 1000, 2100, 544, 33, 1500, 64}[i%7]
	n := []int{k.Tokens, 1, k.Tokens - 3, k.Tokens/2 + 1, 2*k.Tokens + 5, k.Tokens + 1}[i%6]
	c := &wgCase{WgProduct: cuda.WgProduct{W: randomTensor(t, r, enc, rows, cols), N: n, Ldx: format.PaddedCols(cols) + i%3*8, Ldy: rows + 3, Alpha: 1, Half: i%2 == 0}}
	if i%4 > 1 {
		for range rows {
			c.Bias = append(c.Bias, float32(r.NormFloat64()))
		}
	}
	if i%4 == 1 {
		c.Alpha = 0.25
	}
	if c.Add = !c.Half && i%3 == 0; !c.Half && i%5 == 0 {
		c.Cap = 3
	}
	x := make([]float32, n*cols)
	c.X = make([]uint16, n*c.Ldx)
	for j := range c.X { // nothing beyond the padding may count
		if j%c.Ldx >= format.PaddedCols(cols) {
			c.X[j] = 0x7fff
		}
	}
	for j := range x {
		at, k := j/cols*c.Ldx, j%cols
		if enc.Kind != format.FP16 {
			k = k&^15 | k&1<<3 | k&15>>1
		}
		c.X[at+k] = quantize.ToFP16(float32(r.NormFloat64()))
		x[j] = quantize.FromFP16(c.X[at+k])
	}
	for range n * c.Ldy {
		c.before = append(c.before, half16(float32(r.NormFloat64())))
	}
	c.multiply(takenApart(t, &c.W), x)
	c.what = fmt.Sprintf("%s, product %d: %v, %d x %d, %d tokens", k.Name, i, enc, rows, cols, n)
	return c
}

// multiply computes what is wanted.
func (c *wgCase) multiply(w, x []float32) {
	rows, cols := c.W.Rows, c.W.Cols
	c.want = make([]float64, c.N*rows)
	var wg sync.WaitGroup
	for tok := range c.N {
		wg.Go(func() {
			for row := range rows {
				sum := 0.0
				for k, v := range w[row*cols : (row+1)*cols] {
					sum += float64(v) * float64(x[tok*cols+k])
				}
				sum *= float64(c.Alpha)
				if c.Bias != nil {
					sum += float64(c.Bias[row])
				}
				if c.Add {
					sum += float64(c.before[tok*c.Ldy+row])
				}
				if c.Cap > 0 {
					sum = float64(c.Cap) * math.Tanh(sum)
				}
				c.want[tok*rows+row] = sum
			}
		})
	}
	wg.Wait()
}

// start is y before the product, as bytes.
func (c *wgCase) start() []byte {
	var out []byte
	for _, v := range c.before {
		if c.Half {
			out = binary.LittleEndian.AppendUint16(out, quantize.ToFP16(v))
		} else {
			out = binary.LittleEndian.AppendUint32(out, math.Float32bits(v))
		}
	}
	return out
}

// check holds y against what is wanted: but for fp16 results the only difference is the order of float32 sums.
func (c *wgCase) check(t *testing.T, what string, y []byte) (worst float64) {
	t.Helper()
	sum := 0.0
	for _, v := range c.want {
		sum += v * v
	}
	rms := math.Sqrt(sum / float64(len(c.want)))
	for i := range c.before {
		var got float64
		if c.Half {
			got = float64(quantize.FromFP16(binary.LittleEndian.Uint16(y[2*i:])))
		} else {
			got = float64(math.Float32frombits(binary.LittleEndian.Uint32(y[4*i:])))
		}
		tok, row := i/c.Ldy, i%c.Ldy
		if row >= c.W.Rows {
			if got != float64(c.before[i]) {
				t.Fatalf("%s, %s: token %d has something beyond its rows", c.what, what, tok)
			}
			continue
		}
		want := c.want[tok*c.W.Rows+row]
		limit, d := 3e-4*max(rms, 0.25), math.Abs(got-want)
		if c.Half {
			limit += math.Abs(want) / 1024
		}
		if !(d <= limit) {
			t.Fatalf("%s, %s: token %d, row %d: %g, expected %g", c.what, what, tok, row, got, want)
		}
		worst = max(worst, d/max(rms, 0.25))
	}
	return worst
}

func hopperEngine(t *testing.T) *cuda.Engine {
	t.Helper()
	cfg := models["odd"]
	cfg.NumBlocks = 1
	coded, _ := randomModel(t, cfg, "int8", 1)
	e := onGPU(t, coded, cuda.Options{NoLibrary: true})
	if !cuda.Hopper(e) {
		t.Skip("no Hopper")
	}
	return e
}

// TestWgProducts holds every Hopper kernel against products computed here: odd rows, columns and tokens, every option, tiles of one thread
// block and of many, twice the same bits, and several products that overlap.
func TestWgProducts(t *testing.T) {
	e := hopperEngine(t)
	for number, k := range cuda.WgKernels() {
		worst, count := 0.0, 0
		for j := range 15 {
			c := newWgCase(t, k, 15*number+j)
			for _, blocks := range []int{0, 1, 5, 37} {
				what := fmt.Sprintf("%d blocks", blocks)
				var first []byte
				for round := range 2 {
					times := 1
					if round == 1 && !c.Add {
						times = 4
					}
					y := c.start()
					if err := cuda.RunWg(e, k, &c.WgProduct, blocks, times, y); err != nil {
						t.Fatalf("%s, %s: %v", c.what, what, err)
					}
					worst = max(worst, c.check(t, what, y))
					count++
					if first != nil && !bytes.Equal(y, first) {
						t.Fatalf("%s, %s: not the same bits twice", c.what, what)
					}
					first = y
				}
			}
		}
		t.Logf("%-18s %d runs, worst error %.2e of rms", k.Name, count, worst)
	}
}

// TestOtherCards runs prompts on the kernels that cards other than Hopper have, wherever there are both.
func TestOtherCards(t *testing.T) {
	for _, name := range []string{"odd", "bias", "wide"} {
		cfg := models[name]
		for _, enc := range []string{"fp16", "int8", "int8g64", "int4g64", "int4g32a"} {
			coded, plain := randomModel(t, cfg, enc, 5)
			ref := onCPU(t, plain)
			tokens := randomTokens(150, cfg.VocabSize, 9)
			want := feed.Tokens(t, ref, newState(t, ref), tokens, cfg.VocabSize, feed.Whole)
			e := onGPU(t, coded, cuda.Options{Piece: 128, NoLibrary: true, HalfFrom: 1})
			if !cuda.Hopper(e) {
				t.Skip("the other tests run them")
			}
			cuda.WithoutHopper(e)
			for how, size := range ways {
				compare(t, feed.Tokens(t, e, newState(t, e), tokens, cfg.VocabSize, size()), want, cfg.VocabSize, how != "single", enc, fmt.Sprintf("%s, %s, %s", name, enc, how))
			}
		}
	}
}
