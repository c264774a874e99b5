package quantize

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"testing"
)

// exactHalf is the value of a finite 16-bit float with the given number of exponent bits, from the definition.
func exactHalf(h uint16, expBits int) float64 {
	manBits := 15 - expBits
	bias := 1<<(expBits-1) - 1
	man := int(h & (1<<manBits - 1))
	exp := int(h>>manBits) & (1<<expBits - 1)
	v := math.Ldexp(float64(man), 1-bias-manBits)
	if exp > 0 {
		v = math.Ldexp(float64(man+1<<manBits), exp-bias-manBits)
	}
	if h&0x8000 != 0 {
		return -v
	}
	return v
}

type halfFormat struct {
	name     string
	expBits  int
	inf      uint16
	to       func(float32) uint16
	from     func(uint16) float32
	encode   func([]byte, []float32) int
	decode   func([]float32, []byte)
	lo, hi   uint32 // float32 bits between which to() is swept for being monotonic
	overflow float32
}

var halfFormats = []halfFormat{
	{"fp16", 5, 0x7c00, ToFP16, FromFP16, EncodeFP16, DecodeFP16, (127 - 26) << 23, (127 + 17) << 23, 65520},
	{"bf16", 8, 0x7f80, ToBF16, FromBF16, EncodeBF16, DecodeBF16, (127 - 8) << 23, (127 + 8) << 23, math.Float32frombits(bf16Overflow)},
}

func TestHalfWidenExhaustive(t *testing.T) {
	for _, f := range halfFormats {
		for i := range 1 << 16 {
			h := uint16(i)
			got := f.from(h)
			switch abs := h & 0x7fff; {
			case abs > f.inf:
				if got == got {
					t.Fatalf("%s %#04x: %v, expected NaN", f.name, h, got)
				}
			case abs == f.inf:
				if !math.IsInf(float64(got), 1-int(h>>15)*2) {
					t.Fatalf("%s %#04x: %v, expected infinity", f.name, h, got)
				}
			default:
				want := exactHalf(h, f.expBits)
				if float64(got) != want || math.Signbit(float64(got)) != (h&0x8000 != 0) {
					t.Fatalf("%s %#04x: %v, expected %v", f.name, h, got, want)
				}
			}
			if back := f.to(got); back != h && h&0x7fff <= f.inf || back&0x7fff <= f.inf && h&0x7fff > f.inf {
				t.Fatalf("%s %#04x came back as %#04x", f.name, h, back)
			}
		}
	}
}

// Around each pair of neighbours a < b: everything up to the middle goes to a, everything from it on to b, and the middle to
// the even one. Together with to() being monotonic, swept below, this covers every float32.
func TestHalfRoundExhaustive(t *testing.T) {
	for _, f := range halfFormats {
		for h := range f.inf {
			a, b := f.from(h), f.from(h+1)
			even := h
			if h&1 == 1 {
				even = h + 1
			}
			mid := float32((exactHalf(h, f.expBits) + exactHalf(h+1, f.expBits)) / 2)
			if h+1 == f.inf {
				mid = f.overflow
			}
			inf32 := float32(math.Inf(1))
			for _, c := range []struct {
				in   float32
				want uint16
			}{{a, h}, {math.Nextafter32(mid, 0), h}, {mid, even}, {math.Nextafter32(mid, inf32), h + 1}, {b, h + 1}} {
				if got := f.to(c.in); got != c.want {
					t.Fatalf("%s(%v) = %#04x, expected %#04x", f.name, c.in, got, c.want)
				}
				if got := f.to(-c.in); got != c.want|0x8000 {
					t.Fatalf("%s(%v) = %#04x, expected %#04x", f.name, -c.in, got, c.want|0x8000)
				}
			}
		}
	}
}

func TestHalfMonotonic(t *testing.T) {
	for _, f := range halfFormats {
		step := uint32(1)
		if testing.Short() || raceEnabled {
			step = 61
		}
		last := f.to(math.Float32frombits(f.lo))
		for b := f.lo; b < f.hi; b += step {
			h := f.to(math.Float32frombits(b))
			if h < last || h-last > 1 {
				t.Fatalf("%s: %#04x follows %#04x at %#08x", f.name, h, last, b)
			}
			last = h
		}
		last = 0
		for b := uint32(0); b <= f32Inf; b += 509 {
			h := f.to(math.Float32frombits(b))
			if h < last {
				t.Fatalf("%s: %#04x follows %#04x at %#08x", f.name, h, last, b)
			}
			last = h
		}
	}
}

func TestHalfBulk(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, f := range halfFormats {
		src := make([]float32, 1000)
		for i := range src {
			src[i] = float32(rng.NormFloat64() * math.Exp(4*rng.NormFloat64()-6))
		}
		buf := make([]byte, 2*len(src))
		back := make([]float32, len(src))
		if bad := f.encode(buf, src); bad != -1 {
			t.Fatalf("%s: value %d, %v, reported", f.name, bad, src[bad])
		}
		f.decode(back, buf)
		for i := range src {
			if h := binary.LittleEndian.Uint16(buf[2*i:]); h != f.to(src[i]) || back[i] != f.from(h) {
				t.Fatalf("%s: value %d: %v became %#04x and %v", f.name, i, src[i], h, back[i])
			}
		}
		for _, v := range []float32{f.overflow, -f.overflow, float32(math.Inf(-1)), float32(math.NaN())} {
			src[77], src[99] = v, v
			if bad := f.encode(buf, src); bad != 77 {
				t.Errorf("%s: %v at 77 reported as %d", f.name, v, bad)
			}
			src[77], src[99] = 0, math.Nextafter32(f.overflow, 0)
			if bad := f.encode(buf, src); bad != -1 {
				t.Errorf("%s: largest value reported", f.name)
			}
		}
	}
}

func BenchmarkHalf(b *testing.B) {
	src := make([]float32, 1<<16)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range src {
		src[i] = float32(rng.NormFloat64())
	}
	buf := make([]byte, 2*len(src))
	for _, f := range halfFormats {
		b.Run(f.name+"/encode", func(b *testing.B) {
			b.SetBytes(int64(4 * len(src)))
			for b.Loop() {
				f.encode(buf, src)
			}
		})
		b.Run(f.name+"/decode", func(b *testing.B) {
			b.SetBytes(int64(4 * len(src)))
			for b.Loop() {
				f.decode(src, buf)
			}
		})
	}
}
