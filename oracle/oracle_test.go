package oracle_test

import (
	"context"
	"errors"
	"math"
	"path/filepath"
	"slices"
	"testing"

	"xlstm/checkpoints"
	"xlstm/format"
	"xlstm/internal/golden"
	"xlstm/oracle"
)

func load(t *testing.T, name string) (*checkpoints.Checkpoint, *golden.Values) {
	t.Helper()
	dir := filepath.Join("../testdata/fixtures", name)
	c, err := checkpoints.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	g, err := golden.Read(filepath.Join(dir, "expected.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	return c, g
}

// run collects the logits of tokens fed in pieces of the given size.
func run(t *testing.T, o *oracle.Oracle, s *oracle.State, tokens []int32, piece int) []float32 {
	t.Helper()
	var all []float32
	for p := range slices.Chunk(tokens, piece) {
		next := 0
		err := o.Forward(context.Background(), p, s, func(i int, logits []float32) error {
			if i != next || len(logits) != o.VocabSize() {
				t.Fatalf("logits of token %d, %d values, expected token %d", i, len(logits), next)
			}
			next++
			all = append(all, logits...)
			return nil
		})
		if err != nil || next != len(p) {
			t.Fatal(next, err)
		}
	}
	return all
}

func maxDiff(a, b []float32) float64 {
	d := 0.0
	for i := range b {
		if x := math.Abs(float64(a[i]) - float64(b[i])); !(x <= d) {
			d = x
		}
	}
	return d
}

// nll is -log p(target) from logits, in nats.
func nll(logits []float32, target int32) float64 {
	sum := 0.0
	for _, z := range logits {
		sum += math.Exp(float64(z))
	}
	return math.Log(sum) - float64(logits[target])
}

// TestFixtures holds the oracle to the original: logits, mean nll, token by token and all at once.
func TestFixtures(t *testing.T) {
	for _, name := range []string{"tiny-fp32", "tiny-bf16-sharded", "tiny-fp16", "tiny-fused", "tiny-bias", "tiny-tied", "tiny-nxai-layout", "tiny-long"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, g := load(t, name)
			o := oracle.New(c, oracle.Options{})
			tolerance := 2e-4
			if name == "tiny-nxai-layout" {
				tolerance = 5e-3 // the original's two forms differ by 3e-3 there
			}
			sum, want, n := 0.0, 0.0, 0
			for b := range g.Shape("input_ids")[0] {
				ids := g.Tokens("input_ids", b)
				if raceEnabled {
					ids = ids[:min(len(ids), 24)]
				}
				state := o.NewState()
				got := run(t, o, state, ids, len(ids))
				v := o.VocabSize()
				for i := range ids[1:] {
					sum += nll(got[i*v:(i+1)*v], ids[i+1])
					want += float64(g.Floats("nll", b)[i])
					n++
				}
				if logits := g.Floats("logits", b); logits != nil {
					if d := maxDiff(got, logits[:len(got)]); !(d <= tolerance) {
						t.Errorf("sequence %d: logits differ by %g", b, d)
					} else {
						t.Logf("sequence %d: logits differ by %g", b, d)
					}
				}
				if last := g.Floats("logits_last", b); last != nil && !raceEnabled {
					if d := maxDiff(got[len(got)-v:], last); !(d <= tolerance) {
						t.Errorf("sequence %d: last logits differ by %g", b, d)
					}
				}
				checkPieces(t, o, ids, got, state)
			}
			if d := math.Abs(sum-want) / float64(n); !(d <= 1e-5) {
				t.Errorf("mean nll %.7f, expected %.7f", sum/float64(n), want/float64(n))
			}
		})
	}
}

// checkPieces feeds the tokens again: the first ones one by one, the others in pieces of several sizes. The same operations are
// done in the same order, so that results are equal to the bit.
func checkPieces(t *testing.T, o *oracle.Oracle, ids []int32, want []float32, wantState *oracle.State) {
	t.Helper()
	s := o.NewState()
	fed := min(len(ids)/2, 50)
	got := run(t, o, s, ids[:fed], 1)
	for _, n := range []int{1, 2, 3, 5, 64, 1000, 7, len(ids)} {
		n = min(n, len(ids)-fed)
		if n > 0 {
			got = append(got, run(t, o, s, ids[fed:fed+n], n)...)
			fed += n
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("logits differ when fed in pieces, by %g", maxDiff(got, want))
	}
	if !slices.Equal(s.Floats(), wantState.Floats()) {
		t.Error("states differ when fed in pieces")
	}
}

// TestState compares the state after the last token with the original's.
func TestState(t *testing.T) {
	c, g := load(t, "tiny-fp32")
	o := oracle.New(c, oracle.Options{Workers: 1})
	ids := g.Tokens("input_ids", 1)
	s := o.NewState()
	if err := o.Forward(context.Background(), ids, s, nil); err != nil {
		t.Fatal(err)
	}
	for block, got := range map[string]oracle.BlockState{"state.0.": s.Blocks[0], "state.2.": s.Blocks[2]} {
		for name, x := range map[string][]float32{"C": got.C, "n": got.N, "m": got.M} {
			if d := maxDiff(x, g.Floats(block+name, 1)); !(d <= 2e-4) {
				t.Errorf("%s%s differs by %g", block, name, d)
			}
		}
	}
	if got := len(s.Floats()); got != c.Config().StateFloats() {
		t.Errorf("state of %d values, expected %d", got, c.Config().StateFloats())
	}
}

func TestSession(t *testing.T) {
	c, g := load(t, "tiny-bias")
	blocks := 0
	o := oracle.New(c, oracle.Options{OnBlock: func(done, of int) { blocks += done * of }})
	s := o.NewSession()
	for range 2 {
		if err := s.Reset(context.Background()); err != nil {
			t.Fatal(err)
		}
		var got []float32
		err := s.Forward(context.Background(), g.Tokens("input_ids", 0)[:20], func(_ int, logits []float32) error {
			got = append(got, logits...)
			return nil
		})
		if err != nil || !(maxDiff(got, g.Floats("logits", 0)[:len(got)]) < 2e-4) || len(got) != 20*s.VocabSize() {
			t.Errorf("%d logits: %v", len(got), err)
		}
	}
	if blocks != 2*(1+2+3)*3 {
		t.Errorf("progress adds up to %d", blocks)
	}
}

func TestForwardErrors(t *testing.T) {
	c, g := load(t, "tiny-tied")
	o := oracle.New(c, oracle.Options{})
	ctx := context.Background()
	for _, id := range []int32{-1, 300} {
		if err := o.Forward(ctx, []int32{0, id}, o.NewState(), nil); err == nil {
			t.Errorf("token %d: no error", id)
		}
	}
	other, _ := load(t, "tiny-fp32")
	if err := o.Forward(ctx, g.Tokens("input_ids", 0), oracle.New(other, oracle.Options{}).NewState(), nil); err == nil {
		t.Error("another model's state: no error")
	}
	stop := errors.New("stop")
	calls := 0
	err := o.Forward(ctx, g.Tokens("input_ids", 0), o.NewState(), func(int, []float32) error { calls++; return stop })
	if !errors.Is(err, stop) || calls != 1 {
		t.Errorf("yield's error after %d calls: %v", calls, err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if err := o.Forward(cancelled, g.Tokens("input_ids", 0), o.NewState(), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	c.Close()
	if err := o.Forward(ctx, g.Tokens("input_ids", 0), o.NewState(), nil); err == nil {
		t.Error("closed checkpoint: no error")
	}
}

// TestSyntheticScale checks that synthetic checkpoints of all kinds give logits of a sane magnitude.
func TestSyntheticScale(t *testing.T) {
	cfg := format.Config{VocabSize: 100, EmbeddingDim: 64, NumBlocks: 6, NumHeads: 2, QKDim: 32, VDim: 64, FFNDim: 96,
		NormEps: 1e-6, CellEps: 1e-6, GateSoftCap: 15, OutputSoftCap: 30, OutNorm: true, BOS: -1}
	for _, change := range []func(*format.Config){
		func(*format.Config) {}, func(c *format.Config) { c.Tied = true }, func(c *format.Config) { c.UseBias = true },
		func(c *format.Config) { c.GateSoftCap, c.OutputSoftCap, c.OutNorm = 0, 0, false },
	} {
		c := cfg
		change(&c)
		o := oracle.New(checkpoints.Synthetic(c, 5), oracle.Options{})
		tokens := make([]int32, 150)
		for i := range tokens {
			tokens[i] = int32(i * i % 97)
		}
		s := o.NewState()
		square, n := 0.0, 0
		for _, z := range run(t, o, s, tokens, len(tokens)) {
			square += float64(z) * float64(z)
			n++
		}
		if rms := math.Sqrt(square / float64(n)); !(rms > 0.5 && rms < 8) {
			t.Errorf("%+v: logits have a magnitude of %g", c, rms)
		}
	}
}

func BenchmarkLinear(b *testing.B) {
	c := checkpoints.Config7B()
	c.NumBlocks = 1
	o := oracle.New(checkpoints.Synthetic(c, 1), oracle.Options{})
	tokens := make([]int32, 16)
	b.SetBytes(int64(len(tokens)) * 4 * (2*int64(c.QKDim) + 3*int64(c.VDim) + 3*int64(c.FFNDim)) * int64(c.EmbeddingDim))
	for range b.N {
		if err := o.Forward(context.Background(), tokens, o.NewState(), nil); err != nil {
			b.Fatal(err)
		}
	}
}
