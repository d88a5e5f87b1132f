// Enough of CUDA for clang to compile what cuda.py writes, on the same runtime as the Metal text.
#pragma once
#include <cstring>

#include "runtime.h"

#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __shared__ SHARED_VARIABLE
#define threadIdx (metal_thread()->thread_position_in_threadgroup)
#define blockIdx (metal_thread()->threadgroup_position_in_grid)

typedef half __half;
typedef bfloat __nv_bfloat16;

inline float2 make_float2(float x, float y) { return float2{x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return float4{x, y, z, w}; }
inline uint4 make_uint4(uint x, uint y, uint z, uint w) { return uint4{x, y, z, w}; }
inline float2 __half22float2(half2 pair) { return float2{float(pair.x), float(pair.y)}; }
using std::fabs;
using std::max;
using std::min;
using std::rint;
using std::sqrt;

inline uint __funnelshift_r(uint low, uint high, uint shift) {
  return uint((uint64_t(high) << 32 | low) >> (shift & 31u));
}
inline float __fmul_rn(float a, float b) { return a * b; }

inline void __syncthreads(PLACE) { metal_wait(1, line, column); }
inline void __syncwarp(PLACE) { metal_wait(0, line, column); }
template <class T>
inline T __shfl_sync(unsigned, T v, int lane, PLACE) {
  return value_of_lane(v, uint(lane) & 31u, line, column);
}
template <class T>
inline T __shfl_xor_sync(unsigned, T v, int mask, PLACE) {
  return value_of_lane(v, metal_lane() ^ uint(mask), line, column);
}
inline bool __any_sync(unsigned, bool v, PLACE) {
  return reduce(v, [](bool a, bool b) { return a || b; }, line, column);
}
