// How a simdgroup reads a row of blocks, which lie in planes (drawn in models/gpu/blocks.py).
//
// It goes in steps of STEP columns. Of a step a lane holds PARTS parts of two runs of EACH neighbouring
// columns: run 0 or 1 of the first part begins at column(lane, run) of the step, and that of each
// next part, to which `advance` goes, APART behind it.
//     weight = scale * code + offset      offset is 0 where OFFSETS is
// A code stays in its byte of a word where IN_PLACE is: number i is 2^(8 (i % 4)) times too large,
// and one mask is all that it takes.
//
// Every byte is loaded by one lane, beside its neighbours', and shuffled to those that need it: all
// lanes come to `load` and to `codes` together. Past the end of the row all of it is 0.
// load: `block` is the number of the row's first block, `blocks` how many it has.

struct Planes {
  const device uint* codes;
  const device uint* high;    // bits of codes above those, where they lie apart
  const device uint* scales;  // of parts of a block
  const device uint* whole;   // scales of whole blocks
};

METAL_FUNC Planes planes_of(const device uint* blocks, const device int* args) {
  return Planes{blocks + uint(args[ARG_CODES]), blocks + uint(args[ARG_HIGH]),
      blocks + uint(args[ARG_SCALES]), blocks + uint(args[ARG_WHOLE])};
}

METAL_FUNC float half_at(const device uint* plane, uint index) {
  return float(((const device half*)plane)[index]);
}

// COUNT words, one, two or fours of them; zeros where they are not inside.
template <int COUNT>
METAL_FUNC void load_inside(const device uint* from, bool inside, thread uint* to) {
  enum { WIDE = COUNT < 4 ? COUNT : 4 };
  UNROLL for (int i = 0; i < COUNT; i++) to[i] = 0u;
  if (inside) {
    UNROLL for (int i = 0; i < COUNT; i += WIDE) load_words<WIDE>(from + i, to + i);
  }
}

// Word `lane` of those that the BLOCKS blocks of a step have in a plane, WORDS each.
template <int BLOCKS, int WORDS>
METAL_FUNC uint word_of_step(const device uint* plane, uint block, int blocks, int step, uint lane) {
  const int left = min(blocks - step * BLOCKS, int(BLOCKS));
  return int(lane) < left * WORDS ? plane[(block + uint(step * BLOCKS)) * uint(WORDS) + lane] : 0u;
}

// Half `lane` of a plane that has one for each block.
template <int BLOCKS>
METAL_FUNC float half_of_step(const device uint* plane, uint block, int blocks, int step, uint lane) {
  const int left = min(blocks - step * BLOCKS, int(BLOCKS));
  return int(lane) < left ? half_at(plane, block + uint(step * BLOCKS) + lane) : 0.0f;
}

METAL_FUNC float signed_byte(uint word) { return float(int(word << 24) >> 24); }

// Of COUNT words the next bits.
template <int COUNT>
METAL_FUNC void shift_words(thread uint* words, int bits) {
  UNROLL for (int i = 0; i < COUNT; i++) words[i] = words[i] >> bits;
}

// Code i of a run, of whose word the mask leaves it where it is.
METAL_FUNC float code_in_place(uint word, int i, uint mask) {
  return float(word & mask << (i % 4 * 8));
}

// Eight codes that are numbers of a table, of which lane l holds number l modulo 16.
METAL_FUNC void levels_of(const thread uint* words, float level, thread float* out) {
  UNROLL for (int i = 0; i < 8; i++) out[i] = of_lane(level, words[i / 4] >> (i % 4 * 8) & 15u);
}

// A lane's of a table of 16 signed bytes, four in a word.
METAL_FUNC float level_of_lane(uint a, uint b, uint c, uint d, uint lane) {
  const uint low = lane & 4u ? b : a;
  const uint high = lane & 4u ? d : c;
  return signed_byte((lane & 8u ? high : low) >> (lane % 4u * 8u));
}

// Of IQ4_NL and IQ4_XS.
METAL_FUNC float uneven_level(uint lane) {
  return level_of_lane(0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u, lane);
}

// The numbers of words; the last argument only names their type.
template <int WORDS>
METAL_FUNC void numbers_of(const thread uint* words, thread float* out, float) {
  UNROLL for (int i = 0; i < WORDS; i++) out[i] = as_type<float>(words[i]);
}

template <int WORDS, typename T>
METAL_FUNC void numbers_of(const thread uint* words, thread float* out, T) {
  UNROLL for (int i = 0; i < WORDS; i++) {
    const float2 pair = both_halves(words[i], T(0));
    out[2 * i] = pair.x;
    out[2 * i + 1] = pair.y;
  }
}

// What brings number i of a run back from its place.
template <class TYPE>
METAL_FUNC float unit_of(int i) {
  return TYPE::IN_PLACE ? as_type<float>(uint(127 - i % 4 * 8) << 23) : 1.0f;
}

// The weights of a run.
template <class TYPE>
METAL_FUNC void weights_of(const thread TYPE& held, int run, thread float* out) {
  held.codes(run, out);
  UNROLL for (int i = 0; i < TYPE::EACH; i++) {
    out[i] *= held.scale() * unit_of<TYPE>(i);
    if (TYPE::OFFSETS) out[i] += held.offset();
  }
}

// ---- blocks of 32 columns, one for each lane ----

// The low nibbles of 16 bytes are the first 16 columns, the high ones the others. FIFTH: bits apart,
// in the order of columns. LEAST: whether blocks say what is added; else ZERO is the code of 0.
template <int FIFTH, int LEAST, int ZERO>
struct Nibbles32 {
  enum { STEP = 1024, EACH = 8, PARTS = 2, APART = 16, OFFSETS = 1, IN_PLACE = 1 };
  uint words[4];
  uint fifth;
  float d;
  float least;

  METAL_FUNC void load(const thread Planes& planes, uint block, int blocks, int step, uint lane) {
    const uint own = block + uint(step * 32) + lane;
    const bool inside = step * 32 + int(lane) < blocks;
    load_inside<4>(planes.codes + own * 4u, inside, words);
    if (FIFTH) load_inside<1>(planes.high + own, inside, &fifth);
    if (LEAST) {
      const float2 both = both_halves(inside ? planes.whole[own] : 0u, half(0));
      d = both.x;
      least = both.y;
    } else {
      d = inside ? half_at(planes.whole, own) : 0.0f;
      least = -float(ZERO) * d;
    }
  }
  METAL_FUNC void advance() {
    shift_words<4>(words, 4);
    if (FIFTH) fifth = fifth >> 16;
  }
  METAL_FUNC int column(uint lane, int run) const { return int(lane) * 32 + run * EACH; }
  METAL_FUNC void codes(int run, thread float* out) const {
    UNROLL for (int four = 0; four < 2; four++) {
      uint word = words[run * 2 + four];
      if (FIFTH) {
        // Four bits to the fifth places of four bytes: by a product, in which none meet.
        const uint bits = fifth >> (run * EACH + four * 4) & 15u;
        word = (word & 0x0f0f0f0fu) | (bits * 0x02040810u & 0x10101010u);
      }
      UNROLL for (int i = 0; i < 4; i++) {
        out[four * 4 + i] = code_in_place(word, i, FIFTH ? 31u : 15u);
      }
    }
  }
  METAL_FUNC float scale() const { return d; }
  METAL_FUNC float offset() const { return least; }
};

typedef Nibbles32<0, 0, 8> Q4_0;
typedef Nibbles32<0, 1, 0> Q4_1;
typedef Nibbles32<1, 0, 16> Q5_0;
typedef Nibbles32<1, 1, 0> Q5_1;

// Codes are numbers of a table. POWERS: scales are exponents of two, one byte each, which says half of
// the scale; else they are halves.
template <int POWERS>
struct Levels32 {
  enum { STEP = 1024, EACH = 8, PARTS = 2, APART = 16, OFFSETS = 0, IN_PLACE = 0 };
  uint words[4];
  float d;
  float level;

  METAL_FUNC void load(const thread Planes& planes, uint block, int blocks, int step, uint lane) {
    const uint own = block + uint(step * 32) + lane;
    const bool inside = step * 32 + int(lane) < blocks;
    load_inside<4>(planes.codes + own * 4u, inside, words);
    if (POWERS) {
      const uint exponent = inside ? uint(((const device uchar*)planes.whole)[own]) : 0u;
      d = as_type<float>(exponent < 2u ? 0x00200000u << exponent : (exponent - 1u) << 23);
      level = level_of_lane(0x03020100u, 0x0c080604u, 0xfdfeff00u, 0xf4f8fafcu, lane);
    } else {
      d = inside ? half_at(planes.whole, own) : 0.0f;
      level = uneven_level(lane);
    }
  }
  METAL_FUNC void advance() { shift_words<4>(words, 4); }
  METAL_FUNC int column(uint lane, int run) const { return int(lane) * 32 + run * EACH; }
  METAL_FUNC void codes(int run, thread float* out) const { levels_of(words + run * 2, level, out); }
  METAL_FUNC float scale() const { return d; }
  METAL_FUNC float offset() const { return 0.0f; }
};

typedef Levels32<0> IQ4_NL;
typedef Levels32<1> MXFP4;

// A block is two lanes': of a step's 64 parts of 16 columns a lane takes numbers lane and 32 + lane.
struct Q8_0 {
  enum { STEP = 1024, EACH = 8, PARTS = 2, APART = 512, OFFSETS = 1, IN_PLACE = 1 };
  uint words[8];
  float d[2];

  METAL_FUNC void load(const thread Planes& planes, uint block, int blocks, int step, uint lane) {
    const uint first = block + uint(step * 32);
    const int left = blocks - step * 32;
    const float mine = int(lane) < left ? half_at(planes.whole, first + lane) : 0.0f;
    UNROLL for (int k = 0; k < 2; k++) {
      const uint part = lane + uint(32 * k);
      load_inside<4>(planes.codes + (first * 2u + part) * 4u, int(part / 2u) < left, words + 4 * k);
      d[k] = of_lane(mine, part / 2u);
    }
  }
  METAL_FUNC void advance() {
    UNROLL for (int i = 0; i < 4; i++) words[i] = words[4 + i];
    d[0] = d[1];
  }
  METAL_FUNC int column(uint lane, int run) const { return int(lane) * 16 + run * EACH; }
  METAL_FUNC void codes(int run, thread float* out) const {
    UNROLL for (int four = 0; four < 2; four++) {
      const uint word = words[run * 2 + four] ^ 0x80808080u;
      UNROLL for (int i = 0; i < 4; i++) out[four * 4 + i] = code_in_place(word, i, 255u);
    }
  }
  METAL_FUNC float scale() const { return d[0]; }
  METAL_FUNC float offset() const { return -128.0f * d[0]; }
};

// ---- blocks of 256 columns, eight lanes' ----

// Of each 64 columns the low nibbles are the first 32, of which a lane has 16. A scale and a minimum
// of 6 bits for each 32 columns. FIFTH: bits apart: of byte b, bit k is that of column 32 k + b.
template <int FIFTH>
struct Nibbles256 {
  enum { STEP = 1024, EACH = 8, PARTS = 2, APART = 32, OFFSETS = 1, IN_PLACE = 1 };
  uint words[4];
  uint fifth[4];
  float d[2];
  float least[2];

  METAL_FUNC void load(const thread Planes& planes, uint block, int blocks, int step, uint lane) {
    const uint pair = lane % 8u / 2u;  // of 32 columns
    const uint own = block + uint(step * 4) + lane / 8u;
    const bool inside = step * 4 + int(lane / 8u) < blocks;
    load_inside<4>(planes.codes + own * 32u + lane % 8u * 4u, inside, words);
    if (FIFTH) {
      // Four lanes need the same 16 bytes: each loads four of them.
      uint mine;
      load_inside<1>(planes.high + own * 8u + lane % 2u * 4u + pair, inside, &mine);
      UNROLL for (int k = 0; k < 4; k++) {
        fifth[k] = of_lane(mine, lane / 8u * 8u + uint(2 * k) + lane % 2u) >> (pair * 2u);
      }
    }
    const uint mine = word_of_step<4, 4>(planes.scales, block, blocks, step, lane);
    const uint first = lane / 8u * 4u;
    const uint shift = pair % 2u * 16u;
    const float2 both = both_halves(of_lane(mine, first), half(0));
    const uint a = of_lane(mine, first + 1u) >> shift;
    const uint b = of_lane(mine, first + 2u) >> shift;
    const uint c = of_lane(mine, first + 3u) >> shift;
    const uint scales = pair < 2u ? a & 0x3f3fu : (c & 0x0f0fu) | (a >> 2 & 0x3030u);
    const uint mins = pair < 2u ? b & 0x3f3fu : (c >> 4 & 0x0f0fu) | (b >> 2 & 0x3030u);
    UNROLL for (int k = 0; k < 2; k++) {
      d[k] = both.x * float(scales >> (8 * k) & 255u);
      least[k] = both.y * float(mins >> (8 * k) & 255u);
    }
  }
  METAL_FUNC void advance() {
    shift_words<4>(words, 4);
    if (FIFTH) shift_words<4>(fifth, 1);
    d[0] = d[1];
    least[0] = least[1];
  }
  METAL_FUNC int column(uint lane, int run) const {
    return int(lane / 2u) * 64 + int(lane % 2u) * 16 + run * EACH;
  }
  METAL_FUNC void codes(int run, thread float* out) const {
    UNROLL for (int four = 0; four < 2; four++) {
      uint word = words[run * 2 + four];
      if (FIFTH) {
        word = (word & 0x0f0f0f0fu) | (fifth[run * 2 + four] & 0x01010101u) << 4;
      }
      UNROLL for (int i = 0; i < 4; i++) {
        out[four * 4 + i] = code_in_place(word, i, FIFTH ? 31u : 15u);
      }
    }
  }
  METAL_FUNC float scale() const { return d[0]; }
  METAL_FUNC float offset() const { return -least[0]; }
};

typedef Nibbles256<0> Q4_K;
typedef Nibbles256<1> Q5_K;

// Of each 128 columns the low nibbles are the first 64, of which a lane has 16. Two bits more: of
// byte b of each 32, bits 2 k and 2 k + 1 are those of column 32 k + b. A scale for each 16 columns.
struct Q6_K {
  enum { STEP = 1024, EACH = 8, PARTS = 2, APART = 64, OFFSETS = 1, IN_PLACE = 1 };
  uint words[4];
  uint high[4];
  float d[2];

  METAL_FUNC void load(const thread Planes& planes, uint block, int blocks, int step, uint lane) {
    const uint own = block + uint(step * 4) + lane / 8u;
    const bool inside = step * 4 + int(lane / 8u) < blocks;
    load_inside<4>(planes.codes + own * 32u + lane % 8u * 4u, inside, words);
    // Lanes that differ in `second` need the same 16 bytes: each loads eight of them.
    const uint second = lane / 2u % 2u;
    const uint eight = lane % 8u / 4u * 4u + lane % 2u * 2u + second;
    uint mine[2];
    load_inside<2>(planes.high + own * 16u + eight * 2u, inside, mine);
    UNROLL for (int k = 0; k < 2; k++) {
      const uint other = of_lane(mine[k], lane ^ 2u);
      high[k] = (second ? other : mine[k]) >> (second * 2u);
      high[2 + k] = (second ? mine[k] : other) >> (second * 2u);
    }
    const float whole =
        of_lane(half_of_step<4>(planes.whole, block, blocks, step, lane), lane / 8u);
    const uint scales = word_of_step<4, 4>(planes.scales, block, blocks, step, lane);
    UNROLL for (int k = 0; k < 2; k++) {
      const uint four = of_lane(scales, lane / 4u * 2u + uint(k));
      d[k] = whole * signed_byte(four >> (lane % 4u * 8u));
    }
  }
  METAL_FUNC void advance() {
    shift_words<4>(words, 4);
    shift_words<4>(high, 4);
    d[0] = d[1];
  }
  METAL_FUNC int column(uint lane, int run) const {
    return int(lane / 4u) * 128 + int(lane % 4u) * 16 + run * EACH;
  }
  METAL_FUNC void codes(int run, thread float* out) const {
    UNROLL for (int four = 0; four < 2; four++) {
      const uint at = uint(run * 2 + four);
      const uint word = (words[at] & 0x0f0f0f0fu) | (high[at] & 0x03030303u) << 4;
      UNROLL for (int i = 0; i < 4; i++) out[four * 4 + i] = code_in_place(word, i, 63u);
    }
  }
  METAL_FUNC float scale() const { return d[0]; }
  METAL_FUNC float offset() const { return -32.0f * d[0]; }
};

// A scale of 6 bits for each 32 columns, and the table of IQ4_NL.
struct IQ4_XS {
  enum { STEP = 1024, EACH = 8, PARTS = 2, APART = 16, OFFSETS = 0, IN_PLACE = 0 };
  uint words[4];
  float d;
  float level;

  METAL_FUNC void load(const thread Planes& planes, uint block, int blocks, int step, uint lane) {
    const uint own = block + uint(step * 4) + lane / 8u;
    const bool inside = step * 4 + int(lane / 8u) < blocks;
    load_inside<4>(planes.codes + own * 32u + lane % 8u * 4u, inside, words);
    const uint mine = word_of_step<4, 2>(planes.scales, block, blocks, step, lane);
    const uint first = of_lane(mine, lane / 8u * 2u);
    const uint low = of_lane(mine, lane / 8u * 2u + 1u) >> (lane % 8u * 4u) & 15u;
    const uint high = first >> (16u + lane % 8u * 2u) & 3u;
    d = both_halves(first, half(0)).x * float(int(low | high << 4) - 32);
    level = uneven_level(lane);
  }
  METAL_FUNC void advance() { shift_words<4>(words, 4); }
  METAL_FUNC int column(uint lane, int run) const { return int(lane) * 32 + run * EACH; }
  METAL_FUNC void codes(int run, thread float* out) const { levels_of(words + run * 2, level, out); }
  METAL_FUNC float scale() const { return d; }
  METAL_FUNC float offset() const { return 0.0f; }
};

// ---- blocks of 256 columns, four lanes' ----

// Of byte b of each 32, bits 2 k and 2 k + 1 are those of column 32 k + b; a lane has 16 bytes. A
// scale and a minimum of 4 bits for each 16 columns.
struct Q2_K {
  enum { STEP = 2048, EACH = 8, PARTS = 4, APART = 32, OFFSETS = 1, IN_PLACE = 1 };
  uint words[4];
  float d[4];
  float least[4];

  METAL_FUNC void load(const thread Planes& planes, uint block, int blocks, int step, uint lane) {
    const uint own = (block + uint(step * 8)) * 4u + lane;
    load_inside<4>(planes.codes + own * 4u, step * 8 + int(lane / 4u) < blocks, words);
    const uint wholes = word_of_step<8, 1>(planes.whole, block, blocks, step, lane);
    const float2 both = both_halves(of_lane(wholes, lane / 4u), half(0));
    const uint mine = word_of_step<8, 4>(planes.scales, block, blocks, step, lane);
    UNROLL for (int k = 0; k < 2; k++) {
      const uint four = of_lane(mine, lane / 2u * 2u + uint(k)) >> (lane % 2u * 8u);
      UNROLL for (int j = 0; j < 2; j++) {
        d[2 * k + j] = both.x * float(four >> (16 * j) & 15u);
        least[2 * k + j] = both.y * float(four >> (16 * j + 4) & 15u);
      }
    }
  }
  METAL_FUNC void advance() {
    shift_words<4>(words, 2);
    UNROLL for (int i = 0; i < 3; i++) {
      d[i] = d[i + 1];
      least[i] = least[i + 1];
    }
  }
  METAL_FUNC int column(uint lane, int run) const {
    return int(lane / 2u) * 128 + int(lane % 2u) * 16 + run * EACH;
  }
  METAL_FUNC void codes(int run, thread float* out) const {
    UNROLL for (int i = 0; i < EACH; i++) out[i] = code_in_place(words[run * 2 + i / 4], i, 3u);
  }
  METAL_FUNC float scale() const { return d[0]; }
  METAL_FUNC float offset() const { return -least[0]; }
};

// The same two bits, and a third: of byte b, bit k is that of column 32 k + b. A scale of 6 bits for
// each 16 columns.
struct Q3_K {
  enum { STEP = 2048, EACH = 8, PARTS = 4, APART = 32, OFFSETS = 1, IN_PLACE = 1 };
  uint words[4];
  uint third[4];
  float d[4];

  METAL_FUNC void load(const thread Planes& planes, uint block, int blocks, int step, uint lane) {
    const uint own = (block + uint(step * 8)) * 4u + lane;
    const bool inside = step * 8 + int(lane / 4u) < blocks;
    load_inside<4>(planes.codes + own * 4u, inside, words);
    // Lanes that differ in `second` need the same 16 bytes: each loads eight of them.
    const uint second = lane / 2u % 2u;
    const uint eight = lane / 4u * 4u + lane % 2u * 2u + second;
    uint mine[2];
    load_inside<2>(
        planes.high + ((block + uint(step * 8)) * 4u + eight) * 2u, inside, mine);
    UNROLL for (int k = 0; k < 2; k++) {
      const uint other = of_lane(mine[k], lane ^ 2u);
      third[k] = (second ? other : mine[k]) >> (second * 4u);
      third[2 + k] = (second ? mine[k] : other) >> (second * 4u);
    }
    const float whole =
        of_lane(half_of_step<8>(planes.whole, block, blocks, step, lane), lane / 4u);
    const uint scales = word_of_step<8, 3>(planes.scales, block, blocks, step, lane);
    const uint first = lane / 4u * 3u;
    const uint shift = lane % 2u * 8u + second * 4u;
    const uint high = of_lane(scales, first + 2u) >> shift;
    UNROLL for (int k = 0; k < 2; k++) {
      const uint low = of_lane(scales, first + uint(k)) >> shift;
      UNROLL for (int j = 0; j < 2; j++) {
        const uint six = (low >> (16 * j) & 15u) | (high >> (16 * j + 2 * k) & 3u) << 4;
        d[2 * k + j] = whole * float(int(six) - 32);
      }
    }
  }
  METAL_FUNC void advance() {
    shift_words<4>(words, 2);
    shift_words<4>(third, 1);
    UNROLL for (int i = 0; i < 3; i++) d[i] = d[i + 1];
  }
  METAL_FUNC int column(uint lane, int run) const {
    return int(lane / 2u) * 128 + int(lane % 2u) * 16 + run * EACH;
  }
  METAL_FUNC void codes(int run, thread float* out) const {
    UNROLL for (int four = 0; four < 2; four++) {
      const uint at = uint(run * 2 + four);
      const uint word = (words[at] & 0x03030303u) | (third[at] & 0x01010101u) << 2;
      UNROLL for (int i = 0; i < 4; i++) out[four * 4 + i] = code_in_place(word, i, 7u);
    }
  }
  METAL_FUNC float scale() const { return d[0]; }
  METAL_FUNC float offset() const { return -4.0f * d[0]; }
};

// ---- numbers as they are: a block is what a lane loads at once ----

// Each run is loaded when it is asked for.
template <typename T>
struct Numbers {
  enum { EACH = 16 / int(sizeof(T)), STEP = 128 * EACH, PARTS = 2, APART = 64 * EACH, OFFSETS = 0, IN_PLACE = 0 };
  const device uint* own;
  int left;

  METAL_FUNC void load(const thread Planes& planes, uint block, int blocks, int step, uint lane) {
    left = blocks - step * 128 - int(lane);
    own = planes.codes + (block + uint(step * 128) + lane) * 4u;
  }
  METAL_FUNC void advance() {
    own += 256;
    left -= 64;
  }
  METAL_FUNC int column(uint lane, int run) const { return (run * 32 + int(lane)) * EACH; }
  METAL_FUNC void codes(int run, thread float* out) const {
    uint words[4];
    load_inside<4>(own + run * 128, run * 32 < left, words);
    numbers_of<4>(words, out, T(0));
  }
  METAL_FUNC float scale() const { return 1.0f; }
  METAL_FUNC float offset() const { return 0.0f; }
};

typedef Numbers<half> F16;
typedef Numbers<bfloat16_t> BF16;
typedef Numbers<float> F32;
