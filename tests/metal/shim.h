// Enough of the Metal language for clang to compile the text that MLX generates.
//
// Address spaces become plain memory, vectors clang's own, and everything that threads do together
// (barriers, simdgroup reductions) calls the runtime, where each Metal thread is a fiber.
#pragma once
#include "runtime.h"

#define __METAL__ 1
#define METAL_FUNC inline __attribute__((always_inline))
#define kernel
#define device
#define constant
#define thread
#define threadgroup

template <class V, class... Values>
inline V vector_of(Values... values) {
  return V{static_cast<std::remove_reference_t<decltype(V{}[0])>>(values)...};
}
#define float2(...) vector_of<float2>(__VA_ARGS__)
#define float4(...) vector_of<float4>(__VA_ARGS__)
#define uint2(...) vector_of<uint2>(__VA_ARGS__)
#define uint4(...) vector_of<uint4>(__VA_ARGS__)

namespace metal {

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };

inline void threadgroup_barrier(mem_flags, PLACE) { metal_wait(1, line, column); }
inline void simdgroup_barrier(mem_flags, PLACE) { metal_wait(0, line, column); }

template <class T>
inline T max(T a, T b) {
  return a < b || a != a ? b : a;
}
template <class T>
inline T min(T a, T b) {
  return b < a || a != a ? b : a;
}
template <class T>
inline T simd_sum(T v, PLACE) {
  return reduce(v, [](T a, T b) { return T(a + b); }, line, column);
}
template <class T>
inline T simd_max(T v, PLACE) {
  return reduce(v, [](T a, T b) { return max(a, b); }, line, column);
}
inline bool simd_any(bool v, PLACE) {
  return reduce(v, [](bool a, bool b) { return a || b; }, line, column);
}
template <class T>
inline T simd_min(T v, PLACE) {
  return reduce(v, [](T a, T b) { return min(a, b); }, line, column);
}
template <class T>
inline T simd_shuffle(T v, ushort lane, PLACE) {
  return value_of_lane(v, lane, line, column);
}
template <class T>
inline T simd_shuffle_xor(T v, ushort mask, PLACE) {
  return value_of_lane(v, metal_lane() ^ mask, line, column);
}

inline float exp(float x) { return ::expf(x); }
inline float exp2(float x) { return ::exp2f(x); }
inline float fabs(float x) { return __builtin_fabsf(x); }
inline float rint(float x) { return __builtin_rintf(x); }
inline float sqrt(float x) { return __builtin_sqrtf(x); }
inline float fma(float a, float b, float c) { return ::fmaf(a, b, c); }
namespace fast {
using metal::exp;
using metal::exp2;
}  // namespace fast

}  // namespace metal

template <class To, class From>
inline To as_type(From from) {
  static_assert(sizeof(To) == sizeof(From));
  return __builtin_bit_cast(To, from);
}

using namespace metal;  // MLX's prelude does so too
