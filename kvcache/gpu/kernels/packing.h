// Rows of packed codes (drawn in kvcache/codecs/packing.py): one little-endian bit stream per token.

#define RUN 8  // channels that a lane handles together; their codes fill whole bytes

// Some codes of a row, the first one's bits lowest.
struct RunBits {
  uint low;
  uint high;
};

// `BITS` bits, up to 64, from bit `shift` of the first of the words of a row, a multiple of BITS
// in the row. Looks at the second even where nothing of it is wanted, unless it never is.
template <int BITS>
METAL_FUNC RunBits bits_of_words(SHARED_POINTER(const uint) words, uint shift) {
  if (32 % BITS == 0) return RunBits{words[0] >> shift, 0u};
  return RunBits{joined(words[0], words[1], shift), words[1] >> shift};
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

// COUNT unencoded values, four or eight, of 16 bits, and of 32.
template <int COUNT, typename T>
METAL_FUNC void load_run(const device T* from, thread float* to) {
  uint words[COUNT / 2];
  load_words<COUNT / 2>((const device uint*)from, words);
  UNROLL for (int j = 0; j < COUNT / 2; j++) {
    const float2 pair = both_halves(words[j], T(0));
    to[2 * j] = pair.x;
    to[2 * j + 1] = pair.y;
  }
}

template <int COUNT>
METAL_FUNC void load_run(const device float* from, thread float* to) {
  UNROLL for (int j = 0; j < COUNT; j += 4) {
    const float4 four = *(const device float4*)(from + j);
    to[j] = four.x;
    to[j + 1] = four.y;
    to[j + 2] = four.z;
    to[j + 3] = four.w;
  }
}
