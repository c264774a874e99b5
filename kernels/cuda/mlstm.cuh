// Shared by both forms of the mLSTM cell: its arguments, and how states are stored.
//
// One thread block has one slice of SLICE columns of one head of one sequence, whatever the form. It holds its part of C in
// registers from the first token to the last, and needs nothing from other blocks.
#pragma once
#include "prepared.cuh"

struct CellArgs {
  dptr pieces;         // Piece [grid.z]
  dptr qkvo;           // [tokens, ld]: q (scaled by 1/sqrt(dk)), k, v, o
  dptr gates;          // float32 [tokens, 2H]: i and f before the soft cap, divided by it
  dptr h;              // [tokens, vdim]
  dptr scan;           // chunkwise: float32 [tokens, H, 4], see gate_scan
  dptr chunkInfo;      // chunkwise: float32 [H, chunks of all pieces, 2], see gate_scan
  int32_t ld, qkDim, vDim, heads, dk, dv, slices;
  int32_t block;       // of the model, for the offset into a state
  int32_t tokens;      // of the pass
  int32_t stateType;
  float cap, eps;
  Next next;           // one token: how to prepare what is normed and gated for the output projection, or nothing
  dptr arrived;        // uint32 [pieces, heads], zero: blocks of a head that are done
  float normEps;       // of the per-head norm
  int32_t unused;
};
static_assert(sizeof(CellArgs) == 136, "args.go");

__host__ __device__ inline int64_t recordBytes(int dk, int stateType) {
  return (int64_t)dk * SLICE * (stateType == ST_F32 ? 4 : 2) + dk * 4 + 128;
}

template <class T> struct Store;
template <> struct Store<float> {
  static __device__ __forceinline__ float4 load4(const float* p) { return *(const float4*)p; }
  static __device__ __forceinline__ void store4(float* p, float4 v) { *(float4*)p = v; }
  static __device__ __forceinline__ void store2(float* p, float a, float b) { *(float2*)p = make_float2(a, b); }
  static __device__ __forceinline__ float2 load2(const float* p) { return *(const float2*)p; }
};
template <> struct Store<__half> {
  static __device__ __forceinline__ float4 load4(const __half* p) {
    uint2 u = *(const uint2*)p;
    float2 a = __half22float2(*(__half2*)&u.x), b = __half22float2(*(__half2*)&u.y);
    return make_float4(a.x, a.y, b.x, b.y);
  }
  static __device__ __forceinline__ void store4(__half* p, float4 v) {
    store2(p, v.x, v.y);
    store2(p + 2, v.z, v.w);
  }
  static __device__ __forceinline__ void store2(__half* p, float a, float b) { *(__half2*)p = __halves2half2(toHalf(a), toHalf(b)); }
  static __device__ __forceinline__ float2 load2(const __half* p) { return __half22float2(*(const __half2*)p); }
};
template <> struct Store<__nv_bfloat16> {
  static __device__ __forceinline__ float4 load4(const __nv_bfloat16* p) {
    float2 a = load2(p), b = load2(p + 2);
    return make_float4(a.x, a.y, b.x, b.y);
  }
  static __device__ __forceinline__ void store4(__nv_bfloat16* p, float4 v) {
    store2(p, v.x, v.y);
    store2(p + 2, v.z, v.w);
  }
  static __device__ __forceinline__ void store2(__nv_bfloat16* p, float a, float b) { *(__nv_bfloat162*)p = __floats2bfloat162_rn(a, b); }
  static __device__ __forceinline__ float2 load2(const __nv_bfloat16* p) { return __bfloat1622float2(*(const __nv_bfloat162*)p); }
};

__device__ __forceinline__ float ldx(const float* p) { return __ldcg(p); }
__device__ __forceinline__ float ldx(const __half* p) { return __half2float(__ldcg(p)); }

constexpr int CHUNK = 64;  // tokens that the chunkwise form takes together
