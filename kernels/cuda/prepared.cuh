// How one vector goes from the kernel that computes it to the product that takes it. Hundreds of thread blocks read such a vector: what a
// product needs of it is therefore computed once, where its values are, and not by every block again.
#pragma once
#include "common.cuh"

// A prepared vector, in global memory: room values in fp16, in the order of the product's encoding, what rounding left of each in fp16, and
// for each eight values their sum, as stored, and the sum of their squares, before scaling. Zero behind the last value from the start on.
struct Prepared {
  uint4 *values, *rests;  // eight each
  float2* sums;
  __device__ __forceinline__ Prepared(dptr at, int room) : values((uint4*)at), rests(values + room / 8), sums((float2*)(rests + room / 8)) {}
};

// Next says where to prepare a result, and for what product. at 0: nowhere.
struct Next {
  dptr at;
  int32_t enc, room;
  float scale;  // of the values on their way into fp16
  int32_t unused;
};
static_assert(sizeof(Next) == 24, "args.go");

// For int4 the values that meet high nibbles are divided by 16, which the high nibbles are multiplied by.
__device__ __forceinline__ bool meetsHigh(int enc, int k) { return enc == ENC_I4 && (k & 16); }

// prepare adds the value v of row row to next. All lanes call it; eight lanes have eight consecutive rows, ok says whose row is one.
__device__ __forceinline__ void prepare(const Next& next, int row, float v, bool ok) {
  const Prepared p(next.at, next.room);
  const bool high = meetsHigh(next.enc, row);
  v = ok ? v : 0.f;
  const float scaled = v * (high ? next.scale * 0.0625f : next.scale);
  const __half hi = toHalf(scaled), lo = toHalf(scaled - __half2float(hi));
  float sum = __half2float(hi) + __half2float(lo), squares = v * v;
  if (high) sum *= 16.f;
#pragma unroll
  for (int o = 4; o; o >>= 1) {
    sum += __shfl_xor_sync(~0u, sum, o);
    squares += __shfl_xor_sync(~0u, squares, o);
  }
  if (!ok) return;
  const int at = next.enc == ENC_F16 ? row : permPos(row);
  ((__half*)p.values)[at] = hi;
  ((__half*)p.rests)[at] = lo;
  if ((row & 7) == 0) p.sums[row >> 3] = make_float2(sum, squares);
}

// prepareFour adds four values from k, a multiple of 4, to next: all lanes, with consecutive ones, none of them beyond fp16. No squares.
__device__ __forceinline__ void prepareFour(const Next& next, int k, float4 v) {
  const Prepared p(next.at, next.room);
  const bool high = meetsHigh(next.enc, k), even = next.enc != ENC_F16;  // even values first, then odd ones
  const float f = high ? next.scale * 0.0625f : next.scale;
  const float4 u = even ? make_float4(v.x * f, v.z * f, v.y * f, v.w * f) : make_float4(v.x * f, v.y * f, v.z * f, v.w * f);
  const __half2 a = __floats2half2_rn(u.x, u.y), b = __floats2half2_rn(u.z, u.w);
  const float2 fa = __half22float2(a), fb = __half22float2(b);
  const __half2 c = __floats2half2_rn(u.x - fa.x, u.y - fa.y), d = __floats2half2_rn(u.z - fb.x, u.w - fb.y);
  const float2 fc = __half22float2(c), fd = __half22float2(d);
  const int at = even ? permPos(k) : k, second = even ? 8 : 2;
  __half *values = (__half*)p.values + at, *rests = (__half*)p.rests + at;
  *(__half2*)values = a;
  *(__half2*)(values + second) = b;
  *(__half2*)rests = c;
  *(__half2*)(rests + second) = d;
  float sum = ((fa.x + fa.y) + (fb.x + fb.y)) + ((fc.x + fc.y) + (fd.x + fd.y));
  if (high) sum *= 16.f;
  sum += __shfl_xor_sync(~0u, sum, 1);
  if ((k & 7) == 0) p.sums[k >> 3] = make_float2(sum, 0.f);
}
