// How a kernel reads one block of each codec family (kvcache/codecs): as keys, a lane reads a token
// of its own; as values, a simdgroup brings 32 tokens to threadgroup memory and a lane reads runs.
//
// Every family states an element of token t and channel d as
//     channel_scale[d] * factor[t] * element + channel_offset[d]
// and the caller takes the channel's part into the query or the output and the token's into the
// score or the weight, so that only `element` is computed for each.

// The run of a token's row held in registers.
template <int BITS>
METAL_FUNC RunBits run_of_row(const thread uint* words, int run) {
  const int first = run * BITS / 4;
  return run_of_words<BITS>(words[first], run_crosses<BITS>(run) ? words[first + 1] : 0u, run);
}

// The run of a token's row in threadgroup memory.
template <int BITS>
METAL_FUNC RunBits run_of_staged(SHARED_POINTER(const uint) words, int run) {
  const int first = run * BITS / 4;
  return run_of_words<BITS>(words[first], run_crosses<BITS>(run) ? words[first + 1] : 0u, run);
}

// `count` consecutive words by one simdgroup, from a block of BLOCK_WORDS. Where that is a multiple
// of four, so are the place and the count: whole tiles of 32 tokens precede them.
template <int BLOCK_WORDS>
METAL_FUNC void stage_words(
    const device uint* from, SHARED_POINTER(uint) to, int count, uint lane) {
  if (BLOCK_WORDS % 4 == 0) {
    for (int i = int(lane) * 4; i < count; i += 128) {
      const uint4 four = *(const device uint4*)(from + i);
      to[i] = four.x;
      to[i + 1] = four.y;
      to[i + 2] = four.z;
      to[i + 3] = four.w;
    }
  } else {
    for (int i = int(lane); i < count; i += 32) to[i] = from[i];
  }
}

// q, h: a scale and a zero for each token and group of channels.
template <int BITS, int D, int M, int GROUP>
struct TokenAffine {
  enum {
    WORDS = (BITS * D + 31) / 32,
    GROUPS = D / GROUP,
    CHANNELS = 0,
    STAGED = 32 * (WORDS + 2 * GROUPS)
  };
  const device uint* words;
  const device half* scales;
  const device half* zeros;
  struct Row {
    uint words[WORDS];
    float scales[GROUPS];
    float zeros[GROUPS];
  };

  METAL_FUNC void seek(uint block) {
    words += block * uint(M * WORDS);
    scales += block * uint(M * GROUPS);
    zeros += block * uint(M * GROUPS);
  }
  METAL_FUNC float channel_scale(uint) const { return 1.0f; }
  METAL_FUNC float channel_offset(uint) const { return 0.0f; }
  METAL_FUNC void channel_runs(uint, thread float*, thread float*) const {}
  METAL_FUNC float factor(uint) const { return 1.0f; }

  METAL_FUNC void load(uint token, thread Row& row) const {
    load_words<WORDS>(words + token * uint(WORDS), row.words);
    UNROLL for (int g = 0; g < GROUPS; g++) {
      row.scales[g] = float(scales[token * uint(GROUPS) + uint(g)]);
      row.zeros[g] = float(zeros[token * uint(GROUPS) + uint(g)]);
    }
  }
  METAL_FUNC void key_run(
      const thread Row& row, int run, SHARED_POINTER(const float), thread float* out) const {
    const RunBits bits = run_of_row<BITS>(row.words, run);
    const int g = run * RUN / GROUP;
    UNROLL for (int j = 0; j < RUN; j++) {
      out[j] = float(code_of<BITS>(bits, j)) * row.scales[g] + row.zeros[g];
    }
  }

  METAL_FUNC void stage(uint first, int count, SHARED_POINTER(uint) to, uint lane) const {
    stage_words<M * WORDS>(words + first * uint(WORDS), to, count * WORDS, lane);
    if (int(lane) < count) {
      UNROLL for (int g = 0; g < GROUPS; g++) {
        const uint at = (first + lane) * uint(GROUPS) + uint(g);
        SHARED_POINTER(uint) pair = to + 32 * WORDS + (int(lane) * GROUPS + g) * 2;
        pair[0] = as_type<uint>(float(scales[at]));
        pair[1] = as_type<uint>(float(zeros[at]));
      }
    }
  }
  METAL_FUNC void value_run(SHARED_POINTER(const uint) staged, uint, int token, int run,
      SHARED_POINTER(const float), thread float* out) const {
    const RunBits bits = run_of_staged<BITS>(staged + token * WORDS, run);
    const int pair = 32 * WORDS + (token * GROUPS + run * RUN / GROUP) * 2;
    const float scale = as_type<float>(staged[pair]);
    const float zero = as_type<float>(staged[pair + 1]);
    UNROLL for (int j = 0; j < RUN; j++) out[j] = float(code_of<BITS>(bits, j)) * scale + zero;
  }
};

// kivi, hkivi: a scale and a zero for each channel of the block.
template <int BITS, int D, int M>
struct ChannelAffine {
  enum { WORDS = (BITS * D + 31) / 32, CHANNELS = 1, STAGED = 32 * WORDS };
  const device uint* words;
  const device half* scales;
  const device half* zeros;
  struct Row {
    uint words[WORDS];
  };

  METAL_FUNC void seek(uint block) {
    words += block * uint(M * WORDS);
    scales += block * uint(D);
    zeros += block * uint(D);
  }
  METAL_FUNC float channel_scale(uint channel) const { return float(scales[channel]); }
  METAL_FUNC float channel_offset(uint channel) const { return float(zeros[channel]); }
  METAL_FUNC void channel_runs(uint run, thread float* scale, thread float* offset) const {
    load_run(scales + run * RUN, scale);
    load_run(zeros + run * RUN, offset);
  }
  METAL_FUNC float factor(uint) const { return 1.0f; }

  METAL_FUNC void load(uint token, thread Row& row) const {
    load_words<WORDS>(words + token * uint(WORDS), row.words);
  }
  METAL_FUNC void key_run(
      const thread Row& row, int run, SHARED_POINTER(const float), thread float* out) const {
    const RunBits bits = run_of_row<BITS>(row.words, run);
    UNROLL for (int j = 0; j < RUN; j++) out[j] = float(code_of<BITS>(bits, j));
  }

  METAL_FUNC void stage(uint first, int count, SHARED_POINTER(uint) to, uint lane) const {
    stage_words<M * WORDS>(words + first * uint(WORDS), to, count * WORDS, lane);
  }
  METAL_FUNC void value_run(SHARED_POINTER(const uint) staged, uint, int token, int run,
      SHARED_POINTER(const float), thread float* out) const {
    const RunBits bits = run_of_staged<BITS>(staged + token * WORDS, run);
    UNROLL for (int j = 0; j < RUN; j++) out[j] = float(code_of<BITS>(bits, j));
  }
};

// turbo, turbo..u: indices of levels and a scale for each token.
template <int BITS, int D, int M>
struct Levels {
  enum { WORDS = (BITS * D + 31) / 32, CHANNELS = 0, STAGED = 32 * WORDS };
  const device uint* words;
  const device half* scales;
  struct Row {
    uint words[WORDS];
  };

  METAL_FUNC void seek(uint block) {
    words += block * uint(M * WORDS);
    scales += block * uint(M);
  }
  METAL_FUNC float channel_scale(uint) const { return 1.0f; }
  METAL_FUNC float channel_offset(uint) const { return 0.0f; }
  METAL_FUNC void channel_runs(uint, thread float*, thread float*) const {}
  METAL_FUNC float factor(uint token) const { return float(scales[token]); }

  METAL_FUNC void load(uint token, thread Row& row) const {
    load_words<WORDS>(words + token * uint(WORDS), row.words);
  }
  METAL_FUNC void key_run(
      const thread Row& row, int run, SHARED_POINTER(const float) levels, thread float* out) const {
    const RunBits bits = run_of_row<BITS>(row.words, run);
    UNROLL for (int j = 0; j < RUN; j++) out[j] = levels[code_of<BITS>(bits, j)];
  }

  METAL_FUNC void stage(uint first, int count, SHARED_POINTER(uint) to, uint lane) const {
    stage_words<M * WORDS>(words + first * uint(WORDS), to, count * WORDS, lane);
  }
  METAL_FUNC void value_run(SHARED_POINTER(const uint) staged, uint, int token, int run,
      SHARED_POINTER(const float) levels, thread float* out) const {
    const RunBits bits = run_of_staged<BITS>(staged + token * WORDS, run);
    UNROLL for (int j = 0; j < RUN; j++) out[j] = levels[code_of<BITS>(bits, j)];
  }
};

// kvarn: scales of tokens and of channels, means of channels, one symmetric grid.
template <int BITS, int D, int M>
struct KVarN {
  enum { WORDS = (BITS * D + 31) / 32, CHANNELS = 1, STAGED = 32 * WORDS };
  const device uint* words;
  const device half* token_scales;
  const device half* channel_scales;
  const device half* channel_means;
  struct Row {
    uint words[WORDS];
  };

  METAL_FUNC void seek(uint block) {
    words += block * uint(M * WORDS);
    token_scales += block * uint(M);
    channel_scales += block * uint(D);
    channel_means += block * uint(D);
  }
  METAL_FUNC float channel_scale(uint channel) const { return float(channel_scales[channel]); }
  METAL_FUNC float channel_offset(uint channel) const { return float(channel_means[channel]); }
  METAL_FUNC void channel_runs(uint run, thread float* scale, thread float* offset) const {
    load_run(channel_scales + run * RUN, scale);
    load_run(channel_means + run * RUN, offset);
  }
  METAL_FUNC float factor(uint token) const { return float(token_scales[token]); }
  METAL_FUNC float centred(const thread RunBits& bits, int index) const {
    return float(code_of<BITS>(bits, index)) - float((1 << BITS) - 1) * 0.5f;
  }

  METAL_FUNC void load(uint token, thread Row& row) const {
    load_words<WORDS>(words + token * uint(WORDS), row.words);
  }
  METAL_FUNC void key_run(
      const thread Row& row, int run, SHARED_POINTER(const float), thread float* out) const {
    const RunBits bits = run_of_row<BITS>(row.words, run);
    UNROLL for (int j = 0; j < RUN; j++) out[j] = centred(bits, j);
  }

  METAL_FUNC void stage(uint first, int count, SHARED_POINTER(uint) to, uint lane) const {
    stage_words<M * WORDS>(words + first * uint(WORDS), to, count * WORDS, lane);
  }
  METAL_FUNC void value_run(SHARED_POINTER(const uint) staged, uint, int token, int run,
      SHARED_POINTER(const float), thread float* out) const {
    const RunBits bits = run_of_staged<BITS>(staged + token * WORDS, run);
    UNROLL for (int j = 0; j < RUN; j++) out[j] = centred(bits, j);
  }
};

// f16: float16 as it is; values are read from device memory, runs of neighbours side by side.
template <int D, int M>
struct Plain {
  enum { CHANNELS = 0, STAGED = 1 };
  const device half* values;
  struct Row {
    uint token;
  };

  METAL_FUNC void seek(uint block) { values += block * uint(M * D); }
  METAL_FUNC float channel_scale(uint) const { return 1.0f; }
  METAL_FUNC float channel_offset(uint) const { return 0.0f; }
  METAL_FUNC void channel_runs(uint, thread float*, thread float*) const {}
  METAL_FUNC float factor(uint) const { return 1.0f; }

  METAL_FUNC void load(uint token, thread Row& row) const { row.token = token; }
  METAL_FUNC void key_run(
      const thread Row& row, int run, SHARED_POINTER(const float), thread float* out) const {
    load_run(values + row.token * uint(D) + uint(run * RUN), out);
  }

  METAL_FUNC void stage(uint, int, SHARED_POINTER(uint), uint) const {}
  METAL_FUNC void value_run(SHARED_POINTER(const uint), uint first, int token, int run,
      SHARED_POINTER(const float), thread float* out) const {
    load_run(values + (first + uint(token)) * uint(D) + uint(run * RUN), out);
  }
};
