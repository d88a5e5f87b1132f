// How a kernel reads one block of each codec family (kvcache/codecs). 32 tokens at a time come to
// threadgroup memory, each word loaded once beside its neighbours by the `workers` lanes of one
// team: keys word by word, so that a lane then reads a token of its own; values token by token, so
// that lanes then read runs of channels. The tokens' numbers lie behind the words, number by number.
//
// Every family states an element of token t and channel d as
//     channel_scale[d] * factor[t] * element + channel_offset[d]
// and the caller takes the channel's part into the query or the output and the token's into the
// score or the weight, so that only `element` is computed for each.

// WORDS of each of 32 tokens, word by word. Neither the lanes that write some words of some tokens
// nor those that read one word of 32 meet in a bank.
template <int WORDS>
struct Columns {
  enum { STRIDE = 32 + (32 + WORDS - 1) / WORDS, SIZE = WORDS * STRIDE };
};

// `tokens` rows of WORDS, from `from` to columns.
template <int WORDS, int WORKERS>
METAL_FUNC void stage_columns(
    const device uint* from, SHARED_POINTER(uint) to, int tokens, uint worker) {
  enum {
    WIDE = WORDS % 4 == 0 ? 4 : WORDS % 2 == 0 ? 2 : 1,
    UNITS = WORDS / WIDE,
    EACH = (32 * UNITS + WORKERS - 1) / WORKERS,
    AT_ONCE = EACH < 8 / WIDE ? EACH : 8 / WIDE
  };
  for (int begin = int(worker); begin < tokens * UNITS; begin += AT_ONCE * WORKERS) {
    uint some[AT_ONCE * WIDE];
    UNROLL for (int k = 0; k < AT_ONCE; k++) {
      const int unit = begin + k * WORKERS;
      if (unit < tokens * UNITS) load_words<WIDE>(from + unit * WIDE, some + k * WIDE);
    }
    UNROLL for (int k = 0; k < AT_ONCE; k++) {
      const int unit = begin + k * WORKERS;
      if (unit >= tokens * UNITS) continue;
      SHARED_POINTER(uint) column = to + unit % UNITS * WIDE * Columns<WORDS>::STRIDE + unit / UNITS;
      UNROLL for (int i = 0; i < WIDE; i++) column[i * Columns<WORDS>::STRIDE] = some[k * WIDE + i];
    }
  }
}

// `count` consecutive words, from a block of BLOCK_WORDS. Where that is a multiple of four, so are
// the place and the count: whole tiles of 32 tokens precede them.
template <int BLOCK_WORDS, int MOST, int WORKERS>
METAL_FUNC void stage_rows(
    const device uint* from, SHARED_POINTER(uint) to, int count, uint worker) {
  enum {
    WIDE = BLOCK_WORDS % 4 == 0 ? 4 : 1,
    EACH = (MOST / WIDE + WORKERS - 1) / WORKERS,
    AT_ONCE = EACH < 8 / WIDE ? EACH : 8 / WIDE
  };
  for (int begin = int(worker) * WIDE; begin < count; begin += AT_ONCE * WORKERS * WIDE) {
    uint some[AT_ONCE * WIDE];
    UNROLL for (int k = 0; k < AT_ONCE; k++) {
      const int at = begin + k * WORKERS * WIDE;
      if (at < count) load_words<WIDE>(from + at, some + k * WIDE);
    }
    UNROLL for (int k = 0; k < AT_ONCE; k++) {
      const int at = begin + k * WORKERS * WIDE;
      if (at < count) store_words<WIDE>(some + k * WIDE, to + at);
    }
  }
}

// What the channels of a block say, as it is held: D / 2 words of scales, D / 2 of offsets.
template <int D, int WORKERS, class FAMILY>
METAL_FUNC void stage_channels(
    const thread FAMILY& family, SHARED_POINTER(uint) to, uint worker) {
  ROLLED for (int i = int(worker); i < D / 2; i += WORKERS) {
    to[i] = ((const device uint*)family.channel(0))[i];
    to[D / 2 + i] = ((const device uint*)family.channel(1))[i];
  }
}

// Number d of those that stage_channels brought.
METAL_FUNC float channel_number(SHARED_POINTER(const uint) words, int d) {
  const float2 pair = both_halves(words[d / 2], half(0));
  return d % 2 ? pair.y : pair.x;
}

template <int WORKERS, class FAMILY>
METAL_FUNC void stage_numbers(const thread FAMILY& family, uint first, int count,
    SHARED_POINTER(uint) to, uint worker) {
  if (int(worker) < count) {
    UNROLL for (int i = 0; i < FAMILY::NUMBERS; i++) {
      to[i * 32 + int(worker)] = as_type<uint>(family.number(first + worker, i));
    }
  }
}

// RUNS of a key that a lane takes at a time: their codes fill words. And where the numbers of 32
// tokens of keys and of values are, and the words that all of it takes: some fours of them, at
// least one.
template <class FAMILY>
struct Tile {
  enum {
    RUNS = FAMILY::BITS % 2 ? 4 : 2,
    KEY_NUMBERS = Columns<FAMILY::WORDS>::SIZE,
    KEY_STAGED = (KEY_NUMBERS + 3) / 4 * 4 + 32 * FAMILY::NUMBERS,
    VALUE_NUMBERS = FAMILY::STAGES_VALUES ? 32 * FAMILY::WORDS : 4,
    VALUE_STAGED = VALUE_NUMBERS + 32 * FAMILY::NUMBERS
  };
};

// Tokens of a block from `first`, up to 32 of them.
template <int WORKERS, class FAMILY>
METAL_FUNC void stage_keys(const thread FAMILY& keys, uint first, int count,
    SHARED_POINTER(uint) to, uint worker) {
  stage_columns<FAMILY::WORDS, WORKERS>(keys.row(first), to, count, worker);
  stage_numbers<WORKERS>(keys, first, count, to + Tile<FAMILY>::KEY_NUMBERS, worker);
}

template <int WORKERS, class FAMILY>
METAL_FUNC void stage_values(const thread FAMILY& values, uint first, int count,
    SHARED_POINTER(uint) to, uint worker) {
  if (FAMILY::STAGES_VALUES) {
    stage_rows<FAMILY::BLOCK_WORDS, 32 * FAMILY::WORDS, WORKERS>(
        values.row(first), to, count * FAMILY::WORDS, worker);
  }
  stage_numbers<WORKERS>(values, first, count, to + Tile<FAMILY>::VALUE_NUMBERS, worker);
}

// Run `i` of some of a staged token, which is `run` of all. staged, numbers: of that token and, the
// first, from the first of those runs.
template <class FAMILY>
METAL_FUNC void key_run(const thread FAMILY& keys, SHARED_POINTER(const uint) staged,
    SHARED_POINTER(const uint) numbers, int i, int run, SHARED_POINTER(const float) levels,
    thread float* out) {
  enum { STRIDE = Columns<FAMILY::WORDS>::STRIDE };
  const int first = i * FAMILY::BITS / 4;
  const uint next = run_crosses<FAMILY::BITS>(i) ? staged[(first + 1) * STRIDE] : 0u;
  keys.elements(
      run_of_words<FAMILY::BITS>(staged[first * STRIDE], next, i), numbers, run, levels, out);
}

// A run of token `first` + `token` of the block.
template <class FAMILY>
METAL_FUNC void value_run(const thread FAMILY& values, SHARED_POINTER(const uint) staged, uint,
    int token, int run, SHARED_POINTER(const float) levels, thread float* out) {
  SHARED_POINTER(const uint) words = staged + token * FAMILY::WORDS + run * FAMILY::BITS / 4;
  const uint next = run_crosses<FAMILY::BITS>(run) ? words[1] : 0u;
  values.elements(run_of_words<FAMILY::BITS>(words[0], next, run),
      staged + Tile<FAMILY>::VALUE_NUMBERS + token, run, levels, out);
}

// Queries [ROWS, D] of one simdgroup as they meet a block: the channels' scales go into them, the
// channels' offsets into a bias of each row.
template <int ROWS, int D>
METAL_FUNC void fold(SHARED_POINTER(const float4) queries, SHARED_POINTER(const uint) channels,
    SHARED_POINTER(float4) folded, SHARED_POINTER(float) biases, uint lane) {
  ROLLED for (int r = 0; r < ROWS; r++) {
    float bias = 0.0f;
    ROLLED for (int d = int(lane); d < D; d += 32) {
      const float query = ((SHARED_POINTER(const float))queries)[r * D + d];
      bias += query * channel_number(channels, D + d);
      ((SHARED_POINTER(float))folded)[r * D + d] = query * channel_number(channels, d);
    }
    bias = simd_sum(bias);
    if (lane == 0u) biases[r] = bias;
  }
}

// q, h: a scale and a zero for each token and group of channels.
template <int BITS_EACH, int D, int M, int GROUP>
struct TokenAffine {
  enum {
    BITS = BITS_EACH,
    WORDS = (BITS * D + 31) / 32,
    BLOCK_WORDS = M * WORDS,
    GROUPS = D / GROUP,
    NUMBERS = 2 * GROUPS,
    CHANNELS = 0,
    STAGES_VALUES = 1
  };
  const device uint* words;
  const device half* scales;
  const device half* zeros;

  METAL_FUNC void seek(uint block) {
    words += block * uint(M * WORDS);
    scales += block * uint(M * GROUPS);
    zeros += block * uint(M * GROUPS);
  }
  METAL_FUNC const device uint* row(uint token) const { return words + token * uint(WORDS); }
  METAL_FUNC const device half* channel(int) const { return scales; }
  METAL_FUNC float number(uint token, int i) const {
    return float((i % 2 ? zeros : scales)[token * uint(GROUPS) + uint(i / 2)]);
  }
  METAL_FUNC float factor(SHARED_POINTER(const uint)) const { return 1.0f; }
  METAL_FUNC void elements(RunBits bits, SHARED_POINTER(const uint) numbers, int run,
      SHARED_POINTER(const float), thread float* out) const {
    const int pair = run * RUN / GROUP * 64;
    const float scale = as_type<float>(numbers[pair]);
    const float zero = as_type<float>(numbers[pair + 32]);
    UNROLL for (int j = 0; j < RUN; j++) out[j] = float(code_of<BITS>(bits, j)) * scale + zero;
  }
};

// kivi, hkivi: a scale and a zero for each channel of the block.
template <int BITS_EACH, int D, int M>
struct ChannelAffine {
  enum {
    BITS = BITS_EACH,
    WORDS = (BITS * D + 31) / 32,
    BLOCK_WORDS = M * WORDS,
    NUMBERS = 0,
    CHANNELS = 1,
    STAGES_VALUES = 1
  };
  const device uint* words;
  const device half* scales;
  const device half* zeros;

  METAL_FUNC void seek(uint block) {
    words += block * uint(M * WORDS);
    scales += block * uint(D);
    zeros += block * uint(D);
  }
  METAL_FUNC const device uint* row(uint token) const { return words + token * uint(WORDS); }
  METAL_FUNC const device half* channel(int part) const { return part ? zeros : scales; }
  METAL_FUNC float number(uint, int) const { return 0.0f; }
  METAL_FUNC float factor(SHARED_POINTER(const uint)) const { return 1.0f; }
  METAL_FUNC void elements(RunBits bits, SHARED_POINTER(const uint), int,
      SHARED_POINTER(const float), thread float* out) const {
    UNROLL for (int j = 0; j < RUN; j++) out[j] = float(code_of<BITS>(bits, j));
  }
};

// turbo, turbo..u: indices of levels and a scale for each token.
template <int BITS_EACH, int D, int M>
struct Levels {
  enum {
    BITS = BITS_EACH,
    WORDS = (BITS * D + 31) / 32,
    BLOCK_WORDS = M * WORDS,
    NUMBERS = 1,
    CHANNELS = 0,
    STAGES_VALUES = 1
  };
  const device uint* words;
  const device half* scales;

  METAL_FUNC void seek(uint block) {
    words += block * uint(M * WORDS);
    scales += block * uint(M);
  }
  METAL_FUNC const device uint* row(uint token) const { return words + token * uint(WORDS); }
  METAL_FUNC const device half* channel(int) const { return scales; }
  METAL_FUNC float number(uint token, int) const { return float(scales[token]); }
  METAL_FUNC float factor(SHARED_POINTER(const uint) numbers) const {
    return as_type<float>(numbers[0]);
  }
  METAL_FUNC void elements(RunBits bits, SHARED_POINTER(const uint), int,
      SHARED_POINTER(const float) levels, thread float* out) const {
    UNROLL for (int j = 0; j < RUN; j++) out[j] = levels[code_of<BITS>(bits, j)];
  }
};

// kvarn: scales of tokens and of channels, means of channels, one symmetric grid.
template <int BITS_EACH, int D, int M>
struct KVarN {
  enum {
    BITS = BITS_EACH,
    WORDS = (BITS * D + 31) / 32,
    BLOCK_WORDS = M * WORDS,
    NUMBERS = 1,
    CHANNELS = 1,
    STAGES_VALUES = 1
  };
  const device uint* words;
  const device half* token_scales;
  const device half* channel_scales;
  const device half* channel_means;

  METAL_FUNC void seek(uint block) {
    words += block * uint(M * WORDS);
    token_scales += block * uint(M);
    channel_scales += block * uint(D);
    channel_means += block * uint(D);
  }
  METAL_FUNC const device uint* row(uint token) const { return words + token * uint(WORDS); }
  METAL_FUNC const device half* channel(int part) const {
    return part ? channel_means : channel_scales;
  }
  METAL_FUNC float number(uint token, int) const { return float(token_scales[token]); }
  METAL_FUNC float factor(SHARED_POINTER(const uint) numbers) const {
    return as_type<float>(numbers[0]);
  }
  METAL_FUNC void elements(RunBits bits, SHARED_POINTER(const uint), int,
      SHARED_POINTER(const float), thread float* out) const {
    const float middle = float((1 << BITS) - 1) * 0.5f;
    UNROLL for (int j = 0; j < RUN; j++) out[j] = float(code_of<BITS>(bits, j)) - middle;
  }
};

// f16: the numbers themselves. Their runs lie side by side, and values are read where they are.
template <int D, int M>
struct Unencoded {
  enum {
    BITS = 16,
    WORDS = D / 2,
    BLOCK_WORDS = M * WORDS,
    NUMBERS = 0,
    CHANNELS = 0,
    STAGES_VALUES = 0
  };
  const device half* values;

  METAL_FUNC void seek(uint block) { values += block * uint(M * D); }
  METAL_FUNC const device uint* row(uint token) const {
    return (const device uint*)(values + token * uint(D));
  }
  METAL_FUNC const device half* channel(int) const { return values; }
  METAL_FUNC float number(uint, int) const { return 1.0f; }
  METAL_FUNC float factor(SHARED_POINTER(const uint)) const { return 1.0f; }
};

template <int D, int M>
METAL_FUNC void key_run(const thread Unencoded<D, M>&, SHARED_POINTER(const uint) staged,
    SHARED_POINTER(const uint), int i, int, SHARED_POINTER(const float), thread float* out) {
  UNROLL for (int j = 0; j < RUN / 2; j++) {
    const uint word = staged[(i * RUN / 2 + j) * Columns<D / 2>::STRIDE];
    const float2 pair = both_halves(word, half(0));
    out[2 * j] = pair.x;
    out[2 * j + 1] = pair.y;
  }
}

template <int D, int M>
METAL_FUNC void value_run(const thread Unencoded<D, M>& values, SHARED_POINTER(const uint),
    uint first, int token, int run, SHARED_POINTER(const float), thread float* out) {
  load_run(values.values + (first + uint(token)) * uint(D) + uint(run * RUN), out);
}
