// Blocks of 256 columns with two bits in a byte for each of four columns, four lanes'.

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
