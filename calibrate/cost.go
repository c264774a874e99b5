package calibrate

import "xlstm/format"

// cost is an estimate of the work, in floating-point operations, for saying how much is left.
type cost struct{ run, block, total int64 }

// factorFlops is a Cholesky factorization's.
func factorFlops(s format.TensorSpec) int64 { n := int64(s.Cols); return n * n * n / 3 }

// roundFlops is that of compensating each of a matrix's columns for all before it.
func roundFlops(s format.TensorSpec) int64 { return int64(s.Rows) * int64(s.Cols) * int64(s.Cols) }

func (j *job) estimate() cost {
	var c cost
	for i := range j.config.NumBlocks {
		var block int64
		for _, name := range []string{format.TensorQKVO, format.TensorOut, format.TensorGateUp, format.TensorDown} {
			s := j.specs[format.BlockTensor(i, name)]
			block += 2 * int64(s.Rows) * int64(s.Cols) * int64(j.tokens)
		}
		matrices := j.matrices(i)
		for _, s := range matrices {
			block += int64(s.Cols) * int64(s.Cols) * int64(j.tokens)
		}
		c.run = max(c.run, block)
		for _, s := range matrices {
			block += factorFlops(s) + roundFlops(s)
		}
		c.block = max(c.block, block)
		c.total += block
	}
	if head := j.specs[format.TensorHead]; integer(head.Encoding) {
		c.total += factorFlops(head) + roundFlops(head)
	}
	return c
}

// add counts work as done; report says so.
func (j *job) add(flops int64) { j.done = min(j.done+flops, j.cost.total) }

func (j *job) report(block int, step string) {
	if j.o.Progress != nil {
		j.o.Progress(Progress{Block: block, Blocks: j.config.NumBlocks, Step: step, Done: j.done, Total: j.cost.total})
	}
}
