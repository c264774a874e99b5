package cpu

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestPoolRunsEveryWorkerOnce covers workers that spin, workers that sleep, and callers that come back at once.
func TestPoolRunsEveryWorkerOnce(t *testing.T) {
	for _, n := range []int{1, 2, 3, 8} {
		p := newPool(n)
		counts := make([]int, n) // no atomics: the race detector checks that phases are ordered
		var together atomic.Int64
		for phase := range 2000 {
			p.run(func(w int) {
				counts[w]++
				together.Add(1)
				if phase%500 == 0 && w == n-1 {
					time.Sleep(2 * time.Millisecond)
				}
			})
			if got := together.Load(); got != int64((phase+1)*n) {
				t.Fatalf("%d workers, phase %d: %d calls, expected %d", n, phase, got, (phase+1)*n)
			}
			if phase%400 == 0 {
				time.Sleep(2 * time.Millisecond) // long enough for the workers to sleep
			}
		}
		p.close()
		for w, c := range counts {
			if c != 2000 {
				t.Errorf("worker %d of %d ran %d phases, expected 2000", w, n, c)
			}
		}
	}
}

func TestSplitCoversAll(t *testing.T) {
	for _, total := range []int{0, 1, 31, 32, 33, 100, 12288} {
		for _, n := range []int{1, 2, 3, 7, 64} {
			end := 0
			for w := range n {
				lo, hi := split(total, 32, w, n)
				if lo != end && lo != hi || hi < lo || lo%32 != 0 && lo != total {
					t.Fatalf("split(%d, 32, %d, %d) = %d, %d after %d", total, w, n, lo, hi, end)
				}
				end = max(end, hi)
			}
			if end != total {
				t.Fatalf("%d shares of %d end at %d", n, total, end)
			}
		}
	}
}

// TestShares: whatever the workers take, each row is handed out once, in order, in multiples of the unit.
func TestShares(t *testing.T) {
	for _, total := range []int{0, 1, 31, 32, 33, 100, 4096, 10944, 50304} {
		for _, rowBytes := range []int{32, 2048, 21888, 1 << 20} {
			for _, n := range []int{1, 2, 3, 64} {
				var s shares
				vectors := 1 + total%7
				s.reset(total, rowBytes, vectors, n)
				var lock sync.Mutex
				taken := make([]int, total)
				var all sync.WaitGroup
				for range n {
					all.Go(func() {
						for {
							lo, hi := s.take()
							if lo == hi {
								return
							}
							lock.Lock()
							if lo%rowUnit != 0 || hi-lo > max(s.most, s.least) || hi != total && (hi-lo)%rowUnit != 0 {
								t.Errorf("share %d to %d of %d", lo, hi, total)
							}
							for i := lo; i < hi; i++ {
								taken[i]++
							}
							lock.Unlock()
						}
					})
				}
				all.Wait()
				for i, c := range taken {
					if c != 1 {
						t.Fatalf("%d rows, %d workers: row %d was taken %d times", total, n, i, c)
					}
				}
				s.reset(total, rowBytes, vectors, n)
				if lo, hi := s.take(); n > 1 && total > n*rowUnit && hi-lo > total/n+rowUnit {
					t.Errorf("%d rows, %d workers: the first share has %d", total, n, hi-lo)
				}
			}
		}
	}
}

func BenchmarkPhase(b *testing.B) {
	p := newPool(2)
	defer p.close()
	for b.Loop() {
		p.run(func(int) {})
	}
}
