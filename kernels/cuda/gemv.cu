// Products for few tokens (decode of some sequences; gemv_one.cu has that of one): weights stream once through a ring of asynchronous copies, are taken apart in registers
// and meet the activations in the tensor cores. What bounds them is memory: everything here is there to keep loads in flight.
//
// The work is tiles of 16 rows. The warps of a block share a tile, each taking every WARPS-th stretch of 128 bytes of its rows,
// and each with a ring of its own, so that loads never wait for a barrier. The first stretches are requested before the
// predecessor's results are waited for.
#include "gemv_input.cuh"

// finish is the epilogue of one value of row row, column c.
__device__ __forceinline__ void finish(const GemvArgs& a, int row, int c, float v) {
  if (a.w.bias) v += ((const float*)a.w.bias)[row];
  float* y = (float*)a.y + (size_t)c * a.ldy + row;
  if (a.ep == EP_ADD) v += __ldcg(y);
  if (a.ep == EP_CAP) v = softcap(v, a.cap);
  *y = v;
}

// Global row of row r of a tile. With SwiGLU a tile is 8 gate rows and the 8 up rows that belong to them.
__device__ __forceinline__ int tileRow(int ep, int rows, int tile, int r) {
  if (ep != EP_SWIGLU) return tile * 16 + r;
  int half = rows >> 1, i = tile * 8 + (r & 7);
  if (i >= half) return rows;
  return r < 8 ? i : half + i;
}

// Shared memory: ring | activations | partial sums [2][WARPS][16][cols2] | red | rs | corr | sums.
template <int ENC, int GS, bool ASYM>
__device__ __forceinline__ void gemvBody(const GemvArgs& a) {
  constexpr int SV = stageValues(ENC);
  constexpr bool GROUPED = ENC == ENC_I4 || ENC == ENC_I8G;
  constexpr int GPS = GROUPED ? SV >> GS : 1;     // groups of a stretch
  constexpr int NSC = (GPS + 3) / 4;              // scales of a row that a lane holds
  const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
  const int cols = a.split ? 2 * a.n : a.n, cols2 = (cols + 1) & ~1;
  const int rowBytes = a.w.rowBytes, S = (rowBytes + 127) >> 7;  // stretches of a row
  const int xStride = S * SV * 2 + 16;
  char* xs = smem + WARPS * STAGES * STAGE_BYTES;
  float* part = (float*)(xs + cols * xStride);
  float* red = part + 2 * WARPS * 16 * cols2;
  float* rs = red + WARPS * 8;
  float* corr = rs + 8;
  float* sums = corr + S * GPS * cols2;
  float* over = corr + max(S, WARPS) * cols2;  // int8: what its offset adds to each column
  const bool swi = a.ep == EP_SWIGLU;
  const int half = a.w.rows >> 1, tileRows = swi ? 8 : 16, top = swi ? half : a.w.rows;
  const int tiles = (top + tileRows - 1) / tileRows;
  const char* W = (const char*)a.w.values;

  // Requests of stretches: a lane copies 16 bytes each of rows lane/8 + 4j of a tile. What lies behind a row's end is zeros; rows
  // behind the last are the last again, for nobody reads what becomes of them.
  const int last = top - 1;
  const uint32_t ring = smemAddr(smem) + warp * (STAGES * STAGE_BYTES);
  const uint32_t dst0 = ring + swz(lane >> 3, lane & 7), dst1 = ring + swz((lane >> 3) + 4, lane & 7);
  int pfS = warp, pfTile = blockIdx.x;
  while (pfS >= S) { pfS -= S; pfTile += gridDim.x; }
  auto request = [&](int slot) {
    if (pfTile < tiles) {
      const int row = pfTile * tileRows + (lane >> 3), off = pfS * 128 + (lane & 7) * 16;
      const bool in = off < rowBytes;
      const char* p = W + (in ? off : 0);
      const int r0 = min(row, last), r1 = min(row + 4, last);
      const int r2 = swi ? r0 + half : min(row + 8, last), r3 = swi ? r1 + half : min(row + 12, last);
      const uint32_t o = slot * STAGE_BYTES;
      cpAsync(dst0 + o, p + (int64_t)r0 * rowBytes, in);
      cpAsync(dst1 + o, p + (int64_t)r1 * rowBytes, in);
      cpAsync(dst0 + o + 1024, p + (int64_t)r2 * rowBytes, in);
      cpAsync(dst1 + o + 1024, p + (int64_t)r3 * rowBytes, in);
      pfS += WARPS;
      while (pfS >= S) { pfS -= S; pfTile += gridDim.x; }
    }
    cpCommit();
  };
  // Scales come a stretch ahead, into registers: lane%4 has groups lane%4 and lane%4+4 of rows lane/4 and lane/4+8. Behind a row's last
  // group, whose activations are zeros, it is the last again, and likewise behind the last tile.
  uint16_t sc[NSC][2], mn[NSC][2];
  auto loadScales = [&](int s, int tile) {
    if constexpr (GROUPED) {
      const int i = min(tile, tiles - 1) * tileRows + (lane >> 2), r0 = min(i, last), r1 = swi ? r0 + half : min(i + 8, last);
#pragma unroll
      for (int j = 0; j < NSC; j++) {
        const int g = min(s * GPS + ((lane & 3) & (GPS - 1)) + 4 * j, a.w.groups - 1);
        const int64_t at0 = (int64_t)r0 * a.w.groups + g, at1 = (int64_t)r1 * a.w.groups + g;
        sc[j][0] = ((const uint16_t*)a.w.scales)[at0];
        sc[j][1] = ((const uint16_t*)a.w.scales)[at1];
        if (ASYM) {
          mn[j][0] = ((const uint16_t*)a.w.mins)[at0];
          mn[j][1] = ((const uint16_t*)a.w.mins)[at1];
        }
      }
    }
  };
#pragma unroll
  for (int i = 0; i < STAGES; i++) request(i);
  int curS = warp, curTile = blockIdx.x;
  while (curS >= S) { curS -= S; curTile += gridDim.x; }
  loadScales(curS, curTile);
  launchDependents();

  waitPredecessor();
  // Zeros behind the rows' ends, then the activations.
  const halfSink<ENC> sink{xs, xStride, a.n, a.split};
  const int from = a.w.cols, len = S * SV - from;
  for (int c = 0; c < a.n; c++)
    for (int i = tid; i < len; i += WARPS * 32) sink.one(c, from + i, 0.f);
  loadX(a, a.w.cols, red, rs, sink);
  if constexpr (ENC != ENC_F16) {
    groupSums<ENC, GS, ASYM>(xs, xStride, cols, cols2, S * SV, corr, sums);
    __syncthreads();
  }
  if (ENC == ENC_I8 && tid < a.n) {  // read after the first tile's barrier
    float v = 0.f;
    for (int w = 0; w < WARPS; w++) {
      v += corr[w * cols2 + tid];
      if (a.split) v += corr[w * cols2 + tid + a.n];
    }
    over[tid] = v;
  }

  const uint32_t xAddr = smemAddr(xs) + min(lane & 7, cols - 1) * xStride + ((lane >> 3) << 4);
  // ldmatrix: matrices (rows 0-7, chunk c), (rows 8-15, chunk c), (rows 0-7, chunk c+1), (rows 8-15, chunk c+1), c even
  const uint32_t wRow = ring + ((lane & 7) + ((lane >> 3) & 1) * 8) * 128, wXor = ((lane >> 4) ^ (lane & 7)) << 4;
  const int cc = min((lane & 3) * 2, cols2 - 2);
  int slot = 0, local = 0;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x, local++) {
    float acc[4] = {0.f, 0.f, 0.f, 0.f};
    while (curTile == tile) {
      const int s = curS;
      float fs[NSC][2] = {}, fm[NSC][2] = {};
      if constexpr (GROUPED) {
#pragma unroll
        for (int j = 0; j < NSC; j++)
#pragma unroll
          for (int r = 0; r < 2; r++) {
            fs[j][r] = __half2float(__ushort_as_half(sc[j][r]));
            fm[j][r] = ASYM ? __half2float(__ushort_as_half(mn[j][r])) : 0.f;
          }
      }
      curS += WARPS;
      while (curS >= S) { curS -= S; curTile += gridDim.x; }
      loadScales(curS, curTile);
      cpWait<STAGES - 1>();
      __syncwarp();
      const uint32_t wb = wRow + slot * STAGE_BYTES, xb = xAddr + s * (SV * 2);
      uint32_t b[4];
      float t[4];
      auto begin = [&](int g) {
        float2 v = *(const float2*)(corr + (s * GPS + g) * cols2 + cc);
        t[0] = t[2] = v.x;
        t[1] = t[3] = v.y;
      };
      auto end = [&](int g) {
        int from = (lane & 28) | (g & 3);
        float s0 = __shfl_sync(~0u, fs[g >> 2][0], from), s1 = __shfl_sync(~0u, fs[g >> 2][1], from);
        acc[0] += s0 * t[0]; acc[1] += s0 * t[1]; acc[2] += s1 * t[2]; acc[3] += s1 * t[3];
        if constexpr (ASYM) {
          float m0 = __shfl_sync(~0u, fm[g >> 2][0], from), m1 = __shfl_sync(~0u, fm[g >> 2][1], from);
          float2 x = *(const float2*)(sums + (s * GPS + g) * cols2 + cc);
          acc[0] += m0 * x.x; acc[1] += m0 * x.y; acc[2] += m1 * x.x; acc[3] += m1 * x.y;
        }
      };
#pragma unroll
      for (int c = 0; c < 8; c += 2) {
        uint32_t wv[4];
        ldsm4(wv, wb + (wXor ^ (c << 4)));
        if constexpr (ENC == ENC_F16) {  // 16 values
          if ((c & 2) == 0) ldsm4(b, xb + c * 16);
          mma(acc, wv[0], wv[1], wv[2], wv[3], b[c & 2], b[(c & 2) + 1]);
        } else if constexpr (ENC != ENC_I4) {  // 32 values
          uint32_t u0[2], u1[2], v0[2], v1[2];
          ldsm4(b, xb + c * 32);
          raw8(wv[0], u0);
          raw8(wv[1], u1);
          raw8(wv[2], v0);
          raw8(wv[3], v1);
          constexpr int per = GROUPED ? (1 << GS) / 16 : 1;  // chunks of a group
          if constexpr (GROUPED) {
            if (c % per == 0) begin(c / per);
            mma(t, u0[0], u1[0], u0[1], u1[1], b[0], b[1]);
            mma(t, v0[0], v1[0], v0[1], v1[1], b[2], b[3]);
            if ((c + 2) % per == 0) end(c / per);
          } else {
            mma(acc, u0[0], u1[0], u0[1], u1[1], b[0], b[1]);
            mma(acc, v0[0], v1[0], v0[1], v1[1], b[2], b[3]);
          }
        } else {  // two blocks of 32 values
          constexpr int per = (1 << GS) / 32;  // blocks of a group
#pragma unroll
          for (int h = 0; h < 2; h++) {
            uint32_t u0[4], u1[4];
            ldsm4(b, xb + (c + h) * 64);
            raw4(wv[2 * h], u0);
            raw4(wv[2 * h + 1], u1);
            if ((c + h) % per == 0) begin((c + h) / per);
            mma(t, u0[0], u1[0], u0[1], u1[1], b[0], b[1]);
            mma(t, u0[2], u1[2], u0[3], u1[3], b[2], b[3]);
            if ((c + h + 1) % per == 0) end((c + h) / per);
          }
        }
      }
      __syncwarp();
      request(slot);
      slot = slot + 1 == STAGES ? 0 : slot + 1;
    }
    float* p = part + ((local & 1) * WARPS + warp) * 16 * cols2;
    int c0 = (lane & 3) * 2, r0 = lane >> 2;
    if (c0 < cols2) {
      *(float2*)(p + r0 * cols2 + c0) = make_float2(acc[0], acc[1]);
      *(float2*)(p + (r0 + 8) * cols2 + c0) = make_float2(acc[2], acc[3]);
    }
    const bool mine = warp == (local & (WARPS - 1));  // this warp finishes the tile, while the others go on
    __syncthreads();
    if (mine) {
      // The barrier of the next tile keeps the others from overwriting these partial sums.
      const float* q = part + (local & 1) * WARPS * 16 * cols2;
      auto total = [&](int r, int c) {
        float v = 0.f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
          v += q[(w * 16 + r) * cols2 + c];
          if (a.split) v += q[(w * 16 + r) * cols2 + c + a.n];
        }
        if constexpr (ENC == ENC_I8) {
          int row = tileRow(a.ep, a.w.rows, tile, r);
          v = row < a.w.rows ? (v - over[c]) * ((const float*)a.w.scales)[row] : 0.f;
        }
        return v * rs[c];
      };
      if (swi) {
        for (int i = lane; i < 8 * a.n; i += 32) {
          int r = i & 7, c = i >> 3, row = tile * 8 + r;
          if (row < half) {
            float g = total(r, c), u = total(r + 8, c);
            if (a.w.bias) { g += ((const float*)a.w.bias)[row]; u += ((const float*)a.w.bias)[half + row]; }
            ((float*)a.y)[(size_t)c * a.ldy + row] = siluf(g) * u;
          }
        }
      } else {
        for (int i = lane; i < 16 * a.n; i += 32) {
          int r = i & 15, c = i >> 4, row = tile * 16 + r;
          if (row < a.w.rows) finish(a, row, c, total(r, c));
        }
      }
    }
  }
  cpWait<0>();
  if (a.gates.rows) gateRows(a, part, rs);
}

// The same for fp32 weights: one warp a row (or a gate row and its up row), no rounding of anything.
__device__ __forceinline__ void dotRow(const float* w, const float* xs, int K4, int n, int xStride, float (&acc)[8]) {
  int lane = threadIdx.x & 31;
#pragma unroll 4
  for (int k = lane; k < K4; k += 32) {
    float4 v = __ldg((const float4*)w + k);
#pragma unroll
    for (int c = 0; c < 8; c++)
      if (c < n) {
        float4 x = *(const float4*)(xs + c * xStride + 4 * k);
        acc[c] += v.x * x.x + v.y * x.y + v.z * x.z + v.w * x.w;
      }
  }
#pragma unroll
  for (int c = 0; c < 8; c++)
    if (c < n) acc[c] = warpSum(acc[c]);
}

// Shared memory: red [WARPS*8] | rs [8] | activations float [n][padded K].
extern "C" __global__ void __launch_bounds__(WARPS * 32) gemv_f32(const __grid_constant__ GemvArgs a) {
  float* red = (float*)smem;
  float* rs = red + WARPS * 8;
  float* xs = rs + 8;
  const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, ld = a.w.rowBytes / 4;
  for (int i = tid; i < a.n * (ld - a.w.cols); i += WARPS * 32) xs[(i / (ld - a.w.cols)) * ld + a.w.cols + i % (ld - a.w.cols)] = 0.f;
  launchDependents();
  waitPredecessor();
  loadX(a, a.w.cols, red, rs, floatSink{xs, ld});
  __syncthreads();
  const float* W = (const float*)a.w.values;
  const int F = a.w.rows >> 1, units = a.ep == EP_SWIGLU ? F : a.w.rows;
  for (int u = warp * gridDim.x + blockIdx.x; u < units; u += gridDim.x * WARPS) {
    float acc[8] = {}, up[8] = {};
    dotRow(W + (size_t)u * ld, xs, ld / 4, a.n, ld, acc);
    if (a.ep == EP_SWIGLU) dotRow(W + (size_t)(F + u) * ld, xs, ld / 4, a.n, ld, up);
    if (lane == 0)
#pragma unroll
      for (int c = 0; c < 8; c++)
        if (c < a.n) {
          if (a.ep == EP_SWIGLU) {
            float g = acc[c] * rs[c], v = up[c] * rs[c];
            if (a.w.bias) { g += ((const float*)a.w.bias)[u]; v += ((const float*)a.w.bias)[F + u]; }
            ((float*)a.y)[(size_t)c * a.ldy + u] = siluf(g) * v;
          } else {
            finish(a, u, c, acc[c] * rs[c]);
          }
        }
  }
  if (a.gates.rows) gateRows(a, red, rs);
}

#define GEMV(NAME, ENC, GS, ASYM) \
  extern "C" __global__ void __launch_bounds__(WARPS * 32, 2) gemv_##NAME(const __grid_constant__ GemvArgs a) { gemvBody<ENC, GS, ASYM>(a); }
GEMV(f16, ENC_F16, 0, false)
GEMV(i8, ENC_I8, 0, false)
GEMV(i8g32, ENC_I8G, 5, false)
GEMV(i8g64, ENC_I8G, 6, false)
GEMV(i8g128, ENC_I8G, 7, false)
GEMV(i4g32, ENC_I4, 5, false)
GEMV(i4g64, ENC_I4, 6, false)
GEMV(i4g128, ENC_I4, 7, false)
GEMV(i4g32a, ENC_I4, 5, true)
GEMV(i4g64a, ENC_I4, 6, true)
GEMV(i4g128a, ENC_I4, 7, true)
