// How a kernel writes a block of kvarn, step for step as kvcache/codecs/kvarn.py.
//
// The block is gone over twelve times, by channels or by tokens in turn. What is left of a
// number after the divisions so far is computed anew each time: a block of 64 tokens and 128
// channels does not fit in threadgroup memory.
//
// numbers: clips. Scratch: for each token its length and, over it, what the rounds
// divide by; for each channel what the rounds divide by, its mean, its scale; errors of clips.
template <int BITS, int D, int M, int CLIPS, int SIMDGROUPS>
struct KVarNEncoder {
  enum { TILED = 0, ROUNDS = 4, THREADS = 32 * SIMDGROUPS, WORDS = (BITS * D + 31) / 32 };
  enum { TOKENS = 0, CHANNELS = (ROUNDS - 1) * M, MEANS = CHANNELS + ROUNDS * D };
  enum { SCALES = MEANS + D, ERRORS = SCALES + D, LARGEST = ERRORS + 32 * CLIPS };
  enum { SCRATCH = LARGEST + SIMDGROUPS };
  device uint* words;
  device half* token_scales;
  device half* channel_scales;
  device half* channel_means;

  METAL_FUNC float centre() const { return float((1 << BITS) - 1) * 0.5f; }

  METAL_FUNC float level(float even, float step) const {
    return min(max(rint(even / nonzero(step) + centre()), 0.0f), 2.0f * centre()) - centre();
  }

  // The largest of all threads' numbers, none of them negative.
  template <class BLOCK>
  METAL_FUNC float largest_of_all(const thread BLOCK& block, float mine, int simdgroup) const {
    const float largest = simd_max(mine);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    block.scratch[LARGEST + simdgroup] = largest;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float found = 0.0f;
    for (int s = 0; s < SIMDGROUPS; s++) found = max(found, block.scratch[LARGEST + s]);
    return found;
  }

  // The number y of token t and channel d without the mean, after the divisions of some rounds.
  template <class BLOCK>
  METAL_FUNC float evened(const thread BLOCK& block, float y, int t, int d, float top,
      int by_channels, int by_tokens) const {
    float x = (y - block.scratch[MEANS + d]) / top;
    for (int r = 0; r < by_channels; r++) {
      x /= block.scratch[CHANNELS + r * D + d];
      if (r < by_tokens) x /= block.scratch[TOKENS + r * M + t];
    }
    return x;
  }

  // The block's largest number; where means are known, without them.
  template <class BLOCK>
  METAL_FUNC float top_of(const thread BLOCK& block, bool without_means, int simdgroup) const {
    float mine = 0.0f;
    for (int begin = 0; begin < M; begin += BLOCK::STEP) {
      block.load_again(begin);
      for (int i = block.index; i < block.held(begin) * D; i += THREADS) {
        const float mean = without_means ? block.scratch[MEANS + i % D] : 0.0f;
        mine = max(mine, fabs(block.row(i / D)[i % D] - mean));
      }
    }
    return nonzero(largest_of_all(block, mine, simdgroup));
  }

  template <class BLOCK>
  METAL_FUNC void find_means(const thread BLOCK& block, int at, int simdgroup) const {
    const float top = top_of(block, false, simdgroup);
    for (int first = 0; first < M; first += BLOCK::STEP) {
      block.load_again(first);
      for (int t = block.index; t < block.held(first); t += THREADS) {
        float squares = 0.0f;
        for (int c = 0; c < D; c++) {
          const float x = block.row(t)[c] / top;
          squares += product(x, x);
        }
        block.scratch[TOKENS + first + t] = product(squares, 1.0f / float(D));
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float lengths = 0.0f;
    for (int t = 0; t < M; t++) lengths += block.scratch[TOKENS + t];
    const float shortest = product(0.01f, product(lengths, 1.0f / float(M)));
    const int d = block.index;
    float sum = 0.0f;
    float weights = 0.0f;
    for (int first = 0; first < M; first += BLOCK::STEP) {
      block.load_again(first);
      for (int t = 0; t < block.held(first) && d < D; t++) {
        const float weight = 1.0f / nonzero(max(block.scratch[TOKENS + first + t], shortest));
        sum += product(block.row(t)[d], weight);
        weights += weight;
      }
    }
    if (d < D) {
      const half mean = to_half(sum / weights);
      channel_means[at * D + d] = mean;
      block.scratch[MEANS + d] = float(mean);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }

  template <class BLOCK>
  METAL_FUNC void find_channel_scales(const thread BLOCK& block, int at, int simdgroup) const {
    const float top = top_of(block, true, simdgroup);
    const int d = block.index;
    float total = d < D ? 1.0f : 0.0f;
    for (int round = 0; round < ROUNDS; round++) {
      float squares = 0.0f;
      for (int first = 0; first < M; first += BLOCK::STEP) {
        block.load_again(first);
        for (int t = 0; t < block.held(first) && d < D; t++) {
          const float x = evened(block, block.row(t)[d], first + t, d, top, round, round);
          squares += product(x, x);
        }
      }
      if (d < D) {
        const float rms = max(sqrt(product(squares, 1.0f / float(M))), 1e-6f);
        block.scratch[CHANNELS + round * D + d] = rms;
        total = product(total, rms);
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
      // What the last round would divide tokens by is not read.
      for (int first = 0; first < M && round < ROUNDS - 1; first += BLOCK::STEP) {
        block.load_again(first);
        for (int t = block.index; t < block.held(first); t += THREADS) {
          float of_token = 0.0f;
          for (int c = 0; c < D; c++) {
            const float x =
                evened(block, block.row(t)[c], first + t, c, top, round + 1, round);
            of_token += product(x, x);
          }
          block.scratch[TOKENS + round * M + first + t] =
              max(sqrt(product(of_token, 1.0f / float(D))), 1e-6f);
        }
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    const float highest = largest_of_all(block, total, simdgroup);
    if (d < D) {
      const half scale = to_half(max(total / highest, 1.0f / 16384.0f));
      channel_scales[at * D + d] = scale;
      block.scratch[SCALES + d] = float(scale);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }

  // Code up to 32 tokens from row `part` on, which is token `token` of all blocks.
  template <class BLOCK>
  METAL_FUNC void code_tokens(const thread BLOCK& block, const device float* clips, int part,
      int count, int token, int simdgroup, int lane) const {
    SHARED_POINTER(float) y = block.row(part + lane);
    SHARED_POINTER(const float) means = block.scratch + int(MEANS);
    SHARED_POINTER(const float) scales = block.scratch + int(SCALES);
    float largest = 0.0f;
    for (int c = 0; c < D && lane < count; c++) {
      largest = max(largest, fabs((y[c] - means[c]) / scales[c]));
    }
    largest /= centre();
    if (simdgroup < CLIPS && lane < count) {
      const float step = product(largest, clips[simdgroup]);
      float error = 0.0f;
      for (int c = 0; c < D; c++) {
        const float even = (y[c] - means[c]) / scales[c];
        const float off = product(level(even, step), step) - even;
        error += product(off, off);
      }
      block.scratch[ERRORS + simdgroup * 32 + lane] = error;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (simdgroup == 0 && lane < count) {
      int best = 0;
      for (int clip = 1; clip < CLIPS; clip++) {
        const float error = block.scratch[ERRORS + clip * 32 + lane];
        if (error < block.scratch[ERRORS + best * 32 + lane]) best = clip;
      }
      const float step = product(largest, clips[best]);
      float along = 0.0f;
      float length = 0.0f;
      for (int c = 0; c < D; c++) {
        const float centred = y[c] - means[c];
        const float found = level(centred / scales[c], step);
        along += product(centred, product(found, scales[c]));
        length += product(centred, centred);
        y[c] = found + centre();
      }
      token_scales[token + lane] = to_half(unbiased(along, length));
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }

  template <class BLOCK>
  METAL_FUNC void encode(const thread BLOCK& block, const device float* numbers, int, int at,
      int simdgroup, int lane) {
    block.load_whole();
    find_means(block, at, simdgroup);
    find_channel_scales(block, at, simdgroup);
    for (int first = 0; first < M; first += BLOCK::STEP) {
      block.load_again(first);
      const int held = block.held(first);
      for (int part = 0; part < held; part += 32) {
        code_tokens(block, numbers + CLIPS_AT, part, min(32, held - part), at * M + first + part,
            simdgroup, lane);
      }
      write_words<BITS, D, THREADS>(block, held, words + (at * M + first) * WORDS);
    }
  }
};
