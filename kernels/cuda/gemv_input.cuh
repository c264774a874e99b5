// What the decode kernels do with their activations before the product: norms, gates, the way into fp16, sums of groups.
#pragma once
#include "prepared.cuh"

enum { PRO_PLAIN = 0, PRO_RMS = 1, PRO_GATE = 2 };
enum { EP_STORE = 0, EP_ADD = 1, EP_SWIGLU = 2, EP_CAP = 3 };

struct GemvArgs {
  Mat w, gates;       // gates.rows 0: none; else fp32 rows on the same normed vector, their result in gatesOut [n, gates.rows]
  dptr x, y;          // x float32 [n, ldx]; y float32 [n, ldy]
  dptr o;             // PRO_GATE: preactivations of the output gate [n, ldo]
  dptr normW, normB;  // PRO_GATE: weight and bias of the per-head norm, or 0
  dptr gatesOut;
  dptr in;            // one token: x as the kernel before prepared it, or 0
  Next next;          // one token: how to prepare y for the kernel after, or nothing
  int32_t n, ldx, ldy, ldo;
  int32_t pro, ep;
  int32_t heads, split;  // split: the activations as two fp16 terms each, 22 bits together
  float eps, cap;
  int32_t teamShift;     // one token: log2 of the warps that share a tile
  int32_t unused;
};
static_assert(sizeof(GemvArgs) == 240, "args.go");

constexpr int WARPS = 16;
constexpr int STAGES = 2;
constexpr int STAGE_BYTES = 16 * 128;

// Factor of activations on their way into fp16: nothing bounds the feed-forward's hidden values.
__device__ __forceinline__ float inScale(int pro) { return pro == PRO_PLAIN ? 0.125f : 1.f; }

// Values of a 128-byte stretch of a row.
__host__ __device__ constexpr int stageValues(int enc) { return enc == ENC_F16 ? 64 : enc == ENC_I4 ? 256 : 128; }

// halfSink stores activations as fp16: column c, and with split the rounding error as column c+n. For int4 the values that meet
// high nibbles are divided by 16, which the high nibbles are multiplied by.
template <int ENC>
struct halfSink {
  char* xs;
  int stride, n, split;
  __device__ __forceinline__ void one(int c, int k, float v) const {
    if (ENC == ENC_I4 && (k & 16)) v *= 0.0625f;
    int p = ENC == ENC_F16 ? k : permPos(k);
    __half hi = toHalf(v);
    *(__half*)(xs + c * stride + 2 * p) = hi;
    if (split) *(__half*)(xs + (c + n) * stride + 2 * p) = toHalf(v - __half2float(hi));
  }
  // Four values from k, a multiple of 4.
  __device__ __forceinline__ void four(int c, int k, float4 v) const {
    if (ENC == ENC_I4 && (k & 16)) { v.x *= 0.0625f; v.y *= 0.0625f; v.z *= 0.0625f; v.w *= 0.0625f; }
    __half a = toHalf(v.x), b = toHalf(v.y), d = toHalf(v.z), e = toHalf(v.w);
    put(c, k, a, b, d, e);
    if (split) put(c + n, k, toHalf(v.x - __half2float(a)), toHalf(v.y - __half2float(b)), toHalf(v.z - __half2float(d)), toHalf(v.w - __half2float(e)));
  }
  __device__ __forceinline__ void put(int c, int k, __half a, __half b, __half d, __half e) const {
    char* p = xs + c * stride;
    if (ENC == ENC_F16) {
      __half2 u[2] = {__halves2half2(a, b), __halves2half2(d, e)};
      *(uint2*)(p + 2 * k) = *(uint2*)u;
    } else {
      p += 2 * permPos(k);
      *(__half2*)p = __halves2half2(a, d);
      *(__half2*)(p + 16) = __halves2half2(b, e);
    }
  }
};

// floatSink stores them as they are.
struct floatSink {
  float* xs;
  int ld;
  __device__ __forceinline__ void one(int c, int k, float v) const { xs[c * ld + k] = v; }
  __device__ __forceinline__ void four(int c, int k, float4 v) const { *(float4*)(xs + c * ld + k) = v; }
};

// headGate computes sigmoid(o) * layernorm(h) of one head with one warp.
template <class Sink>
__device__ __forceinline__ void headGate(const float* h, const float* o, const float* w, const float* b, int dv, int c, int at, float eps, const Sink& sink) {
  int lane = threadIdx.x & 31;
  float s = 0.f;
  for (int i = lane; i < dv; i += 32) s += __ldcg(h + i);
  float mean = warpSum(s) / dv;
  s = 0.f;
  for (int i = lane; i < dv; i += 32) {
    float d = __ldcg(h + i) - mean;
    s += d * d;
  }
  float r = rsqrtf(warpSum(s) / dv + eps);
  for (int i = lane; i < dv; i += 32) {
    float y = (__ldcg(h + i) - mean) * r;
    if (w) y = y * w[at + i] + b[at + i];
    sink.one(c, at + i, y * sigmoidf(__ldcg(o + i)));
  }
}

// The same for heads of 512 values without weights: one read, everything in registers.
template <class Sink>
__device__ __forceinline__ void headGate512(const float* h, const float* o, int c, int at, float eps, const Sink& sink) {
  int lane = threadIdx.x & 31;
  float4 v[4], g[4];
  float s = 0.f;
#pragma unroll
  for (int j = 0; j < 4; j++) {
    v[j] = __ldcg((const float4*)h + lane + 32 * j);
    g[j] = __ldcg((const float4*)o + lane + 32 * j);
  }
#pragma unroll
  for (int j = 0; j < 4; j++) s += v[j].x + v[j].y + v[j].z + v[j].w;
  float mean = warpSum(s) * (1.f / 512);
  s = 0.f;
#pragma unroll
  for (int j = 0; j < 4; j++) {
    v[j].x -= mean; v[j].y -= mean; v[j].z -= mean; v[j].w -= mean;
    s += v[j].x * v[j].x + v[j].y * v[j].y + v[j].z * v[j].z + v[j].w * v[j].w;
  }
  float r = rsqrtf(warpSum(s) * (1.f / 512) + eps);
#pragma unroll
  for (int j = 0; j < 4; j++)
    sink.four(c, at + 4 * (lane + 32 * j), make_float4(v[j].x * r * sigmoidf(g[j].x), v[j].y * r * sigmoidf(g[j].y), v[j].z * r * sigmoidf(g[j].z), v[j].w * r * sigmoidf(g[j].w)));
}

// loadX puts the activations into sink, which every thread may read when it returns; rs[c] becomes the factor that column c's results
// need, to be read after one more barrier. red holds WARPS*8 floats.
template <class Sink>
__device__ __forceinline__ void loadX(const GemvArgs& a, int K, float* red, float* rs, const Sink& sink) {
  int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
  if (a.pro == PRO_GATE) {
    int dv = K / a.heads;
    bool wide = dv == 512 && !a.normW && ((a.ldx | a.ldo) & 3) == 0;
    for (int i = warp; i < a.n * a.heads; i += WARPS) {
      int c = i / a.heads, at = (i % a.heads) * dv;
      const float* h = (const float*)a.x + (size_t)c * a.ldx + at;
      const float* o = (const float*)a.o + (size_t)c * a.ldo + at;
      if (wide) headGate512(h, o, c, at, a.eps, sink);
      else headGate(h, o, (const float*)a.normW, (const float*)a.normB, dv, c, at, a.eps, sink);
    }
    if (tid < a.n) rs[tid] = 1.f;
    __syncthreads();
    return;
  }
  bool aligned = ((K | a.ldx) & 3) == 0;
  const float scale = inScale(a.pro);
  for (int c = 0; c < a.n; c++) {
    const float* x = (const float*)a.x + (size_t)c * a.ldx;
    float s = 0.f;
    if (aligned) {
#pragma unroll 2
      for (int k = tid * 4; k < K; k += WARPS * 128) {
        float4 v = __ldcg((const float4*)(x + k));
        s += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
        sink.four(c, k, make_float4(v.x * scale, v.y * scale, v.z * scale, v.w * scale));
      }
    } else {
      for (int k = tid; k < K; k += WARPS * 32) {
        float v = __ldcg(x + k);
        s += v * v;
        sink.one(c, k, v * scale);
      }
    }
    if (a.pro == PRO_RMS) {
      s = warpSum(s);
      if (lane == 0) red[c * WARPS + warp] = s;
    }
  }
  __syncthreads();
  if (warp < a.n) {
    float r = 1.f;
    if (a.pro == PRO_RMS) r = rsqrtf(warpSum(lane < WARPS ? red[warp * WARPS + lane] : 0.f) / K + a.eps);
    if (lane == 0) rs[warp] = r / scale;
  }
}

// Integer codes stay as they are taken apart, with 1024 or more on top of each (raw4, raw8): what that adds to a product is a multiple
// of the sum of the activations, once for all rows. groupSums computes it for each group and column from the activations as they are
// stored: corr[g][c], and for asymmetric codes the plain sum too, sums[g][c]. For int8 without groups there is one group, in parts of a
// warp each: corr[warp][c].
template <int ENC, int GS, bool ASYM>
__device__ __forceinline__ void groupSums(const char* xs, int stride, int cols, int cols2, int values, float* corr, float* sums) {
  const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
  const int chunks = values / 8;  // 16 bytes: always of one half of a block of 32, and of one group
  constexpr int LANES = ENC == ENC_I8 ? 32 : (1 << GS) / 8;
  for (int c = 0; c < cols2; c++) {
    float whole = 0.f;
    for (int base = warp * 32; base < chunks; base += WARPS * 32) {
      int i = base + lane;
      float s = 0.f;
      if (i < chunks && c < cols) {
        uint4 u = *(const uint4*)(xs + c * stride + 16 * i);
        const __half2* h = (const __half2*)&u;
#pragma unroll
        for (int j = 0; j < 4; j++) {
          float2 f = __half22float2(h[j]);
          s += f.x + f.y;
        }
      }
      float plain = s, scaled = s;
      if (ENC == ENC_I4) {
        bool high = (i >> 1) & 1;
        if (high) plain = 16.f * s;
        scaled = plain * (high ? (ASYM ? 64.f : 72.f) : (ASYM ? 1024.f : 1032.f));
      } else {
        scaled = 1152.f * s;
      }
#pragma unroll
      for (int o = LANES / 2; o; o >>= 1) {
        scaled += __shfl_xor_sync(~0u, scaled, o);
        if (ASYM) plain += __shfl_xor_sync(~0u, plain, o);
      }
      if (ENC == ENC_I8) {
        whole += scaled;
      } else if ((lane & (LANES - 1)) == 0 && i < chunks) {
        corr[(i / LANES) * cols2 + c] = -scaled;
        if (ASYM) sums[(i / LANES) * cols2 + c] = plain;
      }
    }
    if (ENC == ENC_I8 && lane == 0) corr[warp * cols2 + c] = whole;
  }
}

// gateRows computes the fp32 rows of the input and forget gates, one row a block, the last blocks first: they have fewer tiles.
__device__ void gateRows(const GemvArgs& a, float* red, const float* rs) {
  const int K = a.gates.cols, ld = a.gates.rowBytes / 4, tid = threadIdx.x;
  for (int r = gridDim.x - 1 - blockIdx.x; r < a.gates.rows; r += gridDim.x) {
    const float* w = (const float*)a.gates.values + (size_t)r * ld;
    for (int c = 0; c < a.n; c++) {
      const float* x = (const float*)a.x + (size_t)c * a.ldx;
      float s = 0.f;
#pragma unroll 8
      for (int k = tid; k < K; k += WARPS * 32) s += w[k] * __ldcg(x + k);
      s = blockSum(s, red);
      if (tid == 0) {
        s *= rs[c] * inScale(a.pro);
        if (a.gates.bias) s += ((const float*)a.gates.bias)[r];
        ((float*)a.gatesOut)[(size_t)c * a.gates.rows + r] = s;
      }
    }
  }
}
