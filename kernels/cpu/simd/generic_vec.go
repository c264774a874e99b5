package simd

import "math"

var genericVectorOps = vectorOps{
	dot:        genericDot,
	sumSquares: genericSumSquares,
	axpy:       genericAxpy,
	scaleTo:    genericScaleTo,
	normTo:     genericNormTo,
	variance:   genericVariance,
	sigmoidMul: genericSigmoidMul,
	siluMul:    genericSiluMul,
	sigmoid:    genericSigmoid,
	softCap:    genericSoftCap,
	max:        genericMax,
	sumExp:     genericSumExp,
	step:       genericStep,
}

func genericDot(x, y []float32) float32 {
	y = y[:len(x)]
	var s0, s1, s2, s3 float32
	i := 0
	for ; i+4 <= len(x); i += 4 {
		u, v := x[i:i+4:i+4], y[i:i+4:i+4]
		s0 += u[0] * v[0]
		s1 += u[1] * v[1]
		s2 += u[2] * v[2]
		s3 += u[3] * v[3]
	}
	for ; i < len(x); i++ {
		s0 += x[i] * y[i]
	}
	return s0 + s1 + (s2 + s3)
}

func genericAxpy(y, x []float32, alpha float32) {
	y = y[:len(x)]
	for i, v := range x {
		y[i] += alpha * v
	}
}

func genericScaleTo(dst, x []float32, alpha float32) {
	dst = dst[:len(x)]
	for i, v := range x {
		dst[i] = alpha * v
	}
}

func genericNormTo(dst, x []float32, mean, factor float64) {
	dst = dst[:len(x)]
	for i, v := range x {
		dst[i] = float32((float64(v) - mean) * factor)
	}
}

func genericSumSquares(x []float32) float64 {
	sum := 0.0
	for _, v := range x {
		sum += float64(v) * float64(v)
	}
	return sum
}

func genericVariance(x []float32) (mean, variance float64) {
	sum := 0.0
	for _, v := range x {
		sum += float64(v)
	}
	mean = sum / float64(len(x))
	sum = 0
	for _, v := range x {
		d := float64(v) - mean
		sum += d * d
	}
	return mean, sum / float64(len(x))
}

func genericLogistic(x float32) float32 { return float32(1 / (1 + math.Exp(-float64(x)))) }

func genericSigmoidMul(dst, x, y []float32) {
	dst, y = dst[:len(x)], y[:len(x)]
	for i, v := range x {
		dst[i] = y[i] * genericLogistic(v)
	}
}

func genericSiluMul(dst, gate, up []float32) {
	dst, up = dst[:len(gate)], up[:len(gate)]
	for i, v := range gate {
		dst[i] = up[i] * (v * genericLogistic(v))
	}
}

func genericSigmoid(dst, x []float32) {
	dst = dst[:len(x)]
	for i, v := range x {
		dst[i] = genericLogistic(v)
	}
}

func genericSoftCap(x []float32, c float32) {
	for i, v := range x {
		x[i] = c * float32(math.Tanh(float64(v)))
	}
}

// genericMax is the largest value, NaN if one is NaN.
func genericMax(x []float32) float32 {
	top := x[0]
	for _, v := range x[1:] {
		top = max(top, v)
	}
	return top
}

func genericSumExp(x []float32, shift float32) float64 {
	sum := 0.0
	for _, v := range x {
		sum += math.Exp(float64(v - shift))
	}
	return sum
}

func genericStep(c []float32, ldc int, k, q, v, h []float32, a, b float32) {
	h = h[:len(v)]
	for i, ki := range k {
		row := c[i*ldc:][:len(v)]
		bk, qi := b*ki, q[i]
		for j, vj := range v {
			cj := a*row[j] + bk*vj
			row[j] = cj
			h[j] += qi * cj
		}
	}
}
