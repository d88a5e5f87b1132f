// Blocks whose nibbles are numbers of a table.

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
