// Products of one vector: decode of one sequence. What bounds them is memory, and at int4 nearly as much the instructions that take codes
// apart. Nothing is computed here that could have been computed before: the vector comes prepared, addresses are advanced, not made.
//
// The work is tiles of 16 rows. The warps of a team, which is the whole block or a part of it, share a tile, each taking every team-th
// stretch of 128 bytes of its rows, and each with a ring of its own, so that loads never wait for a barrier. The first stretches are
// requested before the predecessor's results are waited for. Smaller teams add up fewer partial sums a tile, but need more tiles.
// In the tensor cores' eight columns the vector has two, one for each of its fp16 terms; the other six repeat the second.
#include "one_input.cuh"

// GroupScales are the scales, or minimums, of the N groups of a stretch, for two rows.
template <int N>
struct GroupScales {
  static constexpr int WORDS = (N + 1) / 2;
  uint32_t raw[2][WORDS];  // fp16

  __device__ __forceinline__ float at(int row, int g) const {
    const float2 v = __half22float2(*(const __half2*)&raw[row][g >> 1]);
    return g & 1 ? v.y : v.x;
  }
  // load reads them from p and, for the second row, from second bytes behind it.
  __device__ __forceinline__ void load(const char* p, uint32_t second) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const char* q = r ? p + second : p;
      if constexpr (N == 1) {
        raw[r][0] = *(const uint16_t*)q;
      } else if constexpr (N == 2) {
        raw[r][0] = *(const uint32_t*)q;
      } else {
#pragma unroll
        for (int j = 0; j < N / 4; j++) {
          const uint2 v = ((const uint2*)q)[j];
          raw[r][2 * j] = v.x;
          raw[r][2 * j + 1] = v.y;
        }
      }
    }
  }
};

// teamBarrier waits for the warps of a team.
__device__ __forceinline__ void teamBarrier(int team, int warps) { asm volatile("bar.sync %0, %1;" ::"r"(team + 1), "r"(warps * 32) : "memory"); }

// copySmall copies N bytes, 4, 8 or 16, to shared memory in the background.
template <int N>
__device__ __forceinline__ void copySmall(uint32_t dst, const void* src) {
  if constexpr (N == 16) asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(dst), "l"(src) : "memory");
  else asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(dst), "l"(src), "n"(N) : "memory");
}

// pin keeps the compiler from computing v anew wherever it is used.
template <class T>
__device__ __forceinline__ T pin(T v) {
  asm volatile("" : "+r"(v));
  return v;
}

// Shared memory: ring | its scales and minimums | vector [2][values padded to stretches, and 8] | red | rs | corr | sums | partial sums
// [WARPS][16], twice where a team has more than one tile.
template <int ENC, int GS, bool ASYM>
__device__ __forceinline__ void oneBody(const GemvArgs& a) {
  constexpr int SV = stageValues(ENC);
  constexpr bool GROUPED = ENC == ENC_I4 || ENC == ENC_I8G;
  constexpr int GPS = GROUPED ? SV >> GS : 1;  // groups of a stretch; rows have a multiple of it (see alignGroups)
  constexpr int SB = 2 * GPS, SCALES = 16 * SB;  // bytes of scales, of a row and of a stage
  constexpr bool RINGED = GROUPED && SB >= 4;    // scales come by the same asynchronous copies as weights
  constexpr int SCALE_STAGE = RINGED ? SCALES * (ASYM ? 2 : 1) : 0;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int rowBytes = a.w.rowBytes, S = (rowBytes + 127) >> 7;
  const int xStride = S * SV * 2 + 16;
  char* xs = smem + WARPS * STAGES * (STAGE_BYTES + SCALE_STAGE);
  float* red = (float*)(xs + 2 * xStride);
  float* rs = red + WARPS;
  float* corr = rs + 16;
  float* sums = corr + (ENC == ENC_I8 ? WARPS : GROUPED ? S * GPS : 0);
  float* part = sums + (ASYM ? S * GPS : 0);
  const bool swi = a.ep == EP_SWIGLU;
  const int half = a.w.rows >> 1, tileRows = swi ? 8 : 16, tiles = swi ? half / 8 : a.w.rows / 16;
  const int team = 1 << a.teamShift, tw = warp & (team - 1), teamAt = warp >> a.teamShift, stride = gridDim.x << (4 - a.teamShift);
  const int first = teamAt * gridDim.x + blockIdx.x;  // tile

  // A lane copies 16 bytes each of rows lane/8 + 4j of a tile, and the scales of row lane or the minimums of row lane-16. What lies behind
  // a row's end is zeros. Both cursors walk over every team-th stretch of a tile, then on to the next tile.
  const char* W = (const char*)a.w.values;
  const int wLane = (lane >> 3) * rowBytes + (lane & 7) * 16, wTile = tileRows * rowBytes;
  const uint32_t w4 = 4 * rowBytes, w8 = pin(swi ? (uint32_t)half * rowBytes : 8u * rowBytes);
  const int wEnd = pin(rowBytes - (lane & 7) * 16);
  const uint32_t ring = smemAddr(smem) + warp * (STAGES * STAGE_BYTES), dst = pin(ring + swz(lane >> 3, lane & 7));
  const int scaleRow = a.w.groups * 2, r = lane & 15;
  const char* scales = (const char*)(ASYM && lane >= 16 ? a.w.mins : a.w.scales) + (int64_t)((r & 7) + (r < 8 ? 0 : swi ? half : 8)) * scaleRow;
  const uint32_t scaleRing = smemAddr(smem) + WARPS * STAGES * STAGE_BYTES + warp * (STAGES * SCALE_STAGE), scaleDst = pin(scaleRing + lane * SB);
  const char *wAt = W + (int64_t)first * wTile + wLane + tw * 128, *sAt = scales + (int64_t)first * tileRows * scaleRow + tw * SB;
  int pfS = tw, pfTile = first;
  auto request = [&](uint32_t slot) {
    if (pfTile < tiles) {
      const bool in = pfS * 128 < wEnd;
      const uint32_t to = dst + slot, to4 = (to ^ 64) + 512;
      cpAsync(to, wAt, in);
      cpAsync(to4, wAt + w4, in);
      cpAsync(to + 1024, wAt + w8, in);
      cpAsync(to4 + 1024, wAt + w8 + w4, in);
      if constexpr (RINGED)
        if (ASYM || lane < 16) copySmall<SB>(scaleDst + slot / STAGE_BYTES * SCALE_STAGE, sAt);
      pfS += team;
      wAt += team * 128;
      if (RINGED) sAt += team * SB;
      if (pfS >= S) {
        pfS = tw;
        pfTile += stride;
        wAt = W + (int64_t)pfTile * wTile + wLane + tw * 128;
        if (RINGED) sAt = scales + (int64_t)pfTile * tileRows * scaleRow + tw * SB;
      }
    }
    cpCommit();
  };
  // Where a stretch has one group of two bytes, its scales come a stretch ahead into registers.
  GroupScales<GPS> single;
  int scS = tw, scTile = first;
  auto loadSingle = [&]() {
    if constexpr (GROUPED && !RINGED) {
      if (scTile < tiles) {
        const int row = scTile * tileRows + (lane >> 2);
        single.load((const char*)a.w.scales + (int64_t)row * scaleRow + scS * SB, (swi ? half : 8) * scaleRow);
        scS += team;
        if (scS >= S) {
          scS = tw;
          scTile += stride;
        }
      }
    }
  };
#pragma unroll
  for (int i = 0; i < STAGES; i++) request(i * STAGE_BYTES);
  loadSingle();
  launchDependents();

  waitPredecessor();
  loadOne<ENC, GS, ASYM>(a, xs, xStride, S * SV, red, corr, sums);
  if (tw == 0) {  // read by the team after its first tile's barrier, and by all for the gates
    const float r = oneScale(a, red);
    const float v = ENC == ENC_I8 ? warpSum(lane < WARPS ? corr[lane] : 0.f) : 0.f;
    if (lane == 0) {
      rs[teamAt] = r;
      rs[8 + teamAt] = v;
    }
  }

  const uint32_t xAddr = pin(smemAddr(xs) + min(lane & 7, 1) * xStride + ((lane >> 3) << 4));
  // ldmatrix: matrices (rows 0-7, chunk c), (rows 8-15, chunk c), (rows 0-7, chunk c+1), (rows 8-15, chunk c+1), c even
  const uint32_t wAddr = pin(ring + ((lane & 7) + ((lane >> 3) & 1) * 8) * 128 + (((lane >> 4) ^ (lane & 7)) << 4));
  const char* scaleSrc = smem + WARPS * STAGES * STAGE_BYTES + warp * (STAGES * SCALE_STAGE) + (lane >> 2) * SB;
  const int partStep = tiles > stride ? WARPS * 16 : 0;
  uint32_t slot = 0;
  int local = 0;
  for (int tile = first; tile < tiles; tile += stride, local++) {
    float acc[4] = {0.f, 0.f, 0.f, 0.f};  // in groups: of acc[0] and acc[2] alone
    for (int s = tw; s < S; s += team) {
      GroupScales<GPS> fs = single, fm;
      loadSingle();
      cpWait<STAGES - 1>();
      __syncwarp();
      if constexpr (RINGED) {
        const char* p = scaleSrc + slot / STAGE_BYTES * SCALE_STAGE;
        fs.load(p, 8 * SB);
        if (ASYM) fm.load(p + SCALES, 8 * SB);
      }
      const uint32_t wb = wAddr + slot, xb = xAddr + s * (SV * 2);
      uint32_t b[4];
      float t[4];
      auto begin = [&]() { t[0] = t[1] = t[2] = t[3] = 0.f; };
      auto end = [&](int g) {
        const float c = corr[s * GPS + g];
        acc[0] += fs.at(0, g) * (t[0] + c + t[1]);
        acc[2] += fs.at(1, g) * (t[2] + c + t[3]);
        if constexpr (ASYM) {
          const float x = sums[s * GPS + g];
          acc[0] += fm.at(0, g) * x;
          acc[2] += fm.at(1, g) * x;
        }
      };
#pragma unroll
      for (int c = 0; c < 8; c += 2) {
        uint32_t wv[4];
        ldsm4(wv, wb ^ (c << 4));
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
            if (c % per == 0) begin();
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
            if ((c + h) % per == 0) begin();
            mma(t, u0[0], u1[0], u0[1], u1[1], b[0], b[1]);
            mma(t, u0[2], u1[2], u0[3], u1[3], b[2], b[3]);
            if ((c + h + 1) % per == 0) end((c + h) / per);
          }
        }
      }
      __syncwarp();
      request(slot);
      slot = slot + STAGE_BYTES == STAGES * STAGE_BYTES ? 0 : slot + STAGE_BYTES;
    }
    float* p = part + (local & 1) * partStep + warp * 16;
    if ((lane & 3) == 0) {
      p[lane >> 2] = acc[0] + acc[1];
      p[(lane >> 2) + 8] = acc[2] + acc[3];
    }
    const bool mine = tw == (local & (team - 1));  // this warp finishes the tile, while the others go on
    // lane%16 has a row, and each half of the warp half of the partial sums. What the epilogue needs is on its way before the barrier.
    const int row = swi ? tile * 8 + (r & 7) + (r & 8 ? half : 0) : tile * 16 + r;
    float scale = 1.f, bias = 0.f, old = 0.f;
    if (mine) {
      if (ENC == ENC_I8) scale = ((const float*)a.w.scales)[row];
      if (a.w.bias) bias = ((const float*)a.w.bias)[row];
      if (a.ep == EP_ADD) old = __ldcg((const float*)a.y + row);
    }
    teamBarrier(teamAt, team);
    if (mine) {
      // The barrier of the next tile keeps the others from overwriting these partial sums.
      const float* q = part + (local & 1) * partStep + ((teamAt << a.teamShift) + (lane >> 4) * (team >> 1)) * 16 + r;
      float v = 0.f;
#pragma unroll 4
      for (int w = 0; w < team >> 1; w++) v += q[w * 16];
      v += __shfl_xor_sync(~0u, v, 16);
      if (ENC == ENC_I8) v = (v - rs[8 + teamAt]) * scale;
      v = v * rs[teamAt] + bias;
      const float up = __shfl_down_sync(~0u, v, 8);
      if (swi) v = siluf(v) * up;
      else v += old;
      if (a.ep == EP_CAP) v = softcap(v, a.cap);
      const bool ok = lane < tileRows;
      if (ok) ((float*)a.y)[row] = v;
      if (a.next.at) prepare(a.next, row, v, ok);
    }
  }
  cpWait<0>();
  if (a.gates.rows) {
    __syncthreads();  // part is read, rs is there
    gateRows(a, part, rs);
  }
}

#define ONE(NAME, ENC, GS, ASYM) \
  extern "C" __global__ void __launch_bounds__(WARPS * 32, 2) one_##NAME(const __grid_constant__ GemvArgs a) { oneBody<ENC, GS, ASYM>(a); }
ONE(f16, ENC_F16, 0, false)
ONE(i8, ENC_I8, 0, false)
ONE(i8g32, ENC_I8G, 5, false)
ONE(i8g64, ENC_I8G, 6, false)
ONE(i8g128, ENC_I8G, 7, false)
ONE(i4g32, ENC_I4, 5, false)
ONE(i4g64, ENC_I4, 6, false)
ONE(i4g128, ENC_I4, 7, false)
ONE(i4g32a, ENC_I4, 5, true)
ONE(i4g64a, ENC_I4, 6, true)
ONE(i4g128a, ENC_I4, 7, true)

struct SpreadArgs {
  dptr from, to;  // fp16 [rows, groups], [rows, padded]
  int32_t rows, groups, padded, unused;
};
static_assert(sizeof(SpreadArgs) == 32, "args.go");

// spread_groups gives rows of scales room for whole stretches, with zeros behind the last.
extern "C" __global__ void __launch_bounds__(256) spread_groups(const __grid_constant__ SpreadArgs a) {
  const int i = blockIdx.x * 256 + threadIdx.x, row = i / a.padded, g = i % a.padded;
  if (row < a.rows) ((uint16_t*)a.to)[i] = g < a.groups ? ((const uint16_t*)a.from)[(int64_t)row * a.groups + g] : 0;
}
