// Blocks of 256 columns with nibbles, eight lanes'.

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
