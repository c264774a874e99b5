// Products for more tokens than the decode kernels take, on Hopper: wgmma with the weights, still packed in memory, taken apart into
// registers, activations in shared memory. Every block works through an equal share of all pieces of all tiles; see wgBody. For few tokens
// bound by memory, for many by taking weights apart and by the L2 cache. Only code for 9.0a has these kernels: the host looks for them on
// devices of compute capability 9.0 alone.
#include "common.cuh"

struct alignas(64) TensorMap {
  char bytes[128];
};

struct WgArgs {
  GemmArgs g;         // splits 1
  dptr parts, flags;  // parts: sums of tiles that several blocks share, one tile a block; flags uint32 [blocks][32], zero between launches
  int32_t pad[2];
  TensorMap w, x;     // boxes of up to 128 bytes x BM rows, and of 64 values x N tokens
};
static_assert(sizeof(WgArgs) == 384, "args.go");

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

#define D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])

// wgmma adds (add 0: stores) the product of a warpgroup's 64x16 fp16 weights, registers as for mma, and Nx16 activations in shared memory.
// Of d a lane has, for each 8 tokens, what it has with mma.
template <int N>
__device__ __forceinline__ void wgmma(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, int add);
template <>
__device__ __forceinline__ void wgmma<8>(float (&d)[4], const uint32_t (&a)[4], uint64_t b, int add) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %9, 0;\n"
               "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {"
               "%0, %1, %2, %3"
               "}, {%4, %5, %6, %7}, %8, p, 1, 1, 0;\n}"
               : D4(0)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}
template <>
__device__ __forceinline__ void wgmma<16>(float (&d)[8], const uint32_t (&a)[4], uint64_t b, int add) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %13, 0;\n"
               "wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 {"
               "%0, %1, %2, %3, %4, %5, %6, %7"
               "}, {%8, %9, %10, %11}, %12, p, 1, 1, 0;\n}"
               : D4(0), D4(4)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}
template <>
__device__ __forceinline__ void wgmma<32>(float (&d)[16], const uint32_t (&a)[4], uint64_t b, int add) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %21, 0;\n"
               "wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {"
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
               "}, {%16, %17, %18, %19}, %20, p, 1, 1, 0;\n}"
               : D4(0), D4(4), D4(8), D4(12)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}
template <>
__device__ __forceinline__ void wgmma<64>(float (&d)[32], const uint32_t (&a)[4], uint64_t b, int add) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
               "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {"
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
               "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
               "}, {%32, %33, %34, %35}, %36, p, 1, 1, 0;\n}"
               : D4(0), D4(4), D4(8), D4(12), D4(16), D4(20), D4(24), D4(28)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}
template <>
__device__ __forceinline__ void wgmma<128>(float (&d)[64], const uint32_t (&a)[4], uint64_t b, int add) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
               "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
               "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
               "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
               "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
               "}, {%64, %65, %66, %67}, %68, p, 1, 1, 0;\n}"
               : D4(0), D4(4), D4(8), D4(12), D4(16), D4(20), D4(24), D4(28), D4(32), D4(36), D4(40), D4(44), D4(48), D4(52), D4(56), D4(60)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}

#undef D4

__device__ __forceinline__ void wgFence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgCommit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N>
__device__ __forceinline__ void wgWait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }

// bOperand describes a tile of rows of 128 bytes, swizzled as swz says; its address is a multiple of 1024.
__device__ __forceinline__ uint64_t bOperand(uint32_t a) {
  return (uint64_t)((a & 0x3ffff) >> 4) | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}

__device__ __forceinline__ void barInit(uint32_t bar, int n) { asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(bar), "r"(n) : "memory"); }
__device__ __forceinline__ void barArrive(uint32_t bar) { asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(bar) : "memory"); }
__device__ __forceinline__ void barExpect(uint32_t bar, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
__device__ __forceinline__ bool barTry(uint32_t bar, int phase) {
  uint32_t done;
  asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(done) : "r"(bar), "r"(phase) : "memory");
  return done;
}
__device__ __forceinline__ void barWait(uint32_t bar, int phase) {
  while (!barTry(bar, phase)) {}
}

// copyBox starts the copy of a tensor map's box at (x, y) to shared memory; what lies outside becomes zero.
__device__ __forceinline__ void copyBox(uint32_t dst, const TensorMap* map, int x, int y, uint32_t bar) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(dst), "l"(map), "r"(x), "r"(y), "r"(bar)
               : "memory");
}

// finish does with a lane's sums what putY does, in loops that stay short: rows row0 and row0 + 8, pairs of tokens from tok0 on, 8 apart.
template <int N>
__device__ __forceinline__ void finish(const GemmArgs& a, float (&acc)[N / 2], int row0, int tok0, bool rowScales) {
  auto each = [&](auto f) {
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
      for (int i = 0; i < N / 4; i++) {
        int row = row0 + 8 * h, tok = tok0 + (i >> 1) * 8 + (i & 1);
        if (row < a.w.rows && tok < a.n) f(acc[(i >> 1) * 4 + 2 * h + (i & 1)], (size_t)tok * a.ldy + row);
      }
  };
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int row = min(row0 + 8 * h, a.w.rows - 1);
    const float scale = rowScales ? a.alpha * ((const float*)a.w.scales)[row] : a.alpha, bias = a.w.bias ? ((const float*)a.w.bias)[row] : 0.f;
#pragma unroll
    for (int i = 0; i < N / 4; i++) acc[(i >> 1) * 4 + 2 * h + (i & 1)] = acc[(i >> 1) * 4 + 2 * h + (i & 1)] * scale + bias;
  }
  if (a.out == OUT_F16) {
    each([&](float v, size_t at) { ((__half*)a.y)[at] = toHalf(v); });
    return;
  }
  if (a.add) each([&](float& v, size_t at) { v += ((const float*)a.y)[at]; });
  if (a.cap > 0.f) {
#pragma unroll
    for (int i = 0; i < N / 2; i++) acc[i] = a.cap * (1.f - __fdividef(2.f, 1.f + __expf(2.f * acc[i])));  // cap times tanh
  }
  each([&](float v, size_t at) { ((float*)a.y)[at] = v; });
}

// WgShape: N tokens a tile, WGS warpgroups of 64 rows, SV values of K a piece. wgKernel in wgplan.go computes the same.
template <int ENC, int N, int WGS, int SV>
struct WgShape {
  static constexpr int BM = 64 * WGS, WB = ENC == ENC_I4 ? SV / 2 : ENC == ENC_F16 ? SV * 2 : SV, BOX = WB < 128 ? WB : 128;
  static constexpr int WBYTES = BM * WB, STAGE = WBYTES + N * SV * 2;
  static constexpr int FIT = (232448 - 1024 - 128) / STAGE, NST = FIT < 8 ? FIT : 8;  // pieces in shared memory
  static_assert(NST >= 2 && WB % BOX == 0, "");
};

// wgBody: the tiles' pieces [BM rows, SV values, N tokens], tile by tile, are cut into one run for each block; a tile whose first piece a
// block has belongs to it, and who has others of it leaves sums in parts. Sums are added in the order of the runs.
// One warp of the last warpgroup copies, the others compute. Shared memory: (weights [WB/BOX][BM][BOX] | x [SV/64][N][128 bytes]) x NST,
// then barriers.
template <int ENC, int N, int WGS, int SV>
__device__ __forceinline__ void wgBody(const WgArgs& a) {
  using Sh = WgShape<ENC, N, WGS, SV>;
  constexpr int BM = Sh::BM, WB = Sh::WB, NST = Sh::NST;
  constexpr bool GROUPED = ENC == ENC_I4 || ENC == ENC_I8G;
  const int tid = threadIdx.x, lane = tid & 31, warp = __shfl_sync(~0u, tid >> 5, 0);
  const uint32_t ring = (smemAddr(smem) + 1023) & ~1023u, full = ring + NST * Sh::STAGE, empty = full + NST * 8;
  const int S = (a.g.w.rowBytes + WB - 1) / WB, rowTiles = (a.g.w.rows + BM - 1) / BM, tokTiles = (a.g.n + N - 1) / N;
  const int G = gridDim.x, me = G - 1 - blockIdx.x;  // a block waits for those before it
  const int total = S * rowTiles * tokTiles;
  auto runBegin = [&](int r) { return (int)((long long)total * r / G); };
  const int uBegin = runBegin(me), uEnd = runBegin(me + 1);
  if (tid == 0) {
#pragma unroll
    for (int i = 0; i < NST; i++) {
      barInit(full + i * 8, 1);
      barInit(empty + i * 8, WGS * 4);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async;" ::: "memory");
  }
  __syncthreads();
  launchDependents();

  if (warp >= WGS * 4) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (warp > WGS * 4 || lane != 0) return;
    auto copyWeights = [&](uint32_t at, int t, int k, uint32_t bar) {
      barExpect(bar, Sh::STAGE);
#pragma unroll
      for (int j = 0; j < WB / Sh::BOX; j++) copyBox(at + j * (BM * 128), &a.w, k * WB + j * 128, t / tokTiles * BM, bar);
    };
    int t = uBegin / S, k = uBegin - t * S, slot = 0, phase = 1;
    const int early = min(NST, uEnd - uBegin);  // weights do not depend on the predecessor
    int te = t, ke = k;
    for (int i = 0; i < early; i++) {
      copyWeights(ring + i * Sh::STAGE, te, ke, full + i * 8);
      if (++ke == S) ke = 0, te++;
    }
    waitPredecessor();
    for (int u = uBegin; u < uEnd; u++) {
      const uint32_t at = ring + slot * Sh::STAGE, bar = full + slot * 8;
      if (u - uBegin >= NST) {
        barWait(empty + slot * 8, phase);
        copyWeights(at, t, k, bar);
      }
#pragma unroll
      for (int j = 0; j < SV / 64; j++) copyBox(at + Sh::WBYTES + j * (N * 128), &a.x, k * SV + j * 64, t % tokTiles * N, bar);
      if (++k == S) k = 0, t++;
      if (++slot == NST) slot = 0, phase ^= 1;
    }
    return;
  }
  if constexpr (WGS == 2) asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
  if constexpr (WGS == 4) asm volatile("setmaxnreg.inc.sync.aligned.u32 112;");

  // next and cur: scale | minimum + 8 scales of the group lane % 4 of each 128 values, for the rows lane/4 and lane/4 + 8 of the warp's 16.
  const int gshift = GROUPED ? a.g.w.groupShift : 0, half0 = gshift >= 7 ? 1 : 128 >> gshift;
  constexpr int SH = SV / 128;
  uint32_t next[2][SH], cur[2][SH];
  auto loadScales = [&](int row0, int k) {
    if constexpr (GROUPED) {
#pragma unroll
      for (int h = 0; h < 2; h++)
#pragma unroll
        for (int j = 0; j < SH; j++) {
          int row = row0 + h * 8, g = ((k * SV + j * 128) >> gshift) + (lane & 3);
          uint32_t v = 0;
          if (row < a.g.w.rows && (lane & 3) < half0 && g < a.g.w.groups) {
            size_t at = (size_t)row * a.g.w.groups + g;
            v = __ldg((const uint16_t*)a.g.w.scales + at);
            if (a.g.w.mins) v |= (uint32_t)__ldg((const uint16_t*)a.g.w.mins + at) << 16;
          }
          next[h][j] = v;
        }
    }
  };
  auto useScales = [&]() {
    if constexpr (GROUPED) {
#pragma unroll
      for (int h = 0; h < 2; h++)
#pragma unroll
        for (int j = 0; j < SH; j++) {
          uint32_t v = next[h][j];
          if (ENC == ENC_I4 && a.g.w.mins) {
            float s = __half2float(__ushort_as_half(v & 0xffff)), b = __half2float(__ushort_as_half(v >> 16)) + 8.f * s;
            v = (v & 0xffff) | (uint32_t)__half_as_ushort(__float2half_rn(b)) << 16;
          }
          cur[h][j] = v;
        }
    }
  };

  const int lr = warp * 16 + (lane & 15), lc = lane >> 4;
  // unpack takes the weights of values [64 st, 64 st + 64) of a piece apart, as operands of four steps of 16 values.
  auto unpack = [&](uint32_t (&f)[4][4], uint32_t at, int st) {
    auto place = [&](int c) { return at + (c >> 3) * (BM * 128) + lr * Sh::BOX + (((c & 7) ^ (WB == 64 ? (lr >> 1) & 3 : lr & 7)) << 4); };
    if constexpr (ENC == ENC_F16) {
#pragma unroll
      for (int i = 0; i < 4; i++) ldsm4(f[i], place(st * 8 + i * 2 + lc));
    } else if constexpr (ENC == ENC_I4) {
      uint32_t wv[4], u[4][4];
      ldsm4(wv, place(st * 2 + lc));
#pragma unroll
      for (int e = 0; e < 4; e++) unpack4(wv[e], u[e]);
#pragma unroll
      for (int i = 0; i < 4; i++) {
        int b = i >> 1, p = (i & 1) * 2;
        f[i][0] = u[2 * b][p];
        f[i][1] = u[2 * b + 1][p];
        f[i][2] = u[2 * b][p + 1];
        f[i][3] = u[2 * b + 1][p + 1];
      }
    } else {
#pragma unroll
      for (int b = 0; b < 2; b++) {
        uint32_t wv[4], u[4][2];
        ldsm4(wv, place(st * 4 + b * 2 + lc));
#pragma unroll
        for (int e = 0; e < 4; e++) unpack8(wv[e], u[e]);
#pragma unroll
        for (int i = 0; i < 2; i++) {
          f[2 * b + i][0] = u[2 * i][0];
          f[2 * b + i][1] = u[2 * i + 1][0];
          f[2 * b + i][2] = u[2 * i][1];
          f[2 * b + i][3] = u[2 * i + 1][1];
        }
      }
    }
    if constexpr (GROUPED) {
#pragma unroll
      for (int b = 0; b < 2; b++) {
        const int src = (lane & ~3) | ((((st * 2 + b) & 3) * 32) >> gshift);
        uint32_t v0 = __shfl_sync(~0u, cur[0][st >> 1], src), v1 = __shfl_sync(~0u, cur[1][st >> 1], src);
        uint32_t s0 = __byte_perm(v0, 0, 0x1010), s1 = __byte_perm(v1, 0, 0x1010), b0 = __byte_perm(v0, 0, 0x3232), b1 = __byte_perm(v1, 0, 0x3232);
#pragma unroll
        for (int i = 2 * b; i < 2 * b + 2; i++)
#pragma unroll
          for (int e = 0; e < 4; e++) f[i][e] = hfma2(f[i][e], e & 1 ? s1 : s0, e & 1 ? b1 : b0);
      }
    }
  };

  constexpr int FB = WGS == 4 && N == 128 ? 1 : 2;  // with two operands in registers those with the most sums would not fit
  float acc[N / 2];
  uint32_t fa[FB][4][4];
  waitPredecessor();
  int slot = 0, phase = 0, t = uBegin / S, k = uBegin - t * S;
  auto rowOf = [&](int t) { return t / tokTiles * BM + warp * 16 + (lane >> 2); };
  if (uBegin < uEnd) loadScales(rowOf(t), k);
  for (int u = uBegin; u < uEnd;) {
    const bool mine = k == 0;
    const int end = min(uEnd, u + S - k);  // of what this block has of the tile
    const int row0 = rowOf(t);
    int add = 0, last = 0;
    for (; u < end; u++) {
      useScales();
      if (u + 1 < end) loadScales(row0, k + 1);
      else if (u + 1 < uEnd) loadScales(rowOf(t + 1), 0);
      barWait(full + slot * 8, phase);
      const uint32_t wAt = ring + slot * Sh::STAGE, xAt = wAt + Sh::WBYTES;
#pragma unroll
      for (int st = 0; st < SV / 64; st++) {
        unpack(fa[st % FB], wAt, st);
        wgFence();
        const uint64_t b = bOperand(xAt + st * (N * 128));
#pragma unroll
        for (int i = 0; i < 4; i++) {
          wgmma<N>(acc, fa[st % FB][i], b + i * 2, add);
          add = 1;
        }
        wgCommit();
        wgWait<FB - 1>();
        if (st == 0 && last && lane == 0) barArrive(last);
      }
      last = empty + slot * 8;
      k++;
      if (++slot == NST) slot = 0, phase ^= 1;
    }
    wgWait<0>();
#pragma unroll
    for (int i = 0; i < N / 2; i++) asm volatile("" : "+f"(acc[i])::"memory");
    if (lane == 0) barArrive(last);

    constexpr int Q = N / 8;  // float4 of a lane
    auto part = [&](int r) { return (float4*)a.parts + ((size_t)r * (WGS * 4) + warp) * (Q * 32) + lane; };
    uint32_t* flags = (uint32_t*)a.flags;
    if (!mine) {
      float4* p = part(me);
#pragma unroll
      for (int i = 0; i < Q; i++) __stcg(p + i * 32, make_float4(acc[4 * i], acc[4 * i + 1], acc[4 * i + 2], acc[4 * i + 3]));
      __threadfence();
      __syncwarp();
      if (lane == 0) asm volatile("st.release.gpu.global.u32 [%0], 1;" ::"l"(flags + me * 32 + warp) : "memory");
    } else {
      for (int r = me + 1; r < G && runBegin(r) < (t + 1) * S; r++) {
        uint32_t ready;
        do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(ready) : "l"(flags + r * 32 + warp) : "memory");
        while (!ready);
        __syncwarp();
        const float4* p = part(r);
#pragma unroll
        for (int i = 0; i < Q; i++) {
          float4 v = __ldcg(p + i * 32);
          acc[4 * i] += v.x; acc[4 * i + 1] += v.y; acc[4 * i + 2] += v.z; acc[4 * i + 3] += v.w;
        }
        __syncwarp();
        if (lane == 0) flags[r * 32 + warp] = 0;
      }
      finish<N>(a.g, acc, row0, t % tokTiles * N + (lane & 3) * 2, ENC == ENC_I8);
    }
    if (k == S) k = 0, t++;
  }
}

// Kernels are named after the encoding, their warpgroups and the values a piece, and the tokens a tile.
#define WG(NAME, ENC, WGS, SV, N) \
  __global__ void __launch_bounds__(WGS * 128 + 128, 1) wg_##NAME##_##WGS##x##SV##_##N(const __grid_constant__ WgArgs a) { wgBody<ENC, N, WGS, SV>(a); }

extern "C" {
WG(i4, ENC_I4, 4, 128, 8)
WG(i4, ENC_I4, 4, 128, 16)
WG(i4, ENC_I4, 4, 256, 32)
WG(i4, ENC_I4, 4, 256, 64)
WG(i4, ENC_I4, 4, 128, 128)
WG(i4, ENC_I4, 2, 256, 8)
WG(i4, ENC_I4, 2, 256, 16)
WG(i4, ENC_I4, 2, 256, 32)
WG(i4, ENC_I4, 2, 256, 64)
WG(i8, ENC_I8, 2, 128, 8)
WG(i8, ENC_I8, 2, 128, 16)
WG(i8, ENC_I8, 2, 128, 32)
WG(i8, ENC_I8, 2, 128, 64)
WG(i8, ENC_I8, 2, 128, 128)
WG(i8, ENC_I8, 4, 128, 64)
WG(i8, ENC_I8, 4, 128, 128)
WG(i8g, ENC_I8G, 4, 128, 8)
WG(i8g, ENC_I8G, 4, 128, 16)
WG(i8g, ENC_I8G, 4, 128, 32)
WG(i8g, ENC_I8G, 4, 128, 64)
WG(i8g, ENC_I8G, 4, 128, 128)
WG(i8g, ENC_I8G, 2, 128, 8)
WG(i8g, ENC_I8G, 2, 128, 16)
WG(i8g, ENC_I8G, 2, 128, 32)
WG(i8g, ENC_I8G, 2, 128, 64)
WG(f16, ENC_F16, 2, 128, 16)
WG(f16, ENC_F16, 2, 128, 64)
WG(f16, ENC_F16, 4, 128, 128)
}
#undef WG
#endif
