// Shared by all kernels: argument structs (mirrored in args.go), numeric helpers, asynchronous copies, tensor-core steps.
//
// Vocabulary: D width of the residual stream, H heads, dk and dv the widths of one head's keys and values, K the length of a
// row of a weight matrix. Matrices are stored row by row, products are y = W x. All sums are float32.
#pragma once
#include <cuda_fp16.h>
#include <cuda_bf16.h>
#include <stdint.h>

typedef uint64_t dptr;  // a device address, as the host passes it

// Encodings of a weight matrix on the device. bf16 files become fp16 while they load.
enum { ENC_F32 = 0, ENC_F16 = 1, ENC_I8 = 2, ENC_I8G = 3, ENC_I4 = 4 };

// Element types of activations and states. X_PERM is fp16 with each 16 values ordered evens first, then odds: the order in
// which packed integers are taken apart. X_I8 is int8 with one scale a token.
enum { X_F32 = 0, X_F16 = 1, X_PERM = 2, X_I8 = 3 };
enum { ST_F32 = 0, ST_BF16 = 1, ST_F16 = 2 };

// A weight matrix.
struct Mat {
  dptr values, scales, mins, bias;  // bias 0: none; mins 0: symmetric
  int32_t rows, cols;               // cols without padding
  int32_t rowBytes;                 // of values, padded to 32 values
  int32_t groups, groupShift;       // scales a row, log2 of the values that share one
  int32_t enc;
};
static_assert(sizeof(Mat) == 56, "args.go");

extern __shared__ __align__(128) char smem[];

// One sequence's tokens of a pass: [tok, tok+len) of the packed tokens. state is the sequence's memory.
struct Piece {
  dptr state;
  int32_t tok, len;
};
static_assert(sizeof(Piece) == 16, "args.go");

// A state's layout: per block, head and slice of SLICE columns one record of C [dk, SLICE], n [dk] and m (padded to 32 floats).
// Every slice has its own copy of n and m, so that the thread blocks of a head need nothing from each other.
constexpr int SLICE = 32;

__device__ __forceinline__ float softcap(float z, float c) { return c > 0.f ? c * tanhf(z) : z; }
__device__ __forceinline__ float logsigmoid(float f) { return fminf(f, 0.f) - log1pf(expf(-fabsf(f))); }
__device__ __forceinline__ float sigmoidf(float x) { return __fdividef(1.f, 1.f + __expf(-x)); }
__device__ __forceinline__ float siluf(float x) { return __fdividef(x, 1.f + __expf(-x)); }

__device__ __forceinline__ float warpSum(float v) {
#pragma unroll
  for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
  return v;
}
__device__ __forceinline__ float warpMax(float v) {
#pragma unroll
  for (int o = 16; o; o >>= 1) v = fmaxf(v, __shfl_xor_sync(~0u, v, o));
  return v;
}

// blockSum adds v over the block; red holds 32 floats. Every thread gets the sum.
__device__ __forceinline__ float blockSum(float v, float* red) {
  v = warpSum(v);
  __syncthreads();
  if ((threadIdx.x & 31) == 0) red[threadIdx.x >> 5] = v;
  __syncthreads();
  float s = 0.f;
  int warps = (blockDim.x + 31) >> 5;
  for (int i = 0; i < warps; i++) s += red[i];
  return s;
}
__device__ __forceinline__ float blockMax(float v, float* red) {
  v = warpMax(v);
  __syncthreads();
  if ((threadIdx.x & 31) == 0) red[threadIdx.x >> 5] = v;
  __syncthreads();
  float s = red[0];
  int warps = (blockDim.x + 31) >> 5;
  for (int i = 1; i < warps; i++) s = fmaxf(s, red[i]);
  return s;
}

// Position of value k in X_PERM order.
__device__ __forceinline__ int permPos(int k) { return (k & ~15) | ((k & 1) << 3) | ((k & 15) >> 1); }

// toHalf rounds and saturates: an overflow becomes the largest fp16, never an infinity.
__device__ __forceinline__ __half toHalf(float v) { return __float2half_rn(fminf(fmaxf(v, -65504.f), 65504.f)); }

// Programmatic dependent launch: a kernel lets its successor start early, and waits for its predecessor's results before it
// touches anything that the predecessor writes. Without the launch attribute both do nothing.
__device__ __forceinline__ void launchDependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ __forceinline__ void waitPredecessor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// arrive counts one more, after what the warp has written and before what it reads next, as all blocks see it.
__device__ __forceinline__ uint32_t arrive(uint32_t* counter) {
  uint32_t before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
  return before;
}

__device__ __forceinline__ uint32_t smemAddr(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }

// cpAsync copies 16 bytes to shared memory in the background, or writes zeros where take is false.
__device__ __forceinline__ void cpAsync(uint32_t dst, const void* src, bool take) {
  int n = take ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(n) : "memory");
}
__device__ __forceinline__ void cpCommit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
__device__ __forceinline__ void cpWait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

__device__ __forceinline__ void ldsm4(uint32_t (&r)[4], uint32_t a) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(a) : "memory");
}
__device__ __forceinline__ void ldsm4t(uint32_t (&r)[4], uint32_t a) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(a) : "memory");
}
__device__ __forceinline__ void ldsm2t(uint32_t (&r)[2], uint32_t a) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(a) : "memory");
}

// mma adds the product of a 16x16 and a 16x8 fp16 tile to d. Of d a lane has rows lane/4 (0, 1) and lane/4+8 (2, 3), columns
// 2*(lane%4) and the next.
__device__ __forceinline__ void mma(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

template <int IMM>
__device__ __forceinline__ uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t r;
  asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(r) : "r"(a), "r"(b), "r"(c), "n"(IMM));
  return r;
}
__device__ __forceinline__ uint32_t hsub2(uint32_t a, uint32_t b) {
  uint32_t r;
  asm("sub.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
__device__ __forceinline__ uint32_t hfma2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t r;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
}

// unpack4 takes 8 int4 codes of one word apart as exact fp16 code-8: out[0] holds values (0, 2), out[1] (1, 3) of the block's
// first half, out[2] and out[3] likewise of its second half, where values count from the word's first byte.
__device__ __forceinline__ void unpack4(uint32_t w, uint32_t (&out)[4]) {
  const uint32_t magic = 0x64006400;  // fp16 1024: the code lands in the lowest bits of the mantissa
  uint32_t s = w >> 8;
  out[0] = hsub2(lop3<0xea>(w, 0x000f000f, magic), 0x64086408);
  out[1] = hsub2(lop3<0xea>(s, 0x000f000f, magic), 0x64086408);
  out[2] = hfma2(lop3<0xea>(w, 0x00f000f0, magic), 0x2c002c00, 0xd480d480);  // (1024 + 16 q)/16 - 72
  out[3] = hfma2(lop3<0xea>(s, 0x00f000f0, magic), 0x2c002c00, 0xd480d480);
}

// raw4 is unpack4 without its subtractions: 1024 + code, and 1024 + 16*code of the second half.
__device__ __forceinline__ void raw4(uint32_t w, uint32_t (&out)[4]) {
  const uint32_t magic = 0x64006400;
  uint32_t s = w >> 8;
  out[0] = lop3<0xea>(w, 0x000f000f, magic);
  out[1] = lop3<0xea>(s, 0x000f000f, magic);
  out[2] = lop3<0xea>(w, 0x00f000f0, magic);
  out[3] = lop3<0xea>(s, 0x00f000f0, magic);
}

// unpack8 takes 4 int8 values of one word apart: out[0] holds values (0, 2), out[1] (1, 3).
__device__ __forceinline__ void unpack8(uint32_t w, uint32_t (&out)[2]) {
  w ^= 0x80808080;
  out[0] = hsub2(__byte_perm(w, 0x64646464, 0x4240), 0x64806480);
  out[1] = hsub2(__byte_perm(w, 0x64646464, 0x4341), 0x64806480);
}

// raw8 is unpack8 without its subtraction: 1152 + value.
__device__ __forceinline__ void raw8(uint32_t w, uint32_t (&out)[2]) {
  w ^= 0x80808080;
  out[0] = __byte_perm(w, 0x64646464, 0x4240);
  out[1] = __byte_perm(w, 0x64646464, 0x4341);
}

// Shared-memory tiles of rows of 128 bytes: 16-byte chunk c of row r sits at c ^ (r & 7), so that eight rows' chunks never meet
// in a bank.
__device__ __forceinline__ uint32_t swz(int row, int chunk) { return row * 128 + ((chunk ^ (row & 7)) << 4); }

// weightAt is one value of a matrix in any encoding.
__device__ __forceinline__ float weightAt(const Mat& w, size_t row, int k) {
  const char* p = (const char*)w.values + row * w.rowBytes;
  switch (w.enc) {
    case ENC_F32: return ((const float*)p)[k];
    case ENC_F16: return __half2float(((const __half*)p)[k]);
    case ENC_I8: return ((const int8_t*)p)[k] * ((const float*)w.scales)[row];
    case ENC_I8G: return ((const int8_t*)p)[k] * __half2float(((const __half*)w.scales)[row * w.groups + (k >> w.groupShift)]);
  }
  int byte = ((const uint8_t*)p)[(k >> 5) * 16 + (k & 15)], q = k & 16 ? byte >> 4 : byte & 15;
  size_t at = row * w.groups + (k >> w.groupShift);
  float s = __half2float(((const __half*)w.scales)[at]);
  return w.mins ? q * s + __half2float(((const __half*)w.mins)[at]) : (q - 8) * s;
}

