package cpu

import (
	"runtime"
	"sync"
	"sync/atomic"
)

// pool is a fixed set of workers that run one function at a time, a phase. A phase costs one wake-up: a worker that has been
// idle for longer than it spins is woken through its channel, a spinning one sees the new phase by itself. The calling
// goroutine is worker 0.
type pool struct {
	n       int
	fn      func(worker int)
	phase   atomic.Uint32 // counts phases; a worker runs fn when it changes
	pending atomic.Int32  // workers that have not finished the phase
	idle    []parking     // of workers 1..n-1
	done    parking       // of the caller, waiting for pending to reach 0
	stop    bool          // set before a last phase
	exited  sync.WaitGroup
}

// parking is where one goroutine sleeps. It announces itself in asleep before sleeping; whoever clears asleep owes a token.
type parking struct {
	asleep atomic.Bool
	token  chan struct{}
	_      [48]byte // keeps two parkings off one cache line
}

// spins is how often a waiter looks before it sleeps: some 80 microseconds, longer than the gaps between the phases of a token.
// Waking a sleeper takes as long.
const spins = 1 << 14

func newPool(n int) *pool {
	p := &pool{n: n, idle: make([]parking, n-1)}
	p.done.token = make(chan struct{}, 1)
	for w := range p.idle {
		p.idle[w].token = make(chan struct{}, 1)
		p.exited.Add(1)
		go p.work(w + 1)
	}
	return p
}

// run calls fn(worker) on every worker and returns when all have returned. fn must not panic or call run.
func (p *pool) run(fn func(worker int)) {
	if p.n == 1 {
		fn(0)
		return
	}
	p.fn = fn
	p.pending.Store(int32(p.n - 1))
	p.phase.Add(1)
	for w := range p.idle {
		p.idle[w].wake()
	}
	fn(0)
	p.done.wait(func() bool { return p.pending.Load() == 0 })
}

func (p *pool) work(w int) {
	defer p.exited.Done()
	seen := uint32(0)
	for {
		p.idle[w-1].wait(func() bool { return p.phase.Load() != seen })
		seen = p.phase.Load()
		if p.stop {
			return
		}
		p.fn(w)
		if p.pending.Add(-1) == 0 {
			p.done.wake()
		}
	}
}

// close ends the workers. The pool must not be used after it.
func (p *pool) close() {
	p.stop = true
	p.phase.Add(1)
	for w := range p.idle {
		p.idle[w].wake()
	}
	p.exited.Wait()
}

// wait returns once ready holds: first looking, then sleeping. ready becoming true must be followed by a wake.
func (k *parking) wait(ready func() bool) {
	for i := range spins {
		if ready() {
			return
		}
		if i&63 == 63 {
			runtime.Gosched()
		}
	}
	for {
		k.asleep.Store(true)
		if ready() {
			if !k.asleep.CompareAndSwap(true, false) {
				<-k.token // a waker came first: take what it owes
			}
			return
		}
		<-k.token
		if ready() {
			return
		}
	}
}

func (k *parking) wake() {
	if k.asleep.CompareAndSwap(true, false) {
		k.token <- struct{}{}
	}
}

// split gives worker w of n its share [lo, hi) of total items, in multiples of unit (the last share may be ragged).
func split(total, unit, w, n int) (lo, hi int) {
	units := (total + unit - 1) / unit
	lo = min(units*w/n*unit, total)
	hi = min(units*(w+1)/n*unit, total)
	return lo, hi
}

// shares hands out a phase's rows to whoever comes: large shares first, small ones at the end, so that all workers end together
// however fast each of them is.
type shares struct {
	next  atomic.Int64
	total int
	least int // size of the smallest share
	most  int // of the largest
	n     int // workers
}

const (
	// rowUnit is what shares of rows are multiples of: kernels take several rows at a time.
	rowUnit = 32
	// mostRows and mostBytes limit the largest share, what a worker computes between two looks at the context: so many rows or, of
	// weights times vectors, bytes, whichever is more. Long shares are read faster: each begins and ends eight streams.
	mostRows  = 512
	mostBytes = 16 << 20
	// leastBytes is about the size of the smallest share's weights: some microseconds, against which taking it costs little.
	leastBytes = 64 << 10
)

// reset begins handing out total rows of so many bytes, for products with so many vectors.
func (s *shares) reset(total, rowBytes, vectors, workers int) {
	units := func(n int) int { return max(1, (n+rowUnit-1)/rowUnit) }
	s.total, s.n = total, workers
	s.least = rowUnit * min(units(leastBytes/max(1, rowBytes)), units((total+workers-1)/workers))
	s.most = max(mostRows, mostBytes/max(1, rowBytes*vectors)&^(rowUnit-1))
	s.next.Store(0)
}

// take gives the next share [lo, hi), empty where none is left.
func (s *shares) take() (lo, hi int) {
	for {
		at := s.next.Load()
		left := s.total - int(at)
		if left <= 0 {
			return s.total, s.total
		}
		n := min(3*left/(4*s.n), s.most)
		if n >= 4*rowUnit {
			n &^= 4*rowUnit - 1
		}
		n = min(max(n&^(rowUnit-1), s.least), left)
		if s.next.CompareAndSwap(at, at+int64(n)) {
			return int(at), int(at) + n
		}
	}
}
