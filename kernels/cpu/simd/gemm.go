package simd

// Gemm computes C = alpha*op(A)*op(B) + beta*C, row by row, where op(A) is m x k (A itself, or the transpose of the k x m matrix A
// where transA is set), op(B) is k x n, and lda, ldb and ldc are the distances of stored rows. C is written without being read
// where beta is 0. C must not overlap A or B. Sums are in float32, or with s.Exact in float64, rounded to float32 each 256 terms.
func Gemm(transA, transB bool, m, n, k int, alpha float32, a []float32, lda int, b []float32, ldb int, beta float32, c []float32, ldc int, s *Scratch) {
	active.Gemm(transA, transB, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, s)
}

// Gemm is the function Gemm on path p.
func (p *Path) Gemm(transA, transB bool, m, n, k int, alpha float32, a []float32, lda int, b []float32, ldb int, beta float32, c []float32, ldc int, s *Scratch) {
	if m < 1 || n < 1 {
		return
	}
	if transA {
		// The kernel broadcasts successive values of a row of A.
		s.a = growAligned(s.a, m*k)
		for i := range m {
			row := s.a[i*k : (i+1)*k]
			for j := range row {
				row[j] = a[j*lda+i]
			}
		}
		a, lda = s.a, k
	}
	s.w = growAligned(s.w, runTiles*p.tileRows*depth)
	run := runTiles * p.tileRows
	for j := 0; j < n; j += run {
		cols := min(run, n-j)
		tiles := (cols + p.tileRows - 1) / p.tileRows
		s.c = growAligned(s.c, tiles*m*p.tileRows)
		clear(s.c)
		for l := 0; l < k; l += depth {
			kn := min(depth, k-l)
			for t := range tiles {
				first := j + t*p.tileRows
				p.packB(s, s.w[t*p.tileRows*depth:], transB, b, ldb, first, min(p.tileRows, n-first), l, kn)
			}
			p.runFloatTiles(s, s.Exact, tiles, kn, a[l:], lda, m)
		}
		p.storeGemm(s, m, cols, alpha, beta, c[j:], ldc)
	}
}

// packB fills a tile with columns [first, first+have) and rows [l, l+kn) of op(B).
func (p *Path) packB(s *Scratch, tile []float32, trans bool, b []float32, ldb, first, have, l, kn int) {
	tile = tile[:kn*p.tileRows]
	if have < p.tileRows {
		clear(tile)
	}
	if !trans {
		for i := range kn {
			copy(tile[i*p.tileRows:(i+1)*p.tileRows], b[(l+i)*ldb+first:][:have])
		}
		return
	}
	if have == p.tileRows && kn%16 == 0 {
		p.transpose(bytesOf(&tile[0]), bytesOf(&b[first*ldb+l]), uintptr(4*ldb), kn, p.tileRows)
		return
	}
	for j := range have {
		for i, v := range b[(first+j)*ldb+l:][:kn] {
			tile[i*p.tileRows+j] = v
		}
	}
}

func (p *Path) storeGemm(s *Scratch, m, cols int, alpha, beta float32, c []float32, ldc int) {
	for t := 0; t*p.tileRows < cols; t++ {
		have := min(p.tileRows, cols-t*p.tileRows)
		for i := range m {
			out := c[i*ldc+t*p.tileRows:][:have]
			sum := s.c[(t*m+i)*p.tileRows:][:have]
			switch {
			case beta == 0:
				for j, v := range sum {
					out[j] = alpha * v
				}
			case beta == 1:
				for j, v := range sum {
					out[j] += alpha * v
				}
			default:
				for j, v := range sum {
					out[j] = beta*out[j] + alpha*v
				}
			}
		}
	}
}
