// Prompts of int8 files on int8 tensor cores. cuBLASLt multiplies codes by codes into int32; the kernels here stand between such products:
// each takes an int32 result with its two scales (one a token, one a row of the weights) or 16-bit values, does what the model asks
// for, and leaves codes with one scale a token, the largest magnitude of the token's values over 127. All of it is bound by memory.
#include "common.cuh"

struct IntArgs {
  Mat w;         // whose product with int8 activations is in acc: row scales and bias
  dptr acc, ts;  // int32 [n, w.rows], 0: none; float32 [n]: scales of its activations
  dptr x, y, ys; // y [n, ldy] of type out, zero from cols to width; ys float32 [n]: its scales, where out is X_I8
  dptr o, hw, hb;
  int32_t n, cols, ldx, ldy, ldo, heads, out, width;
  float eps, scale;
};
static_assert(sizeof(IntArgs) == 160, "args.go");

constexpr int QT = 256;  // threads a block

__device__ __forceinline__ uint32_t code(float v) { return (uint32_t)__float2int_rn(v) & 255u; }
__device__ __forceinline__ uint32_t codes(float a, float b, float c, float d) { return code(a) | code(b) << 8 | code(c) << 16 | code(d) << 24; }

// rescaled is one value of a row of acc.
__device__ __forceinline__ float rescaled(const IntArgs& a, const int* acc, float ts, int row) {
  float v = acc[row] * (ts * ((const float*)a.w.scales)[row]);
  return a.w.bias ? v + ((const float*)a.w.bias)[row] : v;
}
// rescaled4 is four of them; row and w.rows are multiples of 4.
__device__ __forceinline__ float4 rescaled4(const IntArgs& a, const int* acc, float ts, int row) {
  int4 q = __ldcs((const int4*)(acc + row));
  float4 s = __ldg((const float4*)((const float*)a.w.scales + row));
  float4 v = make_float4(q.x * (ts * s.x), q.y * (ts * s.y), q.z * (ts * s.z), q.w * (ts * s.w));
  if (a.w.bias) {
    float4 b = __ldg((const float4*)((const float*)a.w.bias + row));
    v.x += b.x; v.y += b.y; v.z += b.z; v.w += b.w;
  }
  return v;
}

// quantScale turns a row's largest magnitude into the factor that makes codes, and leaves its inverse in ys.
__device__ __forceinline__ float quantScale(const IntArgs& a, float top) {
  if (threadIdx.x == 0) ((float*)a.ys)[blockIdx.x] = top / 127.f;
  return top > 0.f ? 127.f / top : 0.f;
}

// put4 writes four values of a row, those from cols on as zeros; k is a multiple of 4, f what turns values into codes.
__device__ __forceinline__ void put4(const IntArgs& a, size_t row, int k, float4 v, float f) {
  if (k + 1 > a.cols) v.x = 0.f;
  if (k + 2 > a.cols) v.y = 0.f;
  if (k + 3 > a.cols) v.z = 0.f;
  if (k + 4 > a.cols) v.w = 0.f;
  if (a.out == X_I8) {
    *(uint32_t*)((char*)a.y + row * a.ldy + k) = codes(v.x * f, v.y * f, v.z * f, v.w * f);
    return;
  }
  __half* y = (__half*)a.y + row * a.ldy;
  if (a.out == X_F16) {
    __half2 h[2] = {__halves2half2(toHalf(v.x), toHalf(v.y)), __halves2half2(toHalf(v.z), toHalf(v.w))};
    *(uint2*)(y + k) = *(uint2*)h;
    return;
  }
  y[permPos(k)] = toHalf(v.x);
  y[permPos(k + 1)] = toHalf(v.y);
  y[permPos(k + 2)] = toHalf(v.z);
  y[permPos(k + 3)] = toHalf(v.w);
}

__device__ __forceinline__ float top4(float4 v) { return fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w))); }

extern "C" {
// add_norm: x [n, ldx] += acc, then y = x / sqrt(mean(x^2) + eps); y 0: the sum alone. One block a row. Shared memory: float [cols padded].
__global__ void __launch_bounds__(QT) add_norm(const __grid_constant__ IntArgs a) {
  __shared__ float red[32];
  launchDependents();
  waitPredecessor();
  const size_t row = blockIdx.x;
  float* x = (float*)a.x + row * a.ldx;
  float* v = (float*)smem;
  const int* acc = (const int*)a.acc + row * a.w.rows;
  const float ts = a.acc ? ((const float*)a.ts)[row] : 0.f;
  const bool four = ((a.cols | a.ldx) & 3) == 0;
  float s = 0.f, top = 0.f;
  if (four) {
    for (int k = threadIdx.x * 4; k < a.cols; k += QT * 4) {
      float4 u = *(const float4*)(x + k);
      if (a.acc) {
        float4 d = rescaled4(a, acc, ts, k);
        u.x += d.x; u.y += d.y; u.z += d.z; u.w += d.w;
        *(float4*)(x + k) = u;
      }
      *(float4*)(v + k) = u;
      s += u.x * u.x + u.y * u.y + u.z * u.z + u.w * u.w;
      top = fmaxf(top, top4(u));
    }
  } else {
    for (int k = threadIdx.x; k < a.cols; k += QT) {
      float u = x[k];
      if (a.acc) x[k] = u += rescaled(a, acc, ts, k);
      v[k] = u;
      s += u * u;
      top = fmaxf(top, fabsf(u));
    }
  }
  if (!a.y) return;
  s = blockSum(s, red);
  const float r = rsqrtf(s / a.cols + a.eps);
  float f = 0.f;
  if (a.out == X_I8) f = quantScale(a, blockMax(top, red) * r);
  else __syncthreads();
  for (int k = threadIdx.x * 4; k < a.width; k += QT * 4) {
    float4 u = *(const float4*)(v + k);
    put4(a, row, k, make_float4(u.x * r, u.y * r, u.z * r, u.w * r), f);
  }
}

// head_gate_i8: y = sigmoid(o) * layernorm(x) per head, x fp16 [n, ldx], o fp16 [n, ldo]; a warp has a head at a time. Shared memory: float
// [cols padded].
__global__ void __launch_bounds__(QT) head_gate_i8(const __grid_constant__ IntArgs a) {
  __shared__ float red[32];
  launchDependents();
  waitPredecessor();
  const int lane = threadIdx.x & 31, dv = a.cols / a.heads;
  const size_t row = blockIdx.x;
  const __half *x = (const __half*)a.x + row * a.ldx, *o = (const __half*)a.o + row * a.ldo;
  float* v = (float*)smem;
  float top = 0.f;
  for (int head = threadIdx.x >> 5; head < a.heads; head += QT / 32) {
    const int at = head * dv;
    if (dv == 512 && !a.hw) {
      uint4 hv[2], ov[2];
      float f[16], s = 0.f;
#pragma unroll
      for (int j = 0; j < 2; j++) {
        hv[j] = *(const uint4*)(x + at + (lane + 32 * j) * 8);
        ov[j] = *(const uint4*)(o + at + (lane + 32 * j) * 8);
      }
#pragma unroll
      for (int e = 0; e < 16; e++) s += f[e] = __half2float(((const __half*)hv)[e]);
      const float mean = warpSum(s) * (1.f / 512);
      s = 0.f;
#pragma unroll
      for (int e = 0; e < 16; e++) {
        f[e] -= mean;
        s += f[e] * f[e];
      }
      const float r = rsqrtf(warpSum(s) * (1.f / 512) + a.eps);
#pragma unroll
      for (int e = 0; e < 16; e++) {
        f[e] *= r * sigmoidf(__half2float(((const __half*)ov)[e]));
        top = fmaxf(top, fabsf(f[e]));
      }
#pragma unroll
      for (int j = 0; j < 4; j++) *(float4*)(v + at + (lane + 32 * (j >> 1)) * 8 + 4 * (j & 1)) = make_float4(f[4 * j], f[4 * j + 1], f[4 * j + 2], f[4 * j + 3]);
      continue;
    }
    float s = 0.f;
    for (int i = lane; i < dv; i += 32) s += __half2float(x[at + i]);
    const float mean = warpSum(s) / dv;
    s = 0.f;
    for (int i = lane; i < dv; i += 32) {
      float d = __half2float(x[at + i]) - mean;
      s += d * d;
    }
    const float r = rsqrtf(warpSum(s) / dv + a.eps);
    for (int i = lane; i < dv; i += 32) {
      float u = (__half2float(x[at + i]) - mean) * r;
      if (a.hw) u = u * ((const float*)a.hw)[at + i] + ((const float*)a.hb)[at + i];
      u *= sigmoidf(__half2float(o[at + i]));
      v[at + i] = u;
      top = fmaxf(top, fabsf(u));
    }
  }
  const float f = quantScale(a, blockMax(top, red));
  for (int k = threadIdx.x * 4; k < a.width; k += QT * 4) put4(a, row, k, *(const float4*)(v + k), f);
}

// swiglu_i8: y = silu(gate) * up * scale of w.rows = 2*cols values in acc, or of fp16 x [n, ldx] where acc is 0. Shared memory: float [cols padded].
__global__ void __launch_bounds__(QT) swiglu_i8(const __grid_constant__ IntArgs a) {
  __shared__ float red[32];
  launchDependents();
  waitPredecessor();
  const size_t row = blockIdx.x;
  float* v = (float*)smem;
  float top = 0.f;
  if (a.acc) {
    const int* acc = (const int*)a.acc + row * a.w.rows;
    const float ts = ((const float*)a.ts)[row];
    if ((a.cols & 3) == 0) {
      for (int k = threadIdx.x * 4; k < a.cols; k += QT * 4) {
        float4 g = rescaled4(a, acc, ts, k), u = rescaled4(a, acc, ts, a.cols + k);
        u = make_float4(siluf(g.x) * u.x * a.scale, siluf(g.y) * u.y * a.scale, siluf(g.z) * u.z * a.scale, siluf(g.w) * u.w * a.scale);
        *(float4*)(v + k) = u;
        top = fmaxf(top, top4(u));
      }
    } else {
      for (int k = threadIdx.x; k < a.cols; k += QT) {
        float u = siluf(rescaled(a, acc, ts, k)) * rescaled(a, acc, ts, a.cols + k) * a.scale;
        v[k] = u;
        top = fmaxf(top, fabsf(u));
      }
    }
  } else {
    const __half* x = (const __half*)a.x + row * a.ldx;
    for (int k = threadIdx.x; k < a.cols; k += QT) {
      float u = siluf(__half2float(x[k])) * __half2float(x[a.cols + k]) * a.scale;
      v[k] = u;
      top = fmaxf(top, fabsf(u));
    }
  }
  float f = 0.f;
  if (a.out == X_I8) f = quantScale(a, blockMax(top, red));
  else __syncthreads();
  for (int k = threadIdx.x * 4; k < a.width; k += QT * 4) put4(a, row, k, *(const float4*)(v + k), f);
}

// rescale: y [n, ldy] = acc as fp16. Grid (n, parts of a row).
__global__ void __launch_bounds__(QT) rescale(const __grid_constant__ IntArgs a) {
  launchDependents();
  waitPredecessor();
  const size_t row = blockIdx.x;
  const int* acc = (const int*)a.acc + row * a.w.rows;
  const float ts = ((const float*)a.ts)[row];
  for (int k = (blockIdx.y * QT + threadIdx.x) * 4; k < a.width; k += gridDim.y * QT * 4) {
    float4 v = k < a.cols ? rescaled4(a, acc, ts, k) : make_float4(0.f, 0.f, 0.f, 0.f);  // w.rows is a multiple of 4
    put4(a, row, k, v, 0.f);
  }
}
}
