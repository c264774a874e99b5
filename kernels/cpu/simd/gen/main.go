// Program gen writes the assembly of package simd into the package's directory: go run ./gen -target avx2.
//
// Target avx2 needs AVX2, FMA and F16C; target avx512 needs AVX-512 F, BW, DQ, VL and VNNI beside them and has the kernels in
// which wider registers, or more of them, pay.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	. "github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/ir"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// wide says that vectors are 64 bytes, the target being avx512.
var wide bool

func main() {
	target := flag.String("target", "", "avx2 or avx512")
	flag.Parse()
	// The generator reads the package's types, without what depends on its output.
	check(os.Setenv("GOFLAGS", "-tags=gen"))
	dir, err := os.MkdirTemp("", "gen")
	check(err)
	defer os.RemoveAll(dir)
	names := map[string]string{"out": *target + "_amd64.s", "stubs": *target + "_amd64.go"}
	for f, name := range names {
		check(flag.Set(f, filepath.Join(dir, name)))
	}
	check(flag.Set("pkg", "simd"))
	Package("xlstm/kernels/cpu/simd")
	ConstraintExpr("amd64")
	switch *target {
	case "avx2":
		dots()
		eights()
		tiles()
		pack()
		quantize()
		reductions()
		elementwise()
		gates()
		step()
		stream()
		peaks()
	case "avx512":
		wide = true
		dots()
		eights()
		tiles()
		step()
		peaks()
	default:
		check(errors.New("-target must be avx2 or avx512"))
	}
	Generate()
	for _, name := range names {
		b, err := os.ReadFile(filepath.Join(dir, name))
		check(err)
		check(os.WriteFile(name, b, 0o644))
	}
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

// vec is a new vector register, of lanes() 32-bit lanes.
func vec() VecVirtual {
	if wide {
		return ZMM()
	}
	return YMM()
}

func vecs(n int) []VecVirtual {
	v := make([]VecVirtual, n)
	for i := range v {
		v[i] = vec()
	}
	return v
}

func lanes() int {
	if wide {
		return 16
	}
	return 8
}

// suffix ends the names of the target's functions.
func suffix() string {
	if wide {
		return "AVX512"
	}
	return "AVX2"
}

func zero(vs ...VecVirtual) {
	for _, v := range vs {
		if wide {
			VPXORD(v, v, v)
		} else {
			VXORPS(v, v, v)
		}
	}
}

// function begins a function of the target. It is not split and keeps no pointer.
func function(name, signature string) {
	TEXT(name+suffix(), NOSPLIT, signature)
	Pragma("noescape")
}

// dotProductAdd adds to acc the products of the int16 pairs of w and x: acc[i] += w[2i]*x[2i] + w[2i+1]*x[2i+1]. tmp is
// overwritten where the target has no instruction for it; x may be in memory.
func dotProductAdd(acc VecVirtual, w VecVirtual, x Op, tmp VecVirtual) {
	if wide {
		vnni(x, w, acc)
		return
	}
	VPMADDWD(x, w, tmp)
	VPADDD(tmp, acc, acc)
}

// vnni is VPDPWSSD, which avo does not know.
func vnni(x Op, w, acc VecVirtual) {
	Instruction(&ir.Instruction{
		Opcode:   "VPDPWSSD",
		Operands: []Op{x, w, acc},
		Inputs:   []Op{x, w, acc},
		Outputs:  []Op{acc},
		ISA:      []string{"AVX512_VNNI"},
	})
}

// vnniBytes is VPDPBUSD: signed bytes x, unsigned bytes w, four products a lane.
func vnniBytes(x Op, w, acc VecVirtual) {
	Instruction(&ir.Instruction{
		Opcode:   "VPDPBUSD",
		Operands: []Op{x, w, acc},
		Inputs:   []Op{x, w, acc},
		Outputs:  []Op{acc},
		ISA:      []string{"AVX512_VNNI"},
	})
}

// sum4 adds the lanes of each of four vectors and gives four sums. It uses no horizontal sums, which know the lower 16 registers
// only.
func sum4(v []VecVirtual) VecVirtual {
	y := make([]Register, 4)
	for i, u := range v {
		y[i] = u.AsY()
		if wide {
			sum := YMM()
			VEXTRACTF32X8(Imm(1), u, sum)
			VADDPS(u.AsY(), sum, sum)
			y[i] = sum
		}
	}
	// Rows a, b: (a0+a2, b0+b2, a1+a3, b1+b3) in each half; then with rows c, d: (a, b, c, d).
	pair := func(a, b Register) VecVirtual {
		low, high := YMM(), YMM()
		VUNPCKLPS(b, a, low)
		VUNPCKHPS(b, a, high)
		VADDPS(high, low, low)
		return low
	}
	ab, cd := pair(y[0], y[1]), pair(y[2], y[3])
	low, high := YMM(), YMM()
	VUNPCKLPD(cd, ab, low)
	VUNPCKHPD(cd, ab, high)
	VADDPS(high, low, low)
	top := XMM()
	if wide {
		VEXTRACTF32X4(Imm(1), low, top)
	} else {
		VEXTRACTF128(Imm(1), low, top)
	}
	VADDPS(low.AsX(), top, top)
	return top
}

// sum2 adds the float64 lanes of each of two vectors and gives two sums in float32. The vectors are overwritten.
func sum2(a, b VecVirtual) VecVirtual {
	y := [2]VecVirtual{YMM(), YMM()}
	for i, u := range []VecVirtual{a, b} {
		if wide {
			VEXTRACTF64X4(Imm(1), u, y[i])
			VADDPD(u.AsY(), y[i], y[i])
		} else {
			VMOVUPD(u, y[i])
		}
	}
	low, high, x := YMM(), YMM(), XMM()
	VUNPCKLPD(y[1], y[0], low)
	VUNPCKHPD(y[1], y[0], high)
	VADDPD(high, low, low)
	if wide {
		VEXTRACTF64X2(Imm(1), low, x)
	} else {
		VEXTRACTF128(Imm(1), low, x)
	}
	VADDPD(low.AsX(), x, x)
	VCVTPD2PSX(x, x)
	return x
}

// sum1 adds the lanes of v into the lowest lane of the result.
func sum1(v VecVirtual) VecVirtual {
	high := XMM()
	VEXTRACTF128(Imm(1), v.AsY(), high)
	VADDPS(v.AsX(), high, high)
	VHADDPS(high, high, high)
	VHADDPS(high, high, high)
	return high
}
