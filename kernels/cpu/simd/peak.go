package simd

// PeakFloat makes about the given number of float32 operations, multiplications and additions, in registers: the yardstick of
// products of matrices in floats.
func PeakFloat(operations int) { active.peakFloat(operations) }

// PeakWords makes about the given number of operations on int16 with sums in int32, in registers: the yardstick of products of
// matrices in int8.
func PeakWords(operations int) { active.peakWords(operations) }

// PeakBytes makes about the given number of operations on bytes with sums in int32, in registers: the yardstick of products of
// matrices in int4.
func PeakBytes(operations int) { active.peakBytes(operations) }

// peakChains is how many independent sums the loops of the assembly have.
const peakChains = 10

// peakRounds is how many rounds of a loop over vectors of so many lanes make the operations, at a product and a sum a value.
func peakRounds(operations, values int) int { return max(1, operations/(2*values*peakChains)) }

// genericPeak has four sums of its own and returns them, so that they are made.
func genericPeak(operations int) float32 {
	var s0, s1, s2, s3 float32
	for range operations / 8 {
		s0, s1, s2, s3 = s0*0.5+1, s1*0.5+1, s2*0.5+1, s3*0.5+1
	}
	return s0 + s1 + s2 + s3
}

func genericPeakInt(operations int) int32 {
	var s0, s1, s2, s3 int32
	x := int32(operations)
	for range operations / 8 {
		s0, s1, s2, s3 = s0*x+1, s1*x+1, s2*x+1, s3*x+1
	}
	return s0 + s1 + s2 + s3
}
