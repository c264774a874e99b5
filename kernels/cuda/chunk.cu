// The chunkwise form of the mLSTM cell (arXiv 2503.13427) on tensor cores, 64 tokens at a time.
#include "mlstm.cuh"

// gate_scan leaves what the chunk kernels need of the gates.
// With b_t the cumulative log forget gate of the chunk, g its last value, m the stabilizer before the chunk and m_t the one at t,
// scan[t][head] becomes
//   x = b_t - m_t                 the score of t and s is weighted by exp(x_t + y_s), the state's part by exp(x_t + m)
//   y = i_t - b_t
//   z = exp(-m_t)                 floor of the denominator
//   w = exp(g + y_t - m_next)     of the token's part in the next state
// and chunkInfo[head][chunk] = (exp(g + m - m_next), m). mEnd[piece][head] is the stabilizer after the last token.
struct ScanArgs {
  dptr pieces, gates, scan, chunkInfo, mEnd;
  dptr chunkBase;  // int32 [pieces]: index of the piece's first chunk
  int32_t heads, dk, slices, block, stateType, chunks;
  float cap;
  int32_t pad;
};
static_assert(sizeof(ScanArgs) == 80, "args.go");

// One block a (head, piece). A warp has a chunk, SCAN_WARPS chunks go at once: only m walks from chunk to chunk.
constexpr int SCAN_WARPS = 32;
extern "C" __global__ void __launch_bounds__(SCAN_WARPS * 32) gate_scan(const __grid_constant__ ScanArgs a) {
  __shared__ float total[SCAN_WARPS], tops[SCAN_WARPS], before[SCAN_WARPS + 1];  // of a chunk: g, largest y, m before it
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, head = blockIdx.x, piece = blockIdx.y;
  launchDependents();
  waitPredecessor();
  const Piece pc = ((const Piece*)a.pieces)[piece];
  const int64_t rec = recordBytes(a.dk, a.stateType);
  float m = *(const float*)((const char*)pc.state + ((int64_t)(a.block * a.heads + head) * a.slices + 1) * rec - 128);
  float4* out = (float4*)a.scan;
  float2* info = (float2*)a.chunkInfo + (size_t)head * a.chunks + ((const int*)a.chunkBase)[piece];
  const float* gates = (const float*)a.gates;
  auto read = [&](int t, float& i, float& f) {
    bool in = t < pc.len;
    const float* g = gates + (size_t)(pc.tok + (in ? t : 0)) * 2 * a.heads;
    i = in ? softcap(__ldcg(g + head), a.cap) : -INFINITY;
    f = in ? logsigmoid(softcap(__ldcg(g + a.heads + head), a.cap)) : 0.f;
  };
  for (int from = 0; from < pc.len; from += SCAN_WARPS * CHUNK) {
    const int at = from + warp * CHUNK;
    const bool some = at < pc.len;
    float b0 = 0.f, b1 = 0.f, y0 = 0.f, y1 = 0.f, mx = 0.f, left = 0.f, g = 0.f, top = 0.f;
    if (some) {  // cumulative sums and maxima over 64 tokens, two a lane
      float i0, f0, i1, f1;
      read(at + 2 * lane, i0, f0);
      read(at + 2 * lane + 1, i1, f1);
      float s = f0 + f1;
#pragma unroll
      for (int o = 1; o < 32; o <<= 1) {
        float u = __shfl_up_sync(~0u, s, o);
        if (lane >= o) s += u;
      }
      b1 = s;
      b0 = s - f1;
      g = __shfl_sync(~0u, s, 31);
      y0 = i0 - b0;
      y1 = i1 - b1;
      mx = fmaxf(y0, y1);
#pragma unroll
      for (int o = 1; o < 32; o <<= 1) {
        float u = __shfl_up_sync(~0u, mx, o);
        if (lane >= o) mx = fmaxf(mx, u);
      }
      left = __shfl_up_sync(~0u, mx, 1);
      if (lane == 0) left = -INFINITY;
      top = __shfl_sync(~0u, mx, 31);
      if (lane == 0) {
        total[warp] = g;
        tops[warp] = top;
      }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int w = 0; w < SCAN_WARPS && from + w * CHUNK < pc.len; w++) {
        before[w] = m;
        m = total[w] + fmaxf(m, tops[w]);
      }
      before[SCAN_WARPS] = m;
    }
    __syncthreads();
    m = before[SCAN_WARPS];
    if (some) {
      const float mb = before[warp], next = g + fmaxf(mb, top);
      auto put = [&](int t, float b, float y, float mt) {
        if (t < pc.len) out[(size_t)(pc.tok + t) * a.heads + head] = make_float4(b - mt, y, expf(-mt), expf(g + y - next));
      };
      put(at + 2 * lane, b0, y0, b0 + fmaxf(mb, fmaxf(left, y0)));
      put(at + 2 * lane + 1, b1, y1, b1 + fmaxf(mb, mx));
      if (lane == 0) info[at / CHUNK] = make_float2(expf(g + mb - next), mb);
    }
  }
  if (threadIdx.x == 0) ((float*)a.mEnd)[piece * a.heads + head] = m;
}

struct ChunkArgs {
  CellArgs c;
  dptr mEnd, chunkBase;
  dptr place;   // int32 [chunks, 2]: piece, first token in it
  dptr scores;  // fp16 [H, chunks, 4, 4, 32, 8]: tiles of 16 x 16 as the tensor cores take them
  int32_t chunks, stages;
};
static_assert(sizeof(ChunkArgs) == 176, "args.go");

constexpr int VS = SLICE + 8;  // row stride of V and C in shared memory; C has n in column SLICE and zeros behind it

// scores computes the weighted scores S_ts of one chunk of one head, 128 threads: a warp has 16 rows. All row strides in shared memory
// are odd multiples of 16 bytes, so that ldmatrix meets no bank twice. Shared memory: Q | K [64, dk+8] | scan [64].
extern "C" __global__ void __launch_bounds__(128) scores(const __grid_constant__ ChunkArgs ca) {
  const CellArgs& a = ca.c;
  const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, head = blockIdx.y, dk = a.dk, QS = dk + 8;
  launchDependents();
  waitPredecessor();
  const int* place = (const int*)ca.place + 2 * blockIdx.x;
  const Piece pc = ((const Piece*)a.pieces)[place[0]];
  const int at = place[1], rowChunks = dk / 8;
  const uint32_t qs = smemAddr(smem), ks = qs + CHUNK * QS * 2;
  float4* scan = (float4*)(smem + 2 * CHUNK * QS * 2);
  for (int i = tid; i < CHUNK * rowChunks; i += 128) {
    int r = i / rowChunks, o = i % rowChunks;
    bool in = at + r < pc.len;
    const __half* src = (const __half*)a.qkvo + (size_t)(pc.tok + (in ? at + r : 0)) * a.ld + head * dk + o * 8;
    cpAsync(qs + (r * QS + o * 8) * 2, src, in);
    cpAsync(ks + (r * QS + o * 8) * 2, src + a.qkDim, in);
  }
  if (tid < CHUNK) {
    bool in = at + tid < pc.len;
    scan[tid] = in ? ((const float4*)a.scan)[(size_t)(pc.tok + at + tid) * a.heads + head] : make_float4(0.f, 0.f, 0.f, 0.f);
  }
  cpCommit();
  cpWait<0>();
  __syncthreads();
  const int m0 = warp * 16, g = lane >> 2, t2 = (lane & 3) * 2;
  float s[8][4] = {};
  const uint32_t qa = qs + ((m0 + (lane & 15)) * QS + (lane >> 4) * 8) * 2;
  const uint32_t ka = ks + (((lane & 7) + ((lane >> 4) & 1) * 8) * QS + ((lane >> 3) & 1) * 8) * 2;
#pragma unroll 2
  for (int k = 0; k < dk; k += 16) {
    uint32_t q[4], b[4];
    ldsm4(q, qa + k * 2);
#pragma unroll
    for (int j = 0; j < 4; j++)
      if (j <= warp) {
        ldsm4(b, ka + (j * 16 * QS + k) * 2);
        mma(s[2 * j], q[0], q[1], q[2], q[3], b[0], b[1]);
        mma(s[2 * j + 1], q[0], q[1], q[2], q[3], b[2], b[3]);
      }
  }
  uint4* out = (uint4*)ca.scores + (((size_t)head * ca.chunks + blockIdx.x) * 4 + warp) * 4 * 32;
#pragma unroll
  for (int j = 0; j < 4; j++)
    if (j <= warp) {
      uint32_t r[4];
#pragma unroll
      for (int e = 0; e < 4; e++) {
        int t = m0 + g + 8 * (e & 1), u = j * 16 + (e >> 1) * 8 + t2;
        float x = scan[t].x, *v = s[2 * j + (e >> 1)] + 2 * (e & 1);
        float p0 = u <= t ? v[0] * __expf(x + scan[u].y) : 0.f, p1 = u + 1 <= t ? v[1] * __expf(x + scan[u + 1].y) : 0.f;
        __half2 p = __floats2half2_rn(p0, p1);
        r[e] = *(uint32_t*)&p;
      }
      out[j * 32 + lane] = make_uint4(r[0], r[1], r[2], r[3]);
    }
}

__device__ __forceinline__ uint32_t hmul2(uint32_t a, uint32_t b) {
  uint32_t r;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}

// The chunkwise form, 512 threads, fp16 inputs and float32 sums. The first 8 warps have C, MT 16-row tiles each, and compute the next
// state while the others read out of the one before it, which is in shared memory as fp16. Two barriers a chunk: after the first its
// tokens and C are there to be read, after the second they are free and the denominators are complete.
// Shared memory: (Q | K | V | scan) x stages | C [dk, VS] | den [64] | red [32].
template <class T, int MT>
__device__ __forceinline__ void chunkwise(const ChunkArgs& ca) {
  const CellArgs& a = ca.c;
  const int tid = threadIdx.x, lane = tid & 31, warp = (tid >> 5) & 7;
  const bool reader = tid >= 256;
  const int slice = blockIdx.x, head = blockIdx.y;
  const int dk = a.dk, QS = dk + 8;
  launchDependents();
  waitPredecessor();
  const Piece pc = ((const Piece*)a.pieces)[blockIdx.z];
  const int64_t rec = recordBytes(dk, a.stateType);
  char* base = (char*)pc.state + ((int64_t)(a.block * a.heads + head) * a.slices + slice) * rec;
  T* C = (T*)base;
  float* N = (float*)(base + rec - 128) - dk;
  float* M = (float*)(base + rec - 128);
  const size_t chunk0 = (size_t)head * ca.chunks + ((const int*)ca.chunkBase)[blockIdx.z];
  const float2* info = (const float2*)a.chunkInfo + chunk0;

  const int tileBytes = CHUNK * QS * 2, stageBytes = 2 * tileBytes + CHUNK * VS * 2 + CHUNK * 16, two = ca.stages == 2;
  __half* Cs = (__half*)(smem + ca.stages * stageBytes);
  float* den = (float*)(Cs + dk * VS);
  float* red = den + CHUNK;  // [8] of warps, then what undoes the scale of C

  const __half* qkvo = (const __half*)a.qkvo;
  const int rowChunks = dk / 8;
  auto fetch = [&](int at, int stage) {  // tokens [at, at+64) of the piece
    char* s = smem + stage * stageBytes;
    uint32_t qs = smemAddr(s), ks = qs + tileBytes, vs = ks + tileBytes, sc = vs + CHUNK * VS * 2;
    if (rowChunks == 32) {  // dk 256: a warp a row
      const int w = tid >> 5;
      const __half* src = qkvo + (size_t)(pc.tok + at + w) * a.ld + head * 256 + lane * 8;
      const size_t step = (size_t)16 * a.ld;
      uint32_t to = qs + (w * QS + lane * 8) * 2;
#pragma unroll
      for (int j = 0; j < 4; j++) {
        bool in = at + w + 16 * j < pc.len;
        cpAsync(to, in ? src : qkvo, in);
        cpAsync(to + tileBytes, in ? src + a.qkDim : qkvo, in);
        src += step;
        to += 16 * QS * 2;
      }
    } else {
      for (int i = tid; i < CHUNK * rowChunks; i += 512) {
        int r = i / rowChunks, o = i % rowChunks;
        bool in = at + r < pc.len;
        const __half* src = qkvo + (size_t)(pc.tok + (in ? at + r : 0)) * a.ld + head * dk + o * 8;
        cpAsync(qs + (r * QS + o * 8) * 2, src, in);
        cpAsync(ks + (r * QS + o * 8) * 2, src + a.qkDim, in);
      }
    }
    if (!reader) {
      int r = tid >> 2, o = tid & 3;
      bool in = at + r < pc.len && slice * SLICE + o * 8 < a.dv;
      const __half* src = qkvo + (size_t)(pc.tok + (in ? at + r : 0)) * a.ld + 2 * a.qkDim + head * a.dv + (in ? slice * SLICE + o * 8 : 0);
      cpAsync(vs + (r * VS + o * 8) * 2, src, in);
    } else if (tid < 256 + CHUNK) {
      int r = tid - 256;
      bool in = at + r < pc.len;
      cpAsync(sc + r * 16, (const float4*)a.scan + (size_t)(pc.tok + (in ? at + r : 0)) * a.heads + head, in);
    }
    cpCommit();
  };
  fetch(0, 0);

  // A warp's rows of C are the 16-row tiles from warp*MT; tile column 4 is n.
  float c[MT][5][4];
  const int g = lane >> 2, t2 = (lane & 3) * 2;
  auto largest = [&]() {
    float top = 0.f;
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
      for (int j = 0; j < 5; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) top = fmaxf(top, fabsf(c[i][j][e]));
    top = warpMax(top);
    if (lane == 0) red[warp] = top;
  };
  // C as fp16 for the read-out, scaled down by a power of two where it would not fit; leaves the factor that undoes it.
  auto stageC = [&]() {
    float top = 0.f, down = 1.f, up = 1.f;
#pragma unroll
    for (int w = 0; w < 8; w++) top = fmaxf(top, red[w]);
    if (top > 32768.f && top < 1e37f) {
      int e = ilogbf(top) - 14;
      down = ldexpf(1.f, -e);
      up = ldexpf(1.f, e);
    }
    if (tid == 0) red[8] = up;
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        int r = (warp * MT + i) * 16 + g + 8 * h;
        if (r < dk)
#pragma unroll
          for (int j = 0; j < 5; j++)
            *(__half2*)(Cs + r * VS + j * 8 + t2) = __floats2half2_rn(c[i][j][2 * h] * down, c[i][j][2 * h + 1] * down);
      }
  };
  if (!reader) {
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        int r = (warp * MT + i) * 16 + g + 8 * h;
        bool in = r < dk;
#pragma unroll
        for (int j = 0; j < 4; j++) {
          float2 v = in ? Store<T>::load2(C + r * SLICE + j * 8 + t2) : make_float2(0.f, 0.f);
          c[i][j][2 * h] = v.x;
          c[i][j][2 * h + 1] = v.y;
        }
        c[i][4][2 * h] = in && t2 == 0 ? N[r] : 0.f;
        c[i][4][2 * h + 1] = 0.f;
      }
    largest();
  }
  __syncthreads();
  if (!reader) stageC();

  const int m0 = (warp & 3) * 16, right = warp >> 2;  // read-out: rows, and tile columns 0-2 or 3-4
  int stage = 0;
  float2 inf = info[0];
  for (int at = 0, ch = 0; at < pc.len; at += CHUNK, ch++) {
    char* sp = smem + stage * stageBytes;
    const uint32_t qs = smemAddr(sp), ks = qs + tileBytes, vs = ks + tileBytes;
    const float4* scan = (const float4*)(sp + 2 * tileBytes + CHUNK * VS * 2);
    const uint32_t va = vs + ((lane & 15) * VS + (lane >> 4) * 8) * 2;
    const bool more = at + CHUNK < pc.len;
    const float2 next = more ? info[ch + 1] : inf;
    uint4 p[4];
    if (reader) {
      const uint4* ps = (const uint4*)ca.scores + ((chunk0 + ch) * 4 + (warp & 3)) * 4 * 32 + lane;
#pragma unroll
      for (int j = 0; j < 4; j++)
        if (j <= (warp & 3)) p[j] = ps[j * 32];
    }
    cpWait<0>();
    __syncthreads();
    if (two && more) fetch(at + CHUNK, stage ^ 1);

    float num[3][4] = {}, floor0 = 0.f, floor1 = 0.f;
    if (reader) {
      const float up = red[8];
      {
        const uint32_t qa = qs + ((m0 + (lane & 15)) * QS + (lane >> 4) * 8) * 2;
        const uint32_t cb = smemAddr(Cs) + ((lane & 15) * VS + right * 24 + (lane >> 4) * 8) * 2;
        const uint32_t c2 = smemAddr(Cs) + ((lane & 15) * VS + 16) * 2;
        // Operands are read a step ahead. The third tile column is the left warps' alone; to the others it does no harm.
        uint32_t q[2][4], b[2][4], b2[2][2];
        auto load = [&](int i, int k) {
          ldsm4(q[i], qa + k * 2);
          ldsm4t(b[i], cb + k * VS * 2);
          ldsm2t(b2[i], c2 + k * VS * 2);
        };
        auto multiply = [&](int i) {
          mma(num[0], q[i][0], q[i][1], q[i][2], q[i][3], b[i][0], b[i][1]);
          mma(num[1], q[i][0], q[i][1], q[i][2], q[i][3], b[i][2], b[i][3]);
          mma(num[2], q[i][0], q[i][1], q[i][2], q[i][3], b2[i][0], b2[i][1]);
        };
        load(0, 0);
#pragma unroll 2
        for (int k = 0; k < dk; k += 32) {
          if (k + 16 < dk) load(1, k + 16);
          multiply(0);
          if (k + 32 < dk) load(0, k + 32);
          if (k + 16 < dk) multiply(1);
        }
        float z0 = __expf(scan[m0 + g].x + inf.y) * up, z1 = __expf(scan[m0 + g + 8].x + inf.y) * up;
#pragma unroll
        for (int j = 0; j < 3; j++) {
          num[j][0] *= z0;
          num[j][1] *= z0;
          num[j][2] *= z1;
          num[j][3] *= z1;
        }
      }
      // The chunk's own part. Tile column 4 of the values is a column of ones, so that it becomes the sum of the scores.
      const uint32_t ones = g == 0 ? 0x3c003c00u : 0u;
      uint32_t b[2][4], b2[2][2];
      auto load = [&](int j) {
        ldsm4t(b[j & 1], va + (j * 16 * VS + right * 16) * 2);
        if (!right) ldsm2t(b2[j & 1], vs + ((lane & 15) * VS + j * 16 * VS + 16) * 2);
      };
      load(0);
#pragma unroll
      for (int j = 0; j < 4; j++)
        if (j <= (warp & 3)) {
          if (j < 3) load(j + 1);
          uint32_t(&v)[4] = b[j & 1];
          if (!right) {
            mma(num[0], p[j].x, p[j].y, p[j].z, p[j].w, v[0], v[1]);
            mma(num[1], p[j].x, p[j].y, p[j].z, p[j].w, v[2], v[3]);
            mma(num[2], p[j].x, p[j].y, p[j].z, p[j].w, b2[j & 1][0], b2[j & 1][1]);
          } else {
            mma(num[0], p[j].x, p[j].y, p[j].z, p[j].w, v[2], v[3]);
            mma(num[1], p[j].x, p[j].y, p[j].z, p[j].w, ones, ones);
          }
        }
      if (right && t2 == 0) {
        den[m0 + g] = num[1][0];
        den[m0 + g + 8] = num[1][2];
      }
      floor0 = scan[m0 + g].z;
      floor1 = scan[m0 + g + 8].z;
    } else {  // the next state: values weighted by their part in it
#pragma unroll
      for (int i = 0; i < MT; i++)
#pragma unroll
        for (int j = 0; j < 5; j++)
#pragma unroll
          for (int e = 0; e < 4; e++) c[i][j][e] *= inf.x;
#pragma unroll
      for (int k = 0; k < CHUNK; k += 16) {
        uint32_t b[2][4], q[MT][4];
        ldsm4t(b[0], va + k * VS * 2);
        ldsm4t(b[1], va + (k * VS + 16) * 2);
#pragma unroll
        for (int i = 0; i < MT; i++) {
          int r = (warp * MT + i) * 16;
          if (r < dk) ldsm4t(q[i], ks + ((k + (lane & 7) + (lane >> 4) * 8) * QS + r + ((lane >> 3) & 1) * 8) * 2);
        }
        __half2 h0 = __floats2half2_rn(scan[k + t2].w, scan[k + t2 + 1].w), h1 = __floats2half2_rn(scan[k + t2 + 8].w, scan[k + t2 + 9].w);
        const uint32_t w0 = *(uint32_t*)&h0, w1 = *(uint32_t*)&h1;
#pragma unroll
        for (int j = 0; j < 2; j++)
#pragma unroll
          for (int e = 0; e < 4; e++) b[j][e] = hmul2(b[j][e], e & 1 ? w1 : w0);
        const uint32_t n0 = g == 0 ? w0 : 0u, n1 = g == 0 ? w1 : 0u;
#pragma unroll
        for (int i = 0; i < MT; i++)
          if ((warp * MT + i) * 16 < dk) {
            mma(c[i][0], q[i][0], q[i][1], q[i][2], q[i][3], b[0][0], b[0][1]);
            mma(c[i][1], q[i][0], q[i][1], q[i][2], q[i][3], b[0][2], b[0][3]);
            mma(c[i][2], q[i][0], q[i][1], q[i][2], q[i][3], b[1][0], b[1][1]);
            mma(c[i][3], q[i][0], q[i][1], q[i][2], q[i][3], b[1][2], b[1][3]);
            mma(c[i][4], q[i][0], q[i][1], q[i][2], q[i][3], n0, n1);
          }
      }
      if (more) largest();
    }
    __syncthreads();
    if (more && !two) fetch(at + CHUNK, 0);
    if (reader) {
#pragma unroll
      for (int h = 0; h < 2; h++) {
        int r = m0 + g + 8 * h;
        if (at + r < pc.len) {
          float d = 1.f / (fmaxf(fabsf(den[r]), h ? floor1 : floor0) + a.eps);
          __half* out = (__half*)a.h + (size_t)(pc.tok + at + r) * a.vDim + head * a.dv;
#pragma unroll
          for (int j = 0; j < 3; j++) {
            int col = slice * SLICE + (right * 3 + j) * 8 + t2;
            if (right * 3 + j < 4 && col < a.dv)
              *(__half2*)(out + col) = __halves2half2(toHalf(num[j][2 * h] * d), toHalf(num[j][2 * h + 1] * d));
          }
        }
      }
    } else if (more) {
      stageC();
    }
    inf = next;
    if (two) stage ^= 1;
  }
  if (!reader)
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        int r = (warp * MT + i) * 16 + g + 8 * h;
        if (r < dk) {
#pragma unroll
          for (int j = 0; j < 4; j++) Store<T>::store2(C + r * SLICE + j * 8 + t2, c[i][j][2 * h], c[i][j][2 * h + 1]);
          if (t2 == 0) N[r] = c[i][4][2 * h];
        }
      }
  if (tid == 0) M[0] = ((const float*)ca.mEnd)[blockIdx.z * a.heads + head];
}

#define CHUNKS(SUFFIX, T)                                                                                                        \
  extern "C" __global__ void __launch_bounds__(512) chunk1_##SUFFIX(const __grid_constant__ ChunkArgs a) { chunkwise<T, 1>(a); } \
  extern "C" __global__ void __launch_bounds__(512) chunk2_##SUFFIX(const __grid_constant__ ChunkArgs a) { chunkwise<T, 2>(a); }
CHUNKS(f32, float)
CHUNKS(bf16, __nv_bfloat16)
CHUNKS(f16, __half)
