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

threadgroup float4 all_scaled[TEAM * ROWS * D / 4];
threadgroup float4 all_weights[TEAMS * TEAM * 32 * Running<ROWS, D>::PADDED / 4];
threadgroup float tops[TEAMS * TEAM * ROWS];
threadgroup float totals[TEAMS * TEAM * ROWS];
threadgroup float slices[TEAMS * TEAM * Running<ROWS, D>::SUBS * D];
SHARED_POINTER(float) own_tops = tops + simdgroup * uint(ROWS);
SHARED_POINTER(float4) scaled = all_scaled + member * (ROWS * D / 4);
SHARED_POINTER(float4) weights =
    all_weights + simdgroup * uint(32 * Running<ROWS, D>::PADDED / 4);

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

// Runs of a key that a lane takes at a time.
enum { AT_ONCE = sizeof(HOT) > 2 ? (ROWS > 4 ? 1 : 2) : (ROWS > 4 ? 2 : 4) };
Running<ROWS, D> state;
state.clear(own_tops, lane);
threadgroup_barrier(mem_flags::mem_threadgroup);

const int sub = int(lane) / Running<ROWS, D>::SLICES;
const int channel = int(lane) % Running<ROWS, D>::SLICES * Running<ROWS, D>::SLICE;
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
  float scores[Running<ROWS, D>::PADDED];
  UNROLL for (int r = 0; r < Running<ROWS, D>::PADDED; r++) scores[r] = 0.0f;
  if (int(lane) < count) {
    const device HOT* row =
        pinned ? pinned_keys + (head * args[ARG_PINNED_ROOM] + token) * D
        : token < hot
        ? hot_keys + (head * args[ARG_RING] + (args[ARG_HOT_START] + token) % args[ARG_RING]) * D
        : new_keys + (head * args[ARG_NEW] + token - hot) * D;
    ROLLED for (int at = 0; at < D / RUN; at += AT_ONCE) {
      UNROLL for (int i = 0; i < AT_ONCE; i++) {
        if (D / RUN % AT_ONCE != 0 && at + i >= D / RUN) continue;
        float key[RUN];
        load_run<RUN>(row + (at + i) * RUN, key);
        UNROLL for (int j = 0; j < RUN; j += 4) {
          add_scores<ROWS, D, 1>(scaled, key + j, (at + i) * RUN + j, scores);
        }
      }
    }
  }
  const int position = pinned ? first
      : first < hot           ? args[ARG_HOT_POSITION] + first
                              : args[ARG_NEW_POSITION] + first - hot;
  if (count < 32 || !all_see(position, 32, pinned, args)) {
    hide_unseen<ROWS, D, 1>(
        scores, int(lane), count, position + int(lane), pinned, first_row, args);
  }
  state.template weigh<1>(scores, own_tops, lane);
  put_weights<ROWS, 32>(scores, weights + lane);
  simdgroup_barrier(mem_flags::mem_threadgroup);
  if (sub < Running<ROWS, D>::SUBS) {
    ROLLED for (int t = sub; t < count; t += Running<ROWS, D>::SUBS) {
      const int at = first + t;
      const device HOT* row =
          pinned ? pinned_values + (head * args[ARG_PINNED_ROOM] + at) * D
          : at < hot
          ? hot_values + (head * args[ARG_RING] + (args[ARG_HOT_START] + at) % args[ARG_RING]) * D
          : new_values + (head * args[ARG_NEW] + at - hot) * D;
      float value[Running<ROWS, D>::SLICE];
      load_run<Running<ROWS, D>::SLICE>(row + channel, value);
      state.template add<32>(weights + t, value);
    }
  }
  simdgroup_barrier(mem_flags::mem_threadgroup);
}

const int partial = (head * spans + span) * rows + first_row;
write_partial<ROWS, D, TEAM, TEAMS>(state, tops, totals, slices, sums + partial * D,
    stats + partial * 2, rows - first_row, simdgroup, lane);
