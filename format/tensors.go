package format

import "fmt"

// Names of the tensors in a file. All products are y = W x with W [rows, cols], stored row by row. Vectors are stored as one
// row. Norm weights, caps and 1/sqrt(dk) are folded in (docs/FORMAT.md says what into what), so that a file holds matrices and
// biases only.
const (
	TensorEmbed    = "embed"     // [V, D]
	TensorHead     = "head"      // [V, D], divided by the output soft cap
	TensorHeadBias = "head.bias" // [1, V] fp32, where the checkpoint's output norm has a bias

	// Of one block; BlockTensor gives the full name.
	TensorQKVO         = "qkvo"           // [2*QKDim + 2*VDim, D]: rows of q (divided by sqrt(dk)), k, v, o
	TensorQKVOBias     = "qkvo.bias"      // [1, 2*QKDim + 2*VDim] fp32, where UseBias
	TensorGates        = "gates"          // [2*H, D] fp32: rows of i, f, divided by the gate soft cap
	TensorGatesBias    = "gates.bias"     // [1, 2*H] fp32, divided likewise
	TensorHeadNorm     = "head_norm"      // [1, VDim] fp32, where UseBias: weight of the per-head norm; else folded into out
	TensorHeadNormBias = "head_norm.bias" // [1, VDim] fp32, where UseBias
	TensorOut          = "out"            // [D, VDim]
	TensorOutBias      = "out.bias"       // [1, D] fp32, where UseBias
	TensorGateUp       = "gate_up"        // [2*F, D]: rows of gate, up
	TensorGateUpBias   = "gate_up.bias"   // [1, 2*F] fp32, where UseBias
	TensorDown         = "down"           // [D, F]
	TensorDownBias     = "down.bias"      // [1, D] fp32, where UseBias
)

// BlockTensor is the full name of tensor name in block i.
func BlockTensor(i int, name string) string { return fmt.Sprintf("blocks.%d.%s", i, name) }
