// Blocks of 32 columns, one for each lane, or two.

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
