// The running softmax of one simdgroup over tiles of up to 32 tokens, and its way out.
//
// A threadgroup has TEAMS teams of TEAM simdgroups. Those of a team take the same tokens for ROWS
// query rows each; the teams take other tokens for the same rows.
//
// Scores are in units of log2. A lane owns one token, or some that lie 32 apart, while scores are
// taken; then a slice of channels of every SUBS-th token while values are added up. All that is held
// for the rows of a token has room for PADDED of them.

#define LOWEST_SCORE (-1e30f)
#define UNSEEN_SCORE (-2e30f)  // so far below that nothing is left of its weight
#define MOST_ABOVE 12.0f       // by which a score may pass the top before all is made relative to it

template <int ROWS, int D>
struct Running {
  enum {
    PADDED = (ROWS + 3) / 4 * 4,
    SLICE = ROWS > 4 ? 4 : 8,
    SLICES = D / SLICE,
    SUBS = 32 / SLICES
  };
  float total[ROWS];         // of the tokens this lane owned, relative to the top
  float sums[ROWS * SLICE];  // of this lane's slice and tokens, relative to the top

  // tops: about the largest score of each row so far, in threadgroup memory of this simdgroup.
  METAL_FUNC void clear(SHARED_POINTER(float) tops, uint lane) {
    if (lane < uint(ROWS)) tops[lane] = LOWEST_SCORE;
    UNROLL for (int r = 0; r < ROWS; r++) total[r] = 0.0f;
    UNROLL for (int i = 0; i < ROWS * SLICE; i++) sums[i] = 0.0f;
  }

  // Turn the scores of this lane's tokens, [TOKENS, PADDED], into weights. A barrier of the simdgroup
  // must come before the next scores.
  template <int TOKENS>
  METAL_FUNC void weigh(thread float* scores, SHARED_POINTER(float) tops, uint lane) {
    float top[ROWS];
    bool above = false;
    UNROLL for (int r = 0; r < ROWS; r++) {
      top[r] = tops[r];
      UNROLL for (int k = 0; k < TOKENS; k++) {
        above = above || scores[k * PADDED + r] > top[r] + MOST_ABOVE;
      }
    }
    if (simd_any(above)) {
      simdgroup_barrier(mem_flags::mem_threadgroup);
      raise_tops<TOKENS>(scores, top);
      UNROLL for (int r = 0; r < ROWS; r++) {
        if (lane == 0u) tops[r] = top[r];
      }
    }
    UNROLL for (int r = 0; r < ROWS; r++) {
      UNROLL for (int k = 0; k < TOKENS; k++) {
        scores[k * PADDED + r] = power_of_two(scores[k * PADDED + r] - top[r]);
        total[r] += scores[k * PADDED + r];
      }
    }
  }

  template <int TOKENS>
  METAL_FUNC void raise_tops(const thread float* scores, thread float* top) {
    UNROLL for (int r = 0; r < ROWS; r++) {
      float now = scores[r];
      UNROLL for (int k = 1; k < TOKENS; k++) now = max(now, scores[k * PADDED + r]);
      now = max(top[r], simd_max(now));
      const float fade = power_of_two(top[r] - now);
      top[r] = now;
      total[r] *= fade;
      UNROLL for (int j = 0; j < SLICE; j++) sums[r * SLICE + j] *= fade;
    }
  }

  // weights: of one of TILE tokens, four rows of all tokens after four.
  template <int TILE>
  METAL_FUNC void add(SHARED_POINTER(const float4) weights, const thread float* values) {
    UNROLL for (int r = 0; r < ROWS; r += 4) {
      const float4 four = weights[r / 4 * TILE];
      const float of_rows[4] = {four.x, four.y, four.z, four.w};
      UNROLL for (int i = 0; i < 4 && r + i < ROWS; i++) {
        UNROLL for (int j = 0; j < SLICE; j++) sums[(r + i) * SLICE + j] += of_rows[i] * values[j];
      }
    }
  }
};

// One token's weights to where `add` finds them.
template <int ROWS, int TILE>
METAL_FUNC void put_weights(const thread float* of_rows, SHARED_POINTER(float4) weights) {
  UNROLL for (int r = 0; r < ROWS; r += 4) {
    weights[r / 4 * TILE] = float4(of_rows[r], of_rows[r + 1], of_rows[r + 2], of_rows[r + 3]);
  }
}

// scores[r] += what four channels of each of TOKENS keys give with the queries' rows [ROWS, D].
template <int ROWS, int D, int TOKENS>
METAL_FUNC void add_scores(SHARED_POINTER(const float4) queries, const thread float* keys,
    int channel, thread float* scores) {
  UNROLL for (int r = 0; r < ROWS; r++) {
    const float4 query = queries[(r * D + channel) / 4];
    UNROLL for (int k = 0; k < TOKENS; k++) {
      const thread float* key = keys + k * 4;
      thread float* score = scores + k * Running<ROWS, D>::PADDED + r;
      score[0] += query.x * key[0];
      score[0] += query.y * key[1];
      score[0] += query.z * key[2];
      score[0] += query.w * key[3];
    }
  }
}

// Hides from each row the scores that it does not see: of this lane's TOKENS, those from `count` on,
// and outside of the row's window. The first is `token` of the tile, at `position`.
template <int ROWS, int D, int TOKENS>
METAL_FUNC void hide_unseen(thread float* scores, int token, int count, int position,
    bool from_first, int first_row, const device int* args) {
  int query = first_row % args[ARG_QUERIES];
  UNROLL for (int r = 0; r < ROWS; r++) {
    const int oldest = from_first ? 0 : args[ARG_LOWEST + query];
    const int newest = args[ARG_POSITION] + query;
    UNROLL for (int k = 0; k < TOKENS; k++) {
      const int at = position + 32 * k;
      const bool seen = token + 32 * k < count && at >= oldest && at <= newest;
      if (!seen) scores[k * Running<ROWS, D>::PADDED + r] = UNSEEN_SCORE;
    }
    query = query + 1 == args[ARG_QUERIES] ? 0 : query + 1;
  }
}

// Whether all queries see every one of `count` tokens from `position` on: windows only move on.
METAL_FUNC bool all_see(int position, int count, bool from_first, const device int* args) {
  const int last = args[ARG_LOWEST + args[ARG_QUERIES] - 1];
  return (from_first || position >= last) && position + count - 1 <= args[ARG_POSITION];
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
  enum {
    SLICE = Running<ROWS, D>::SLICE,
    SLICES = Running<ROWS, D>::SLICES,
    SUBS = Running<ROWS, D>::SUBS
  };
  UNROLL for (int r = 0; r < ROWS; r++) {
    const float total = simd_sum(state.total[r]);
    if (lane == 0u) totals[int(simdgroup) * ROWS + r] = total;
  }
  const int sub = int(lane) / SLICES;
  const int first = int(lane) % SLICES * SLICE;
  const int member = int(simdgroup) % TEAM;
  const int team = int(simdgroup) / TEAM;
  UNROLL for (int r = 0; r < ROWS; r++) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float top = LOWEST_SCORE;
    for (int s = member; s < TEAMS * TEAM; s += TEAM) top = max(top, tops[s * ROWS + r]);
    if (sub < SUBS) {
      const float fade = power_of_two(tops[int(simdgroup) * ROWS + r] - top);
      SHARED_POINTER(float) slice = slices + ((member * TEAMS + team) * SUBS + sub) * D + first;
      UNROLL for (int j = 0; j < SLICE; j++) slice[j] = state.sums[r * SLICE + j] * fade;
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
