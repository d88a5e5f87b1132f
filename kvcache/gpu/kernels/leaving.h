// The tokens of a block that is to be encoded: read where they lie, brought into the codec's basis.

#define LARGEST_FLOAT 3.402823466e38f
#define LARGEST_HALF 65504.0f
// As which larger numbers are encoded (kvcache/codecs/base.py): 2^50.
#define LARGEST_ENCODED 1.125899906842624e15f

// Butterflies of neighbours 1, 2, ... below STOP apart, in COUNT numbers: MLX's order of additions.
template <int COUNT, int STOP>
METAL_FUNC void butterflies(thread float* x) {
  UNROLL for (int apart = 1; apart < STOP; apart *= 2) {
    UNROLL for (int i = 0; i < COUNT / 2; i++) {
      const int j = 2 * i - i % apart;
      const float a = x[j];
      const float b = x[j + apart];
      x[j] = a + b;
      x[j + apart] = a - b;
    }
  }
}

// Rotated as kvcache/codecs/rotation.py does: signs, then a Hadamard transform of FACTOR * 2^k. Its
// inner part is of neighbours in a slice of channels, its outer part of channels INNER apart.
//
// The numbers of a token in threadgroup memory are ROW apart, which is odd, so that the lanes of a
// simdgroup may each take a token of their own.
template <typename T, int D, int M, int HELD, int TILE_TOKENS, int FACTOR, bool ROTATED,
    int THREADS>
struct Leaving {
  enum { STEP = HELD };  // tokens of a block that lie in threadgroup memory at a time
  enum { TILE = TILE_TOKENS };
  enum { ROW = D + 1, INNER = FACTOR > 1 ? D / FACTOR : RUN, OUTER = ROTATED ? D / INNER : 1 };
  enum { SLICE = INNER > RUN ? INNER : RUN, SLICES = D / SLICE };
  const device T* ring;   // of one KV head, as the other arrays
  const device T* fresh;  // tokens that are in no ring yet
  const device float* signs;
  const device uint* minuses;  // of each row of the factor's matrix, a bit for each column
  SHARED_POINTER(float) rows;
  SHARED_POINTER(float) scratch;
  float scale;
  int number;    // of the block's first token
  int end;       // of the numbers in the ring
  int capacity;  // of the ring
  int index;     // of this thread

  METAL_FUNC const device T* token(int t) const {
    const int at = number + t;
    return at < end ? ring + at % capacity * D : fresh + (at - end) * D;
  }
  METAL_FUNC int held(int first) const { return min(HELD, M - first); }
  METAL_FUNC SHARED_POINTER(float) row(int t) const { return rows + t * ROW; }

  // Bring the tokens [first, first + HELD) of the block, whatever the threads did with others.
  METAL_FUNC void load(int first) const { load(first, held(first)); }

  // The same for who goes over the block several times: once if all of it fits, else each time.
  METAL_FUNC void load_whole() const {
    if (M <= HELD) load(0);
  }
  METAL_FUNC void load_again(int first) const {
    if (M > HELD) load(first);
  }

  METAL_FUNC void load(int first, int count) const {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (int i = index; i < count * SLICES; i += THREADS) {
      const int begin = i % SLICES * SLICE;
      float x[SLICE];
      UNROLL for (int j = 0; j < SLICE; j += RUN) {
        load_run<RUN>(token(first + i / SLICES) + begin + j, x + j);
      }
      UNROLL for (int j = 0; j < SLICE; j++) {
        x[j] = min(max(x[j], -LARGEST_ENCODED), LARGEST_ENCODED);
      }
      if (ROTATED) {
        UNROLL for (int j = 0; j < SLICE; j++) x[j] *= signs[begin + j];
        butterflies<SLICE, INNER>(x);
      }
      UNROLL for (int j = 0; j < SLICE; j++) row(i / SLICES)[begin + j] = x[j];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (ROTATED) {
      for (int i = index; i < count * INNER; i += THREADS) transform(row(i % count) + i / count);
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
  }

  METAL_FUNC void transform(SHARED_POINTER(float) from) const {
    float x[OUTER];
    UNROLL for (int k = 0; k < OUTER; k++) x[k] = from[k * INNER];
    if (FACTOR == 1) {
      butterflies<OUTER, OUTER>(x);
      UNROLL for (int k = 0; k < OUTER; k++) from[k * INNER] = x[k] * scale;
    } else {
      for (int i = 0; i < OUTER; i++) {
        const uint minus = minuses[i];
        float sum = 0.0f;
        UNROLL for (int k = 0; k < OUTER; k++) sum += (minus >> k & 1u) != 0u ? -x[k] : x[k];
        from[i * INNER] = sum * scale;
      }
    }
  }
};

METAL_FUNC half to_half(float x) { return half(min(max(x, -LARGEST_HALF), LARGEST_HALF)); }

METAL_FUNC float nonzero(float x) { return x == 0.0f ? 1.0f : x; }

// The scale by which codes keep the dot product of what they stand for with itself.
METAL_FUNC float unbiased(float along, float length) { return along > 0.0f ? length / along : 0.0f; }

// The word of a token's codes (packing.h): those that begin in it, and the end of one before.
template <int BITS, int D, typename CODE>
METAL_FUNC uint word_of_codes(SHARED_POINTER(CODE) codes, int word) {
  const int begin = word * 32;
  uint bits = 0u;
  for (int c = begin / BITS; c < D && c * BITS < begin + 32; c++) {
    const uint code = uint(codes[c]);
    const int at = c * BITS - begin;
    bits |= at < 0 ? code >> -at : code << at;
  }
  return bits;
}

// The words of `count` tokens, whose codes lie in the rows in place of their numbers.
template <int BITS, int D, int THREADS, class BLOCK>
METAL_FUNC void write_words(const thread BLOCK& block, int count, device uint* words) {
  enum { WORDS = (BITS * D + 31) / 32 };
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (int i = block.index; i < count * WORDS; i += THREADS) {
    words[i] = word_of_codes<BITS, D>(block.row(i / WORDS), i % WORDS);
  }
}
