package cpu

import (
	"xlstm/format"
)

// widths are the float32 values that a token of a piece takes in each buffer. x and u are of the same width.
type widths struct{ x, qkvo, gates, h, gateUp int }

func widthsOf(c *format.Config) widths {
	return widths{x: c.EmbeddingDim, qkvo: 2*c.QKDim + 2*c.VDim, gates: 2 * c.NumHeads, h: c.VDim, gateUp: 2 * c.FFNDim}
}

// WorkingMemory is what an engine needs beside weights and states, in bytes, at most: buffers for a piece of tokens (0 is
// DefaultPiece), logits of headRows tokens, the largest product's input in the form that the kernels take, and the workers' scratch.
func WorkingMemory(c *format.Config, piece, workers int) int64 {
	if piece == 0 {
		piece = DefaultPiece
	}
	w := widthsOf(c)
	token := 2*w.x + w.qkvo + w.gates + w.h + w.gateUp
	widest := max(c.EmbeddingDim, c.VDim, c.FFNDim)
	inputs := widest + c.EmbeddingDim // of the product at work, and of the gates
	floats := int64(piece)*int64(token+inputs) + headRows*int64(c.VocabSize)
	dk := c.HeadQKDim()
	scratch := int64(dk + 2*chunk*dk + chunk*chunk)
	return 4 * (floats + int64(workers)*scratch)
}
