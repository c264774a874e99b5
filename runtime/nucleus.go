package runtime

import (
	"cmp"
	"math"
	"slices"
)

// nucleus is the choice among tokens by their probabilities: the candidates that top-k, top-p and min-p leave, and the weight of
// each. All three keep the likeliest tokens, so each only moves the place where the order of the tokens is cut. The tokens are
// never sorted: what surely lies behind the cut is dropped first, the rest is counted into buckets of nearly equal logits, and
// only the bucket that is cut is put in order.
type nucleus struct {
	candidates []int32   // in the order of their ids
	weights    []float64 // of the candidates: exp((logit - largest) / temperature)
	total      float64   // their sum

	bucket  []uint16         // of each candidate
	amounts [buckets]float64 // of each bucket: the number of its candidates, or the sum of their weights
	edge    []int            // candidates of the bucket that is cut
	maxima  []float32        // of the logits' blocks
}

const (
	buckets     = 2048
	bucketReach = 128 // the last bucket takes whatever lies further from the largest logit
	maximaBlock = 64
)

// choose finds the candidates among logits, the largest of which is largest. Logits are finite, or -Inf for what must not be
// chosen.
func (n *nucleus) choose(logits []float32, largest float32, o *Sampling) {
	topP := o.TopP > 0 && o.TopP < 1
	bound := float32(-math.MaxFloat32)
	switch {
	case o.TopK > 0:
		bound = n.topBound(logits, o.TopK)
	case o.MinP > 0 && !topP:
		// A little below where min-p cuts, so that what rounding decides is left to the exact rule.
		low := float64(largest) + o.Temperature*(math.Log(o.MinP)-1e-3) - 1e-6*math.Abs(float64(largest))
		bound = float32(max(low, -math.MaxFloat32))
	}
	n.gather(logits, bound)
	if o.TopK > 0 && o.TopK < len(n.candidates) {
		n.count(logits, largest)
		n.cut(logits, float64(o.TopK))
	}
	n.weigh(logits, largest, o.Temperature)
	if topP {
		want := o.TopP * n.total
		// All tokens of at most this weight together have at most the share that top-p drops: it drops them all.
		n.dropBelow(math.Nextafter((1-o.TopP)*n.total/float64(len(n.candidates)), 0))
		n.count(logits, largest)
		n.cut(logits, want)
	}
	if o.MinP > 0 {
		n.dropBelow(o.MinP) // the likeliest token's weight is 1
	}
}

// topBound is a logit that at least k of the logits reach, not much below the k-th largest where k is small: the k-th largest of
// the largest ones of blocks, each of which is in another block.
func (n *nucleus) topBound(logits []float32, k int) float32 {
	n.maxima = n.maxima[:0]
	for from := 0; from < len(logits); from += maximaBlock {
		block := logits[from:min(from+maximaBlock, len(logits))]
		largest := block[0]
		for _, v := range block {
			if v > largest {
				largest = v
			}
		}
		n.maxima = append(n.maxima, largest)
	}
	if k > len(n.maxima) {
		return -math.MaxFloat32
	}
	return max(kthLargest(n.maxima, k), -math.MaxFloat32)
}

// kthLargest is the k-th largest of v, 1 <= k <= len(v), whose order it changes. It takes len(v) steps, unless v is unlucky.
func kthLargest(v []float32, k int) float32 {
	lo, hi, at := 0, len(v)-1, k-1 // v in falling order would have it at index at, which lies in [lo, hi]
	for lo < hi {
		pivot := v[lo+(hi-lo)/2]
		i, j := lo, hi
		for i <= j {
			for v[i] > pivot {
				i++
			}
			for v[j] < pivot {
				j--
			}
			if i <= j {
				v[i], v[j] = v[j], v[i]
				i++
				j--
			}
		}
		switch {
		case at <= j:
			hi = j
		case at >= i:
			lo = i
		default:
			return v[at]
		}
	}
	return v[at]
}

// gather makes every token that reaches bound a candidate.
func (n *nucleus) gather(logits []float32, bound float32) {
	candidates := slices.Grow(n.candidates[:0], len(logits))[:len(logits)]
	to := 0
	for id, v := range logits {
		if v >= bound {
			candidates[to] = int32(id)
			to++
		}
	}
	n.candidates, n.weights = candidates[:to], n.weights[:0]
}

// weigh gives the candidates their weights, and total.
func (n *nucleus) weigh(logits []float32, largest float32, temperature float64) {
	weights := slices.Grow(n.weights[:0], len(n.candidates))[:len(n.candidates)]
	scale, top, total := 1/temperature, float64(largest), 0.0
	for i, id := range n.candidates {
		w := expNegative((float64(logits[id]) - top) * scale)
		weights[i] = w
		total += w
	}
	n.weights, n.total = weights, total
}

// dropBelow drops candidates that weigh less than least, and sums up the rest.
func (n *nucleus) dropBelow(least float64) {
	candidates, weights := n.candidates[:len(n.weights)], n.weights
	to, total := 0, 0.0
	for i, w := range weights {
		if w >= least {
			total += w
			candidates[to], weights[to] = candidates[i], w
			to++
		}
	}
	n.candidates, n.weights, n.total = candidates[:to], weights[:to], total
}

// count finds the candidates' buckets, and what is in each bucket: weights, or candidates before they have weights.
func (n *nucleus) count(logits []float32, largest float32) {
	least := largest
	for _, id := range n.candidates {
		least = min(least, logits[id])
	}
	scale := (buckets - 1) / min(max(largest-least, 1e-30), bucketReach)
	n.bucket = slices.Grow(n.bucket[:0], len(n.candidates))[:len(n.candidates)]
	n.amounts = [buckets]float64{}
	for i, id := range n.candidates {
		// The bucket never falls where the logit does not rise: each step here is monotone, rounding included.
		b := uint16(int32(min((largest-logits[id])*scale, buckets-1))) & (buckets - 1)
		n.bucket[i] = b
		if len(n.weights) > 0 {
			n.amounts[b] += n.weights[i]
		} else {
			n.amounts[b]++
		}
	}
}

// cut keeps the fewest likeliest candidates whose amounts sum to at least want.
func (n *nucleus) cut(logits []float32, want float64) {
	at, sum := 0, 0.0
	for at < buckets-1 && sum+n.amounts[at] < want {
		sum += n.amounts[at]
		at++
	}
	n.edge = n.edge[:0]
	for i, b := range n.bucket {
		if int(b) == at {
			n.edge = append(n.edge, i)
		}
	}
	slices.SortFunc(n.edge, func(i, j int) int {
		if c := cmp.Compare(logits[n.candidates[j]], logits[n.candidates[i]]); c != 0 {
			return c
		}
		return i - j // candidates are in the order of their ids
	})
	keep := 0
	for keep < len(n.edge) && sum < want {
		if len(n.weights) > 0 {
			sum += n.weights[n.edge[keep]]
		} else {
			sum++
		}
		keep++
	}
	kept := n.edge[:keep]
	slices.Sort(kept)
	n.compact(at, kept)
}

// compact keeps the candidates of the buckets before at, and those of kept, in their order, and sums up their weights.
func (n *nucleus) compact(at int, kept []int) {
	n.total = 0
	to := 0
	for i, b := range n.bucket {
		isKept := len(kept) > 0 && kept[0] == i
		if isKept {
			kept = kept[1:]
		}
		if int(b) >= at && !isKept {
			continue
		}
		n.candidates[to] = n.candidates[i]
		if len(n.weights) > 0 {
			n.weights[to] = n.weights[i]
			n.total += n.weights[i]
		}
		to++
	}
	n.candidates = n.candidates[:to]
	if len(n.weights) > 0 {
		n.weights = n.weights[:to]
	}
}

// draw is the candidate at u, 0 <= u < 1, of the candidates' weights laid end to end.
func (n *nucleus) draw(u float64) int32 {
	u *= n.total
	for i, w := range n.weights {
		if u -= w; u < 0 {
			return n.candidates[i]
		}
	}
	// Rounding has used up more than there is: the last one that weighs anything.
	i := len(n.weights) - 1
	for i > 0 && n.weights[i] == 0 {
		i--
	}
	return n.candidates[i]
}

// expTable holds 2^(i/256).
var expTable = func() (t [256]float64) {
	for i := range t {
		t[i] = math.Exp2(float64(i) / 256)
	}
	return t
}()

// expNegative is e^x for x <= 0, within a relative error of 5e-10, which is far less than that of any logit; 0 below -700.
// x = (k/256) ln 2 + r, so that e^x is a power of two, times a table's entry, times a short series in |r| < 0.0014.
func expNegative(x float64) float64 {
	if x < -700 {
		return 0
	}
	// Adding roundToInt rounds to an integer, which then is the low bits of the sum.
	rounded := x*(256/math.Ln2) + roundToInt
	k := int64(math.Float64bits(rounded) - roundBits)
	r := x - (rounded-roundToInt)*(math.Ln2/256)
	power := expTable[k&255] * math.Float64frombits(uint64(k>>8+1023)<<52)
	return power + power*(r+0.5*r*r)
}

const (
	roundToInt = 3 << 51
	roundBits  = 0x4338000000000000 // of roundToInt
)
