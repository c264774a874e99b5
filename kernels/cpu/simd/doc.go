// Package simd holds the arithmetic of the CPU engine: products of encoded matrices with float32 activations, the mLSTM step,
// small matrix products, norms and gates.
//
// Every operation exists in plain Go; further paths, in assembly, are chosen once, when the program starts, by what the CPU has.
// XLSTM_CPU asks for a lower one by its name. Paths gives all of them, so that tests hold them against each other.
//
// # Products
//
// A Matrix is a tensor as a file stores it (format.Encoding); an Acts holds n vectors, prepared for one encoding:
//
//	var a simd.Acts
//	a.Resize(n, cols, m.Enc)
//	a.SetRow(i, x)                             // for each of the n vectors, by any worker
//	m.Mul(dst, ldd, &a, r0, r1, &scratch)      // rows r0 to r1, by any worker
//
// Preparing: for fp32, fp16 and bf16 the vectors are kept in float32. For int8 and int4 they are quantized to int16, by blocks
// of 32 to 256 values with one float32 scale each (the block's largest magnitude / 32767), so that a product is the sum of
// integers over a block, which is exact, times scales in float32. The error of an activation is at most 2^-16 of its block's
// largest magnitude. The sums cannot overflow: 127 * 32767 * 256 < 2^31.
//
// Order of sums: up to SmallBatch vectors take the way of dot products, which reads each weight from memory once; more take the
// way of packed tiles. Within one way and one path, a result depends on its row and its vector alone, bit for bit: not on r0 and
// r1, nor on n. Between ways and between paths results differ by float32 rounding of sums.
//
// NaN and infinity in an activation give NaN or infinite results for its vector.
package simd
