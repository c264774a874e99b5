// Everything between the products of many tokens, and what surrounds a pass: embeddings, norms, gates, log probabilities,
// sampling, states on their way in and out, weights on their way in. All of it is bound by memory.
#include "common.cuh"

struct EmbedArgs {
  Mat w;
  dptr tokens, x;  // int32 [n] -> float32 [n, cols]
  int32_t n, ldx;
};
static_assert(sizeof(EmbedArgs) == 80, "args.go");

struct NormArgs {
  dptr x, y;           // float32 [n, ldx] -> [n, ldy] of type out, zero from cols to ldy
  dptr o, w, b;        // head_gate: preactivations of the output gate [n, ldo]; weight and bias of the per-head norm, or 0
  dptr rows;           // int32 [n]: row of x for each row of y; 0: the same
  int32_t n, cols, ldx, ldy, ldo, heads;  // swiglu: ldo values of a row of y are written
  int32_t in, out;     // types of x and o (head_gate, swiglu), of y
  float eps, scale;    // swiglu: results are multiplied by scale
};
static_assert(sizeof(NormArgs) == 88, "args.go");

__device__ __forceinline__ void putAct(void* y, int type, int k, float v) {
  if (type == X_F32) ((float*)y)[k] = v;
  else ((__half*)y)[type == X_PERM ? permPos(k) : k] = toHalf(v);
}
__device__ __forceinline__ float getAct(const void* x, int type, size_t k) {
  return type == X_F32 ? ((const float*)x)[k] : __half2float(((const __half*)x)[k]);
}
__device__ __forceinline__ char* actRow(dptr y, int type, size_t row, int ld) { return (char*)y + row * ld * (type == X_F32 ? 4 : 2); }

extern "C" {
__global__ void __launch_bounds__(256) embed(const __grid_constant__ EmbedArgs a) {
  launchDependents();
  waitPredecessor();
  int tok = ((const int*)a.tokens)[blockIdx.x];
  float* x = (float*)a.x + (size_t)blockIdx.x * a.ldx;
  for (int k = threadIdx.x; k < a.w.cols; k += 256) x[k] = weightAt(a.w, tok, k);
}

// rms_norm: y = x / sqrt(mean(x^2) + eps), or x itself where eps is negative. One block a row.
__global__ void __launch_bounds__(256) rms_norm(const __grid_constant__ NormArgs a) {
  __shared__ float red[32];
  launchDependents();
  waitPredecessor();
  size_t row = a.rows ? ((const int*)a.rows)[blockIdx.x] : blockIdx.x;
  const float* x = (const float*)a.x + row * a.ldx;
  float s = 0.f;
  for (int k = threadIdx.x; k < a.cols; k += 256) s += x[k] * x[k];
  s = blockSum(s, red);
  float r = a.eps < 0.f ? 1.f : rsqrtf(s / a.cols + a.eps);
  void* y = actRow(a.y, a.out, blockIdx.x, a.ldy);
  for (int k = threadIdx.x; k < a.ldy; k += 256) putAct(y, a.out, k, k < a.cols ? x[k] * r : 0.f);
}

// head_gate: y = sigmoid(o) * layernorm(h) per head. One warp a head: grid (n), 32*min(heads, 8) threads.
__global__ void __launch_bounds__(256) head_gate(const __grid_constant__ NormArgs a) {
  launchDependents();
  waitPredecessor();
  const int lane = threadIdx.x & 31, dv = a.cols / a.heads;
  const size_t t = blockIdx.x;
  void* y = actRow(a.y, a.out, t, a.ldy);
  for (int head = threadIdx.x >> 5; head < a.heads; head += blockDim.x >> 5) {
    size_t at = t * a.ldx + head * dv, ao = t * a.ldo + head * dv;
    float s = 0.f;
    if (dv == 512 && a.in == X_F16 && !a.w && a.out != X_F32) {  // one read, 8 values at a time
      uint4 hv[2], ov[2];
      float f[16];
#pragma unroll
      for (int j = 0; j < 2; j++) {
        hv[j] = *(const uint4*)((const __half*)a.x + at + (lane + 32 * j) * 8);
        ov[j] = *(const uint4*)((const __half*)a.o + ao + (lane + 32 * j) * 8);
      }
#pragma unroll
      for (int e = 0; e < 16; e++) s += f[e] = __half2float(((const __half*)hv)[e]);
      float mean = warpSum(s) * (1.f / 512);
      s = 0.f;
#pragma unroll
      for (int e = 0; e < 16; e++) {
        f[e] -= mean;
        s += f[e] * f[e];
      }
      float r = rsqrtf(warpSum(s) * (1.f / 512) + a.eps);
#pragma unroll
      for (int e = 0; e < 16; e++) f[e] *= r * sigmoidf(__half2float(((const __half*)ov)[e]));
#pragma unroll
      for (int j = 0; j < 2; j++) {
        int k = head * dv + (lane + 32 * j) * 8;
        if (a.out == X_F16) {
          __half2 o[4];
#pragma unroll
          for (int e = 0; e < 4; e++) o[e] = __halves2half2(toHalf(f[8 * j + 2 * e]), toHalf(f[8 * j + 2 * e + 1]));
          *(uint4*)((__half*)y + k) = *(uint4*)o;
        } else {
#pragma unroll
          for (int e = 0; e < 8; e++) putAct(y, a.out, k + e, f[8 * j + e]);
        }
      }
      continue;
    }
    for (int i = lane; i < dv; i += 32) s += getAct((void*)a.x, a.in, at + i);
    float mean = warpSum(s) / dv;
    s = 0.f;
    for (int i = lane; i < dv; i += 32) {
      float d = getAct((void*)a.x, a.in, at + i) - mean;
      s += d * d;
    }
    float r = rsqrtf(warpSum(s) / dv + a.eps);
    for (int i = lane; i < dv; i += 32) {
      int k = head * dv + i;
      float v = (getAct((void*)a.x, a.in, at + i) - mean) * r;
      if (a.w) v = v * ((const float*)a.w)[k] + ((const float*)a.b)[k];
      putAct(y, a.out, k, v * sigmoidf(getAct((void*)a.o, a.in, ao + i)));
    }
  }
  for (int k = a.cols + threadIdx.x; k < a.ldy; k += blockDim.x) putAct(y, a.out, k, 0.f);
}

// swiglu: y = silu(gate) * up * scale, x [n, 2*cols]: gate, then up. y may be x's gates. Grid (n, parts of a row).
__global__ void __launch_bounds__(256) swiglu(const __grid_constant__ NormArgs a) {
  launchDependents();
  waitPredecessor();
  const size_t t = blockIdx.x;
  void* y = actRow(a.y, a.out, t, a.ldy);
  if (a.in == X_F16 && a.out == X_F16 && (a.cols & 7) == 0) {  // 8 values at a time
    const __half* x = (const __half*)a.x + t * a.ldx;
    for (int k = (blockIdx.y * 256 + threadIdx.x) * 8; k < a.ldo; k += gridDim.y * 2048) {
      uint4 out = make_uint4(0, 0, 0, 0);
      if (k < a.cols) {
        uint4 g = *(const uint4*)(x + k), u = *(const uint4*)(x + a.cols + k);
        const __half2 *gh = (const __half2*)&g, *uh = (const __half2*)&u;
        __half2* o = (__half2*)&out;
#pragma unroll
        for (int e = 0; e < 4; e++) {
          float2 gf = __half22float2(gh[e]), uf = __half22float2(uh[e]);
          o[e] = __halves2half2(toHalf(siluf(gf.x) * uf.x * a.scale), toHalf(siluf(gf.y) * uf.y * a.scale));
        }
      }
      *(uint4*)((__half*)y + k) = out;
    }
    return;
  }
  for (int k = blockIdx.y * 256 + threadIdx.x; k < a.ldo; k += gridDim.y * 256) {
    float v = 0.f;
    if (k < a.cols) v = siluf(getAct((void*)a.x, a.in, t * a.ldx + k)) * getAct((void*)a.x, a.in, t * a.ldx + a.cols + k) * a.scale;
    putAct(y, a.out, k, v);
  }
}
}

struct GatesArgs {
  Mat w;             // fp32 [2H, D]
  dptr x, y;         // float32 [n, ldx] before the norm -> [n, 2H]
  int32_t n, ldx;
  float eps;
  int32_t exact;     // float32 throughout, else 2^-21 of a value are lost
};
static_assert(sizeof(GatesArgs) == 88, "args.go");

constexpr int GATE_WARPS = 16;

// splitTF32 writes values as sums of three terms of 11, 11 and 2 bits.
__device__ __forceinline__ void splitTF32(float4 v, uint32_t (&hi)[4], uint32_t (&lo)[4], uint32_t (&rest)[4]) {
  const float f[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    hi[i] = __float_as_uint(f[i]) & ~0x1fffu;
    float l = f[i] - __uint_as_float(hi[i]);
    lo[i] = __float_as_uint(l) & ~0x1fffu;
    rest[i] = __float_as_uint(l - __uint_as_float(lo[i]));
  }
}

// mmaTF32 adds the product of a 16x8 and an 8x8 tile to d. Of a lane's terms a0, a1 are rows lane/4, lane/4+8 of column lane%4, a2, a3 of
// column lane%4+4; b0, b1 are rows lane%4, lane%4+4 of column lane/4.
__device__ __forceinline__ void mmaTF32(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

struct LogitArgs {
  dptr logits;       // float32 [n, ld], after the soft cap
  dptr targets, out; // int32 [n] -> float32 [n]: log p(target), 0 for target -1
  int32_t n, vocab, ld, pad;
};
static_assert(sizeof(LogitArgs) == 40, "args.go");

struct BiasArgs {
  dptr x, bias;      // x [n, ld] of type type
  int32_t n, cols, ld, type;
  float cap;         // soft cap afterwards, 0: none
  int32_t pad;
};
static_assert(sizeof(BiasArgs) == 40, "args.go");

struct StateArgs {
  dptr state, flat;  // flat float32, the order of kernels.State.Export
  int32_t blocks, heads, dk, dv, slices, stateType;
  int32_t import, pad;
};
static_assert(sizeof(StateArgs) == 48, "args.go");

struct DequantArgs {
  Mat w;
  dptr y;            // fp16 [rows, ldy], zero beyond cols
  int32_t row0, rows, ldy, pad;
};
static_assert(sizeof(DequantArgs) == 80, "args.go");

struct ConvertArgs {
  dptr p;            // bf16 in place to fp16
  dptr bad;          // uint32: number of values that fp16 cannot hold
  int64_t n;
};
static_assert(sizeof(ConvertArgs) == 24, "args.go");

struct FillArgs {
  dptr p;
  int64_t n;         // words of 4 bytes
  uint64_t seed;
  uint32_t keep, set;
};
static_assert(sizeof(FillArgs) == 32, "args.go");

struct SampleArgs {
  dptr logits, tokens, out; // logits [vocab]; the chosen id goes to tokens[0] and to out[step[0]]
  dptr step;                // uint32 counter, advanced by one
  dptr uniform;             // float32 random numbers in [0, 1), one a step
  int32_t vocab, limit;     // ids from limit on are never chosen
  int32_t k, outLen;        // k = 1 is greedy; at most 64
  float invTemp;
  int32_t pad;
};
static_assert(sizeof(SampleArgs) == 64, "args.go");

extern "C" {
// gates_many: 16 tokens a block, the 2H rows in turns of 16. Warps share K, and multiply on tensor cores in tf32, both sides as terms of
// 11 bits: two, or three, which hold a float32. A lane takes 4 neighbouring values where the tensor cores'
// layout has columns t, t+4 of two steps: as long as both sides agree, the order of K does not matter.
__global__ void __launch_bounds__(GATE_WARPS * 32) gates_many(const __grid_constant__ GatesArgs a) {
  __shared__ float part[GATE_WARPS][16][17], squares[GATE_WARPS][16];
  launchDependents();
  waitPredecessor();
  const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, t = lane & 3;
  const int t0 = blockIdx.x * 16, ld = a.w.rowBytes / 4, K = a.w.cols;
  const bool aligned = ((K | a.ldx) & 3) == 0;
  auto loadX = [&](int tok, int k) {
    if (tok >= a.n || k >= K) return make_float4(0.f, 0.f, 0.f, 0.f);
    const float* p = (const float*)a.x + (size_t)tok * a.ldx + k;
    if (aligned) return *(const float4*)p;
    return make_float4(p[0], k + 1 < K ? p[1] : 0.f, k + 2 < K ? p[2] : 0.f, k + 3 < K ? p[3] : 0.f);
  };
  auto loadW = [&](int row, int k) {
    return row < a.w.rows && k < ld ? __ldg((const float4*)((const float*)a.w.values + (size_t)row * ld + k)) : make_float4(0.f, 0.f, 0.f, 0.f);
  };
  for (int r0 = 0; r0 < a.w.rows; r0 += 16) {
    float d[2][4] = {}, sq[2] = {};
#pragma unroll 4
    for (int k0 = warp * 16; k0 < K; k0 += GATE_WARPS * 16) {
      const int k = k0 + 4 * t;
      float4 x[2] = {loadX(t0 + g, k), loadX(t0 + g + 8, k)}, w[2] = {loadW(r0 + g, k), loadW(r0 + g + 8, k)};
      uint32_t xh[2][4], xl[2][4], xr[2][4], wh[2][4], wl[2][4], wr[2][4];
#pragma unroll
      for (int i = 0; i < 2; i++) {
        sq[i] += x[i].x * x[i].x + x[i].y * x[i].y + x[i].z * x[i].z + x[i].w * x[i].w;
        splitTF32(x[i], xh[i], xl[i], xr[i]);
        splitTF32(w[i], wh[i], wl[i], wr[i]);
      }
#pragma unroll
      for (int j = 0; j < 2; j++)
#pragma unroll
        for (int s = 0; s < 4; s += 2) {
          if (a.exact) {
            mmaTF32(d[j], xr[0][s], xr[1][s], xr[0][s + 1], xr[1][s + 1], wh[j][s], wh[j][s + 1]);
            mmaTF32(d[j], xh[0][s], xh[1][s], xh[0][s + 1], xh[1][s + 1], wr[j][s], wr[j][s + 1]);
            mmaTF32(d[j], xl[0][s], xl[1][s], xl[0][s + 1], xl[1][s + 1], wl[j][s], wl[j][s + 1]);
          }
          mmaTF32(d[j], xl[0][s], xl[1][s], xl[0][s + 1], xl[1][s + 1], wh[j][s], wh[j][s + 1]);
          mmaTF32(d[j], xh[0][s], xh[1][s], xh[0][s + 1], xh[1][s + 1], wl[j][s], wl[j][s + 1]);
          mmaTF32(d[j], xh[0][s], xh[1][s], xh[0][s + 1], xh[1][s + 1], wh[j][s], wh[j][s + 1]);
        }
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
      sq[i] += __shfl_xor_sync(~0u, sq[i], 1);
      sq[i] += __shfl_xor_sync(~0u, sq[i], 2);
    }
    __syncthreads();  // the last turn's sums are read
#pragma unroll
    for (int j = 0; j < 2; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) part[warp][g + 8 * (e >> 1)][8 * j + 2 * t + (e & 1)] = d[j][e];
    if (t < 2) squares[warp][g + 8 * t] = t ? sq[1] : sq[0];
    __syncthreads();
    const int tok = tid >> 4, r = r0 + (tid & 15);
    if (tid < 256 && t0 + tok < a.n && r < a.w.rows) {
      float v = 0.f, s = 0.f;
#pragma unroll
      for (int w = 0; w < GATE_WARPS; w++) {
        v += part[w][tok][tid & 15];
        s += squares[w][tok];
      }
      v *= rsqrtf(s / K + a.eps);
      if (a.w.bias) v += ((const float*)a.w.bias)[r];
      ((float*)a.y)[(size_t)(t0 + tok) * a.w.rows + r] = v;
    }
  }
}

__global__ void __launch_bounds__(256) add_bias(const __grid_constant__ BiasArgs a) {
  launchDependents();
  waitPredecessor();
  size_t t = blockIdx.x;
  for (int k = blockIdx.y * 256 + threadIdx.x; k < a.cols; k += gridDim.y * 256) {
    float b = a.bias ? ((const float*)a.bias)[k] : 0.f;
    if (a.type == X_F32) {
      float* x = (float*)a.x + t * a.ld + k;
      *x = softcap(*x + b, a.cap);
    } else {
      __half* x = (__half*)a.x + t * a.ld + k;
      *x = toHalf(softcap(__half2float(*x) + b, a.cap));
    }
  }
}

// log_prob: log softmax of one row at its target, one block a row.
__global__ void __launch_bounds__(512) log_prob(const __grid_constant__ LogitArgs a) {
  __shared__ float red[32];
  const int t = blockIdx.x, target = ((const int*)a.targets)[t];
  const float* x = (const float*)a.logits + (size_t)t * a.ld;
  if (target < 0) {
    if (threadIdx.x == 0) ((float*)a.out)[t] = 0.f;
    return;
  }
  float m = -INFINITY, s = 0.f;
  for (int k = threadIdx.x; k < a.vocab; k += 512) m = fmaxf(m, x[k]);
  m = blockMax(m, red);
  for (int k = threadIdx.x; k < a.vocab; k += 512) s += expf(x[k] - m);
  s = blockSum(s, red);
  if (threadIdx.x == 0) ((float*)a.out)[t] = x[target] - m - logf(s);
}

// state_copy: between a state's records and the flat form, grid (blocks*heads*slices).
__global__ void __launch_bounds__(256) state_copy(const __grid_constant__ StateArgs a) {
  const int slice = blockIdx.x % a.slices, bh = blockIdx.x / a.slices, head = bh % a.heads, block = bh / a.heads;
  const int64_t rec = (int64_t)a.dk * SLICE * (a.stateType == ST_F32 ? 4 : 2) + a.dk * 4 + 128;
  char* base = (char*)a.state + (int64_t)blockIdx.x * rec;
  float* N = (float*)(base + rec - 128) - a.dk;
  float* M = (float*)(base + rec - 128);
  float* flat = (float*)a.flat + (int64_t)block * a.heads * (a.dk * a.dv + a.dk + 1);
  float* fc = flat + (int64_t)head * a.dk * a.dv;
  float* fn = flat + (int64_t)a.heads * a.dk * a.dv + (int64_t)head * a.dk;
  float* fm = flat + (int64_t)a.heads * (a.dk * a.dv + a.dk) + head;
  for (int i = threadIdx.x; i < a.dk * SLICE; i += 256) {
    int r = i / SLICE, col = slice * SLICE + i % SLICE;
    bool in = col < a.dv;
    if (a.import) {
      float v = in ? fc[(int64_t)r * a.dv + col] : 0.f;
      if (a.stateType == ST_F32) ((float*)base)[i] = v;
      else if (a.stateType == ST_F16) ((__half*)base)[i] = toHalf(v);
      else ((__nv_bfloat16*)base)[i] = __float2bfloat16_rn(v);
    } else if (in) {
      float v = a.stateType == ST_F32 ? ((float*)base)[i]
              : a.stateType == ST_F16 ? __half2float(((__half*)base)[i]) : __bfloat162float(((__nv_bfloat16*)base)[i]);
      fc[(int64_t)r * a.dv + col] = v;
    }
  }
  for (int i = threadIdx.x; i < a.dk; i += 256) {
    if (a.import) N[i] = fn[i];
    else if (slice == 0) fn[i] = N[i];
  }
  if (threadIdx.x == 0) {
    if (a.import) M[0] = fm[0];
    else if (slice == 0) fm[0] = M[0];
  }
}

// dequant: rows of integer weights as fp16, for cuBLASLt. Grid (rows), a thread has 8 values at a time.
__global__ void __launch_bounds__(256) dequant(const __grid_constant__ DequantArgs a) {
  const size_t row = a.row0 + blockIdx.x;
  __half* y = (__half*)a.y + (size_t)blockIdx.x * a.ldy;
  const char* p = (const char*)a.w.values + row * a.w.rowBytes;
  for (int k = threadIdx.x * 16; k < a.ldy; k += 256 * 16) {
    float v[16];
    if (a.w.enc == ENC_I4) {  // 16 values of a block's low or high nibbles
      size_t at = row * a.w.groups + min(k >> a.w.groupShift, a.w.groups - 1);
      float s = __half2float(((const __half*)a.w.scales)[at]);
      float m = a.w.mins ? __half2float(((const __half*)a.w.mins)[at]) : -8.f * s;
      uint4 u = *(const uint4*)(p + (k >> 5) * 16);
      const uint32_t* e = (const uint32_t*)&u;
      int sh = (k & 16) ? 4 : 0;
#pragma unroll
      for (int j = 0; j < 16; j++) v[j] = ((e[j >> 2] >> ((j & 3) * 8 + sh)) & 15) * s + m;
    } else {
      float s = a.w.enc == ENC_I8 ? ((const float*)a.w.scales)[row]
                                  : __half2float(((const __half*)a.w.scales)[row * a.w.groups + min(k >> a.w.groupShift, a.w.groups - 1)]);
      uint4 u = *(const uint4*)(p + k);
      const uint32_t* e = (const uint32_t*)&u;
#pragma unroll
      for (int j = 0; j < 16; j++) v[j] = (int8_t)(e[j >> 2] >> ((j & 3) * 8)) * s;
    }
    __align__(16) __half out[16];
#pragma unroll
    for (int j = 0; j < 16; j++) out[j] = k + j < a.w.cols ? toHalf(v[j]) : __half(0.f);
    *(uint4*)(y + k) = *(uint4*)out;
    *(uint4*)(y + k + 8) = *(uint4*)(out + 8);
  }
}

__global__ void __launch_bounds__(256) bf16_to_fp16(const __grid_constant__ ConvertArgs a) {
  int64_t i = ((int64_t)blockIdx.x * 256 + threadIdx.x) * 8;
  if (i >= a.n) return;
  uint4 u = *(uint4*)((char*)a.p + i * 2);
  uint16_t* e = (uint16_t*)&u;
  int bad = 0;
#pragma unroll
  for (int j = 0; j < 8; j++) {
    float v = __uint_as_float((uint32_t)e[j] << 16);
    if (!(fabsf(v) <= 65504.f)) bad++;
    e[j] = __half_as_ushort(__float2half_rn(v));
  }
  *(uint4*)((char*)a.p + i * 2) = u;
  if (bad) atomicAdd((uint32_t*)a.bad, bad);
}

// sample: one block of 1024 threads finds the k largest logits one after the other (ties: the lowest id) and draws among them.
__global__ void __launch_bounds__(1024) sample(const __grid_constant__ SampleArgs a) {
  __shared__ unsigned long long best[32];
  __shared__ float top[64];
  __shared__ int ids[64];
  launchDependents();
  waitPredecessor();
  const float* x = (const float*)a.logits;
  const int n = min(a.vocab, a.limit), lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  unsigned long long last = ~0ull;
  for (int r = 0; r < a.k; r++) {
    unsigned long long b = 0;
    for (int i = threadIdx.x; i < n; i += 1024) {
      uint32_t u = __float_as_uint(__ldcg(x + i));
      u = u & 0x80000000 ? ~u : u | 0x80000000;  // floats in the order of unsigned integers
      unsigned long long key = (unsigned long long)u << 32 | (0xffffffffu - i);
      if (key < last && key > b) b = key;
    }
#pragma unroll
    for (int o = 16; o; o >>= 1) {
      unsigned long long v = __shfl_xor_sync(~0u, b, o);
      b = v > b ? v : b;
    }
    __syncthreads();
    if (lane == 0) best[warp] = b;
    __syncthreads();
    for (int w = 0; w < 32; w++) b = best[w] > b ? best[w] : b;
    last = b;
    if (threadIdx.x == 0) {
      ids[r] = 0xffffffffu - (uint32_t)b;
      top[r] = x[ids[r]];
    }
  }
  if (threadIdx.x == 0) {
    uint32_t step = *(uint32_t*)a.step;
    int id = ids[0], k = min(a.k, n);
    if (k > 1) {
      float sum = 0.f;
      for (int r = 0; r < k; r++) sum += top[r] = expf((top[r] - __ldcg(x + ids[0])) * a.invTemp);
      float u = ((const float*)a.uniform)[step] * sum;
      for (int r = 0; r < k; r++) {
        id = ids[r];
        u -= top[r];
        if (u < 0.f) break;
      }
    }
    *(int*)a.tokens = id;
    if (step < (uint32_t)a.outLen) ((int*)a.out)[step] = id;
    *(uint32_t*)a.step = step + 1;
  }
}

// fill writes pseudo-random words, each (r & keep) | set: synthetic weights for measurements.
__global__ void __launch_bounds__(512) fill(const __grid_constant__ FillArgs a) {
  for (int64_t i = (int64_t)blockIdx.x * 512 + threadIdx.x; i < a.n; i += (int64_t)gridDim.x * 512) {
    uint64_t z = (uint64_t)i * 0x9e3779b97f4a7c15ull + a.seed;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    ((uint32_t*)a.p)[i] = ((uint32_t)(z >> 32) & a.keep) | a.set;
  }
}
}
