// Dialect header: makes the shared text, which is written in Metal, CUDA.
// MLX has included cuda_fp16.h and cuda_bf16.h before this.

#define METAL_FUNC __device__ __forceinline__
#define device
#define thread
#define threadgroup __shared__
#define SHARED_POINTER(T) T*
#define UNROLL _Pragma("unroll")
#define UNROLL_TWICE _Pragma("unroll 2")
#define ROLLED _Pragma("unroll 1")

#define float4(...) make_float4(__VA_ARGS__)
#define uint4(...) make_uint4(__VA_ARGS__)

typedef unsigned int uint;
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef __nv_bfloat16 bfloat16_t;

#define threadgroup_position_in_grid blockIdx
#define thread_index_in_threadgroup threadIdx.x
#define thread_index_in_simdgroup (threadIdx.x & 31u)
#define simdgroup_index_in_threadgroup (threadIdx.x >> 5)

enum class mem_flags { mem_threadgroup };
METAL_FUNC void threadgroup_barrier(mem_flags) { __syncthreads(); }
METAL_FUNC void simdgroup_barrier(mem_flags) { __syncwarp(); }

METAL_FUNC float simd_shuffle(float v, ushort lane) {
  return __shfl_sync(0xffffffffu, v, lane);
}

METAL_FUNC float simd_shuffle_xor(float v, ushort mask) {
  return __shfl_xor_sync(0xffffffffu, v, mask);
}

METAL_FUNC float simd_sum(float v) {
  UNROLL for (int step = 16; step; step >>= 1) v += __shfl_xor_sync(0xffffffffu, v, step);
  return v;
}

METAL_FUNC float simd_max(float v) {
  UNROLL for (int step = 16; step; step >>= 1) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, step));
  return v;
}

METAL_FUNC bool simd_any(bool v) { return __any_sync(0xffffffffu, v); }

template <class To, class From>
METAL_FUNC To as_type(From from) {
  static_assert(sizeof(To) == sizeof(From), "as_type keeps the size");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

METAL_FUNC float power_of_two(float x) { return exp2f(x); }

METAL_FUNC float of_lane(float mine, uint lane) {
  return __shfl_sync(0xffffffffu, mine, int(lane));
}

METAL_FUNC uint of_lane(uint mine, uint lane) {
  return __shfl_sync(0xffffffffu, mine, int(lane));
}

METAL_FUNC uint joined(uint low, uint high, uint shift) {
  return __funnelshift_r(low, high, shift);
}

METAL_FUNC float2 both_halves(uint word, half) { return __half22float2(as_type<half2>(word)); }

METAL_FUNC float2 both_halves(uint word, bfloat16_t) {
  return make_float2(as_type<float>(word << 16), as_type<float>(word & 0xffff0000u));
}

METAL_FUNC float product(float a, float b) { return __fmul_rn(a, b); }
