// Blocks of 256 columns whose codes are numbers of runs of a grid, eight lanes'. A lane has 32
// columns: four runs of eight, or eight of four.
//
// The grid has a word of 16 bits for each run: the levels of its magnitudes, 2 or 4 bits each. Signs
// lie apart, a bit for each column; where seven of eight are stored, the last one makes them even.

METAL_FUNC uint run_of_grid(const device uint* grid, uint number) {
  return uint(((const device ushort*)grid)[number]);
}

METAL_FUNC uint with_eighth_sign(uint seven) {
  uint odd = seven ^ seven >> 4;
  odd = odd ^ odd >> 2;
  return seven | ((odd ^ odd >> 1) & 1u) << 7;
}

METAL_FUNC float with_sign(uint magnitude, uint signs, int i) {
  return signs >> i & 1u ? -float(magnitude) : float(magnitude);
}

// Magnitudes 8, 25 and 43.
METAL_FUNC void three_levels(uint run, uint signs, thread float* out) {
  UNROLL for (int i = 0; i < 8; i++) {
    const uint level = run >> (2 * i) & 3u;
    out[i] = with_sign(8u + level * 17u + level / 2u, signs, i);
  }
}

// Magnitudes from FIRST by STEP, and MORE for the last of eight; of two runs of four.
template <int FIRST, int STEP, int MORE>
METAL_FUNC void eight_levels(uint low, uint high, uint signs, thread float* out) {
  UNROLL for (int i = 0; i < 8; i++) {
    const uint level = (i < 4 ? low : high) >> (i % 4 * 4) & 7u;
    out[i] = with_sign(uint(FIRST) + level * uint(STEP) + level / 7u * uint(MORE), signs, i);
  }
}

// A byte of each lane's 32 columns, of a plane that has eight for each block.
METAL_FUNC uint byte_of_step(const device uint* plane, uint block, int blocks, int step, uint lane) {
  const uint mine = word_of_step<4, 2>(plane, block, blocks, step, lane);
  return of_lane(mine, lane / 4u) >> (lane % 4u * 8u) & 255u;
}

// For each 32 columns four bytes of runs, then four times seven signs and a scale of 4 bits.
struct IQ2_XXS {
  enum { STEP = 1024, EACH = 8, PARTS = 2, APART = 16, OFFSETS = 0, IN_PLACE = 0 };
  uint words[2];
  float d;
  const device uint* grid;

  METAL_FUNC void load(const thread Planes& planes, uint block, int blocks, int step, uint lane) {
    grid = planes.grid;
    const bool inside = step * 4 + int(lane / 8u) < blocks;
    load_inside<2>(
        planes.codes + ((block + uint(step * 4)) * 8u + lane) * 2u, inside, words);
    d = of_lane(half_of_step<4>(planes.whole, block, blocks, step, lane), lane / 8u) *
        (0.5f + float(words[1] >> 28)) * 0.25f;
  }
  METAL_FUNC void advance() {
    words[0] = words[0] >> 16;
    words[1] = words[1] >> 14;
  }
  METAL_FUNC int column(uint lane, int run) const { return int(lane) * 32 + run * EACH; }
  METAL_FUNC void codes(int run, thread float* out) const {
    three_levels(run_of_grid(grid, words[0] >> (run * 8) & 255u),
        with_eighth_sign(words[1] >> (run * 7) & 127u), out);
  }
  METAL_FUNC float scale() const { return d; }
  METAL_FUNC float offset() const { return 0.0f; }
};

// For each run 9 bits and seven signs; a scale of 4 bits for each 16 columns.
struct IQ2_XS {
  enum { STEP = 1024, EACH = 8, PARTS = 2, APART = 16, OFFSETS = 0, IN_PLACE = 0 };
  uint words[2];
  float d[2];
  const device uint* grid;

  METAL_FUNC void load(const thread Planes& planes, uint block, int blocks, int step, uint lane) {
    grid = planes.grid;
    const bool inside = step * 4 + int(lane / 8u) < blocks;
    load_inside<2>(
        planes.codes + ((block + uint(step * 4)) * 8u + lane) * 2u, inside, words);
    const float whole =
        of_lane(half_of_step<4>(planes.whole, block, blocks, step, lane), lane / 8u);
    const uint scales = byte_of_step(planes.scales, block, blocks, step, lane);
    d[0] = whole * (0.5f + float(scales & 15u)) * 0.25f;
    d[1] = whole * (0.5f + float(scales >> 4)) * 0.25f;
  }
  METAL_FUNC void advance() {
    words[0] = words[1];
    d[0] = d[1];
  }
  METAL_FUNC int column(uint lane, int run) const { return int(lane) * 32 + run * EACH; }
  METAL_FUNC void codes(int run, thread float* out) const {
    const uint both = words[0] >> (run * 16);
    three_levels(
        run_of_grid(grid, both & 511u), with_eighth_sign(both >> 9 & 127u), out);
  }
  METAL_FUNC float scale() const { return d[0]; }
  METAL_FUNC float offset() const { return 0.0f; }
};

// For each run 8 bits, two more apart, and eight signs; a scale of 4 bits for each 16 columns.
struct IQ2_S {
  enum { STEP = 1024, EACH = 8, PARTS = 2, APART = 16, OFFSETS = 0, IN_PLACE = 0 };
  uint low;
  uint high;
  uint signs;
  float d[2];
  const device uint* grid;

  METAL_FUNC void load(const thread Planes& planes, uint block, int blocks, int step, uint lane) {
    grid = planes.grid;
    const uint own = (block + uint(step * 4)) * 8u + lane;
    const bool inside = step * 4 + int(lane / 8u) < blocks;
    load_inside<1>(planes.codes + own, inside, &low);
    load_inside<1>(planes.signs + own, inside, &signs);
    high = byte_of_step(planes.high, block, blocks, step, lane);
    const float whole =
        of_lane(half_of_step<4>(planes.whole, block, blocks, step, lane), lane / 8u);
    const uint scales = byte_of_step(planes.scales, block, blocks, step, lane);
    d[0] = whole * (0.5f + float(scales & 15u)) * 0.25f;
    d[1] = whole * (0.5f + float(scales >> 4)) * 0.25f;
  }
  METAL_FUNC void advance() {
    low = low >> 16;
    high = high >> 4;
    signs = signs >> 16;
    d[0] = d[1];
  }
  METAL_FUNC int column(uint lane, int run) const { return int(lane) * 32 + run * EACH; }
  METAL_FUNC void codes(int run, thread float* out) const {
    const uint number = (low >> (run * 8) & 255u) | (high >> (run * 2) & 3u) << 8;
    three_levels(run_of_grid(grid, number), signs >> (run * 8), out);
  }
  METAL_FUNC float scale() const { return d[0]; }
  METAL_FUNC float offset() const { return 0.0f; }
};

// A byte for each run of four; for each 32 columns four times seven signs and a scale of 4 bits.
struct IQ3_XXS {
  enum { STEP = 1024, EACH = 8, PARTS = 2, APART = 16, OFFSETS = 0, IN_PLACE = 0 };
  uint words[2];
  uint signs;
  float d;
  const device uint* grid;

  METAL_FUNC void load(const thread Planes& planes, uint block, int blocks, int step, uint lane) {
    grid = planes.grid;
    const uint own = (block + uint(step * 4)) * 8u + lane;
    const bool inside = step * 4 + int(lane / 8u) < blocks;
    load_inside<2>(planes.codes + own * 2u, inside, words);
    load_inside<1>(planes.signs + own, inside, &signs);
    d = of_lane(half_of_step<4>(planes.whole, block, blocks, step, lane), lane / 8u) *
        (0.5f + float(signs >> 28)) * 0.5f;
  }
  METAL_FUNC void advance() {
    words[0] = words[1];
    signs = signs >> 14;
  }
  METAL_FUNC int column(uint lane, int run) const { return int(lane) * 32 + run * EACH; }
  METAL_FUNC void codes(int run, thread float* out) const {
    const uint both = words[0] >> (run * 16);
    eight_levels<4, 8, 2>(run_of_grid(grid, both & 255u), run_of_grid(grid, both >> 8 & 255u),
        with_eighth_sign(signs >> (run * 7) & 127u), out);
  }
  METAL_FUNC float scale() const { return d; }
  METAL_FUNC float offset() const { return 0.0f; }
};

// A byte for each run of four, a bit more apart, and eight signs for two; a scale of 4 bits for each
// 32 columns.
struct IQ3_S {
  enum { STEP = 1024, EACH = 8, PARTS = 2, APART = 16, OFFSETS = 0, IN_PLACE = 0 };
  uint words[2];
  uint high;
  uint signs;
  float d;
  const device uint* grid;

  METAL_FUNC void load(const thread Planes& planes, uint block, int blocks, int step, uint lane) {
    grid = planes.grid;
    const uint own = (block + uint(step * 4)) * 8u + lane;
    const bool inside = step * 4 + int(lane / 8u) < blocks;
    load_inside<2>(planes.codes + own * 2u, inside, words);
    load_inside<1>(planes.signs + own, inside, &signs);
    high = byte_of_step(planes.high, block, blocks, step, lane);
    const uint mine = word_of_step<4, 1>(planes.scales, block, blocks, step, lane);
    const uint scale = of_lane(mine, lane / 8u) >> (lane % 8u * 4u) & 15u;
    d = of_lane(half_of_step<4>(planes.whole, block, blocks, step, lane), lane / 8u) *
        float(1u + 2u * scale);
  }
  METAL_FUNC void advance() {
    words[0] = words[1];
    high = high >> 4;
    signs = signs >> 16;
  }
  METAL_FUNC int column(uint lane, int run) const { return int(lane) * 32 + run * EACH; }
  METAL_FUNC void codes(int run, thread float* out) const {
    const uint both = words[0] >> (run * 16);
    const uint bits = high >> (run * 2);
    eight_levels<1, 2, 0>(run_of_grid(grid, (both & 255u) | (bits & 1u) << 8),
        run_of_grid(grid, (both >> 8 & 255u) | (bits >> 1 & 1u) << 8), signs >> (run * 8), out);
  }
  METAL_FUNC float scale() const { return d; }
  METAL_FUNC float offset() const { return 0.0f; }
};
