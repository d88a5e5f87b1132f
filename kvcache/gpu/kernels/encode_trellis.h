// How a kernel writes a block of trellis, step for step as kvcache/codecs/trellis.py.
//
// A simdgroup takes a token, a lane a state of the search. Costs of the channels are made 32 at a
// time, a lane each; a state keeps which of two states each of them came from, a bit a channel.
//
// numbers: levels, four subsets in turn, the middles between those of each, clips.
// Scratch of a simdgroup: four costs of 32 channels, or two numbers; the bits of 32 channels and all
// states, in whose place the way back leaves each channel's subset.
template <int BITS, int D, int M, int CLIPS, int SIMDGROUPS>
struct TrellisEncoder {
  enum { TILED = 1, WORDS = (BITS * D + 31) / 32, RESTS = 1 << (BITS - 1), SUBSETS = 4 };
  enum { CHUNKS = (D + 31) / 32, SEAM = 32, COSTS = SUBSETS * 32 };
  enum { OWN = COSTS + CHUNKS * 32, SCRATCH = SIMDGROUPS * OWN };
  device uint* words;
  device half* scales;

  // The subset of a state before a channel and the bit chosen there, 6 bits.
  METAL_FUNC uint subset_of(uint chosen) const {
    return ((chosen ^ chosen >> 2 ^ chosen >> 5) & 1u) << 1 | (chosen >> 3 & 1u);
  }

  // Of one subset the level nearest to x, and how many are below it.
  METAL_FUNC float nearest(const device float* numbers, float x, uint subset, thread uint& rest) const {
    float level = numbers[subset];
    rest = 0u;
    UNROLL for (int i = 0; i + 1 < RESTS; i++) {
      const bool above = x > numbers[MIDDLES + SUBSETS * i + int(subset)];
      level = above ? numbers[SUBSETS * (i + 1) + int(subset)] : level;
      rest += above ? 1u : 0u;
    }
    return level;
  }

  // Through `count` channels from `first` on, counted round: the cost of this lane's state after them.
  // came: which of two states it came from, a bit for each.
  METAL_FUNC float walk(SHARED_POINTER(const float) y, float scale, int first, int count, float cost,
      const device float* numbers, SHARED_POINTER(float) costs, thread uint& came, uint lane) const {
    const float x = y[(first + int(lane) + 32 * D) % D] / scale;
    UNROLL for (int k = 0; k < SUBSETS; k++) {
      uint rest;
      const float off = x - nearest(numbers, x, uint(k), rest);
      costs[int(lane) * SUBSETS + k] = product(off, off);
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    SHARED_POINTER(const float) later = costs + subset_of(lane);
    SHARED_POINTER(const float) older = costs + subset_of(lane | 32u);
    came = 0u;
    for (int i = 0; i < count; i++) {
      const float a = of_lane(cost, lane / 2u) + later[i * SUBSETS];
      const float b = of_lane(cost, lane / 2u + 16u) + older[i * SUBSETS];
      came |= (b < a ? 1u : 0u) << i;
      cost = min(a, b);
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    return cost;
  }

  METAL_FUNC uint state_before(uint state, uint bit) const { return state >> 1 | (bit & 1u) << 4; }

  // The state before the first channel, where the nearest path around it crosses it.
  METAL_FUNC uint state_at_seam(SHARED_POINTER(const float) y, float scale,
      const device float* numbers, SHARED_POINTER(float) costs, uint lane) const {
    uint came;
    float cost = 0.0f;
    ROLLED for (int first = -SEAM; first <= 0; first += SEAM) {
      cost = walk(y, scale, first, SEAM, cost, numbers, costs, came, lane);
    }
    const bool least = -cost == simd_max(-cost);
    uint state = 31u - uint(simd_max(least ? float(31u - lane) : 0.0f));
    for (int i = SEAM - 1; i >= 0; i--) state = state_before(state, of_lane(came, state) >> i);
    return state;
  }

  // The clip of those tried whose path costs least, of a token whose largest number is `largest`.
  METAL_FUNC float clip_of(SHARED_POINTER(const float) y, float largest, const device float* numbers,
      SHARED_POINTER(float) costs, uint lane) const {
    float best = numbers[CLIPS_AT];
    float least = LARGEST_FLOAT;
    ROLLED for (int k = 0; k < CLIPS; k++) {
      const float clip = numbers[CLIPS_AT + k];
      const float scale = nonzero(product(largest, clip));
      float cost = 0.0f;
      uint came;
      ROLLED for (int first = 0; first < D; first += 32) {
        cost = walk(y, scale, first, min(32, D - first), cost, numbers, costs, came, lane);
      }
      cost = product(-simd_max(-cost), product(clip, clip));
      best = cost < least ? clip : best;
      least = min(cost, least);
    }
    return best;
  }

  METAL_FUNC void code_token(SHARED_POINTER(float) y, const device float* numbers,
      SHARED_POINTER(float) costs, device half* scale_of_token, uint lane) const {
    SHARED_POINTER(uint) steps = (SHARED_POINTER(uint))(costs + COSTS);
    float largest = 0.0f;
    for (int c = int(lane); c < D; c += 32) largest = max(largest, fabs(y[c]));
    largest = simd_max(largest) / numbers[SUBSETS * RESTS - 1];
    const float clip = clip_of(y, largest, numbers, costs, lane);
    const float scale = nonzero(product(largest, clip));
    const uint ends = state_at_seam(y, scale, numbers, costs, lane);
    float cost = lane == ends ? 0.0f : LARGEST_FLOAT;
    ROLLED for (int first = 0; first < D; first += 32) {
      uint came;
      cost = walk(y, scale, first, min(32, D - first), cost, numbers, costs, came, lane);
      steps[first + int(lane)] = came;
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    uint state = ends;
    ROLLED for (int first = (CHUNKS - 1) * 32; first >= 0; first -= 32) {
      uint mine = 0u;
      for (int i = min(32, D - first) - 1; i >= 0; i--) {
        const uint before = state_before(state, steps[first + int(state)] >> i);
        mine = i == int(lane) ? subset_of(before << 1 | (state & 1u)) : mine;
        state = before;
      }
      simdgroup_barrier(mem_flags::mem_threadgroup);
      steps[first + int(lane)] = mine;
    }
    float sum = 0.0f;
    ROLLED for (int first = 0; first < D; first += 32) {
      const int c = first + int(lane);
      const float given = c < D ? y[c] : 0.0f;
      const uint subset = steps[c];
      uint rest;
      const float level = nearest(numbers, given / scale, subset, rest);
      costs[lane] = product(given, level);
      costs[32 + int(lane)] = product(given, given);
      if (c < D) y[c] = float(rest << 1 | (subset & 1u));
      simdgroup_barrier(mem_flags::mem_threadgroup);
      SHARED_POINTER(const float) column = costs + lane % 2u * 32u;
      for (int i = 0; i < 32; i++) sum += column[i];
      simdgroup_barrier(mem_flags::mem_threadgroup);
    }
    const float along = of_lane(sum, 0u);
    const float length = of_lane(sum, 1u);
    if (lane == 0u) *scale_of_token = to_half(unbiased(along, length));
  }

  template <class BLOCK>
  METAL_FUNC void encode(const thread BLOCK& block, const device float* numbers, int tile, int at,
      int simdgroup, int lane) {
    const int first = tile * BLOCK::TILE;
    const int count = min(int(BLOCK::TILE), M - first);
    block.load(first, count);
    for (int t = simdgroup; t < count; t += SIMDGROUPS) {
      code_token(block.row(t), numbers, block.scratch + simdgroup * OWN,
          scales + at * M + first + t, uint(lane));
    }
    write_words<BITS, D, 32 * SIMDGROUPS>(block, count, words + (at * M + first) * WORDS);
  }
};
