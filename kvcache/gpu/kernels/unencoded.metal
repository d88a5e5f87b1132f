// Attention of TEAM * ROWS query rows of one KV head to a span of unencoded tokens: a partial result.
//
// The first `pinned_spans` spans share the pinned tokens, at positions from 0, which are seen by
// turned queries; the others share the recent ones, hot ring and new tokens. Query l turns the first
// 2 * PAIRS channels, APART from each other in a pair, by cosines and sines turns [L, PAIRS, 2].
// Grid, template and outputs as in cold.metal; queries [B * Hkv, rows, D].
const uint lane = thread_index_in_simdgroup;
const uint simdgroup = simdgroup_index_in_threadgroup;
const int member = int(simdgroup) % TEAM;
const int team = int(simdgroup) / TEAM;
const int first_row = (int(threadgroup_position_in_grid.x) * TEAM + member) * ROWS;
const int head = int(threadgroup_position_in_grid.y);
const int span = int(threadgroup_position_in_grid.z);
const int rows = args[ARG_ROWS];
const int spans = args[ARG_SPANS];
const int pinned_spans = args[ARG_PINNED_SPANS];
const float scale = as_type<float>(args[ARG_SCALE]);
const device int* lowest = args + ARG_LOWEST;

threadgroup float4 all_scaled[TEAM * ROWS * D / 4];
threadgroup float4 all_weights[TEAMS * TEAM * 32];
threadgroup int all_oldest[TEAM * ROWS];
threadgroup int all_newest[TEAM * ROWS];
threadgroup float tops[TEAMS * TEAM * ROWS];
threadgroup float totals[TEAMS * TEAM * ROWS];
threadgroup float slices[TEAMS * TEAM * (32 / (D / RUN)) * D];
SHARED_POINTER(float4) scaled = all_scaled + member * (ROWS * D / 4);
SHARED_POINTER(float4) weights = all_weights + simdgroup * 32u;
SHARED_POINTER(int) oldest = all_oldest + member * ROWS;
SHARED_POINTER(int) newest = all_newest + member * ROWS;

const bool pinned = span < pinned_spans;
const int pairs = pinned ? args[ARG_PAIRS] : 0;
ROLLED for (int i = team * 32 + int(lane); i < ROWS * D; i += TEAMS * 32) {
  const int row = min(first_row + i / D, rows - 1);
  const int d = i % D;
  const device QUERY* query = queries + (head * rows + row) * D;
  float x = float(query[d]);
  if (d < 2 * pairs) {
    const int apart = args[ARG_APART];
    const bool second = d / apart % 2 == 1;
    const int pair = d / (2 * apart) * apart + d % apart;
    const int at = (row % args[ARG_QUERIES] * pairs + pair) * 2;
    const float other = second ? float(query[d - apart]) : -float(query[d + apart]);
    x = x * turns[at] + other * turns[at + 1];
  }
  ((SHARED_POINTER(float))scaled)[i] = x * scale;
}
if (team == 0 && lane < uint(ROWS)) {
  const int query = min(first_row + int(lane), rows - 1) % args[ARG_QUERIES];
  oldest[lane] = lowest[query];
  newest[lane] = args[ARG_POSITION] + query;
}
threadgroup_barrier(mem_flags::mem_threadgroup);

Running<ROWS, D> state;
state.clear();
const int sub = int(lane) / Running<ROWS, D>::RUNS;
const int run = int(lane) % Running<ROWS, D>::RUNS;
const int hot = args[ARG_HOT];
const int tokens = pinned ? args[ARG_PINNED] : hot + args[ARG_NEW];
const int shares = pinned ? pinned_spans : spans - pinned_spans;
const int share = pinned ? span : span - pinned_spans;
const int tiles = (tokens + 31) / 32;
const int per_share = (tiles + shares - 1) / shares;
const int last_tile = min((share + 1) * per_share, tiles);

for (int tile = share * per_share + team; tile < last_tile; tile += TEAMS) {
  const int first = tile * 32;
  const int count = min(32, tokens - first);
  const int token = first + int(lane);
  float scores[ROWS];
  UNROLL for (int r = 0; r < ROWS; r++) scores[r] = 0.0f;
  if (int(lane) < count) {
    const device HOT* row =
        pinned ? pinned_keys + (head * args[ARG_PINNED_ROOM] + token) * D
        : token < hot
        ? hot_keys + (head * args[ARG_RING] + (args[ARG_HOT_START] + token) % args[ARG_RING]) * D
        : new_keys + (head * args[ARG_NEW] + token - hot) * D;
    ROLLED for (int at = 0; at < D / RUN; at += CHUNK_RUNS) {
      UNROLL for (int i = 0; i < CHUNK_RUNS; i++) {
        if (D / RUN % CHUNK_RUNS != 0 && at + i >= D / RUN) continue;
        float key[RUN];
        load_run(row + (at + i) * RUN, key);
        add_scores<ROWS, D>(scaled, key, at + i, scores);
      }
    }
  }
  const int position = pinned ? token
      : token < hot           ? args[ARG_HOT_POSITION] + token
                              : args[ARG_NEW_POSITION] + token - hot;
  float of_rows[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  UNROLL for (int r = 0; r < ROWS; r++) {
    const bool in_window = (pinned || position >= oldest[r]) && position <= newest[r];
    of_rows[r] = state.weigh(r, scores[r], int(lane) < count && in_window);
  }
  weights[lane] = float4(of_rows[0], of_rows[1], of_rows[2], of_rows[3]);
  simdgroup_barrier(mem_flags::mem_threadgroup);
  if (sub < Running<ROWS, D>::SUBS) {
    ROLLED for (int t = sub; t < count; t += Running<ROWS, D>::SUBS) {
      const int at = first + t;
      const device HOT* row =
          pinned ? pinned_values + (head * args[ARG_PINNED_ROOM] + at) * D
          : at < hot
          ? hot_values + (head * args[ARG_RING] + (args[ARG_HOT_START] + at) % args[ARG_RING]) * D
          : new_values + (head * args[ARG_NEW] + at - hot) * D;
      float value[RUN];
      load_run(row + run * RUN, value);
      state.add(weights[t], value);
    }
  }
  simdgroup_barrier(mem_flags::mem_threadgroup);
}

const int partial = (head * spans + span) * rows + first_row;
write_partial<ROWS, D, TEAM, TEAMS>(state, tops, totals, slices, sums + partial * D,
    stats + partial * 2, rows - first_row, simdgroup, lane);
