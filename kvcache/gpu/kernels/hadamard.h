// A head vector into a codec's basis and back, by one simdgroup: signs and a Hadamard transform.
//
// The transform of D = FACTOR * WIDTH channels, WIDTH a power of two: between the channels of each
// WIDTH by shuffles, then between the FACTOR parts by the signs in `words`, as they are packed in
// kvcache/gpu/hadamard.py. A lane holds EACH channels, 32 apart; those from D on meet no others.

template <int D>
struct Hadamard {
  enum {
    FACTOR = D % 28 == 0 ? 28 : D % 20 == 0 ? 20 : D % 12 == 0 ? 12 : 1,
    WIDTH = D / FACTOR,
    EACH = (D + 31) / 32,
    MASKS = 1,  // in `words`, behind the transform's scale
    SIGNS = MASKS + (FACTOR > 1 ? FACTOR : 0)
  };
};

template <int D>
METAL_FUNC void apply_signs(thread float* x, const device uint* words, int kv_head, uint lane) {
  UNROLL for (int e = 0; e < Hadamard<D>::EACH; e++) {
    const uint signs = words[Hadamard<D>::SIGNS + kv_head * Hadamard<D>::EACH + e];
    if ((signs >> lane & 1u) != 0u) x[e] = -x[e];
  }
}

// `row` is threadgroup memory of D numbers, of which other lanes need nothing more.
template <int D>
METAL_FUNC void transform(
    thread float* x, const device uint* words, SHARED_POINTER(float) row, uint lane) {
  enum { FACTOR = Hadamard<D>::FACTOR, WIDTH = Hadamard<D>::WIDTH, EACH = Hadamard<D>::EACH };
  UNROLL for (int step = 1; step < min(int(WIDTH), 32); step *= 2) {
    UNROLL for (int e = 0; e < EACH; e++) {
      const float other = simd_shuffle_xor(x[e], ushort(step));
      x[e] = (int(lane) & step) == 0 ? x[e] + other : other - x[e];
    }
  }
  UNROLL for (int step = 1; step < WIDTH / 32; step *= 2) {
    UNROLL for (int e = 0; e < EACH; e++) {
      if ((e & step) == 0) {
        const float low = x[e];
        const float high = x[e + step];
        x[e] = low + high;
        x[e + step] = low - high;
      }
    }
  }
  if (FACTOR > 1) {
    UNROLL for (int e = 0; 32 * e < D; e++) {
      const int d = 32 * e + int(lane);
      if (d < D) row[d] = x[e];
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    UNROLL for (int e = 0; e < EACH; e++) {
      const int d = 32 * e + int(lane);
      x[e] = 0.0f;
      if (d < D) {
        const uint mask = words[Hadamard<D>::MASKS + d / WIDTH];
        for (int i = 0; i < FACTOR; i++) {
          const float part = row[i * WIDTH + d % WIDTH];
          x[e] += (mask >> i & 1u) != 0u ? -part : part;
        }
      }
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
  }
  const float scale = as_type<float>(words[0]);
  UNROLL for (int e = 0; e < EACH; e++) x[e] *= scale;
}

// A query, times `scale`, to threadgroup memory and, where ROTATED, into the keys' basis.
template <int D, bool ROTATED, typename T>
METAL_FUNC void load_query(const device T* query, float scale, const device uint* words,
    int kv_head, SHARED_POINTER(float) to, uint lane) {
  float x[Hadamard<D>::EACH];
  UNROLL for (int e = 0; e < Hadamard<D>::EACH; e++) {
    const int d = 32 * e + int(lane);
    x[e] = d < D ? float(query[d]) * scale : 0.0f;
  }
  if (ROTATED) {
    apply_signs<D>(x, words, kv_head, lane);
    transform<D>(x, words, to, lane);
  }
  UNROLL for (int e = 0; 32 * e < D; e++) {
    const int d = 32 * e + int(lane);
    if (d < D) to[d] = x[e];
  }
}
