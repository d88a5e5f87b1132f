// The running softmax of one simdgroup over tiles of up to 32 tokens, and its way out.
//
// A threadgroup has TEAMS teams of TEAM simdgroups. Those of a team take the same tokens for ROWS
// query rows each; the teams take other tokens for the same rows.
//
// Scores are in units of log2. A lane owns one token while scores are taken, then one run of
// channels of every SUBS-th token while values are added up.

#define LOWEST_SCORE (-1e30f)

template <int ROWS, int D>
struct Running {
  enum { RUNS = D / RUN, SUBS = 32 / RUNS };
  float top[ROWS];         // the largest score so far; the same in all lanes
  float total[ROWS];       // of the tokens this lane owned, relative to top
  float sums[ROWS * RUN];  // of this lane's run and tokens, relative to top

  METAL_FUNC void clear() {
    UNROLL for (int r = 0; r < ROWS; r++) {
      top[r] = LOWEST_SCORE;
      total[r] = 0.0f;
    }
    UNROLL for (int i = 0; i < ROWS * RUN; i++) sums[i] = 0.0f;
  }

  // Turn this lane's score of row r into its weight; nothing if it does not see the token.
  METAL_FUNC float weigh(int r, float score, bool seen) {
    const float now = max(top[r], simd_max(seen ? score : LOWEST_SCORE));
    const float fade = power_of_two(top[r] - now);
    const float weight = seen ? power_of_two(score - now) : 0.0f;
    top[r] = now;
    total[r] = total[r] * fade + weight;
    UNROLL for (int j = 0; j < RUN; j++) sums[r * RUN + j] *= fade;
    return weight;
  }

  // `weights`: of the rows, in order.
  METAL_FUNC void add(float4 weights, const thread float* values) {
    const float of_rows[4] = {weights.x, weights.y, weights.z, weights.w};
    UNROLL for (int r = 0; r < ROWS; r++) {
      UNROLL for (int j = 0; j < RUN; j++) sums[r * RUN + j] += of_rows[r] * values[j];
    }
  }
};

// scores[r] += the dot product of one run of a key with the queries' rows [ROWS, D].
template <int ROWS, int D>
METAL_FUNC void add_scores(SHARED_POINTER(const float4) queries, const thread float* key,
    int run, thread float* scores) {
  UNROLL for (int r = 0; r < ROWS; r++) {
    SHARED_POINTER(const float4) query = queries + (r * D + run * RUN) / 4;
    const float4 low = query[0];
    const float4 high = query[1];
    scores[r] += low.x * key[0];
    scores[r] += low.y * key[1];
    scores[r] += low.z * key[2];
    scores[r] += low.w * key[3];
    scores[r] += high.x * key[4];
    scores[r] += high.y * key[5];
    scores[r] += high.z * key[6];
    scores[r] += high.w * key[7];
  }
}

// A barrier of the simdgroups that take the same tokens.
template <int TEAM>
METAL_FUNC void team_barrier() {
  if (TEAM == 1) {
    simdgroup_barrier(mem_flags::mem_threadgroup);
  } else {
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
}

// The softmaxes of the TEAMS simdgroups of a threadgroup that have the same rows, merged into one
// partial result: for row first_row + r, below `rows`, sums [D] and stats (top, total). tops, totals
// [TEAMS * TEAM * ROWS] and slices [TEAMS * TEAM * SUBS * D] are threadgroup memory. All threads
// must come here.
template <int ROWS, int D, int TEAM, int TEAMS>
METAL_FUNC void write_partial(thread Running<ROWS, D>& state, SHARED_POINTER(float) tops,
    SHARED_POINTER(float) totals, SHARED_POINTER(float) slices, device float* sums,
    device float* stats, int valid_rows, uint simdgroup, uint lane) {
  enum { RUNS = D / RUN, SUBS = 32 / RUNS };
  UNROLL for (int r = 0; r < ROWS; r++) {
    const float total = simd_sum(state.total[r]);
    if (lane == 0u) {
      tops[int(simdgroup) * ROWS + r] = state.top[r];
      totals[int(simdgroup) * ROWS + r] = total;
    }
  }
  const int sub = int(lane) / RUNS;
  const int run = int(lane) % RUNS;
  const int member = int(simdgroup) % TEAM;
  const int team = int(simdgroup) / TEAM;
  UNROLL for (int r = 0; r < ROWS; r++) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float top = LOWEST_SCORE;
    for (int s = member; s < TEAMS * TEAM; s += TEAM) top = max(top, tops[s * ROWS + r]);
    if (sub < SUBS) {
      const float fade = power_of_two(state.top[r] - top);
      SHARED_POINTER(float) slice = slices + ((member * TEAMS + team) * SUBS + sub) * D + run * RUN;
      UNROLL for (int j = 0; j < RUN; j++) slice[j] = state.sums[r * RUN + j] * fade;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (r < valid_rows) {
      ROLLED for (int d = team * 32 + int(lane); d < D; d += TEAMS * 32) {
        float sum = 0.0f;
        ROLLED for (int s = 0; s < TEAMS * SUBS; s++) sum += slices[(member * TEAMS * SUBS + s) * D + d];
        sums[r * D + d] = sum;
      }
      if (team == 0 && lane == 0u) {
        float total = 0.0f;
        for (int s = member; s < TEAMS * TEAM; s += TEAM) {
          total += totals[s * ROWS + r] * power_of_two(tops[s * ROWS + r] - top);
        }
        stats[2 * r] = top;
        stats[2 * r + 1] = total;
      }
    }
  }
}
