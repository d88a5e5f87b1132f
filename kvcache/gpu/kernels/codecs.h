// How a kernel reads one block of each codec family (kvcache/codecs). TILE tokens at a time come to
// threadgroup memory, each word loaded once beside its neighbours by the `workers` lanes of one
// team: keys word by word, so that a lane then reads a token of its own; values token by token, so
// that lanes then read slices of channels. The tokens' numbers lie behind the words, one by one.
//
// Every family states an element of token t and channel d as
//     channel_scale[d] * factor[t] * element + channel_offset[d]
// of which `element` is what a code says by itself. The caller adds what the channel says, where a
// family has such numbers (CHANNELS), or else takes the factor into the score or the weight.

#define KEY_CODES 16  // of a key that a lane takes at a time
#define KEY_RUN 4     // of them, when they meet the queries

// WORDS of each of TILE tokens, word by word. Neither the lanes that write some words of some
// tokens nor those that read one word of 32 meet in a bank.
template <int WORDS, int TILE>
struct Columns {
  enum { STRIDE = TILE + (32 + WORDS - 1) / WORDS };
};

// `tokens` rows of WORDS, from `from` to columns.
template <int WORDS, int TILE, int WORKERS>
METAL_FUNC void stage_columns(
    const device uint* from, SHARED_POINTER(uint) to, int tokens, uint worker) {
  enum {
    WIDE = WORDS % 4 == 0 ? 4 : WORDS % 2 == 0 ? 2 : 1,
    UNITS = WORDS / WIDE,
    STRIDE = Columns<WORDS, TILE>::STRIDE,
    EACH = (TILE * UNITS + WORKERS - 1) / WORKERS,
    AT_ONCE = EACH < TILE / 8 / WIDE ? EACH : TILE / 8 / WIDE
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
      SHARED_POINTER(uint) column = to + unit % UNITS * WIDE * STRIDE + unit / UNITS;
      UNROLL for (int i = 0; i < WIDE; i++) column[i * STRIDE] = some[k * WIDE + i];
    }
  }
}

// `count` consecutive words, of tokens of WORDS, from a block of BLOCK_WORDS. Where that is a
// multiple of four, so are the place and the count: whole tiles precede them.
template <int BLOCK_WORDS, int WORDS, int TILE, int WORKERS>
METAL_FUNC void stage_rows(
    const device uint* from, SHARED_POINTER(uint) to, int count, uint worker) {
  enum {
    WIDE = BLOCK_WORDS % 4 == 0 ? 4 : 1,
    EACH = (TILE * WORDS / WIDE + WORKERS - 1) / WORKERS,
    AT_ONCE = EACH < TILE / 8 / WIDE ? EACH : TILE / 8 / WIDE
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

// Where code `index` of some from the beginning of a word may stay while it becomes a number: so
// many bits above the beginning of its word. One that lies in two words is moved.
template <int BITS>
METAL_FUNC int place_of_code(int index) {
  const int at = index * BITS % 32;
  return at + BITS <= 32 ? at : 0;
}

// What the channels of a block say: D scales, then D offsets. BITS: of the codes, where these stay
// in their places among KEY_CODES, which the scales take back; or 0.
template <int D, int BITS, int WORKERS, class FAMILY>
METAL_FUNC void stage_channels(
    const thread FAMILY& family, SHARED_POINTER(float4) channels, uint worker) {
  ROLLED for (int d = int(worker) * 4; d < D; d += WORKERS * 4) {
    float scales[4];
    float offsets[4];
    load_run<4>(family.channel(0) + d, scales);
    load_run<4>(family.channel(1) + d, offsets);
    UNROLL for (int j = 0; j < 4; j++) {
      const int place = place_of_code<BITS>((d + j) % KEY_CODES);
      scales[j] *= as_type<float>(uint(127 - place) << 23);
    }
    channels[d / 4] = float4(scales[0], scales[1], scales[2], scales[3]);
    channels[(D + d) / 4] = float4(offsets[0], offsets[1], offsets[2], offsets[3]);
  }
}

// Four elements, from `channel` on, as the numbers that they stand for.
template <int D>
METAL_FUNC void with_channels(
    SHARED_POINTER(const float4) channels, int channel, float factor, thread float* elements) {
  const float4 scales = channels[channel / 4];
  const float4 offsets = channels[(D + channel) / 4];
  elements[0] = elements[0] * factor * scales.x + offsets.x;
  elements[1] = elements[1] * factor * scales.y + offsets.y;
  elements[2] = elements[2] * factor * scales.z + offsets.z;
  elements[3] = elements[3] * factor * scales.w + offsets.w;
}

template <int TILE, int WORKERS, class FAMILY>
METAL_FUNC void stage_numbers(const thread FAMILY& family, uint first, int count,
    SHARED_POINTER(uint) to, uint worker) {
  if (FAMILY::NUMBERS == 0) return;
  for (int token = int(worker); token < count; token += WORKERS) {
    UNROLL for (int i = 0; i < FAMILY::NUMBERS; i++) {
      to[i * TILE + token] = as_type<uint>(family.number(first + uint(token), i));
    }
  }
}

// Where the numbers of TILE tokens of keys and of values are, and the words that all of it takes:
// some fours of them. Behind the words of either is one that may be looked at with the last.
template <class FAMILY, int TILE>
struct Tile {
  enum {
    KEY_NUMBERS = (FAMILY::WORDS + 1) * Columns<FAMILY::WORDS, TILE>::STRIDE,
    KEY_STAGED = (KEY_NUMBERS + 3) / 4 * 4 + TILE * FAMILY::NUMBERS,
    VALUE_NUMBERS = (FAMILY::STAGES_VALUES ? TILE * FAMILY::WORDS : 0) + 4,
    VALUE_STAGED = VALUE_NUMBERS + TILE * FAMILY::NUMBERS
  };
};

// Tokens of a block from `first`, up to TILE of them.
template <int TILE, int WORKERS, class FAMILY>
METAL_FUNC void stage_keys(const thread FAMILY& keys, uint first, int count,
    SHARED_POINTER(uint) to, uint worker) {
  stage_columns<FAMILY::WORDS, TILE, WORKERS>(keys.row(first), to, count, worker);
  stage_numbers<TILE, WORKERS>(keys, first, count, to + Tile<FAMILY, TILE>::KEY_NUMBERS, worker);
}

template <int TILE, int WORKERS, class FAMILY>
METAL_FUNC void stage_values(const thread FAMILY& values, uint first, int count,
    SHARED_POINTER(uint) to, uint worker) {
  if (FAMILY::STAGES_VALUES) {
    stage_rows<FAMILY::BLOCK_WORDS, FAMILY::WORDS, TILE, WORKERS>(
        values.row(first), to, count * FAMILY::WORDS, worker);
  }
  stage_numbers<TILE, WORKERS>(
      values, first, count, to + Tile<FAMILY, TILE>::VALUE_NUMBERS, worker);
}

// What a code is as an element, `unit` times, where the code is so many times too large.
template <class FAMILY>
METAL_FUNC float element_of_code(const thread FAMILY&, uint code, float) {
  return float(code);
}

// KEY_RUN channels of a staged token, from `channel`, which is number `i` of the KEY_CODES in `words`.
// level: this lane's of the table.
template <int TILE, class FAMILY>
METAL_FUNC void key_run(const thread FAMILY& keys, const thread uint* words,
    SHARED_POINTER(const uint) numbers, int channel, int i, float level, thread float* out) {
  enum { BITS = FAMILY::BITS };
  if (FAMILY::CHANNELS) {
    UNROLL for (int j = 0; j < KEY_RUN; j++) {
      const int at = (i + j) * BITS;
      const int place = place_of_code<BITS>(i + j);
      const uint bits = at % 32 + BITS <= 32
          ? words[at / 32]
          : joined(words[at / 32], words[at / 32 + 1], uint(at % 32));
      const uint mask = ((1u << BITS) - 1u) << place;
      out[j] = element_of_code(keys, bits & mask, float(1u << place));
    }
  } else {
    const int at = i * BITS;
    const uint low = words[at / 32] >> (at % 32);
    const bool crosses = at % 32 + KEY_RUN * BITS > 32;
    const RunBits bits = {
        crosses ? joined(words[at / 32], words[at / 32 + 1], uint(at % 32)) : low, 0u};
    keys.template elements<KEY_RUN, TILE>(bits, numbers, channel, level, out);
  }
}

// KEY_CODES codes of a staged token from `channel` on, a multiple of so many; the first one begins
// with the first word.
template <int TILE, class FAMILY>
METAL_FUNC void key_words(const thread FAMILY&, SHARED_POINTER(const uint) staged, int channel,
    thread uint* words) {
  enum { BITS = FAMILY::BITS, STRIDE = Columns<FAMILY::WORDS, TILE>::STRIDE };
  SHARED_POINTER(const uint) first = staged + channel * BITS / 32 * STRIDE;
  UNROLL for (int i = 0; i < KEY_CODES * BITS / 32 + BITS % 2; i++) words[i] = first[i * STRIDE];
  // An odd number of bits makes every second one begin in the middle of a word.
  if (BITS % 2) {
    const uint shift = uint(channel * BITS % 32);
    UNROLL for (int i = 0; i < KEY_CODES * BITS / 32 + 1; i++) {
      const uint next = i < KEY_CODES * BITS / 32 ? words[i + 1] : first[(i + 1) * STRIDE];
      words[i] = joined(words[i], next, shift);
    }
  }
}

// COUNT channels of token `first` + `token` of the block, from a multiple of COUNT. words, numbers:
// of that token.
template <int COUNT, int TILE, class FAMILY>
METAL_FUNC void value_run(const thread FAMILY& values, SHARED_POINTER(const uint) words,
    SHARED_POINTER(const uint) numbers, uint, int, int channel, float level, thread float* out) {
  const int at = channel * FAMILY::BITS;
  const RunBits bits = bits_of_words<COUNT * FAMILY::BITS>(words + at / 32, uint(at % 32));
  values.template elements<COUNT, TILE>(bits, numbers, channel, level, out);
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
  template <int COUNT, int TILE>
  METAL_FUNC void elements(const thread RunBits& bits, SHARED_POINTER(const uint) numbers,
      int channel, float, thread float* out) const {
    const int pair = channel / GROUP * 2 * TILE;
    const float scale = as_type<float>(numbers[pair]);
    const float zero = as_type<float>(numbers[pair + TILE]);
    UNROLL for (int j = 0; j < COUNT; j++) out[j] = float(code_of<BITS>(bits, j)) * scale + zero;
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
  template <int COUNT, int>
  METAL_FUNC void elements(const thread RunBits& bits, SHARED_POINTER(const uint), int, float,
      thread float* out) const {
    UNROLL for (int j = 0; j < COUNT; j++) out[j] = float(code_of<BITS>(bits, j));
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
  // All lanes come here: as levels are repeated, a lane each, bits above a code do no harm.
  template <int COUNT, int>
  METAL_FUNC void elements(const thread RunBits& bits, SHARED_POINTER(const uint), int,
      float level, thread float* out) const {
    UNROLL for (int j = 0; j < COUNT; j++) out[j] = of_lane(level, bits.low >> (j * BITS));
  }
};

// trellis: twice as many levels as codes, and a scale for each token. Which of two levels a code means
// is said by the lowest bits of the codes two channels before, one after and three after it; after
// the last channel comes the first.
template <int BITS_EACH, int D, int M>
struct Trellis {
  enum {
    BITS = BITS_EACH,
    WORDS = (BITS * D + 31) / 32,
    BLOCK_WORDS = M * WORDS,
    NUMBERS = 1,
    CHANNELS = 0,
    STAGES_VALUES = 1
  };
  enum { BEFORE = 2, AFTER = 3, IN_LAST = BITS * D % 32 };  // bits of the last word, 0 for all
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

  // Word `k` of a token's bits, whose words lie STRIDE apart, with what comes before the first and
  // after the last of its codes.
  template <int STRIDE>
  METAL_FUNC uint word(SHARED_POINTER(const uint) of_token, int k) const {
    const uint found = of_token[(k < 0 ? WORDS - 1 : k < WORDS ? k : 0) * STRIDE];
    if (IN_LAST == 0) return found;
    if (k < 0) return found << (32 - IN_LAST);
    return k == WORDS - 1 ? found | of_token[0] << IN_LAST : found;
  }

  // The levels of four channels, of whose bits from BEFORE channels earlier on `low` are the first 32
  // and `high` those after them. All lanes come here: lane l has the level of code l / 2 for lowest
  // bits of others whose sum is l modulo 2.
  METAL_FUNC void levels_of(uint low, uint high, float level, thread float* out) const {
    uint odd = low ^ low >> (AFTER * BITS) ^ low >> ((BEFORE + AFTER) * BITS);
    if ((BEFORE + AFTER + 3) * BITS == 32) odd = odd ^ high << (3 * BITS);
    UNROLL for (int j = 0; j < 4; j++) {
      const uint code = low >> ((BEFORE + j) * BITS - 1);
      out[j] = of_lane(level, (code & ~1u) | (odd >> (j * BITS) & 1u));
    }
  }
};

template <int TILE, int BITS, int D, int M>
METAL_FUNC void key_words(const thread Trellis<BITS, D, M>& keys,
    SHARED_POINTER(const uint) staged, int channel, thread uint* words) {
  typedef Trellis<BITS, D, M> Keys;
  enum { STRIDE = Columns<Keys::WORDS, TILE>::STRIDE };
  const int at = 32 + (channel - Keys::BEFORE) * BITS;
  uint word = keys.template word<STRIDE>(staged, at / 32 - 1);
  UNROLL for (int i = 0; i < KEY_CODES * BITS / 32 + 1; i++) {
    const uint next = keys.template word<STRIDE>(staged, at / 32 + i);
    words[i] = joined(word, next, uint(at % 32));
    word = next;
  }
}

template <int TILE, int BITS, int D, int M>
METAL_FUNC void key_run(const thread Trellis<BITS, D, M>& keys, const thread uint* words,
    SHARED_POINTER(const uint), int, int i, float level, thread float* out) {
  const int at = i * BITS;
  const uint last = words[at / 32];
  const uint next = at / 32 < KEY_CODES * BITS / 32 ? words[at / 32 + 1] : 0u;
  keys.levels_of(at % 32 ? joined(last, next, uint(at % 32)) : last, next >> (at % 32), level, out);
}

template <int COUNT, int TILE, int BITS, int D, int M>
METAL_FUNC void value_run(const thread Trellis<BITS, D, M>& values,
    SHARED_POINTER(const uint) words, SHARED_POINTER(const uint), uint, int, int channel,
    float level, thread float* out) {
  UNROLL for (int i = 0; i < COUNT; i += 4) {
    const int at = 32 + (channel + i - Trellis<BITS, D, M>::BEFORE) * BITS;
    const uint word = values.template word<1>(words, at / 32 - 1);
    const uint next = values.template word<1>(words, at / 32);
    values.levels_of(joined(word, next, uint(at % 32)), next >> (at % 32), level, out + i);
  }
}

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
  template <int COUNT, int>
  METAL_FUNC void elements(const thread RunBits& bits, SHARED_POINTER(const uint), int, float,
      thread float* out) const {
    UNROLL for (int j = 0; j < COUNT; j++) {
      out[j] = element_of_code(*this, code_of<BITS>(bits, j), 1.0f);
    }
  }
};

template <int BITS, int D, int M>
METAL_FUNC float element_of_code(const thread KVarN<BITS, D, M>&, uint code, float unit) {
  return float(code) - float((1 << BITS) - 1) * 0.5f * unit;
}

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

template <int TILE, int D, int M>
METAL_FUNC void key_run(const thread Unencoded<D, M>&, const thread uint* words,
    SHARED_POINTER(const uint), int, int i, float, thread float* out) {
  UNROLL for (int j = 0; j < KEY_RUN / 2; j++) {
    const float2 pair = both_halves(words[i / 2 + j], half(0));
    out[2 * j] = pair.x;
    out[2 * j + 1] = pair.y;
  }
}

template <int COUNT, int TILE, int D, int M>
METAL_FUNC void value_run(const thread Unencoded<D, M>& values, SHARED_POINTER(const uint),
    SHARED_POINTER(const uint), uint first, int token, int channel, float, thread float* out) {
  load_run<COUNT>(values.values + (first + uint(token)) * uint(D) + uint(channel), out);
}
