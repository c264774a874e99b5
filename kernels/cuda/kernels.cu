// All kernels are one module.
#include "gemv.cu"
#include "gemm.cu"
#include "mlstm.cu"
#include "misc.cu"
