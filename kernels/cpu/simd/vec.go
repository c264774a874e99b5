package simd

import "math"

// vectorOps are the operations on vectors of float32. Slices that they take together have the same length.
type vectorOps struct {
	dot        func(x, y []float32) float32
	sumSquares func(x []float32) float64
	axpy       func(y, x []float32, alpha float32)
	scaleTo    func(dst, x []float32, alpha float32)
	normTo     func(dst, x []float32, mean, factor float64)
	variance   func(x []float32) (mean, variance float64)
	sigmoidMul func(dst, x, y []float32)
	siluMul    func(dst, gate, up []float32)
	sigmoid    func(dst, x []float32)
	softCap    func(x []float32, c float32)
	max        func(x []float32) float32
	sumExp     func(x []float32, shift float32) float64
	step       func(c []float32, ldc int, k, q, v, h []float32, a, b float32)
}

// Dot is sum_i x[i]*y[i], in float32.
func Dot(x, y []float32) float32 { return active.dot(x, y[:len(x)]) }

// Dot is the function Dot on path p.
func (p *Path) Dot(x, y []float32) float32 { return p.dot(x, y[:len(x)]) }

// Axpy adds alpha*x to y.
func Axpy(alpha float32, x, y []float32) { active.Axpy(alpha, x, y) }

// Axpy is the function Axpy on path p.
func (p *Path) Axpy(alpha float32, x, y []float32) { p.axpy(y[:len(x)], x, alpha) }

// Scale multiplies x by alpha.
func Scale(x []float32, alpha float32) { active.Scale(x, alpha) }

// Scale is the function Scale on path p.
func (p *Path) Scale(x []float32, alpha float32) { p.scaleTo(x, x, alpha) }

// RMSNorm computes dst = x / sqrt(mean(x^2) + eps), the mean in float64. dst may be x.
func RMSNorm(dst, x []float32, eps float32) { active.RMSNorm(dst, x, eps) }

// RMSNorm is the function RMSNorm on path p.
func (p *Path) RMSNorm(dst, x []float32, eps float32) {
	if len(x) == 0 {
		return
	}
	mean := p.sumSquares(x) / float64(len(x))
	p.scaleTo(dst[:len(x)], x, float32(1/math.Sqrt(mean+float64(eps))))
}

// LayerNorm computes dst = (x - mean(x)) / sqrt(var(x) + eps) with the biased variance, about the mean, in float64. dst may be x.
func LayerNorm(dst, x []float32, eps float32) { active.LayerNorm(dst, x, eps) }

// LayerNorm is the function LayerNorm on path p.
func (p *Path) LayerNorm(dst, x []float32, eps float32) {
	if len(x) == 0 {
		return
	}
	mean, variance := p.variance(x)
	p.normTo(dst[:len(x)], x, mean, 1/math.Sqrt(variance+float64(eps)))
}

// SigmoidMul computes dst = y * sigmoid(x). dst may be x or y. The arguments' order is that of the product's use:
// SigmoidMul(dst, y, gate).
func SigmoidMul(dst, y, gate []float32) { active.SigmoidMul(dst, y, gate) }

// SigmoidMul is the function SigmoidMul on path p.
func (p *Path) SigmoidMul(dst, y, gate []float32) {
	p.sigmoidMul(dst[:len(y)], gate[:len(y)], y)
}

// SiluMul computes dst = up * gate * sigmoid(gate). dst may be gate or up.
func SiluMul(dst, gate, up []float32) { active.SiluMul(dst, gate, up) }

// SiluMul is the function SiluMul on path p.
func (p *Path) SiluMul(dst, gate, up []float32) {
	p.siluMul(dst[:len(gate)], gate, up[:len(gate)])
}

// Sigmoid computes dst = 1 / (1 + exp(-x)). dst may be x.
func Sigmoid(dst, x []float32) { active.Sigmoid(dst, x) }

// Sigmoid is the function Sigmoid on path p.
func (p *Path) Sigmoid(dst, x []float32) { p.sigmoid(dst[:len(x)], x) }

// SoftCap replaces x by c*tanh(x): the soft cap of values that are divided by c already.
func SoftCap(x []float32, c float32) { active.SoftCap(x, c) }

// SoftCap is the function SoftCap on path p.
func (p *Path) SoftCap(x []float32, c float32) { p.softCap(x, c) }

// LogSumExp is log(sum_i exp(x[i])); the sum is in float64. It is -Inf of no values.
func LogSumExp(x []float32) float64 { return active.LogSumExp(x) }

// LogSumExp is the function LogSumExp on path p.
func (p *Path) LogSumExp(x []float32) float64 {
	if len(x) == 0 {
		return math.Inf(-1)
	}
	top := p.max(x)
	return float64(top) + math.Log(p.sumExp(x, top))
}

// MLSTMStep is one token's step of one head, in one pass over the state C, dk rows of dv values ldc apart, dk being the length of
// k and q, dv that of v and h (arXiv 2503.13427):
//
//	C = a*C + b*k*v^T    h = C^T*q
//
// It may be given a range of the columns: C, v and h from the same column on.
func MLSTMStep(c []float32, ldc int, k, q, v, h []float32, a, b float32) {
	active.MLSTMStep(c, ldc, k, q, v, h, a, b)
}

// MLSTMStep is the function MLSTMStep on path p.
func (p *Path) MLSTMStep(c []float32, ldc int, k, q, v, h []float32, a, b float32) {
	h = h[:len(v)]
	q = q[:len(k)]
	clear(h)
	if len(k) == 0 || len(v) == 0 {
		return
	}
	p.step(c[:(len(k)-1)*ldc+len(v)], ldc, k, q, v, h, a, b)
}
