// How a kernel writes one block of each codec family, step for step as kvcache/codecs does it in MLX
// operations: sums in the order of their terms and no product joined to a sum, so that codes and
// scales are the same bits where MLX adds up in that order, as it does on Linux' processors.
//
// A family says whether a block is cut to tiles of tokens, a threadgroup each, and how much
// scratch it takes, and encodes.

// q, h: a simdgroup takes a group of channels, a lane a token.
template <int BITS, int D, int M, int GROUP, int SIMDGROUPS>
struct TokenAffineEncoder {
  enum { TILED = 1, SCRATCH = 1, WORDS = (BITS * D + 31) / 32, GROUPS = D / GROUP };
  device uint* words;
  device half* scales;
  device half* zeros;

  template <class BLOCK>
  METAL_FUNC void encode(
      const thread BLOCK& block, const device float*, int tile, int at, int simdgroup, int lane) {
    const int first = tile * BLOCK::TILE;
    const int count = min(int(BLOCK::TILE), M - first);
    block.load(first, count);
    const int g = simdgroup;
    if (g < GROUPS && lane < count) {
      SHARED_POINTER(float) y = block.row(lane) + g * GROUP;
      float low = LARGEST_FLOAT;
      float high = -LARGEST_FLOAT;
      for (int c = 0; c < GROUP; c++) {
        low = min(low, y[c]);
        high = max(high, y[c]);
      }
      const float top = float((1 << BITS) - 1);
      const half zero = to_half(low);
      const half scale = to_half((high - float(zero)) / top);
      const int place = (at * M + first + lane) * GROUPS + g;
      zeros[place] = zero;
      scales[place] = scale;
      const float step = nonzero(float(scale));
      for (int c = 0; c < GROUP; c++) {
        y[c] = min(max(rint((y[c] - float(zero)) / step), 0.0f), top);
      }
    }
    write_words<BITS, D, 32 * SIMDGROUPS>(block, count, words + (at * M + first) * WORDS);
  }
};

// kivi, hkivi: a thread takes a channel and walks the tokens.
template <int BITS, int D, int M, int SIMDGROUPS>
struct ChannelAffineEncoder {
  enum { TILED = 0, SCRATCH = 1, WORDS = (BITS * D + 31) / 32 };
  device uint* words;
  device half* scales;
  device half* zeros;

  METAL_FUNC float code(float y, float low, float step) const {
    return rint((y - low) / step);
  }

  template <class BLOCK>
  METAL_FUNC void encode(
      const thread BLOCK& block, const device float*, int, int at, int, int) {
    const int d = block.index;
    const int held = d < D ? M : 0;  // tokens that this thread walks
    float low = LARGEST_FLOAT;
    float high = -LARGEST_FLOAT;
    float sum = 0.0f;
    block.load_whole();
    for (int first = 0; first < M; first += BLOCK::STEP) {
      block.load_again(first);
      for (int t = 0; t < min(block.held(first), held); t++) {
        const float y = block.row(t)[d];
        low = min(low, y);
        high = max(high, y);
        sum += y;
      }
    }
    const float step = nonzero((high - low) / float((1 << BITS) - 1));
    float code_sum = 0.0f;
    for (int first = 0; first < M; first += BLOCK::STEP) {
      block.load_again(first);
      for (int t = 0; t < min(block.held(first), held); t++) {
        code_sum += code(block.row(t)[d], low, step);
      }
    }
    const float mean = product(sum, 1.0f / float(M));
    const float code_mean = product(code_sum, 1.0f / float(M));
    float along = 0.0f;
    float length = 0.0f;
    for (int first = 0; first < M; first += BLOCK::STEP) {
      block.load_again(first);
      for (int t = 0; t < min(block.held(first), held); t++) {
        const float y = block.row(t)[d];
        const float found = code(y, low, step);
        along += product(y - mean, found - code_mean);
        length += product(y - mean, y - mean);
        block.row(t)[d] = found;
      }
      write_words<BITS, D, 32 * SIMDGROUPS>(
          block, block.held(first), words + (at * M + first) * WORDS);
    }
    if (d < D) {
      const half scale = to_half(unbiased(along, length));
      scales[at * D + d] = scale;
      zeros[at * D + d] = to_half(mean - product(float(scale), code_mean));
    }
  }
};

// Of the levels of one width: the nearest to x, and its code.
template <int BITS>
struct Nearest {
  float level;
  float code;

  METAL_FUNC void find(float x, const thread float* levels, const thread float* middles) {
    level = levels[0];
    code = 0.0f;
    UNROLL for (int i = 0; i < (1 << BITS) - 1; i++) {
      const bool above = x > middles[i];
      level = above ? levels[i + 1] : level;
      code += above ? 1.0f : 0.0f;
    }
  }
};

// turbo, turbo..u: a lane takes a token; where there are clips to try, a simdgroup each.
//
// numbers: levels, the middles between them, clips.
template <int BITS, int D, int M, int CLIPS, int SIMDGROUPS>
struct LevelsEncoder {
  enum { TILED = 1, SEARCHED = CLIPS > 0, WORDS = (BITS * D + 31) / 32, COUNT = 1 << BITS };
  enum { SCRATCH = SEARCHED ? 32 * CLIPS : 1 };
  device uint* words;
  device half* scales;

  template <class BLOCK>
  METAL_FUNC void encode(const thread BLOCK& block, const device float* numbers, int tile, int at,
      int simdgroup, int lane) {
    const int first = tile * BLOCK::TILE;
    const int count = min(int(BLOCK::TILE), M - first);
    float levels[COUNT];
    float middles[COUNT];
    UNROLL for (int i = 0; i < COUNT; i++) {
      levels[i] = numbers[i];
      middles[i] = numbers[MIDDLES + i];
    }
    block.load(first, count);
    SHARED_POINTER(float) y = block.row(lane);
    float largest = 0.0f;
    float squares = 0.0f;
    if (lane < count) {
      for (int c = 0; c < D; c++) {
        largest = max(largest, fabs(y[c]));
        squares += product(y[c], y[c]);
      }
    }
    largest /= levels[COUNT - 1];
    const device float* clips = numbers + CLIPS_AT;
    Nearest<BITS> nearest;
    if (simdgroup < CLIPS && lane < count) {
      const float scale = product(largest, clips[simdgroup]);
      float error = 0.0f;
      for (int c = 0; c < D; c++) {
        nearest.find(y[c] / nonzero(scale), levels, middles);
        const float off = product(nearest.level, scale) - y[c];
        error += product(off, off);
      }
      block.scratch[simdgroup * 32 + lane] = error;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (simdgroup == 0 && lane < count) {
      const float norm = sqrt(squares);
      float scale = sqrt(float(D)) / max(norm, 1e-30f);
      if (SEARCHED) {
        int best = 0;
        for (int clip = 1; clip < CLIPS; clip++) {
          if (block.scratch[clip * 32 + lane] < block.scratch[best * 32 + lane]) best = clip;
        }
        scale = nonzero(product(largest, clips[best]));
      }
      float along = 0.0f;
      float level_squares = 0.0f;
      for (int c = 0; c < D; c++) {
        nearest.find(SEARCHED ? y[c] / scale : product(y[c], scale), levels, middles);
        along += product(y[c], nearest.level);
        level_squares += product(nearest.level, nearest.level);
        y[c] = nearest.code;
      }
      scales[at * M + first + lane] =
          to_half(SEARCHED ? unbiased(along, squares) : norm / sqrt(level_squares));
    }
    write_words<BITS, D, 32 * SIMDGROUPS>(block, count, words + (at * M + first) * WORDS);
  }
};

// f16: float16 as it is.
template <int D, int M, int SIMDGROUPS>
struct UnencodedEncoder {
  enum { TILED = 1, SCRATCH = 1 };
  device half* values;

  template <class BLOCK>
  METAL_FUNC void encode(
      const thread BLOCK& block, const device float*, int tile, int at, int, int) {
    const int first = tile * BLOCK::TILE;
    const int count = min(int(BLOCK::TILE), M - first);
    block.load(first, count);
    for (int i = block.index; i < count * D; i += 32 * SIMDGROUPS) {
      values[(at * M + first) * D + i] = to_half(block.row(i / D)[i % D]);
    }
  }
};
