// Dialect header: what the shared text needs that Metal spells in its own way.
// cuda.h defines the same names.

#define SHARED_POINTER(T) threadgroup T*
#define UNROLL _Pragma("clang loop unroll(full)")
#define UNROLL_TWICE _Pragma("clang loop unroll_count(2)")
#define ROLLED _Pragma("clang loop unroll(disable)")

METAL_FUNC float power_of_two(float x) { return fast::exp2(x); }

// What another lane has, the lane's number modulo 32; all lanes must come here.
METAL_FUNC float of_lane(float mine, uint lane) { return simd_shuffle(mine, ushort(lane & 31u)); }
METAL_FUNC uint of_lane(uint mine, uint lane) { return simd_shuffle(mine, ushort(lane & 31u)); }

// 32 bits of two words from bit `shift` of the first, which is below 32.
METAL_FUNC uint joined(uint low, uint high, uint shift) {
  return low >> shift | high << 1u << (31u - shift);
}

// The two 16-bit floats of a word, low half first; the second argument only names the type.
METAL_FUNC float2 both_halves(uint word, half) {
  const half2 pair = as_type<half2>(word);
  return float2(float(pair.x), float(pair.y));
}

METAL_FUNC float2 both_halves(uint word, bfloat16_t) {
  return float2(as_type<float>(word << 16), as_type<float>(word & 0xffff0000u));
}

// A product that is rounded before it is added to anything.
METAL_FUNC float product(float a, float b) {
#pragma clang fp contract(off)
  return a * b;
}
