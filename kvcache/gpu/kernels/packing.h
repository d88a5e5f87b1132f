// Rows of packed codes (drawn in kvcache/codecs/packing.py): one little-endian bit stream per token.

#define RUN 8  // channels that a lane handles together; their codes fill whole bytes
#define CHUNK_RUNS 4  // of an unencoded key that a lane takes at a time

// The bits of one run, its first code lowest.
struct RunBits {
  uint low;
  uint high;
};

// The bits of `run` where `first` is the word they begin in and `next` the one after it.
template <int BITS>
METAL_FUNC RunBits run_of_words(uint first, uint next, int run) {
  const uint shift = uint(run * BITS % 4) * 8u;
  if (shift == 0u) return RunBits{first, next};
  return RunBits{first >> shift | next << (32u - shift), next >> shift};
}

// Whether `run` reaches into the word after the one it begins in.
template <int BITS>
METAL_FUNC bool run_crosses(int run) {
  return run * BITS % 4 * 8 + RUN * BITS > 32;
}

template <int BITS>
METAL_FUNC uint code_of(const thread RunBits& bits, int index) {
  const int at = index * BITS;
  const uint mask = (1u << BITS) - 1u;
  if (at + BITS <= 32) return bits.low >> at & mask;
  if (at >= 32) return bits.high >> (at - 32) & mask;
  return (bits.low >> at | bits.high << (32 - at)) & mask;
}

// One, two or four words by one load.
template <int WIDE>
METAL_FUNC void load_words(const device uint* from, thread uint* to) {
  if (WIDE == 4) {
    const uint4 four = *(const device uint4*)from;
    to[0] = four.x;
    to[1] = four.y;
    to[2] = four.z;
    to[3] = four.w;
  } else if (WIDE == 2) {
    const uint2 two = *(const device uint2*)from;
    to[0] = two.x;
    to[1] = two.y;
  } else {
    to[0] = from[0];
  }
}

// One word or four, by one store.
template <int WIDE>
METAL_FUNC void store_words(const thread uint* from, SHARED_POINTER(uint) to) {
  if (WIDE == 4) {
    *(SHARED_POINTER(uint4))to = uint4(from[0], from[1], from[2], from[3]);
  } else {
    to[0] = from[0];
  }
}

// A run of unencoded values of 16 bits, and of 32.
template <typename T>
METAL_FUNC void load_run(const device T* from, thread float* to) {
  const uint4 four = *(const device uint4*)from;
  const float2 a = both_halves(four.x, T(0));
  const float2 b = both_halves(four.y, T(0));
  const float2 c = both_halves(four.z, T(0));
  const float2 d = both_halves(four.w, T(0));
  to[0] = a.x;
  to[1] = a.y;
  to[2] = b.x;
  to[3] = b.y;
  to[4] = c.x;
  to[5] = c.y;
  to[6] = d.x;
  to[7] = d.y;
}

METAL_FUNC void load_run(const device float* from, thread float* to) {
  const float4 low = ((const device float4*)from)[0];
  const float4 high = ((const device float4*)from)[1];
  to[0] = low.x;
  to[1] = low.y;
  to[2] = low.z;
  to[3] = low.w;
  to[4] = high.x;
  to[5] = high.y;
  to[6] = high.z;
  to[7] = high.w;
}
