package tokenizer

import (
	"math/bits"
	"slices"
)

// rule is one merge: where left and right are neighbours they become result. Its rank is its index; lower ranks go first.
type rule struct{ left, right, result int32 }

// pairTable finds a pair's rule: open addressing, a power of two of slots, at most half of them full.
type pairTable struct {
	slots []pairSlot
	shift uint
}

type pairSlot struct {
	pair   uint64 // left<<32 | right, plus one so that zero is an empty slot
	rank   uint32
	result int32
}

const noRank = ^uint32(0)

func pairKey(left, right int32) uint64 { return uint64(uint32(left))<<32 | uint64(uint32(right)) }

// newPairTable indexes rules. Of two rules for one pair the later one counts.
func newPairTable(rules []rule) pairTable {
	size := 1 << bits.Len(uint(2*len(rules)+1))
	t := pairTable{slots: make([]pairSlot, size), shift: uint(64 - bits.TrailingZeros(uint(size)))}
	for rank, r := range rules {
		key := pairKey(r.left, r.right) + 1
		i := t.home(key)
		for t.slots[i].pair != 0 && t.slots[i].pair != key {
			i = (i + 1) & (size - 1)
		}
		t.slots[i] = pairSlot{key, uint32(rank), r.result}
	}
	return t
}

func (t *pairTable) home(key uint64) int { return int(key * 0x9e3779b97f4a7c15 >> t.shift) }

// find gives the rank and the result of a pair's rule, noRank where it has none.
func (t *pairTable) find(left, right int32) (uint32, int32) {
	key := pairKey(left, right) + 1
	mask := len(t.slots) - 1
	for i := t.home(key); ; i = (i + 1) & mask {
		switch s := &t.slots[i&mask]; s.pair {
		case key:
			return s.rank, s.result
		case 0:
			return noRank, noToken
		}
	}
}

// merger is the scratch memory of BPE.
type merger struct {
	ranks   [shortWord]uint32
	results [shortWord]int32
	prev    []int32
	next    []int32
	heap    []candidate
}

// shortWord is the length up to which looking through all neighbours for the lowest rank is faster than a heap.
const shortWord = 64

// merge applies the rules to ids in place, lowest rank first and leftmost first among equals, until none applies, and returns
// how many ids are left.
func (m *merger) merge(t *pairTable, ids []int32) int {
	if len(ids) <= shortWord {
		return m.mergeShort(t, ids)
	}
	return m.mergeLong(t, ids)
}

// mergeShort takes n^2 steps for n ids, but very small ones.
func (m *merger) mergeShort(t *pairTable, ids []int32) int {
	n := len(ids)
	if n < 2 {
		return n
	}
	// ranks[i] and results[i] are those of the pair (ids[i], ids[i+1]).
	for i := 0; i+1 < n; i++ {
		m.ranks[i], m.results[i] = t.find(ids[i], ids[i+1])
	}
	for n > 1 {
		best, at := noRank, 0
		for i, r := range m.ranks[:n-1] {
			if r < best {
				best, at = r, i
			}
		}
		if best == noRank {
			break
		}
		ids[at] = m.results[at]
		copy(ids[at+1:], ids[at+2:n])
		n--
		if at+1 < n {
			copy(m.ranks[at+1:], m.ranks[at+2:n])
			copy(m.results[at+1:], m.results[at+2:n])
			m.ranks[at], m.results[at] = t.find(ids[at], ids[at+1])
		}
		if at > 0 {
			m.ranks[at-1], m.results[at-1] = t.find(ids[at-1], ids[at])
		}
	}
	return n
}

// candidate is a pair that had a rule when it was found: the ids at pos and after it. key is rank<<32 | pos, the order.
type candidate struct {
	key         uint64
	left, right int32
	result      int32
}

// mergeLong takes n log n steps for n ids: a list of ids, and a heap of the pairs that can merge, some of them out of date.
func (m *merger) mergeLong(t *pairTable, ids []int32) int {
	n := len(ids)
	if cap(m.prev) < n {
		m.prev, m.next = make([]int32, n), make([]int32, n)
	}
	prev, next := m.prev[:n], m.next[:n]
	m.heap = slices.Grow(m.heap[:0], n)
	for i := range ids {
		prev[i], next[i] = int32(i-1), int32(i+1)
		if i+1 < n {
			m.propose(t, ids, i, i+1)
		}
	}
	m.heapify()
	for len(m.heap) > 0 {
		c := m.pop()
		i := int(uint32(c.key))
		if ids[i] != c.left || int(next[i]) >= n || ids[next[i]] != c.right {
			continue // one of the two was merged since
		}
		j := int(next[i])
		ids[i], ids[j] = c.result, noToken
		next[i] = next[j]
		if k := int(next[i]); k < n {
			prev[k] = int32(i)
			m.propose(t, ids, i, k)
			m.up(len(m.heap) - 1)
		}
		if h := int(prev[i]); h >= 0 {
			m.propose(t, ids, h, i)
			m.up(len(m.heap) - 1)
		}
	}
	left := 0
	for i := 0; i < n; i = int(next[i]) {
		ids[left] = ids[i]
		left++
	}
	if n > maxScratch {
		m.prev, m.next, m.heap = nil, nil, nil
	}
	return left
}

// maxScratch is the longest word whose scratch memory is kept for the next one.
const maxScratch = 1 << 16

// propose appends the pair at i and j to the heap, not yet in its place, where it has a rule.
func (m *merger) propose(t *pairTable, ids []int32, i, j int) {
	if rank, result := t.find(ids[i], ids[j]); rank != noRank {
		m.heap = append(m.heap, candidate{uint64(rank)<<32 | uint64(i), ids[i], ids[j], result})
	}
}

func (m *merger) heapify() {
	for i := len(m.heap)/2 - 1; i >= 0; i-- {
		m.down(i)
	}
}

func (m *merger) pop() candidate {
	top := m.heap[0]
	last := len(m.heap) - 1
	m.heap[0] = m.heap[last]
	m.heap = m.heap[:last]
	m.down(0)
	return top
}

func (m *merger) up(i int) {
	for i > 0 && m.heap[i].key < m.heap[(i-1)/2].key {
		m.heap[i], m.heap[(i-1)/2] = m.heap[(i-1)/2], m.heap[i]
		i = (i - 1) / 2
	}
}

func (m *merger) down(i int) {
	for {
		least := i
		for _, child := range [2]int{2*i + 1, 2*i + 2} {
			if child < len(m.heap) && m.heap[child].key < m.heap[least].key {
				least = child
			}
		}
		if least == i {
			return
		}
		m.heap[i], m.heap[least] = m.heap[least], m.heap[i]
		i = least
	}
}
