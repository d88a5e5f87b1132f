// Enough of Metal for clang's OpenCL C++ front end to check the text, never to run it.
//
// OpenCL has real address spaces, so a pointer into the wrong one, or a threadgroup variable out of
// place, is an error here as in Metal. No generic address space, no double, no standard library.
#pragma OPENCL EXTENSION cl_khr_fp16 : enable

#define METAL_FUNC inline
#define device __global
#define constant __constant
#define threadgroup __local
#define thread __private

typedef half float16_t;
typedef int int32_t;
typedef uint uint32_t;
typedef short bfloat16_t;  // some type of its own that converts to float

#define float2(...) ((float2)(__VA_ARGS__))
#define float4(...) ((float4)(__VA_ARGS__))
#define uint4(...) ((uint4)(__VA_ARGS__))

namespace metal {
enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };
void threadgroup_barrier(mem_flags) __attribute__((convergent));
void simdgroup_barrier(mem_flags) __attribute__((convergent));
template <class T> T simd_sum(T) __attribute__((convergent));
template <class T> T simd_max(T) __attribute__((convergent));
bool simd_any(bool) __attribute__((convergent));
template <class T> T simd_shuffle(T, ushort) __attribute__((convergent));
template <class T> T simd_shuffle_xor(T, ushort) __attribute__((convergent));
namespace fast {
float exp2(float);
}
template <class To, class From> To as_type(From);
}  // namespace metal
using namespace metal;
