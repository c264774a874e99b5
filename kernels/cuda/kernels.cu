// All kernels are one module.
#include "chunk.cu"
#include "gemm.cu"
#include "gemv.cu"
#include "gemv_one.cu"
#include "int8.cu"
#include "misc.cu"
#include "mlstm.cu"
#include "wgmma.cu"
