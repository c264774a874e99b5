// Products for many tokens where cuBLASLt is not there, or where weights should stay packed on their way to the tensor cores.
#include "common.cuh"

enum { OUT_F32 = 0, OUT_F16 = 1 };

struct GemmArgs {
  Mat w;
  dptr x, y;             // x fp16 [n, ldx] (X_PERM order for integer weights) or float32 for gemm_f32, zero beyond w.cols
  int32_t n, ldx, ldy;
  int32_t out;           // type of y
  int32_t add, splits;   // add: onto y (float32); splits: parts of K, each to its own [n, ldy] float32 matrix of y, nothing else done
  float alpha, cap;
};
static_assert(sizeof(GemmArgs) == 104, "args.go");

constexpr int BM = 128, BN = 64;

__device__ __forceinline__ void putY(const GemmArgs& a, int row, int tok, float v, int split) {
  if (row >= a.w.rows || tok >= a.n) return;
  v *= a.alpha;
  size_t at = (size_t)tok * a.ldy + row;
  if (a.splits > 1) {
    ((float*)a.y)[(size_t)split * a.n * a.ldy + at] = v;
    return;
  }
  if (a.w.bias) v += ((const float*)a.w.bias)[row];
  if (a.out == OUT_F16) {
    ((__half*)a.y)[at] = toHalf(v);
    return;
  }
  float* y = (float*)a.y + at;
  if (a.add) v += *y;
  *y = softcap(v, a.cap);
}

// 256 threads: 4 x 2 warps of 32 rows x 32 tokens; for up to 32 tokens 8 of 16 rows x 32 tokens, so that no two warps take the same weights
// apart, and operands come out of shared memory a step before they are used: the compiler keeps the order of what is written here. Shared memory: (weights [128][128 bytes] | X [SV/64][64 tokens][128 bytes]) x
// stages, then scales and minimums [128][8] fp16.
template <int ENC, int NST, bool FEW>
__device__ __forceinline__ void gemmBody(const GemmArgs& a) {
  constexpr int SV = ENC == ENC_F16 ? 64 : ENC == ENC_I4 ? 256 : 128, FR = SV / 64;
  constexpr int WB = BM * 128, XB = BN * SV * 2;
  constexpr int IT = FEW ? 1 : 2, JT = 4;  // a warp's tiles of 16 rows and of 8 tokens
  constexpr bool GROUPED = ENC == ENC_I4 || ENC == ENC_I8G;
  const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
  const int row0 = blockIdx.x * BM, tok0 = blockIdx.y * BN;
  const int S = (a.w.rowBytes + 127) >> 7, per = (S + a.splits - 1) / a.splits;
  const int sBegin = blockIdx.z * per, sEnd = min(S, sBegin + per);
  const int gshift = GROUPED ? a.w.groupShift : 30, gsh = GROUPED ? __popc(SV - 1) - gshift : 0, gs = GROUPED ? 1 << gsh : 0;
  __half* scs = (__half*)(smem + NST * (WB + XB));
  __half* mns = scs + BM * 8;
  const char* W = (const char*)a.w.values;
  const char* X = (const char*)a.x;
  const int xRow = a.ldx * 2;

  auto request = [&](int s, int slot) {
    if (s < sEnd) {
      uint32_t wb = smemAddr(smem) + slot * (WB + XB), xb = wb + WB;
#pragma unroll
      for (int j = 0; j < BM * 8 / 256; j++) {
        int i = tid + j * 256, r = i >> 3, c = i & 7, off = s * 128 + c * 16;
        bool in = row0 + r < a.w.rows && off < a.w.rowBytes;
        cpAsync(wb + swz(r, c), W + (in ? (size_t)(row0 + r) * a.w.rowBytes + off : 0), in);
      }
#pragma unroll
      for (int j = 0; j < BN * SV / 8 / 256; j++) {
        int i = tid + j * 256, r = i / (SV / 8), c = i % (SV / 8), off = s * SV * 2 + c * 16;
        bool in = tok0 + r < a.n && off < xRow;
        cpAsync(xb + (c >> 3) * (BN * 128) + swz(r, c & 7), X + (in ? (size_t)(tok0 + r) * xRow + off : 0), in);
      }
    }
    cpCommit();
  };
  uint16_t scv[4], mnv[4];
  auto loadScales = [&](int s) {
    if constexpr (GROUPED) {
#pragma unroll
      for (int j = 0; j < 4; j++) {
        int i = tid + 256 * j;
        scv[j] = mnv[j] = 0;
        int r = row0 + (i >> gsh), g = s * gs + (i & (gs - 1));
        if (i < BM * gs && s < sEnd && r < a.w.rows && g < a.w.groups) {
          size_t at = (size_t)r * a.w.groups + g;
          scv[j] = ((const uint16_t*)a.w.scales)[at];
          if (a.w.mins) mnv[j] = ((const uint16_t*)a.w.mins)[at];
        }
      }
    }
  };

  float acc[IT][JT][4] = {};
  const int wm = IT == 2 ? (warp & 3) * 32 : warp * 16, wn = IT == 2 ? (warp >> 2) * 32 : 0;
  const int left = a.n - tok0 - wn;  // tokens that the warp has
#pragma unroll
  for (int i = 0; i < NST - 1; i++) request(sBegin + i, i);
  loadScales(sBegin);
  int slot = 0;
  for (int s = sBegin; s < sEnd; s++) {
    cpWait<NST - 2>();
    __syncthreads();
    if constexpr (GROUPED) {
#pragma unroll
      for (int j = 0; j < 4; j++) {
        int i = tid + 256 * j;
        if (i < BM * gs) {
          int at = (i >> gsh) * 8 + (i & (gs - 1));
          __half sc = __ushort_as_half(scv[j]);
          scs[at] = sc;
          mns[at] = a.w.mins ? __float2half_rn(__half2float(__ushort_as_half(mnv[j])) + 8.f * __half2float(sc)) : __half(0.f);
        }
      }
      __syncthreads();
      loadScales(s + 1);
    }
    {
      int ahead = slot + NST - 1;
      request(s + NST - 1, ahead >= NST ? ahead - NST : ahead);
    }
    uint32_t wb = smemAddr(smem) + slot * (WB + XB), xb = wb + WB;
    const int lr = (lane & 7) + ((lane >> 3) & 1) * 8, lc = lane >> 4;
    const int xr = wn + (lane & 7) + (lane >> 4) * 8, xc = (lane >> 3) & 1;
#pragma unroll
    for (int c = 0; c < 8; c += 2) {
      uint32_t fa[IT][FR][4], wv[IT][4], b[FEW ? 2 : 1][FEW ? JT / 2 : 1][4];
      auto loadB = [&](uint32_t(&to)[4], int f, int j) {
        int kc = (c / 2 * FR + f) * 2 + xc;
        ldsm4(to, xb + (kc >> 3) * (BN * 128) + swz(xr + j * 8, kc & 7));
      };
      auto ahead = [&](int f) {
        if constexpr (FEW)
#pragma unroll
          for (int j = 0; j < JT; j += 2)
            if (j * 8 < left) loadB(b[f & 1][j / 2], f, j);
      };
#pragma unroll
      for (int i = 0; i < IT; i++) ldsm4(wv[i], wb + swz(wm + i * 16 + lr, c + lc));
      ahead(0);
#pragma unroll
      for (int i = 0; i < IT; i++) {
        if constexpr (ENC == ENC_F16) {
#pragma unroll
          for (int e = 0; e < 4; e++) fa[i][0][e] = wv[i][e];
        } else if constexpr (ENC == ENC_I8 || ENC == ENC_I8G) {
          uint32_t u[4][2];
#pragma unroll
          for (int e = 0; e < 4; e++) unpack8(wv[i][e], u[e]);
#pragma unroll
          for (int f = 0; f < 2; f++) {
            fa[i][f][0] = u[2 * f][0];
            fa[i][f][1] = u[2 * f + 1][0];
            fa[i][f][2] = u[2 * f][1];
            fa[i][f][3] = u[2 * f + 1][1];
          }
        } else {
          uint32_t u[4][4];
#pragma unroll
          for (int e = 0; e < 4; e++) unpack4(wv[i][e], u[e]);
#pragma unroll
          for (int f = 0; f < 4; f++) {
            int b = f >> 1, p = (f & 1) * 2;
            fa[i][f][0] = u[2 * b][p];
            fa[i][f][1] = u[2 * b + 1][p];
            fa[i][f][2] = u[2 * b][p + 1];
            fa[i][f][3] = u[2 * b + 1][p + 1];
          }
        }
        if constexpr (GROUPED) {
#pragma unroll
          for (int f = 0; f < FR; f++) {
            int k = c * (SV / 8) + f * 16, g = k >> gshift, r0 = (wm + i * 16 + (lane >> 2)) * 8 + g;
            __half2 s0 = __half2half2(scs[r0]), s1 = __half2half2(scs[r0 + 64]), b0 = __half2half2(mns[r0]), b1 = __half2half2(mns[r0 + 64]);
#pragma unroll
            for (int e = 0; e < 4; e++)
              fa[i][f][e] = hfma2(fa[i][f][e], e & 1 ? *(uint32_t*)&s1 : *(uint32_t*)&s0, e & 1 ? *(uint32_t*)&b1 : *(uint32_t*)&b0);
          }
        }
      }
#pragma unroll
      for (int f = 0; f < FR; f++) {
        if (f + 1 < FR) ahead(f + 1);
#pragma unroll
        for (int j = 0; j < JT; j += 2)
          if (j * 8 < left) {
            uint32_t(&v)[4] = b[FEW ? f & 1 : 0][FEW ? j / 2 : 0];
            if constexpr (!FEW) loadB(v, f, j);
#pragma unroll
            for (int i = 0; i < IT; i++) {
              mma(acc[i][j], fa[i][f][0], fa[i][f][1], fa[i][f][2], fa[i][f][3], v[0], v[1]);
              mma(acc[i][j + 1], fa[i][f][0], fa[i][f][1], fa[i][f][2], fa[i][f][3], v[2], v[3]);
            }
          }
      }
    }
    slot = slot + 1 == NST ? 0 : slot + 1;
  }
  cpWait<0>();
#pragma unroll
  for (int i = 0; i < IT; i++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      int row = row0 + wm + i * 16 + (lane >> 2) + 8 * h;
      float sc = ENC == ENC_I8 && row < a.w.rows ? ((const float*)a.w.scales)[row] : 1.f;
#pragma unroll
      for (int j = 0; j < JT; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) putY(a, row, tok0 + wn + j * 8 + (lane & 3) * 2 + e, acc[i][j][2 * h + e] * sc, blockIdx.z);
    }
}

extern "C" {
__global__ void __launch_bounds__(256) gemm_f16(const __grid_constant__ GemmArgs a) { gemmBody<ENC_F16, 3, false>(a); }
__global__ void __launch_bounds__(256, 2) gemm_i8(const __grid_constant__ GemmArgs a) { gemmBody<ENC_I8, 3, false>(a); }
__global__ void __launch_bounds__(256, 2) gemm_i8g(const __grid_constant__ GemmArgs a) { gemmBody<ENC_I8G, 3, false>(a); }
__global__ void __launch_bounds__(256, 2) gemm_i4(const __grid_constant__ GemmArgs a) { gemmBody<ENC_I4, 2, false>(a); }
__global__ void __launch_bounds__(256, 2) gemm_i8_few(const __grid_constant__ GemmArgs a) { gemmBody<ENC_I8, 3, true>(a); }
__global__ void __launch_bounds__(256, 2) gemm_i8g_few(const __grid_constant__ GemmArgs a) { gemmBody<ENC_I8G, 3, true>(a); }
__global__ void __launch_bounds__(256, 2) gemm_i4_few(const __grid_constant__ GemmArgs a) { gemmBody<ENC_I4, 2, true>(a); }

// Float32 activations, weights of any encoding, float32 throughout: 64 x 64 tiles, 256 threads with 4 x 4 each.
__global__ void __launch_bounds__(256) gemm_f32(const __grid_constant__ GemmArgs a) {
  __shared__ float ws[16][68], xs[16][68];
  const int tid = threadIdx.x, row0 = blockIdx.x * 64, tok0 = blockIdx.y * 64, ld = (a.w.cols + 31) & ~31;
  const float* W = (const float*)a.w.values;
  const float* X = (const float*)a.x;
  float acc[4][4] = {};
  const int r = tid >> 2, q = (tid & 3) * 4, ty = tid >> 4, tx = tid & 15;
  for (int k0 = 0; k0 < ld; k0 += 16) {
    float4 w = make_float4(0.f, 0.f, 0.f, 0.f);
    if (row0 + r < a.w.rows) {
      if (a.w.enc == ENC_F32) {
        w = *(const float4*)(W + (size_t)(row0 + r) * ld + k0 + q);
      } else if (k0 + q < a.w.cols) {
        int last = a.w.cols - 1;  // x is zero beyond
        w = make_float4(weightAt(a.w, row0 + r, k0 + q), weightAt(a.w, row0 + r, min(k0 + q + 1, last)), weightAt(a.w, row0 + r, min(k0 + q + 2, last)),
                        weightAt(a.w, row0 + r, min(k0 + q + 3, last)));
      }
    }
    float4 x = tok0 + r < a.n ? *(const float4*)(X + (size_t)(tok0 + r) * a.ldx + k0 + q) : make_float4(0.f, 0.f, 0.f, 0.f);
    __syncthreads();
    ws[q][r] = w.x; ws[q + 1][r] = w.y; ws[q + 2][r] = w.z; ws[q + 3][r] = w.w;
    xs[q][r] = x.x; xs[q + 1][r] = x.y; xs[q + 2][r] = x.z; xs[q + 3][r] = x.w;
    __syncthreads();
#pragma unroll
    for (int k = 0; k < 16; k++) {
      float4 wv = *(float4*)&ws[k][tx * 4], xv = *(float4*)&xs[k][ty * 4];
      float wa[4] = {wv.x, wv.y, wv.z, wv.w}, xa[4] = {xv.x, xv.y, xv.z, xv.w};
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) acc[i][j] += wa[i] * xa[j];
    }
  }
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int j = 0; j < 4; j++) putY(a, row0 + tx * 4 + i, tok0 + ty * 4 + j, acc[i][j], 0);
}

// reduce_splits adds the parts that a product with splits left in x [splits, n, rows] and finishes it.
__global__ void __launch_bounds__(256) reduce_splits(const __grid_constant__ GemmArgs a) {
  size_t i = (size_t)blockIdx.x * 256 + threadIdx.x, n = (size_t)a.n * a.w.rows;
  if (i >= n) return;
  float v = 0.f;
  for (int s = 0; s < a.splits; s++) v += ((const float*)a.x)[s * n + i];
  int row = i % a.w.rows, tok = i / a.w.rows;
  GemmArgs b = a;
  b.splits = 1;
  b.alpha = 1.f;
  putY(b, row, tok, v, 0);
}
}
