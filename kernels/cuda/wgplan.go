package cuda

import "fmt"

// wgKernel is one of the matrix kernels of wgmma.cu. Its tile is 64*groups rows by tokens, of which it takes values of K a piece.
type wgKernel struct {
	enc            int32
	groups, values int // warpgroups
	tokens         int
}

var wgEncodings = map[int32]string{encF16: "f16", encI8: "i8", encI8G: "i8g", encI4: "i4"}

func (k wgKernel) name() string {
	return fmt.Sprintf("wg_%s_%dx%d_%d", wgEncodings[k.enc], k.groups, k.values, k.tokens)
}

func (k wgKernel) rows() int { return 64 * k.groups }

// threads are those of the groups and of one more, which copies.
func (k wgKernel) threads() int { return 128 * (k.groups + 1) }

// rowBytes is the size of a row's values in one piece.
func (k wgKernel) rowBytes() int {
	switch k.enc {
	case encF16:
		return 2 * k.values
	case encI4:
		return k.values / 2
	}
	return k.values
}

// box is how many of them lie side by side in shared memory.
func (k wgKernel) box() int { return min(k.rowBytes(), 128) }

// shared is the shared memory: WgShape's pieces, and two barriers for each.
func (k wgKernel) shared() int {
	const room = 232448 - 1024 - 128
	stage := k.rows()*k.rowBytes() + 2*k.tokens*k.values
	stages := min(8, room/stage)
	return stages*(stage+16) + 1024
}

// pieces is how many there are in a product with n tokens.
func (k wgKernel) pieces(w *matArg, n int) int {
	up := func(a, b int) int { return (a + b - 1) / b }
	return up(int(w.rowBytes), k.rowBytes()) * up(int(w.rows), k.rows()) * up(n, k.tokens)
}

// blocks is the number of thread blocks that share a product: at most one a multiprocessor, and as many as have room for their sums.
func (k wgKernel) blocks(w *matArg, n, processors, space int) int {
	return max(1, min(k.pieces(w, n), processors, space/(4*k.rows()*k.tokens)))
}

// wgOption is a kernel for products that have at least so many of its pieces a multiprocessor: with fewer, tiles that many blocks share
// cost more than wide tiles gain.
type wgOption struct {
	k     wgKernel
	least int
}

// wgChoice are the kernels for up to so many tokens, the first that has its pieces wins.
type wgChoice struct {
	upTo    int
	options []wgOption
}

const anyTokens = 1 << 30

// wgChoices were chosen by measuring a 7B's products on an H200.
var wgChoices = map[int32][]wgChoice{
	encI4: {
		{8, []wgOption{{wgKernel{encI4, 4, 128, 8}, 8}, {wgKernel{encI4, 2, 256, 8}, 0}}},
		{16, []wgOption{{wgKernel{encI4, 4, 128, 16}, 8}, {wgKernel{encI4, 2, 256, 16}, 0}}},
		{32, []wgOption{{wgKernel{encI4, 4, 256, 32}, 4}, {wgKernel{encI4, 2, 256, 32}, 0}}},
		{64, []wgOption{{wgKernel{encI4, 4, 256, 64}, 4}, {wgKernel{encI4, 2, 256, 64}, 0}}},
		{anyTokens, []wgOption{{wgKernel{encI4, 4, 128, 128}, 16}, {wgKernel{encI4, 4, 256, 64}, 4}, {wgKernel{encI4, 2, 256, 64}, 0}}},
	},
	encI8: {
		{8, []wgOption{{wgKernel{encI8, 2, 128, 8}, 0}}},
		{16, []wgOption{{wgKernel{encI8, 2, 128, 16}, 0}}},
		{32, []wgOption{{wgKernel{encI8, 2, 128, 32}, 0}}},
		{64, []wgOption{{wgKernel{encI8, 4, 128, 64}, 16}, {wgKernel{encI8, 2, 128, 64}, 0}}},
		{anyTokens, []wgOption{{wgKernel{encI8, 4, 128, 128}, 16}, {wgKernel{encI8, 2, 128, 128}, 16}, {wgKernel{encI8, 2, 128, 64}, 0}}},
	},
	encI8G: {
		{8, []wgOption{{wgKernel{encI8G, 4, 128, 8}, 8}, {wgKernel{encI8G, 2, 128, 8}, 0}}},
		{16, []wgOption{{wgKernel{encI8G, 4, 128, 16}, 8}, {wgKernel{encI8G, 2, 128, 16}, 0}}},
		{32, []wgOption{{wgKernel{encI8G, 4, 128, 32}, 8}, {wgKernel{encI8G, 2, 128, 32}, 0}}},
		{64, []wgOption{{wgKernel{encI8G, 4, 128, 64}, 8}, {wgKernel{encI8G, 2, 128, 64}, 0}}},
		{anyTokens, []wgOption{{wgKernel{encI8G, 4, 128, 128}, 16}, {wgKernel{encI8G, 4, 128, 64}, 8}, {wgKernel{encI8G, 2, 128, 64}, 0}}},
	},
	encF16: {
		{16, []wgOption{{wgKernel{encF16, 2, 128, 16}, 0}}},
		{64, []wgOption{{wgKernel{encF16, 2, 128, 64}, 0}}},
		{anyTokens, []wgOption{{wgKernel{encF16, 4, 128, 128}, 8}, {wgKernel{encF16, 2, 128, 64}, 0}}},
	},
}

// wgPick chooses the kernel for a product of n tokens.
func wgPick(w *matArg, n, processors int) wgKernel {
	for _, c := range wgChoices[w.enc] {
		if n > c.upTo {
			continue
		}
		for _, o := range c.options {
			if o.k.pieces(w, n) >= o.least*processors {
				return o.k
			}
		}
	}
	return wgKernel{}
}

// wgKernels are all of them, each once.
func wgKernels() []wgKernel {
	var out []wgKernel
	seen := map[wgKernel]bool{}
	for _, enc := range []int32{encF16, encI8, encI8G, encI4} {
		for _, c := range wgChoices[enc] {
			for _, o := range c.options {
				if !seen[o.k] {
					seen[o.k] = true
					out = append(out, o.k)
				}
			}
		}
	}
	return out
}

const gateTokens = 16 // of a thread block of the kernel for gates

// gateBlocks is the number of multiprocessors that the gates of n tokens need for themselves, beside a product that would otherwise take
// all of them and then let none go before it ends.
func gateBlocks(n int) int { return min((n+gateTokens-1)/gateTokens, 8) }
