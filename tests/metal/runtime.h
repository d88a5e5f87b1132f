// What a kernel and the runtime that runs it share: types, the threads' attributes, calls.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

// A variable in threadgroup memory. One section holds them all, so that the runtime can fill it
// with NaN for every threadgroup; AddressSanitizer wants them apart, to see where each ends.
#if __has_feature(address_sanitizer)
#define SHARED_VARIABLE static
#else
#define SHARED_VARIABLE static __attribute__((section("metal_threadgroup"), aligned(16), used))
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
// The thread that runs now.
const MetalThread* metal_thread();
}
#define PLACE int line = __builtin_LINE(), int column = __builtin_COLUMN()

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
