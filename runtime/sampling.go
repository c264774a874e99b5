package runtime

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
)

// Sampling says how the next token is chosen. The zero value takes the likeliest token. What is set applies in this order, which is
// Hugging Face's: repetition penalty, temperature, top-k, top-p, min-p; each looks at the probabilities that the one before it left,
// scaled to sum to one. Of equally likely tokens the lower id goes first.
type Sampling struct {
	// Temperature divides the logits. 0: the likeliest token, whatever TopK, TopP, MinP and Seed say.
	Temperature float64
	// TopK keeps the k likeliest tokens. 0: all.
	TopK int
	// TopP keeps the fewest likeliest tokens whose probabilities sum to at least p. 0 or 1: all.
	TopP float64
	// MinP keeps tokens at least p times as likely as the likeliest. 0: all.
	MinP float64
	// RepetitionPenalty divides positive logits, and multiplies negative ones, of every token that is in the window. 0 or 1: none.
	RepetitionPenalty float64
	// RepetitionWindow is how many of the last tokens, the prompt's and the generated ones, are in the window. 0: all of this
	// request. A beginning-of-text token that was put before the prompt, and what a state consumed earlier, are not.
	RepetitionWindow int
	// Seed begins the random numbers. The same seed gives the same tokens from the same logits.
	Seed uint64
}

// Validate reports the first setting that makes no sense.
func (s *Sampling) Validate() error {
	switch {
	case !(s.Temperature >= 0 && s.Temperature <= 1e6):
		return fmt.Errorf("temperature is %v, expected 0 to 1e6", s.Temperature)
	case s.Temperature != 0 && s.Temperature < 1e-6:
		return fmt.Errorf("temperature is %v, expected 0 or at least 1e-6", s.Temperature)
	case s.TopK < 0:
		return fmt.Errorf("top-k is %d, expected 0 or more", s.TopK)
	case !(s.TopP >= 0 && s.TopP <= 1):
		return fmt.Errorf("top-p is %v, expected 0 to 1", s.TopP)
	case !(s.MinP >= 0 && s.MinP <= 1):
		return fmt.Errorf("min-p is %v, expected 0 to 1", s.MinP)
	case s.RepetitionPenalty != 0 && !(s.RepetitionPenalty >= 1e-3 && s.RepetitionPenalty <= 1e3):
		return fmt.Errorf("repetition penalty is %v, expected 0, or 1e-3 to 1e3", s.RepetitionPenalty)
	case s.RepetitionWindow < 0:
		return fmt.Errorf("repetition window is %d, expected 0 or more", s.RepetitionWindow)
	}
	return nil
}

// Sampler chooses the tokens of one sequence.
type Sampler struct {
	o      Sampling
	ids    int     // ids from here on are never chosen
	holes  []int32 // nor are these
	random *rand.Rand
	window window
	nucleus
}

// NewSampler makes a sampler for m's logits. Ids that m's tokenizer lacks are never chosen.
func (m *Model) NewSampler(o Sampling) (*Sampler, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	return &Sampler{o: o, ids: m.ids, holes: m.holes, random: rand.New(rand.NewPCG(o.Seed, 0x786c73746d)), window: newWindow(o)}, nil
}

// Accept puts tokens into the repetition window. Sample does it for those it chooses.
func (s *Sampler) Accept(ids ...int32) {
	for _, id := range ids {
		s.window.add(id)
	}
}

// Sample chooses the next token by its logits [V], which it changes. Logits that are not finite are an error.
func (s *Sampler) Sample(logits []float32) (int32, error) {
	if len(logits) < s.ids {
		return 0, fmt.Errorf("%d logits for %d tokens", len(logits), s.ids)
	}
	if i := notFinite(logits); i >= 0 {
		return 0, fmt.Errorf("the logit of token %d is %v: the model or its state is damaged", i, logits[i])
	}
	logits = logits[:s.ids]
	s.window.penalize(logits, s.o.RepetitionPenalty)
	for _, id := range s.holes {
		logits[id] = float32(math.Inf(-1))
	}
	if len(s.holes) >= len(logits) {
		return 0, errors.New("there are no tokens to choose from")
	}
	best := argmax(logits)
	id := int32(best)
	if s.o.Temperature > 0 {
		s.choose(logits, logits[best], &s.o)
		id = s.draw(s.random.Float64())
	}
	s.window.add(id)
	return id, nil
}

// notFinite is the index of a logit that is NaN or infinite, or -1.
func notFinite(logits []float32) int {
	// v-v is 0 where v is finite and NaN where not; the sums are NaN as soon as one of theirs is.
	var a, b, c, d float32
	i := 0
	for ; i+4 <= len(logits); i += 4 {
		l := logits[i : i+4 : i+4]
		a += l[0] - l[0]
		b += l[1] - l[1]
		c += l[2] - l[2]
		d += l[3] - l[3]
	}
	for ; i < len(logits); i++ {
		a += logits[i] - logits[i]
	}
	if a+b+c+d == 0 {
		return -1
	}
	for i, v := range logits {
		if v-v != 0 {
			return i
		}
	}
	return -1
}

// argmax is the index of the largest logit, the lowest of equals.
func argmax(logits []float32) int {
	a, b, c, d := logits[0], logits[0], logits[0], logits[0]
	i := 0
	for ; i+4 <= len(logits); i += 4 {
		l := logits[i : i+4 : i+4]
		if l[0] > a {
			a = l[0]
		}
		if l[1] > b {
			b = l[1]
		}
		if l[2] > c {
			c = l[2]
		}
		if l[3] > d {
			d = l[3]
		}
	}
	for ; i < len(logits); i++ {
		a = max(a, logits[i])
	}
	return slices.Index(logits, max(a, b, c, d))
}

// window is the tokens that the repetition penalty looks at.
type window struct {
	counts map[int32]int // nil: no penalty
	last   []int32       // a ring of the last tokens where the window has an end
	at     int
}

func newWindow(o Sampling) window {
	if o.RepetitionPenalty == 0 || o.RepetitionPenalty == 1 {
		return window{}
	}
	w := window{counts: make(map[int32]int)}
	if o.RepetitionWindow > 0 {
		w.last = make([]int32, 0, min(o.RepetitionWindow, 1<<12))
		w.at = -o.RepetitionWindow // negative: places still empty
	}
	return w
}

func (w *window) add(id int32) {
	if w.counts == nil {
		return
	}
	w.counts[id]++
	if w.last == nil {
		return
	}
	if w.at < 0 {
		w.last = append(w.last, id)
		w.at++
		return
	}
	old := w.last[w.at]
	w.last[w.at] = id
	w.at = (w.at + 1) % len(w.last)
	if w.counts[old]--; w.counts[old] == 0 {
		delete(w.counts, old)
	}
}

func (w *window) penalize(logits []float32, penalty float64) {
	p := float32(penalty)
	for id := range w.counts {
		if id < 0 || int(id) >= len(logits) {
			continue
		}
		v := logits[id]
		if v > 0 {
			v /= p
		} else {
			v *= p
		}
		logits[id] = min(max(v, -math.MaxFloat32), math.MaxFloat32)
	}
}
