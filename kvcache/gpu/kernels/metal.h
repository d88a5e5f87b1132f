// Dialect header: what the shared text needs that Metal spells in its own way.
// cuda.h defines the same names.

#define SHARED_POINTER(T) threadgroup T*
#define UNROLL _Pragma("clang loop unroll(full)")
#define ROLLED _Pragma("clang loop unroll(disable)")

METAL_FUNC float power_of_two(float x) { return fast::exp2(x); }

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
