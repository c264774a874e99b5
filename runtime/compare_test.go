package runtime_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"xlstm/checkpoints"
	"xlstm/internal/golden"
	"xlstm/kernels"
	"xlstm/oracle"
	"xlstm/runtime"
)

// fakeEngine predicts from a hash of the tokens that its state has seen: any mistake in what is fed, or from which state, shows.
type fakeEngine struct {
	vocab    int
	salt     uint64 // of the predictions
	noise    float64
	poison   int // after so many tokens in all, logits are NaN; 0: never
	fed      int
	maxBatch int
	maxStep  int
	states   int // open
	fail     error
}

type fakeState struct {
	engine *fakeEngine
	seen   []int32
}

func (e *fakeEngine) NewState() (kernels.State, error) {
	e.states++
	return &fakeState{engine: e}, nil
}
func (e *fakeEngine) Close() error { return nil }

func (s *fakeState) CopyFrom(kernels.State) error { return errors.New("not used") }
func (s *fakeState) Export([]float32) error       { return errors.New("not used") }
func (s *fakeState) Import([]float32) error       { return errors.New("not used") }
func (s *fakeState) Reset() error                 { s.seen = s.seen[:0]; return nil }
func (s *fakeState) Close() error                 { s.engine.states--; return nil }

func (e *fakeEngine) Forward(ctx context.Context, batch []kernels.Step) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if e.fail != nil {
		return e.fail
	}
	if err := kernels.CheckBatch(batch, e.vocab); err != nil {
		return err
	}
	e.maxBatch = max(e.maxBatch, len(batch))
	for _, step := range batch {
		s := step.State.(*fakeState)
		e.maxStep = max(e.maxStep, len(step.Tokens))
		for i, id := range step.Tokens {
			s.seen = append(s.seen, id)
			e.fed++
			logits := e.logits(s.seen)
			if e.poison > 0 && e.fed > e.poison {
				logits[3] = float32(math.NaN())
			}
			if step.Logits != nil {
				copy(step.Logits[i*e.vocab:], logits)
			}
			if step.LogProbs != nil {
				step.LogProbs[i] = float32(logProbs(logits)[step.Targets[i]])
			}
		}
	}
	return nil
}

// logits are the prediction after a history: the same base for all engines, and noise of the engine's own.
func (e *fakeEngine) logits(seen []int32) []float32 {
	h := uint64(14695981039346656037)
	for _, id := range seen {
		h = (h ^ uint64(id+1)) * 1099511628211
	}
	out := make([]float32, e.vocab)
	for i := range out {
		out[i] = float32(4*unit(h+uint64(i)) + e.noise*unit(h^e.salt+uint64(i)*77))
	}
	return out
}

// unit spreads a hash over -1 to 1.
func unit(h uint64) float64 {
	h ^= h >> 31
	h *= 0x9e3779b97f4a7c15
	h ^= h >> 29
	h *= 0xbf58476d1ce4e5b9
	return float64(h>>11)/(1<<52) - 1
}

// logProbs is the textbook's log softmax.
func logProbs(logits []float32) []float64 {
	sum := 0.0
	for _, z := range logits {
		sum += math.Exp(float64(z))
	}
	lp := make([]float64, len(logits))
	for i, z := range logits {
		lp[i] = math.Log(math.Exp(float64(z)) / sum)
	}
	return lp
}

// reference is an engine of the same kind behind the Reference interface.
func reference(t *testing.T, e *fakeEngine) runtime.Reference {
	t.Helper()
	r, err := runtime.NewEngineReference(e, e.vocab)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func text(n, vocab int) []int32 {
	tokens := make([]int32, n)
	for i := range tokens {
		tokens[i] = int32((i*i + 3*i/7) % vocab)
	}
	return tokens
}

// histories lists what each scored token is predicted from, straight from the protocol.
func histories(tokens []int32, s runtime.Scoring) (contexts [][]int32, targets []int32) {
	for i, target := range tokens {
		start := 0
		if !s.Stream {
			start = i / s.Window * s.Window
		}
		var context []int32
		if s.BOS >= 0 {
			context = append(context, int32(s.BOS))
		}
		if context = append(context, tokens[start:i]...); len(context) > 0 {
			contexts, targets = append(contexts, context), append(targets, target)
		}
	}
	return contexts, targets
}

// meanErr is mean and standard error in two passes.
func meanErr(x []float64) (mean, stdErr float64) {
	for _, v := range x {
		mean += v
	}
	mean /= float64(len(x))
	for _, v := range x {
		stdErr += (v - mean) * (v - mean)
	}
	if len(x) < 2 {
		return mean, 0
	}
	return mean, math.Sqrt(stdErr/float64(len(x)-1)) / math.Sqrt(float64(len(x)))
}

func near(t *testing.T, name string, got, want float64) {
	t.Helper()
	if !(math.Abs(got-want) <= 1e-6*max(1, math.Abs(want))) {
		t.Errorf("%s is %.9g, expected %.9g", name, got, want)
	}
}

func scorings() map[string]runtime.Scoring {
	return map[string]runtime.Scoring{
		"windows":          {Window: 100, BOS: 0},
		"windows of 1":     {Window: 1, BOS: 2},
		"windows of 2":     {Window: 2, BOS: 0},
		"windows, no bos":  {Window: 50, BOS: -1},
		"window 2, no bos": {Window: 2, BOS: -1},
		"larger than text": {Window: 5000, BOS: 0},
		"exact":            {Window: 143, BOS: 0},
		"batch":            {Window: 100, BOS: 0, Batch: 4},
		"large batch":      {Window: 7, BOS: -1, Batch: 1000},
		"stream":           {Stream: true, BOS: 0, Window: 3},
		"stream, no bos":   {Stream: true, BOS: -1, Batch: 3},
	}
}

func TestPerplexity(t *testing.T) {
	const vocab = 23
	tokens := text(1430, vocab)
	for name, s := range scorings() {
		t.Run(name, func(t *testing.T) {
			e := &fakeEngine{vocab: vocab}
			last, calls := 0, 0
			s.VocabSize = vocab
			s.Progress = func(done, total int) {
				if done < last || done > total {
					t.Errorf("progress %d after %d of %d", done, last, total)
				}
				last = done
				calls++
			}
			r, err := runtime.Perplexity(context.Background(), e, tokens, s)
			if err != nil {
				t.Fatal(err)
			}
			contexts, targets := histories(tokens, s)
			var nll []float64
			for i := range targets {
				nll = append(nll, -logProbs(e.logits(contexts[i]))[targets[i]])
			}
			mean, stdErr := meanErr(nll)
			near(t, "nll", r.NLL, mean)
			near(t, "its standard error", r.NLLStdErr, stdErr)
			near(t, "perplexity", r.Perplexity, math.Exp(mean))
			near(t, "its standard error", r.PerplexityStdErr, math.Exp(mean)*stdErr)
			if r.Tokens != len(targets) || last != r.Tokens || e.fed != r.Tokens {
				t.Errorf("scored %d tokens, progress %d, fed %d, expected %d", r.Tokens, last, e.fed, len(targets))
			}
			if e.states != 0 || r.Seconds <= 0 || r.TokensPerSecond <= 0 {
				t.Errorf("%d states open, %+v", e.states, r.Speed)
			}
			if want := min(max(s.Batch, 1), r.Sequences); e.maxBatch != want || e.maxStep*e.maxBatch > 1000 {
				t.Errorf("batches of %d sequences and steps of %d tokens, expected %d sequences", e.maxBatch, e.maxStep, want)
			}
		})
	}
}

func TestCompare(t *testing.T) {
	const vocab = 23
	tokens := text(1430, vocab)
	for name, s := range scorings() {
		t.Run(name, func(t *testing.T) {
			s.VocabSize = vocab
			original := &fakeEngine{vocab: vocab}
			engines := []*fakeEngine{{vocab: vocab, noise: 0.5, salt: 1}, {vocab: vocab, noise: 3, salt: 2}, {vocab: vocab}}
			var files []runtime.Candidate
			for i, e := range engines {
				files = append(files, runtime.Candidate{Name: fmt.Sprint("file", i), Engine: e})
			}
			got, err := runtime.Compare(context.Background(), reference(t, original), files, tokens, s)
			if err != nil {
				t.Fatal(err)
			}
			contexts, targets := histories(tokens, s)
			for f, e := range engines {
				checkCompared(t, got, f, original, e, contexts, targets)
			}
			if same := got.Files[2]; same.MeanKL != 0 || same.KL999 != 0 || same.TopAgreement != 1 || same.Ratio != 1 || same.RatioStdErr != 0 || same.MaxLogitDiff != 0 {
				t.Errorf("the same model differs: %+v", same)
			}
			// The same text scored alone gives the same figures.
			alone, err := runtime.Perplexity(context.Background(), engines[0], tokens, s)
			if err != nil {
				t.Fatal(err)
			}
			near(t, "nll alone", alone.NLL, got.Files[0].NLL)
			if alone.Run != got.Run {
				t.Errorf("run %+v alone, %+v compared", alone.Run, got.Run)
			}
		})
	}
}

// checkCompared computes all statistics of a file from their definitions.
func checkCompared(t *testing.T, got *runtime.Comparison, file int, original, e *fakeEngine, contexts [][]int32, targets []int32) {
	t.Helper()
	var nllP, nllQ, diff, kls []float64
	agree, maxDiff := 0, 0.0
	for i, target := range targets {
		a, b := original.logits(contexts[i]), e.logits(contexts[i])
		p, q := logProbs(a), logProbs(b)
		nllP, nllQ, diff = append(nllP, -p[target]), append(nllQ, -q[target]), append(diff, p[target]-q[target])
		kl := 0.0
		for j := range p {
			kl += math.Exp(p[j]) * (p[j] - q[j])
			maxDiff = max(maxDiff, math.Abs(float64(a[j])-float64(b[j])))
		}
		kls = append(kls, kl)
		if slices.Index(a, slices.Max(a)) == slices.Index(b, slices.Max(b)) {
			agree++
		}
	}
	r := got.Files[file]
	mean, stdErr := meanErr(nllP)
	near(t, "original's nll", got.Reference.NLL, mean)
	near(t, "its standard error", got.Reference.NLLStdErr, stdErr)
	meanQ, stdErrQ := meanErr(nllQ)
	near(t, "nll", r.NLL, meanQ)
	near(t, "its standard error", r.NLLStdErr, stdErrQ)
	near(t, "ratio", r.Ratio, math.Exp(meanQ)/math.Exp(mean))
	_, stdErrD := meanErr(diff)
	near(t, "ratio's standard error", r.RatioStdErr, math.Exp(meanQ-mean)*stdErrD)
	meanKL, stdErrKL := meanErr(kls)
	near(t, "mean KL", r.MeanKL, meanKL)
	near(t, "its standard error", r.MeanKLStdErr, stdErrKL)
	// The 99.9th percentile: the least value that 999 of 1000 do not exceed.
	slices.Sort(kls)
	least := 0
	for 1000*(least+1) < 999*len(kls) {
		least++
	}
	near(t, "99.9th percentile", r.KL999, kls[least])
	near(t, "agreement", r.TopAgreement, float64(agree)/float64(len(targets)))
	near(t, "largest difference", r.MaxLogitDiff, maxDiff)
	if r.Tokens != len(targets) || got.Reference.Tokens != len(targets) || r.Name != fmt.Sprint("file", file) || r.TokensPerSecond <= 0 {
		t.Errorf("%+v of %d tokens", r, len(targets))
	}
}

func TestScoringErrors(t *testing.T) {
	const vocab = 23
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	broken := errors.New("out of memory")
	for _, c := range []struct {
		name   string
		ctx    context.Context
		tokens []int32
		s      runtime.Scoring
		engine fakeEngine
		want   string
	}{
		{"empty", nil, nil, runtime.Scoring{BOS: 0}, fakeEngine{}, "0 tokens in windows of 512 leave nothing to predict"},
		{"empty stream", nil, nil, runtime.Scoring{BOS: 0, Stream: true}, fakeEngine{}, "leave nothing to predict"},
		{"one token, no bos", nil, text(1, vocab), runtime.Scoring{BOS: -1}, fakeEngine{}, "1 tokens in windows of 512 leave nothing to predict"},
		{"window 1, no bos", nil, text(9, vocab), runtime.Scoring{BOS: -1, Window: 1}, fakeEngine{}, "9 tokens in windows of 1 leave nothing to predict"},
		{"window", nil, text(9, vocab), runtime.Scoring{Window: -1}, fakeEngine{}, "the window is -1, expected 1 or more"},
		{"bos", nil, text(9, vocab), runtime.Scoring{BOS: 23}, fakeEngine{}, "beginning-of-text id 23 is outside the vocabulary of 23"},
		{"token", nil, []int32{1, 23}, runtime.Scoring{}, fakeEngine{}, "token 1 of the text is 23, outside the vocabulary of 23"},
		{"negative token", nil, []int32{-1}, runtime.Scoring{}, fakeEngine{}, "token 0 of the text is -1"},
		{"nan", nil, text(900, vocab), runtime.Scoring{}, fakeEngine{poison: 300}, "NaN"},
		{"cancelled", cancelled, text(9, vocab), runtime.Scoring{}, fakeEngine{}, "context canceled"},
		{"engine", nil, text(9, vocab), runtime.Scoring{}, fakeEngine{fail: broken}, "out of memory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx := c.ctx
			if ctx == nil {
				ctx = context.Background()
			}
			c.s.VocabSize, c.engine.vocab = vocab, vocab
			engine := c.engine
			if _, err := runtime.Perplexity(ctx, &engine, c.tokens, c.s); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("perplexity: error %v, expected %q", err, c.want)
			}
			other := c.engine
			files := []runtime.Candidate{{Name: "a.xlstm", Engine: &fakeEngine{vocab: vocab}}, {Name: "b.xlstm", Engine: &other}}
			if _, err := runtime.Compare(ctx, reference(t, &fakeEngine{vocab: vocab}), files, c.tokens, c.s); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("compare: error %v, expected %q", err, c.want)
			}
			if engine.states != 0 || other.states != 0 {
				t.Errorf("%d and %d states are left open", engine.states, other.states)
			}
		})
	}
}

func TestCompareErrors(t *testing.T) {
	const vocab = 23
	s := runtime.Scoring{VocabSize: vocab}
	ctx := context.Background()
	file := []runtime.Candidate{{Name: "a.xlstm", Engine: &fakeEngine{vocab: vocab}}}
	if _, err := runtime.Compare(ctx, reference(t, &fakeEngine{vocab: 24}), file, text(9, vocab), s); err == nil || !strings.Contains(err.Error(), "the original's vocabulary has 24 tokens, the file's 23") {
		t.Errorf("another vocabulary: %v", err)
	}
	if _, err := runtime.Compare(ctx, reference(t, &fakeEngine{vocab: vocab}), nil, text(9, vocab), s); err == nil {
		t.Error("no files: no error")
	}
	if _, err := runtime.Compare(ctx, reference(t, &fakeEngine{vocab: vocab, poison: 4}), file, text(9, vocab), s); err == nil || !strings.Contains(err.Error(), "the original: logit 3 is NaN") {
		t.Errorf("broken original: %v", err)
	}
	broken := []runtime.Candidate{{Name: "b.xlstm", Engine: &fakeEngine{vocab: vocab, poison: 4}}}
	if _, err := runtime.Compare(ctx, reference(t, &fakeEngine{vocab: vocab}), broken, text(9, vocab), s); err == nil || !strings.Contains(err.Error(), "b.xlstm: logit 3 is NaN") {
		t.Errorf("broken file: %v", err)
	}
	for _, r := range []runtime.Reference{short{vocab, 3, 0}, short{vocab, 9, 1}, short{vocab + 1, 9, -1}} {
		if _, err := runtime.Compare(ctx, r, file, text(9, vocab), s); err == nil || !strings.Contains(err.Error(), "the ") {
			t.Errorf("reference that breaks its promise %+v: %v", r, err)
		}
	}
}

// short is a reference that yields too few tokens, or wrong places.
type short struct{ width, tokens, shift int }

func (short) VocabSize() int              { return 23 }
func (short) Reset(context.Context) error { return nil }
func (r short) Forward(_ context.Context, _ []int32, yield func(int, []float32) error) error {
	for i := range r.tokens {
		if err := yield(i+max(r.shift, 0), make([]float32, r.width)); err != nil {
			return err
		}
	}
	return nil
}

// oracleEngine lets the oracle stand for a converted file.
type oracleEngine struct{ *oracle.Oracle }

type oracleState struct {
	fakeState
	state *oracle.State
}

func (s *oracleState) Reset() error { s.state.Reset(); return nil }
func (s *oracleState) Close() error { return nil }

func (e oracleEngine) NewState() (kernels.State, error) {
	return &oracleState{state: e.Oracle.NewState()}, nil
}
func (e oracleEngine) Close() error { return nil }
func (e oracleEngine) Forward(ctx context.Context, batch []kernels.Step) error {
	for _, step := range batch {
		err := e.Oracle.Forward(ctx, step.Tokens, step.State.(*oracleState).state, func(t int, logits []float32) error {
			if step.Logits != nil {
				copy(step.Logits[t*len(logits):], logits)
			}
			if step.LogProbs != nil {
				step.LogProbs[t] = float32(logProbs(logits)[step.Targets[t]])
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// TestCompareWithOracle scores a golden fixture's tokens: the nll is what the original computed, and the checkpoint agrees with itself.
func TestCompareWithOracle(t *testing.T) {
	const dir = "../testdata/fixtures/tiny-bias"
	c, err := checkpoints.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	g, err := golden.Read(filepath.Join(dir, "expected.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	o := oracle.New(c, oracle.Options{})
	tokens, nll := g.Tokens("input_ids", 0)[:120], g.Floats("nll", 0)[:119]
	want := 0.0
	for _, x := range nll {
		want += float64(x) / float64(len(nll))
	}
	s := runtime.Scoring{VocabSize: o.VocabSize(), BOS: -1, Stream: true}
	got, err := runtime.Compare(context.Background(), o.NewSession(), []runtime.Candidate{{Name: "self", Engine: oracleEngine{o}}}, tokens, s)
	if err != nil {
		t.Fatal(err)
	}
	if math.Abs(got.Reference.NLL-want) > 1e-5 || got.Files[0].MeanKL > 1e-12 || got.Files[0].TopAgreement != 1 || got.Files[0].MaxLogitDiff != 0 {
		t.Errorf("%+v, expected an nll of %g", got, want)
	}
	r, err := runtime.Perplexity(context.Background(), oracleEngine{o}, tokens, s)
	if err != nil || math.Abs(r.NLL-want) > 1e-5 {
		t.Errorf("nll %+v, expected %g: %v", r, want, err)
	}
	b, err := json.Marshal(struct {
		*runtime.Comparison
		Perplexity *runtime.PerplexityResult `json:"alone"`
	}{got, r})
	for _, key := range []string{`"reference":{"tokens":119`, `"kl_p999":`, `"ratio":1`, `"tokens_per_second":`, `"bos":-1`, `"stream":true`, `"perplexity_stderr":`} {
		if err != nil || !strings.Contains(string(b), key) {
			t.Errorf("JSON %s lacks %s (%v)", b, key, err)
		}
	}
}
