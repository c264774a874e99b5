package runtime

import (
	"math"
	"math/rand/v2"
	"slices"
	"sort"
	"testing"
)

// plainDistribution is the sampling rules as one reads them: all tokens sorted, math.Exp, one rule after the other.
func plainDistribution(logits []float32, holes []int32, o Sampling) map[int32]float64 {
	type token struct {
		id int32
		l  float64
		p  float64
	}
	var all []token
	for id, l := range logits {
		if !slices.Contains(holes, int32(id)) {
			all = append(all, token{int32(id), float64(l), 0})
		}
	}
	sort.SliceStable(all, func(i, j int) bool { return all[i].l > all[j].l })
	softmax := func() {
		sum := 0.0
		for i := range all {
			all[i].p = math.Exp((all[i].l - all[0].l) / o.Temperature)
			sum += all[i].p
		}
		for i := range all {
			all[i].p /= sum
		}
	}
	if o.TopK > 0 {
		all = all[:min(o.TopK, len(all))]
	}
	softmax()
	if o.TopP > 0 {
		n, sum := 0, 0.0
		for n < len(all) && sum < o.TopP {
			sum += all[n].p
			n++
		}
		all = all[:n]
	}
	softmax()
	n := 0
	for n < len(all) && all[n].p >= o.MinP*all[0].p {
		n++
	}
	all = all[:n]
	softmax()
	out := map[int32]float64{}
	for _, t := range all {
		out[t.id] = t.p
	}
	return out
}

func sampler(t testing.TB, ids int, holes []int32, o Sampling) *Sampler {
	t.Helper()
	s, err := (&Model{ids: ids, holes: holes}).NewSampler(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestDistributionAgainstRules(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for round := range 1500 {
		n := 1 + rng.IntN(300)
		logits := make([]float32, n)
		spread := []float64{1e-3, 1, 8, 60}[rng.IntN(4)]
		for i := range logits {
			logits[i] = float32(rng.NormFloat64() * spread)
			if rng.IntN(3) == 0 {
				logits[i] = float32(rng.IntN(4)) // equals
			}
		}
		if rng.IntN(10) == 0 {
			logits[rng.IntN(n)] = -3e38
		}
		var holes []int32
		for id := range int32(n - 1) {
			if rng.IntN(20) == 0 {
				holes = append(holes, id)
			}
		}
		o := Sampling{Temperature: []float64{0.1, 0.7, 1, 2}[rng.IntN(4)]}
		if rng.IntN(2) == 0 {
			o.TopK = 1 + rng.IntN(n+5)
		}
		if rng.IntN(2) == 0 {
			o.TopP = rng.Float64()
		}
		if rng.IntN(2) == 0 {
			o.MinP = []float64{0.01, 0.1, 0.9, 1}[rng.IntN(4)]
		}
		want := plainDistribution(logits, holes, o)
		s := sampler(t, n, holes, o)
		id, err := s.Sample(slices.Clone(logits))
		if err != nil {
			t.Fatal(err)
		}
		if want[id] == 0 {
			t.Fatalf("round %d: %+v: chose %d, which has no probability", round, o, id)
		}
		if len(s.candidates) != len(want) {
			t.Fatalf("round %d: %+v: %d candidates of %d, expected %d", round, o, len(s.candidates), n, len(want))
		}
		for i, id := range s.candidates {
			if p := s.weights[i] / s.total; math.Abs(p-want[id]) > 1e-9 {
				t.Fatalf("round %d: %+v: token %d has probability %v, expected %v", round, o, id, p, want[id])
			}
		}
	}
}

// Tokens are drawn as often as they are likely.
func TestDrawFrequencies(t *testing.T) {
	logits := []float32{1, 0, 2, -1, 1.5}
	want := plainDistribution(logits, []int32{1}, Sampling{Temperature: 1.3})
	s := sampler(t, 5, []int32{1}, Sampling{Temperature: 1.3, Seed: 7})
	counts := map[int32]int{}
	const n = 200000
	for range n {
		id, err := s.Sample(slices.Clone(logits))
		if err != nil {
			t.Fatal(err)
		}
		counts[id]++
	}
	for id := range int32(5) {
		p := want[id]
		if got := float64(counts[id]) / n; math.Abs(got-p) > 5*math.Sqrt(p*(1-p)/n) {
			t.Errorf("token %d: %v of the draws, expected %v", id, got, p)
		}
	}
}

func TestSampleGreedy(t *testing.T) {
	for _, c := range []struct {
		logits []float32
		holes  []int32
		want   int32
	}{
		{[]float32{1, 3, 2}, nil, 1},
		{[]float32{2, 3, 3}, nil, 1},        // the lower of equals
		{[]float32{1, 3, 2}, []int32{1}, 2}, // not a token
		{[]float32{-5, -4, -4}, []int32{0}, 1},
		{[]float32{1, 2, 3, 9, 9}, nil, 2}, // 3 and 4 are not the tokenizer's
	} {
		for _, o := range []Sampling{{}, {TopK: 5, TopP: 0.5, MinP: 0.1, Seed: 3}, {Temperature: 1, TopK: 1}, {Temperature: 1, TopP: 1e-9}, {Temperature: 1, MinP: 1, TopK: 1}} {
			got, err := sampler(t, 3, c.holes, o).Sample(slices.Clone(c.logits))
			if err != nil || got != c.want {
				t.Errorf("%v without %v, %+v: %d, %v; expected %d", c.logits, c.holes, o, got, err, c.want)
			}
		}
	}
}

func TestSampleSeed(t *testing.T) {
	draw := func(seed uint64) (ids []int32) {
		s := sampler(t, 50, nil, Sampling{Temperature: 1, Seed: seed})
		for range 40 {
			id, err := s.Sample(make([]float32, 50))
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, id)
		}
		return ids
	}
	if first, again, other := draw(1), draw(1), draw(2); !slices.Equal(first, again) || slices.Equal(first, other) {
		t.Error("a seed does not determine the tokens")
	}
}

// plainPenalty is the rule as one reads it.
func plainPenalty(logits []float32, window []int32, penalty float64) []float32 {
	out := slices.Clone(logits)
	for id := range out {
		if slices.Contains(window, int32(id)) {
			if out[id] > 0 {
				out[id] /= float32(penalty)
			} else {
				out[id] *= float32(penalty)
			}
		}
	}
	return out
}

func TestRepetitionPenalty(t *testing.T) {
	rng := rand.New(rand.NewPCG(8, 9))
	for _, size := range []int{0, 1, 3, 10} {
		s := sampler(t, 12, nil, Sampling{RepetitionPenalty: 1.7, RepetitionWindow: size})
		history := []int32{3, 4, 3, 9}
		s.Accept(history...)
		for range 200 {
			logits := make([]float32, 12)
			for i := range logits {
				logits[i] = float32(rng.NormFloat64())
			}
			window := history
			if size > 0 {
				window = history[max(0, len(history)-size):]
			}
			penalized := plainPenalty(logits, window, 1.7)
			want := int32(slices.Index(penalized, slices.Max(penalized)))
			id, err := s.Sample(logits)
			if err != nil || id != want {
				t.Fatalf("window %d after %d: %d, %v; expected %d", size, len(history), id, err, want)
			}
			if !slices.Equal(logits, penalized) {
				t.Fatalf("window %d: logits %v, expected %v", size, logits, penalized)
			}
			history = append(history, id)
		}
	}
	huge := sampler(t, 2, nil, Sampling{RepetitionPenalty: 1e3, Temperature: 1})
	huge.Accept(0)
	if id, err := huge.Sample([]float32{-3e38, -3.2e38}); err != nil || id != 1 {
		t.Errorf("a penalty that overflows: %d, %v", id, err)
	}
}

func TestSampleRefusesNonFinite(t *testing.T) {
	for _, bad := range []float32{float32(math.NaN()), float32(math.Inf(1)), float32(math.Inf(-1))} {
		for at := range 9 { // the last ones are beyond the tokenizer's
			logits := make([]float32, 9)
			logits[at] = bad
			if _, err := sampler(t, 7, nil, Sampling{Temperature: 1}).Sample(logits); err == nil {
				t.Errorf("%v at %d was accepted", bad, at)
			}
		}
	}
	if _, err := sampler(t, 2, []int32{0, 1}, Sampling{}).Sample(make([]float32, 2)); err == nil {
		t.Error("chose from nothing")
	}
	if _, err := sampler(t, 2, nil, Sampling{}).Sample(make([]float32, 1)); err == nil {
		t.Error("too few logits were accepted")
	}
}

func TestSamplingValidate(t *testing.T) {
	nan := math.NaN()
	for _, o := range []Sampling{
		{Temperature: -1}, {Temperature: nan}, {Temperature: 1e-9}, {Temperature: math.Inf(1)}, {TopK: -1}, {TopP: -0.1}, {TopP: 1.1}, {TopP: nan},
		{MinP: 2}, {MinP: nan}, {RepetitionPenalty: -1}, {RepetitionPenalty: nan}, {RepetitionWindow: -1},
	} {
		if o.Validate() == nil {
			t.Errorf("%+v is valid", o)
		}
	}
	for _, o := range []Sampling{{}, {Temperature: 0.8, TopK: 40, TopP: 0.95, MinP: 0.05, RepetitionPenalty: 1.1, RepetitionWindow: 64}} {
		if err := o.Validate(); err != nil {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

func TestExpNegative(t *testing.T) {
	for x := 0.0; x > -720; x -= 0.00137 {
		got, want := expNegative(x), math.Exp(x)
		if x < -700 {
			want = 0
		}
		if math.Abs(got-want) > 5e-10*want {
			t.Fatalf("e^%v is %v, expected %v", x, got, want)
		}
	}
	for _, x := range []float64{math.Inf(-1), -1e300} {
		if expNegative(x) != 0 {
			t.Errorf("e^%v is %v", x, expNegative(x))
		}
	}
	if expNegative(0) != 1 {
		t.Error("e^0 is not 1")
	}
}

func BenchmarkSample(b *testing.B) {
	const vocab = 50304
	rng := rand.New(rand.NewPCG(1, 1))
	logits := make([]float32, vocab)
	for i := range logits {
		logits[i] = float32(rng.NormFloat64() * 3)
	}
	for i := range 50 {
		logits[rng.IntN(vocab)] = float32(8 + i/5)
	}
	work := make([]float32, vocab)
	for _, c := range []struct {
		name string
		o    Sampling
	}{
		{"greedy", Sampling{}},
		{"temperature", Sampling{Temperature: 1}},
		{"top-k40", Sampling{Temperature: 1, TopK: 40}},
		{"top-k2000", Sampling{Temperature: 1, TopK: 2000}},
		{"top-p0.9", Sampling{Temperature: 1, TopP: 0.9}},
		{"min-p0.05", Sampling{Temperature: 1, MinP: 0.05}},
		{"all", Sampling{Temperature: 0.8, TopK: 40, TopP: 0.95, MinP: 0.05, RepetitionPenalty: 1.1, RepetitionWindow: 64}},
	} {
		b.Run(c.name, func(b *testing.B) {
			s := sampler(b, 50277, nil, c.o)
			b.ReportAllocs()
			for b.Loop() {
				copy(work, logits)
				if _, err := s.Sample(work); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestRoundBits(t *testing.T) {
	if math.Float64bits(roundToInt) != roundBits {
		t.Errorf("roundToInt has the bits %#x", math.Float64bits(roundToInt))
	}
}

func TestKthLargest(t *testing.T) {
	rng := rand.New(rand.NewPCG(10, 11))
	for range 2000 {
		v := make([]float32, 1+rng.IntN(60))
		for i := range v {
			v[i] = float32(rng.IntN(20))
		}
		k := 1 + rng.IntN(len(v))
		sorted := slices.Sorted(slices.Values(v))
		if got, want := kthLargest(v, k), sorted[len(v)-k]; got != want {
			t.Fatalf("%d of %v: %v, expected %v", k, sorted, got, want)
		}
	}
}
