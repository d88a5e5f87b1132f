// How a kernel writes a block of hkivi or kivi keys with error feedback, step for step as
// kvcache/codecs/feedback.py.
//
// Channels are rounded in order. What one of them loses is taken from all later ones of the token,
// by its row of `feedback`, [D, D] of a KV head, of which only what is right of the diagonal is
// read. RUN channels are rounded by one thread for each token; then all threads take what these
// lost from the later ones, a lane a token, so that a simdgroup reads the same row.
//
// Scratch: the step of each channel, then its zero; for each token held what the RUN channels lost.
template <int BITS, int D, int M, int HELD, int SIMDGROUPS>
struct FeedbackEncoder {
  enum { TILED = 0, SCRATCH = 2 * D + RUN * HELD, THREADS = 32 * SIMDGROUPS };
  enum { WORDS = (BITS * D + 31) / 32, ZEROS = D, LOST = 2 * D };
  // Threads that share a token, and tokens that they take at a time.
  enum { SHARERS = THREADS > HELD ? THREADS / HELD : 1, TOKENS = THREADS / SHARERS };
  device uint* words;
  device half* scales;
  device half* zeros;
  const device float* feedback;

  METAL_FUNC float top() const { return float((1 << BITS) - 1); }

  // The RUN channels of a token from `first` on: their codes in place of y, and what these lost.
  METAL_FUNC void code_run(int first, SHARED_POINTER(float) y, SHARED_POINTER(const float) steps,
      SHARED_POINTER(float) lost) const {
    float run[RUN];
    UNROLL for (int i = 0; i < RUN; i++) run[i] = y[i];
    UNROLL for (int i = 0; i < RUN; i++) {
      const float step = steps[first + i];
      const float zero = steps[ZEROS + first + i];
      const float code = min(max(rint((run[i] - zero) / nonzero(step)), 0.0f), top());
      const float off = run[i] - (product(code, step) + zero);
      y[i] = code;
      lost[i * HELD] = off;
      const device float* row = feedback + (first + i) * D + first;
      UNROLL for (int j = i + 1; j < RUN; j++) run[j] -= product(off, row[j]);
    }
  }

  // Take from later channels of a token, every SHARERS-th four, what those from `first` on lost.
  METAL_FUNC void feed(
      int first, int sharer, SHARED_POINTER(float) y, SHARED_POINTER(const float) lost) const {
    float off[RUN];
    UNROLL for (int i = 0; i < RUN; i++) off[i] = lost[i * HELD];
    ROLLED for (int c = first + RUN + 4 * sharer; c < D; c += 4 * SHARERS) {
      float later[4];
      UNROLL for (int j = 0; j < 4; j++) later[j] = y[c + j];
      UNROLL for (int i = 0; i < RUN; i++) {
        float row[4];
        load_run<4>(feedback + (first + i) * D + c, row);
        UNROLL for (int j = 0; j < 4; j++) later[j] -= product(off[i], row[j]);
      }
      UNROLL for (int j = 0; j < 4; j++) y[c + j] = later[j];
    }
  }

  template <class BLOCK>
  METAL_FUNC void code_tokens(const thread BLOCK& block, int count) const {
    const int sharer = block.index / TOKENS;
    const int own = sharer < SHARERS ? block.index % TOKENS : count;
    for (int first = 0; first < D; first += RUN) {
      for (int t = block.index; t < count; t += THREADS) {
        code_run(first, block.row(t) + first, block.scratch, block.scratch + LOST + t);
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
      for (int t = own; t < count; t += TOKENS) {
        feed(first, sharer, block.row(t), block.scratch + LOST + t);
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
  }

  template <class BLOCK>
  METAL_FUNC void encode(const thread BLOCK& block, const device float*, int, int at, int, int) {
    const int d = block.index;
    float low = LARGEST_FLOAT;
    float high = -LARGEST_FLOAT;
    block.load_whole();
    for (int first = 0; first < M; first += BLOCK::STEP) {
      block.load_again(first);
      for (int t = 0; t < block.held(first) && d < D; t++) {
        low = min(low, block.row(t)[d]);
        high = max(high, block.row(t)[d]);
      }
    }
    if (d < D) {
      const half scale = to_half((high - low) / top());
      const half zero = to_half(low);
      scales[at * D + d] = scale;
      zeros[at * D + d] = zero;
      block.scratch[d] = float(scale);
      block.scratch[ZEROS + d] = float(zero);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (int first = 0; first < M; first += BLOCK::STEP) {
      block.load_again(first);
      code_tokens(block, block.held(first));
      write_words<BITS, D, THREADS>(block, block.held(first), words + (at * M + first) * WORDS);
    }
  }
};
