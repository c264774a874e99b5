//go:build !gen

package simd

import (
	"github.com/klauspost/cpuid/v2"

	"xlstm/format"
)

// archPaths lists the implementations in assembly that this CPU can run, the best last.
func archPaths() []*Path {
	if !cpuid.CPU.Supports(cpuid.AVX2, cpuid.FMA3, cpuid.F16C, cpuid.BMI2) {
		return nil
	}
	paths := []*Path{avx2Path()}
	if cpuid.CPU.Supports(cpuid.AVX512F, cpuid.AVX512BW, cpuid.AVX512DQ, cpuid.AVX512VL, cpuid.AVX512VNNI) {
		paths = append(paths, avx512Path())
	}
	return paths
}

func avx2Path() *Path {
	p := &Path{
		name:          "avx2",
		eights:        eightsAVX2,
		words:         rounder[int16]{wordMax, maxAbsBlocks, roundWords},
		bytes:         rounder[int8]{byteMax, maxAbsBlocks, roundBytes},
		permute:       permuteInPlace,
		scales:        scalesAVX2,
		scalesOffsets: scalesOffsetsAVX2,
		scaleLanes:    8,
		tileRows:      16,
		floatTiles:    []tileKernel{{6, floatTilex6AVX2}, {4, floatTilex4AVX2}, {2, floatTilex2AVX2}, {1, floatTilex1AVX2}},
		exactTiles:    []tileKernel{{2, exactTilex2AVX2}, {1, exactTilex1AVX2}},
		wordTiles:     []tileKernel{{6, wordTilex6AVX2}, {4, wordTilex4AVX2}, {2, wordTilex2AVX2}, {1, wordTilex1AVX2}},
		byteTiles:     []tileKernel{{6, byteTilex6AVX2}, {4, byteTilex4AVX2}, {2, byteTilex2AVX2}, {1, byteTilex1AVX2}},
		transpose:     transposeAVX2,
		streamRead:    streamReadBlocks,
		peakFloat:     func(n int) { peakFloatAVX2(peakRounds(n, 8)) },
		peakWords:     func(n int) { peakWordsAVX2(peakRounds(n, 16)) },
		peakBytes:     func(n int) { peakBytesAVX2(peakRounds(n, 32)) },
		vectorOps:     avx2VectorOps,
	}
	p.dots[format.FP32] = []dotKernel{{n: 2, run: dotF32x2AVX2}, {n: 1, run: dotF32x1AVX2}}
	p.dots[format.FP16] = []dotKernel{{n: 2, run: dotF16x2AVX2}, {n: 1, run: dotF16x1AVX2}}
	p.dots[format.BF16] = []dotKernel{{n: 2, run: dotBF16x2AVX2}, {n: 1, run: dotBF16x1AVX2}}
	p.dots[format.Int8] = []dotKernel{{n: 2, run: dotI8x2AVX2}, {n: 1, run: dotI8x1AVX2}}
	p.dots[format.Int4] = []dotKernel{{n: 2, run: dotI4x2AVX2}, {n: 1, run: dotI4x1AVX2}}
	p.widen[format.FP32] = genericWidenF32
	p.widen[format.FP16] = widenF16AVX2
	p.widen[format.BF16] = widenBF16AVX2
	p.widen[format.Int8] = widenI8AVX2
	p.widen[format.Int4] = widenI4AVX2
	return p
}

// avx512Path is avx2's with what is different.
func avx512Path() *Path {
	p := avx2Path()
	p.name = "avx512"
	p.scales, p.scalesOffsets, p.scaleLanes = scalesAVX512, scalesOffsetsAVX512, 0
	p.eights, p.gather = eightsAVX512, eightGatherAVX512
	p.tileRows = 32
	p.floatTiles = []tileKernel{{12, floatTilex12AVX512}, {8, floatTilex8AVX512}, {4, floatTilex4AVX512}, {2, floatTilex2AVX512}, {1, floatTilex1AVX512}}
	p.exactTiles = []tileKernel{{6, exactTilex6AVX512}, {3, exactTilex3AVX512}, {1, exactTilex1AVX512}}
	p.wordTiles = []tileKernel{{12, wordTilex12AVX512}, {8, wordTilex8AVX512}, {4, wordTilex4AVX512}, {2, wordTilex2AVX512}, {1, wordTilex1AVX512}}
	p.byteTiles = []tileKernel{{12, byteTilex12AVX512}, {8, byteTilex8AVX512}, {4, byteTilex4AVX512}, {2, byteTilex2AVX512}, {1, byteTilex1AVX512}}
	p.step = stepAVX512
	p.peakFloat = func(n int) { peakFloatAVX512(peakRounds(n, 16)) }
	p.peakWords = func(n int) { peakWordsAVX512(peakRounds(n, 32)) }
	p.peakBytes = func(n int) { peakBytesAVX512(peakRounds(n, 64)) }
	p.dots[format.FP32] = []dotKernel{{n: 2, run: dotF32x2AVX512}, {n: 1, run: dotF32x1AVX512}}
	p.dots[format.FP16] = []dotKernel{{n: 4, run: dotF16x4AVX512}, {n: 2, run: dotF16x2AVX512}, {n: 1, run: dotF16x1AVX512}}
	p.dots[format.BF16] = []dotKernel{{n: 4, run: dotBF16x4AVX512}, {n: 2, run: dotBF16x2AVX512}, {n: 1, run: dotBF16x1AVX512}}
	p.dots[format.Int8] = []dotKernel{{n: 2, run: dotI8x2AVX512}, {n: 1, run: dotI8x1AVX512}}
	p.dots[format.Int4] = []dotKernel{{n: 4, run: dotI4x4AVX512, paired: true}, {n: 2, run: dotI4x2AVX512}, {n: 1, run: dotI4Scaledx1AVX512, scaled: true}}
	return p
}

func eightsAVX2(e format.Encoding) func(*eightArgs) {
	switch {
	case e.Kind == format.FP16:
		return eightF16AVX2
	case e.Kind == format.BF16:
		return eightBF16AVX2
	case e.Kind == format.Int8 && e.Group == 0:
		return eightI8AVX2
	}
	return nil
}

func eightsAVX512(e format.Encoding) func(*eightArgs) {
	switch e.Kind {
	case format.FP32:
		return eightF32AVX512
	case format.FP16:
		return eightF16AVX512
	case format.BF16:
		return eightBF16AVX512
	case format.Int8:
		switch e.Group {
		case 0:
			return eightI8AVX512
		case 128:
			return eightI8G128AVX512
		case 64:
			return eightI8G64AVX512
		}
	}
	return nil
}

// The functions that round take multiples of 32 values; blocks that are not are a vector's last.

func maxAbsBlocks(x []float32) uint32 {
	if len(x)%32 != 0 {
		return genericMaxAbs(x)
	}
	return maxAbsAVX2(&x[0], len(x))
}

func roundWords(out []int16, x []float32, factor float32) int32 {
	if len(x)%32 != 0 {
		return genericRound(out, x, factor)
	}
	return roundWordsAVX2(&out[0], &x[0], len(x), factor)
}

func roundBytes(out []int8, x []float32, factor float32) int32 {
	if len(x)%32 != 0 {
		return genericRound(out, x, factor)
	}
	return roundBytesAVX2(&out[0], &x[0], len(x), factor)
}

// permuteInPlace is genericPermute.
func permuteInPlace(row []int8) {
	if n := len(row) &^ 127; n > 0 {
		permuteAVX2(&row[0], n)
	}
}

// streamReadBlocks reads multiples of 512 bytes in assembly.
func streamReadBlocks(b []byte) uint64 {
	whole := len(b) &^ 511
	sum := genericStreamRead(b[whole:])
	if whole > 0 {
		sum += streamReadAVX2(&b[0], whole)
	}
	return sum
}

var avx2VectorOps = vectorOps{
	dot:        dotVectors,
	sumSquares: func(x []float32) float64 { return sumSquaresAbout(x, 0) },
	axpy: func(y, x []float32, alpha float32) {
		if n := len(x) &^ 7; n > 0 {
			axpyAVX2(&y[0], &x[0], n, alpha)
		}
		genericAxpy(y[len(x)&^7:], x[len(x)&^7:], alpha)
	},
	scaleTo: func(dst, x []float32, alpha float32) {
		if n := len(x) &^ 7; n > 0 {
			scaleToAVX2(&dst[0], &x[0], n, alpha)
		}
		genericScaleTo(dst[len(x)&^7:], x[len(x)&^7:], alpha)
	},
	normTo: func(dst, x []float32, mean, factor float64) {
		if n := len(x) &^ 7; n > 0 {
			normToAVX2(&dst[0], &x[0], n, mean, factor)
		}
		genericNormTo(dst[len(x)&^7:], x[len(x)&^7:], mean, factor)
	},
	variance:   varianceAVX2,
	sigmoidMul: sigmoidMulVectors,
	siluMul:    siluMulVectors,
	sigmoid:    sigmoidVectors,
	softCap:    softCapVectors,
	max:        maxVector,
	sumExp:     sumExpVector,
	step:       stepAVX2,
}

// The kernels take multiples of 8 values. What is left goes through them too, padded, so that a value's result does not depend
// on where it stands.

func dotVectors(x, y []float32) float32 {
	var px, py [8]float32
	n := len(x) &^ 7
	copy(px[:], x[n:])
	copy(py[:], y[n:])
	sum := dotAVX2(&px[0], &py[0], 8)
	if n > 0 {
		sum += dotAVX2(&x[0], &y[0], n)
	}
	return sum
}

func varianceAVX2(x []float32) (mean, variance float64) {
	var p [8]float32
	n := len(x) &^ 7
	copy(p[:], x[n:])
	sum := sumAVX2(&p[0], 8)
	if n > 0 {
		sum += sumAVX2(&x[0], n)
	}
	mean = sum / float64(len(x))
	return mean, sumSquaresAbout(x, mean) / float64(len(x))
}

func sumSquaresAbout(x []float32, mean float64) float64 {
	n := len(x) &^ 7
	sum := 0.0
	for _, v := range x[n:] {
		d := float64(v) - mean
		sum += d * d
	}
	if n > 0 {
		sum += sumSquaresAboutAVX2(&x[0], n, mean)
	}
	return sum
}

func sigmoidMulVectors(dst, x, y []float32) {
	n := len(x) &^ 7
	if n > 0 {
		sigmoidMulAVX2(&dst[0], &x[0], &y[0], n)
	}
	if n < len(x) {
		var px, py [8]float32
		copy(px[:], x[n:])
		copy(py[:], y[n:])
		sigmoidMulAVX2(&px[0], &px[0], &py[0], 8)
		copy(dst[n:], px[:])
	}
}

func siluMulVectors(dst, gate, up []float32) {
	n := len(gate) &^ 7
	if n > 0 {
		siluMulAVX2(&dst[0], &gate[0], &up[0], n)
	}
	if n < len(gate) {
		var px, py [8]float32
		copy(px[:], gate[n:])
		copy(py[:], up[n:])
		siluMulAVX2(&px[0], &px[0], &py[0], 8)
		copy(dst[n:], px[:])
	}
}

func sigmoidVectors(dst, x []float32) {
	n := len(x) &^ 7
	if n > 0 {
		sigmoidAVX2(&dst[0], &x[0], n)
	}
	if n < len(x) {
		var p [8]float32
		copy(p[:], x[n:])
		sigmoidAVX2(&p[0], &p[0], 8)
		copy(dst[n:], p[:])
	}
}

func softCapVectors(x []float32, c float32) {
	n := len(x) &^ 7
	if n > 0 {
		softCapAVX2(&x[0], n, c)
	}
	if n < len(x) {
		var p [8]float32
		copy(p[:], x[n:])
		softCapAVX2(&p[0], 8, c)
		copy(x[n:], p[:])
	}
}

func maxVector(x []float32) float32 {
	n := len(x) &^ 7
	if n == 0 {
		return genericMax(x)
	}
	top := maxAVX2(&x[0], n)
	for _, v := range x[n:] {
		top = max(top, v)
	}
	return top
}

func sumExpVector(x []float32, shift float32) float64 {
	n := len(x) &^ 7
	sum := genericSumExp(x[n:], shift)
	if n > 0 {
		sum += sumExpAVX2(&x[0], n, shift)
	}
	return sum
}

// The steps take four rows of C at a time, then one; the columns behind the last whole vector are left to plain Go.

func stepAVX2(c []float32, ldc int, k, q, v, h []float32, a, b float32) {
	n := len(v) &^ 7
	genericStep(c[n:], ldc, k, q, v[n:], h[n:], a, b)
	if n == 0 {
		return
	}
	i := 0
	for ; i+4 <= len(k); i += 4 {
		coef := stepCoefficients(k[i:i+4], q[i:i+4], a, b)
		step4AVX2(&c[i*ldc], uintptr(4*ldc), &v[0], &h[0], n, &coef)
	}
	for ; i < len(k); i++ {
		coef := stepCoefficients(k[i:i+1], q[i:i+1], a, b)
		step1AVX2(&c[i*ldc], uintptr(4*ldc), &v[0], &h[0], n, &coef)
	}
}

func stepAVX512(c []float32, ldc int, k, q, v, h []float32, a, b float32) {
	n := len(v) &^ 15
	genericStep(c[n:], ldc, k, q, v[n:], h[n:], a, b)
	if n == 0 {
		return
	}
	i := 0
	for ; i+4 <= len(k); i += 4 {
		coef := stepCoefficients(k[i:i+4], q[i:i+4], a, b)
		step4AVX512(&c[i*ldc], uintptr(4*ldc), &v[0], &h[0], n, &coef)
	}
	for ; i < len(k); i++ {
		coef := stepCoefficients(k[i:i+1], q[i:i+1], a, b)
		step1AVX512(&c[i*ldc], uintptr(4*ldc), &v[0], &h[0], n, &coef)
	}
}

// stepCoefficients are a, b*k of up to four rows, q of up to four rows.
func stepCoefficients(k, q []float32, a, b float32) (coef [9]float32) {
	coef[0] = a
	for r := range k {
		coef[1+r], coef[5+r] = b*k[r], q[r]
	}
	return coef
}
