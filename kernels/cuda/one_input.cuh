// What the kernels for one vector do with it before the product: copy it where it comes prepared, or norms, gates and the way into fp16.
#pragma once
#include "gemv_input.cuh"

// offsetOf is what lies on top of every code as it is taken apart (raw4, raw8), in units of the code.
template <int ENC, bool ASYM>
__device__ __forceinline__ float offsetOf(bool high) {
  if (ENC != ENC_I4) return 1152.f;
  return high ? (ASYM ? 64.f : 72.f) : (ASYM ? 1024.f : 1032.f);
}

// OneInput is what a block knows of its one vector before the first barrier: sums of squares, and of int8's activations.
struct OneInput {
  float squares = 0.f, total = 0.f;
};

// putSums adds the sums of LANES consecutive lanes, of group g, where a product needs them.
template <int ENC, int LANES, bool ASYM>
__device__ __forceinline__ void putSums(float sum, bool high, int g, bool first, float* corr, float* sums, OneInput& in) {
  if constexpr (ENC == ENC_I8) {
    in.total += sum;
  } else if constexpr (ENC != ENC_F16) {
    float c = -sum * offsetOf<ENC, ASYM>(high);
#pragma unroll
    for (int o = LANES / 2; o; o >>= 1) {
      c += __shfl_xor_sync(~0u, c, o);
      if (ASYM) sum += __shfl_xor_sync(~0u, sum, o);
    }
    if (first) {
      corr[g] = c;
      if (ASYM) sums[g] = sum;
    }
  }
}

// oneSink stores one vector's activations: fp16 and what is left of it, and the sums of groups.
template <int ENC, int GS, bool ASYM, bool CLAMP>
struct oneSink {
  char* xs;
  int stride;
  float *corr, *sums;
  OneInput& in;

  // put stores four values from k, a multiple of 4; where there are sums, the lanes of a warp store 128 consecutive ones.
  __device__ __forceinline__ void put(int k, float4 v) {
    const bool high = ENC == ENC_I4 && (k & 16);
    if (high) { v.x *= 0.0625f; v.y *= 0.0625f; v.z *= 0.0625f; v.w *= 0.0625f; }
    if (ENC != ENC_F16) { float t = v.y; v.y = v.z; v.z = t; }  // evens, then odds
    const __half2 a = pack(v.x, v.y), b = pack(v.z, v.w);
    const float2 fa = __half22float2(a), fb = __half22float2(b);
    const __half2 c = pack(v.x - fa.x, v.y - fa.y), d = pack(v.z - fb.x, v.w - fb.y);
    if constexpr (ENC == ENC_F16) {
      const __half2 u[2] = {a, b}, w[2] = {c, d};
      *(uint2*)(xs + 2 * k) = *(const uint2*)u;
      *(uint2*)(xs + stride + 2 * k) = *(const uint2*)w;
    } else {
      char* p = xs + 2 * permPos(k);
      *(__half2*)p = a;
      *(__half2*)(p + 16) = b;
      *(__half2*)(p + stride) = c;
      *(__half2*)(p + stride + 16) = d;
      const float2 fc = __half22float2(c), fd = __half22float2(d);
      float sum = ((fa.x + fa.y) + (fb.x + fb.y)) + ((fc.x + fc.y) + (fd.x + fd.y));
      if (high) sum *= 16.f;
      putSums<ENC, (1 << GS) / 4, ASYM>(sum, high, k >> GS, (k & ((1 << GS) - 1)) == 0, corr, sums, in);
    }
  }
  static __device__ __forceinline__ __half2 pack(float a, float b) {
    return CLAMP ? __halves2half2(toHalf(a), toHalf(b)) : __floats2half2_rn(a, b);
  }
};

// loadPrepared copies a prepared vector. room is a multiple of 64.
template <int ENC, int GS, bool ASYM>
__device__ __forceinline__ void loadPrepared(const GemvArgs& a, char* xs, int stride, int room, float* corr, float* sums, OneInput& in) {
  const Prepared p(a.in, room);
  const int tid = threadIdx.x, lane = tid & 31, units = room / 8;
  constexpr int N = 3, STEP = WARPS * 32, LANES = GS ? (1 << GS) / 8 : 1;
#pragma unroll 1
  for (int k0 = tid; k0 - lane < units; k0 += N * STEP) {
    uint4 v[N], r[N];
    float2 f[N];
#pragma unroll
    for (int j = 0; j < N; j++) {
      const int k = k0 + j * STEP;
      f[j] = make_float2(0.f, 0.f);
      if (k < units) {
        v[j] = __ldcg(p.values + k);
        r[j] = __ldcg(p.rests + k);
        f[j] = __ldcg(p.sums + k);
      }
    }
#pragma unroll
    for (int j = 0; j < N; j++) {
      const int k = k0 + j * STEP;
      if (k - lane >= units) break;
      if (k < units) {
        *(uint4*)(xs + 16 * k) = v[j];
        *(uint4*)(xs + stride + 16 * k) = r[j];
      }
      in.squares += f[j].y;
      putSums<ENC, LANES, ASYM>(f[j].x, (k >> 1) & 1, k / LANES, (k & (LANES - 1)) == 0 && k < units, corr, sums, in);
    }
  }
}

// loadHeads normalizes and gates heads of 512 values: one read of a warp a head; two warps have one, and each stores half of it.
template <int ENC, int GS, bool ASYM>
__device__ __forceinline__ void loadHeads(const GemvArgs& a, char* xs, int stride, float* corr, float* sums, OneInput& in) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  oneSink<ENC, GS, ASYM, false> sink{xs, stride, corr, sums, in};  // no value is beyond sqrt(512)
#pragma unroll 1
  for (int u = warp; u < 2 * a.heads; u += WARPS) {
    const float4 *h = (const float4*)a.x + (u >> 1) * 128, *o = (const float4*)a.o + u * 64;
    float4 v[4], g[2];
#pragma unroll
    for (int j = 0; j < 4; j++) v[j] = __ldcg(h + lane + 32 * j);
#pragma unroll
    for (int j = 0; j < 2; j++) g[j] = __ldcg(o + lane + 32 * j);
    float s = 0.f;
#pragma unroll
    for (int j = 0; j < 4; j++) s += (v[j].x + v[j].y) + (v[j].z + v[j].w);
    const float mean = warpSum(s) * (1.f / 512);
    s = 0.f;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      v[j].x -= mean; v[j].y -= mean; v[j].z -= mean; v[j].w -= mean;
      s += (v[j].x * v[j].x + v[j].y * v[j].y) + (v[j].z * v[j].z + v[j].w * v[j].w);
    }
    const float r = rsqrtf(warpSum(s) * (1.f / 512) + a.eps);
#pragma unroll
    for (int j = 0; j < 2; j++) {
      const float4 w = u & 1 ? v[j + 2] : v[j];
      sink.put(u * 256 + 4 * (lane + 32 * j), make_float4(w.x * r * sigmoidf(g[j].x), w.y * r * sigmoidf(g[j].y), w.z * r * sigmoidf(g[j].z), w.w * r * sigmoidf(g[j].w)));
    }
  }
}

// loadOne is loadX and groupSums for one vector: all of its loads are under way at once, and one barrier is enough. room counts the
// values there is room for, zero behind the last.
template <int ENC, int GS, bool ASYM>
__device__ __forceinline__ void loadOne(const GemvArgs& a, char* xs, int stride, int room, float* red, float* corr, float* sums) {
  const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, K = a.w.cols;
  OneInput in;
  if (a.in) {
    loadPrepared<ENC, GS, ASYM>(a, xs, stride, room, corr, sums, in);
  } else if (a.pro == PRO_GATE) {
    loadHeads<ENC, GS, ASYM>(a, xs, stride, corr, sums, in);  // which leave no room behind them
  } else {
    oneSink<ENC, GS, ASYM, true> sink{xs, stride, corr, sums, in};
    const float scale = inScale(a.pro);
    const float4* x = (const float4*)a.x;
#pragma unroll 1
    for (int k = tid; k < room / 4; k += WARPS * 32) {
      const float4 v = k < K / 4 ? __ldcg(x + k) : make_float4(0.f, 0.f, 0.f, 0.f);
      in.squares += (v.x * v.x + v.y * v.y) + (v.z * v.z + v.w * v.w);
      sink.put(4 * k, make_float4(v.x * scale, v.y * scale, v.z * scale, v.w * scale));
    }
  }
  if (a.pro == PRO_RMS) {
    const float s = warpSum(in.squares);
    if (lane == 0) red[warp] = s;
  }
  if (ENC == ENC_I8) {
    const float total = warpSum(in.total);
    if (lane == 0) corr[warp] = 1152.f * total;
  }
  __syncthreads();
}

// oneScale is the factor of the one vector's results, from what loadOne left.
__device__ __forceinline__ float oneScale(const GemvArgs& a, const float* red) {
  const int lane = threadIdx.x & 31;
  const float r = a.pro == PRO_RMS ? rsqrtf(warpSum(lane < WARPS ? red[lane] : 0.f) / a.w.cols + a.eps) : 1.f;
  return r / inScale(a.pro);
}
