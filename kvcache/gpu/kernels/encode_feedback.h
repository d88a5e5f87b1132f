// How a kernel writes a block of hkivi or kivi keys with error feedback, step for step as
// kvcache/codecs/affine.py.
//
// Channels are coded one after the other, in an order of the KV head's own, each over all tokens of
// the block; what a channel lost is taken from the later ones. Numbers lie in registers: SHARERS
// threads have a token, and take its runs of RUN channels in turn. Those of the run that is coded
// come to threadgroup memory, where one simdgroup, whose lanes have EACH tokens, goes through its
// channels, and leaves there what they lost. Then every thread takes this from its later runs.
//
// order [D]: the channels as they are coded. weights [D, D], in that order: how much of what one
// lost each later one is given. numbers: of a channel's span, what a step of the codes is.
//
// Scratch: two runs, of which one is coded while the other is read, and two numbers of each token;
// columns have a few zeros after the tokens. Codes take the place of the tokens, a byte each.
template <int BITS, int D, int M, int SIMDGROUPS>
struct FeedbackEncoder {
  enum { TILED = 0, THREADS = 32 * SIMDGROUPS, WORDS = (BITS * D + 31) / 32, RUNS = D / RUN };
  enum { SHARERS = THREADS / M < RUNS ? THREADS / M : RUNS, OWN = (RUNS + SHARERS - 1) / SHARERS };
  enum { EACH = (M + 31) / 32, COLUMN = (M + 3) / 4 * 4, SUMS = 2 * RUN * COLUMN };
  enum { SCRATCH = SUMS + 2 * COLUMN };
  device uint* words;
  device half* scales;
  device half* zeros;
  const device int* order;
  const device float* weights;

  METAL_FUNC float top() const { return float((1 << BITS) - 1); }

  // The sum of a column in the order of the tokens.
  METAL_FUNC float sum_of(SHARED_POINTER(const float4) column) const {
    float sum = 0.0f;
    for (int i = 0; i < COLUMN / 4; i++) {
      const float4 four = column[i];
      sum += four.x;
      sum += four.y;
      sum += four.z;
      sum += four.w;
    }
    return sum;
  }

  // A channel's codes for its column y, in whose place comes what these lose.
  METAL_FUNC void code_channel(SHARED_POINTER(float) y, SHARED_POINTER(float) sums, float span,
      SHARED_POINTER(uchar) codes, device half* scale_of_channel, device half* zero_of_channel,
      int lane) const {
    float given[EACH];
    float code[EACH];
    float low = LARGEST_FLOAT;
    float high = -LARGEST_FLOAT;
    UNROLL for (int k = 0; k < EACH; k++) {
      const int t = lane + 32 * k;
      given[k] = t < M ? y[t] : y[0];
      low = min(low, given[k]);
      high = max(high, given[k]);
    }
    low = -simd_max(-low);
    high = simd_max(high);
    const float step = nonzero(product(high - low, span));
    const float middle = low + product(high - low, 0.5f);
    float code_sum = 0.0f;  // of whole numbers, in any order
    UNROLL for (int k = 0; k < EACH; k++) {
      const float found = rint((given[k] - middle) / step + 0.5f * top());
      code[k] = min(max(found, 0.0f), top());
      code_sum += lane + 32 * k < M ? code[k] : 0.0f;
    }
    const float code_mean = product(simd_sum(code_sum), 1.0f / float(M));
    const float mean = product(sum_of((SHARED_POINTER(const float4))y), 1.0f / float(M));
    UNROLL for (int k = 0; k < EACH; k++) {
      const int t = lane + 32 * k;
      given[k] -= mean;
      const float centred = code[k] - code_mean;
      if (t < M) {
        codes[t * D] = uchar(code[k]);
        sums[t] = product(given[k], given[k]);
        sums[COLUMN + t] = product(given[k], centred);
      }
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    const float sum = sum_of((SHARED_POINTER(const float4))(sums + lane % 2 * COLUMN));
    const float length = of_lane(sum, 0u);
    const float along = of_lane(sum, 1u);
    const float wide = unbiased(along, length);
    UNROLL for (int k = 0; k < EACH; k++) {
      const int t = lane + 32 * k;
      if (t < M) y[t] = given[k] - product(wide, code[k] - code_mean);
    }
    if (lane == 0) {
      const half scale = to_half(wide);
      *scale_of_channel = scale;
      *zero_of_channel = to_half(mean - product(float(scale), code_mean));
    }
  }

  // The channels of a run [RUN, COLUMN], which begins at `first` of the order.
  METAL_FUNC void code_run(int first, SHARED_POINTER(float) run, SHARED_POINTER(float) sums,
      float span, SHARED_POINTER(uchar) codes, int at, int lane) const {
    ROLLED for (int i = 0; i < RUN; i++) {
      const int channel = order[first + i];
      code_channel(run + i * COLUMN, sums, span, codes + channel, scales + at * D + channel,
          zeros + at * D + channel, lane);
      const device float* row = weights + (first + i) * D + first;
      ROLLED for (int j = i + 1; j < RUN; j++) {
        const float weight = row[j];
        UNROLL for (int k = 0; k < EACH; k++) {
          const int t = lane + 32 * k;
          if (t < M) run[j * COLUMN + t] -= product(run[i * COLUMN + t], weight);
        }
      }
      simdgroup_barrier(mem_flags::mem_threadgroup);
    }
  }

  template <class BLOCK>
  METAL_FUNC void encode(const thread BLOCK& block, const device float* numbers, int, int at,
      int simdgroup, int lane) {
    const int sharer = block.index / M;
    const int token = sharer < SHARERS ? block.index % M : M;
    int next = sharer < SHARERS ? sharer : RUNS;  // of this thread's runs, the first in `held`
    float held[OWN * RUN];
    for (int i = block.index; i < SCRATCH; i += THREADS) block.scratch[i] = 0.0f;
    for (int first = 0; first < M; first += BLOCK::STEP) {
      block.load(first);
      if (token < first || token >= first + block.held(first)) continue;
      UNROLL for (int i = 0; i < OWN * RUN; i++) {
        const int place = (i / RUN * SHARERS + sharer) * RUN + i % RUN;
        if (place < D) held[i] = block.row(token - first)[order[place]];
      }
    }
    SHARED_POINTER(uchar) codes = (SHARED_POINTER(uchar))block.rows;
    ROLLED for (int run = 0; run < RUNS; run++) {
      SHARED_POINTER(float) coded = block.scratch + run % 2 * (RUN * COLUMN);
      if (next == run) {
        UNROLL for (int i = 0; i < RUN; i++) coded[i * COLUMN + token] = held[i];
        UNROLL for (int i = RUN; i < OWN * RUN; i++) held[i - RUN] = held[i];
        next += SHARERS;
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
      if (simdgroup == 0) {
        code_run(run * RUN, coded, block.scratch + SUMS, numbers[0], codes, at, lane);
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
      if (next < RUNS) take_lost(coded + token, weights + run * RUN * D, next, held);
    }
    for (int i = block.index; i < M * WORDS; i += THREADS) {
      words[at * M * WORDS + i] = word_of_codes<BITS, D>(codes + i / WORDS * D, i % WORDS);
    }
  }

  // Take from a token's runs, from `next` on, what RUN channels lost of it, by their rows of weights.
  METAL_FUNC void take_lost(SHARED_POINTER(const float) lost, const device float* rows, int next,
      thread float* held) const {
    ROLLED for (int i = 0; i < RUN; i++) {
      const float off = lost[i * COLUMN];
      UNROLL for (int r = 0; r < OWN; r++) {
        const int run = next + r * SHARERS;
        if (run >= RUNS) continue;
        float row[RUN];
        load_run<RUN>(rows + i * D + run * RUN, row);
        UNROLL for (int j = 0; j < RUN; j++) held[r * RUN + j] -= product(off, row[j]);
      }
    }
  }
};
