// Enough of the Metal language for clang to compile the text that MLX generates.
//
// Address spaces become plain memory, vectors clang's own, and everything that threads do together
// (barriers, simdgroup reductions) calls the runtime, where each Metal thread is a fiber.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

#define __METAL__ 1
#define METAL_FUNC inline __attribute__((always_inline))
#define kernel
#define device
#define constant
#define thread
#define threadgroup
// A variable in threadgroup memory. One section holds them all, so that the runtime can fill it
// with NaN for every threadgroup; AddressSanitizer wants them apart, to see where each ends.
#if __has_feature(address_sanitizer)
#define SHARED_VARIABLE static
#else
#define SHARED_VARIABLE static __attribute__((section("metal_threadgroup"), aligned(16)))
#endif

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef _Float16 half;
typedef __bf16 bfloat;
typedef half float16_t;
typedef bfloat bfloat16_t;

#define VECTORS(T)                                        \
  typedef T T##2 __attribute__((ext_vector_type(2)));     \
  typedef T T##3 __attribute__((ext_vector_type(3)));     \
  typedef T T##4 __attribute__((ext_vector_type(4)));
VECTORS(float)
VECTORS(half)
VECTORS(int)
VECTORS(uint)
VECTORS(short)
VECTORS(ushort)
#undef VECTORS

template <class V, class... Values>
inline V vector_of(Values... values) {
  return V{static_cast<std::remove_reference_t<decltype(V{}[0])>>(values)...};
}
#define float2(...) vector_of<float2>(__VA_ARGS__)
#define float4(...) vector_of<float4>(__VA_ARGS__)
#define uint2(...) vector_of<uint2>(__VA_ARGS__)
#define uint4(...) vector_of<uint4>(__VA_ARGS__)

// ---- what the runtime provides ----

struct MetalThread {
  uint3 thread_position_in_grid, thread_position_in_threadgroup, threadgroup_position_in_grid;
  uint3 threadgroups_per_grid, threads_per_threadgroup, threads_per_grid;
  uint thread_index_in_simdgroup, simdgroup_index_in_threadgroup;
  uint thread_index_in_threadgroup, simdgroups_per_threadgroup;
};

extern "C" {
// Wait until all threads of the simdgroup or the threadgroup are at this place.
void metal_wait(int whole_threadgroup, int line, int column);
// Give `size` bytes, get those of all 32 lanes; orders no memory.
void metal_exchange(const void* mine, int size, void* all, int line, int column);
uint metal_lane();
}
#define PLACE int line = __builtin_LINE(), int column = __builtin_COLUMN()

namespace metal {

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };

inline void threadgroup_barrier(mem_flags, PLACE) { metal_wait(1, line, column); }
inline void simdgroup_barrier(mem_flags, PLACE) { metal_wait(0, line, column); }

// All lanes' values combined in the order of a tree.
template <class T, class Combine>
inline T reduce(T mine, Combine combine, int line, int column) {
  T all[32];
  metal_exchange(&mine, sizeof(T), all, line, column);
  for (int width = 16; width; width >>= 1) {
    for (int i = 0; i < width; i++) all[i] = combine(all[i], all[i + width]);
  }
  return all[0];
}

// The value of another lane; of a lane that is not there, every bit set.
template <class T>
inline T value_of_lane(T mine, uint lane, int line, int column) {
  T all[32];
  metal_exchange(&mine, sizeof(T), all, line, column);
  if (lane < 32) return all[lane];
  T undefined;
  __builtin_memset(&undefined, 0xff, sizeof undefined);
  return undefined;
}

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
