// The recurrent form of the mLSTM cell (arXiv 2503.13427), token after token.
#include "mlstm.cuh"

// finishHead normalizes a head's dv values, 128, 256, 384 or 512, gates them and prepares them for the output projection.
__device__ __forceinline__ void finishHead(const CellArgs& a, int tok, int head) {
  const int lane = threadIdx.x & 31, part = threadIdx.x >> 5, parts = a.dv >> 7;
  if (part >= parts) return;
  const float4* h = (const float4*)((const float*)a.h + (size_t)tok * a.vDim + head * a.dv) + lane;
  const float4* o = (const float4*)((const float*)a.qkvo + (size_t)tok * a.ld + 2 * a.qkDim + a.vDim + head * a.dv) + lane;
  const float4 own = __ldcg(h + 32 * part), g = __ldcg(o + 32 * part);
  float4 v[4];
  float s = 0.f;
#pragma unroll
  for (int j = 0; j < 4; j++) v[j] = j < parts ? __ldcg(h + 32 * j) : make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
  for (int j = 0; j < 4; j++) s += (v[j].x + v[j].y) + (v[j].z + v[j].w);
  const float mean = warpSum(s) / a.dv;
  s = 0.f;
#pragma unroll
  for (int j = 0; j < 4; j++) {
    if (j >= parts) break;
    const float x = v[j].x - mean, y = v[j].y - mean, z = v[j].z - mean, w = v[j].w - mean;
    s += (x * x + y * y) + (z * z + w * w);
  }
  const float r = rsqrtf(warpSum(s) / a.dv + a.normEps);
  prepareFour(a.next, head * a.dv + 128 * part + 4 * lane, make_float4((own.x - mean) * r * sigmoidf(g.x), (own.y - mean) * r * sigmoidf(g.y),
    (own.z - mean) * r * sigmoidf(g.z), (own.w - mean) * r * sigmoidf(g.w)));
}

// The recurrent form: one token (decode) or any number, 256 threads. A thread has 4 columns of the rows tid/8 + 32 j. X is the
// type of qkvo; h is of the same type.
template <class T, class X, int RPT>
__device__ __forceinline__ void recur(const CellArgs& a) {
  __shared__ float hp[8][SLICE + 1], red[32];
  __shared__ uint32_t before;
  const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
  const int slice = blockIdx.x, head = blockIdx.y;
  launchDependents();
  const Piece pc = ((const Piece*)a.pieces)[blockIdx.z];
  const int64_t rec = recordBytes(a.dk, a.stateType);
  char* base = (char*)pc.state + ((int64_t)(a.block * a.heads + head) * a.slices + slice) * rec;
  T* C = (T*)base;
  float* N = (float*)(base + rec - 128) - a.dk;
  float* M = (float*)(base + rec - 128);
  const int row0 = tid >> 3, col = (tid & 7) * 4;
  float4 c[RPT];
#pragma unroll
  for (int j = 0; j < RPT; j++) {
    int r = row0 + 32 * j;
    c[j] = r < a.dk ? Store<T>::load4(C + r * SLICE + col) : make_float4(0.f, 0.f, 0.f, 0.f);
  }
  float nreg[(32 * RPT + 255) / 256], m = M[0];
#pragma unroll
  for (int j = 0; j < (32 * RPT + 255) / 256; j++) {
    int r = tid + 256 * j;
    nreg[j] = r < a.dk ? N[r] : 0.f;
  }
  waitPredecessor();
  for (int t = pc.tok; t < pc.tok + pc.len; t++) {
    const X* q = (const X*)a.qkvo + (size_t)t * a.ld + head * a.dk;
    const X* k = q + a.qkDim;
    const X* v = (const X*)a.qkvo + (size_t)t * a.ld + 2 * a.qkDim + head * a.dv + slice * SLICE;
    const float* g = (const float*)a.gates + (size_t)t * 2 * a.heads;
    float kr[RPT], qr[RPT], vr[4];
#pragma unroll
    for (int j = 0; j < RPT; j++) {
      int r = row0 + 32 * j;
      kr[j] = r < a.dk ? ldx(k + r) : 0.f;
      qr[j] = r < a.dk ? ldx(q + r) : 0.f;
    }
#pragma unroll
    for (int j = 0; j < 4; j++) vr[j] = slice * SLICE + col + j < a.dv ? ldx(v + col + j) : 0.f;
    float it = softcap(__ldcg(g + head), a.cap), ft = logsigmoid(softcap(__ldcg(g + a.heads + head), a.cap));
    float mn = fmaxf(ft + m, it);
    float fa = expf(ft + m - mn), fb = expf(it - mn);
    m = mn;
    float dot = 0.f;
#pragma unroll
    for (int j = 0; j < (32 * RPT + 255) / 256; j++) {
      int r = tid + 256 * j;
      if (r < a.dk) {
        nreg[j] = fa * nreg[j] + fb * ldx(k + r);
        dot += nreg[j] * ldx(q + r);
      }
    }
    float4 s = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
    for (int j = 0; j < RPT; j++) {
      float bk = fb * kr[j];
      c[j].x = fa * c[j].x + bk * vr[0];
      c[j].y = fa * c[j].y + bk * vr[1];
      c[j].z = fa * c[j].z + bk * vr[2];
      c[j].w = fa * c[j].w + bk * vr[3];
      s.x += c[j].x * qr[j];
      s.y += c[j].y * qr[j];
      s.z += c[j].z * qr[j];
      s.w += c[j].w * qr[j];
    }
#pragma unroll
    for (int o = 8; o <= 16; o <<= 1) {
      s.x += __shfl_xor_sync(~0u, s.x, o);
      s.y += __shfl_xor_sync(~0u, s.y, o);
      s.z += __shfl_xor_sync(~0u, s.z, o);
      s.w += __shfl_xor_sync(~0u, s.w, o);
    }
    dot = warpSum(dot);
    __syncthreads();  // the last token's sums are read
    if (lane < 8) {
      hp[warp][col] = s.x;
      hp[warp][col + 1] = s.y;
      hp[warp][col + 2] = s.z;
      hp[warp][col + 3] = s.w;
    }
    if (lane == 0) red[warp] = dot;
    __syncthreads();
    if (warp == 0) {
      float num = 0.f, den = 0.f;
#pragma unroll
      for (int w = 0; w < 8; w++) {
        num += hp[w][lane];
        den += red[w];
      }
      int at = slice * SLICE + lane;
      if (at < a.dv) {
        X* h = (X*)a.h + (size_t)t * a.vDim + head * a.dv + at;
        float y = num / (fmaxf(fabsf(den), expf(-m)) + a.eps);
        if constexpr (sizeof(X) == 4) *h = y;
        else *h = toHalf(y);
      }
    }
  }
  if constexpr (sizeof(X) == 4) {
    // The last of a head's blocks to arrive here finishes the head: nobody waits for anybody.
    if (a.next.at && warp == 0) {
      __syncwarp();
      if (lane == 0) {
        uint32_t* arrived = (uint32_t*)a.arrived + blockIdx.z * a.heads + head;
        before = arrive(arrived);
        if (before == a.slices - 1) *arrived = 0;
      }
    }
  }
#pragma unroll
  for (int j = 0; j < RPT; j++) {
    int r = row0 + 32 * j;
    if (r < a.dk) Store<T>::store4(C + r * SLICE + col, c[j]);
  }
#pragma unroll
  for (int j = 0; j < (32 * RPT + 255) / 256; j++) {
    int r = tid + 256 * j;
    if (r < a.dk) N[r] = nreg[j];
  }
  if (tid == 0) M[0] = m;
  if constexpr (sizeof(X) == 4) {
    if (a.next.at) {
      __syncthreads();
      if (before != a.slices - 1) return;
      finishHead(a, pc.tok, head);
    }
  }
}

#define RECUR(NAME, T, X, RPT) \
  extern "C" __global__ void __launch_bounds__(256) NAME(const __grid_constant__ CellArgs a) { recur<T, X, RPT>(a); }
#define RECURS(SUFFIX, T)                    \
  RECUR(recur_f32_##SUFFIX, T, float, 8)     \
  RECUR(recur_f16_##SUFFIX, T, __half, 8)    \
  RECUR(recur512_f32_##SUFFIX, T, float, 16) \
  RECUR(recur512_f16_##SUFFIX, T, __half, 16)
RECURS(f32, float)
RECURS(bf16, __nv_bfloat16)
RECURS(f16, __half)
