// Attention of TEAM * ROWS query rows of one KV head to a span of cold blocks: a partial result.
//
// Grid: (row parts * threads, B * Hkv, spans). Template: KEYS and VALUES, the codec families, come
// as macros; ROWS, D, M, TEAM and TEAMS as template constants; all lengths in `args`.
// queries [B * Hkv, rows, D], taken into the keys' basis first where they have one (ROTATED); outputs
// sums [B * Hkv, spans, rows, D] and stats [B * Hkv, spans, rows, 2].
//
// Each team takes blocks of its own. Its simdgroups bring 32 tokens at a time to threadgroup memory
// together, so that a block is loaded once for all rows, and each attends with rows of its own.
const uint lane = thread_index_in_simdgroup;
const uint simdgroup = simdgroup_index_in_threadgroup;
const uint member = simdgroup % uint(TEAM);
const uint team = simdgroup / uint(TEAM);
const uint worker = member * 32u + lane;
const int first_row = (int(threadgroup_position_in_grid.x) * TEAM + int(member)) * ROWS;
const int head = int(threadgroup_position_in_grid.y);
const int span = int(threadgroup_position_in_grid.z);
const int rows = args[ARG_ROWS];
const int spans = args[ARG_SPANS];
const float scale = as_type<float>(args[ARG_SCALE]);
const device int* lowest = args + ARG_LOWEST;

// After the last tile the sums of the simdgroups lie where tokens did.
enum {
  KEY_CHANNELS = Tile<KEYS>::KEY_STAGED,
  VALUES_AT = KEY_CHANNELS + KEYS::CHANNELS * D,
  VALUE_CHANNELS = VALUES_AT + Tile<VALUES>::VALUE_STAGED,
  TILE_WORDS = VALUE_CHANNELS + VALUES::CHANNELS * D,
  SLICE_WORDS = TEAM * (32 / (D / RUN)) * D,
  STAGED = TILE_WORDS > SLICE_WORDS ? TILE_WORDS : SLICE_WORDS
};
threadgroup float level_table[16 + 16];
threadgroup float4 all_queries[TEAM * ROWS * D / 4];
threadgroup float4 all_folded[KEYS::CHANNELS ? TEAMS * TEAM * ROWS * D / 4 : 1];
threadgroup float4 all_weights[TEAMS * TEAM * 32];
threadgroup uint4 all_staged[TEAMS * STAGED / 4];
threadgroup float all_biases[TEAMS * TEAM * ROWS];
threadgroup int all_oldest[TEAM * ROWS];
threadgroup int all_newest[TEAM * ROWS];
threadgroup float tops[TEAMS * TEAM * ROWS];
threadgroup float totals[TEAMS * TEAM * ROWS];
SHARED_POINTER(float4) own_queries = all_queries + member * uint(ROWS * D / 4);
SHARED_POINTER(float4) folded =
    KEYS::CHANNELS ? all_folded + simdgroup * uint(ROWS * D / 4) : own_queries;
SHARED_POINTER(float4) weights = all_weights + simdgroup * 32u;
SHARED_POINTER(float) biases = all_biases + simdgroup * uint(ROWS);
SHARED_POINTER(int) oldest = all_oldest + member * uint(ROWS);
SHARED_POINTER(int) newest = all_newest + member * uint(ROWS);
SHARED_POINTER(uint) key_tile = (SHARED_POINTER(uint))(all_staged + team * uint(STAGED / 4));
SHARED_POINTER(uint) key_channels = key_tile + KEY_CHANNELS;
SHARED_POINTER(uint) value_tile = key_tile + VALUES_AT;
SHARED_POINTER(uint) value_channels = key_tile + VALUE_CHANNELS;

for (int r = int(simdgroup); r < TEAM * ROWS; r += TEAMS * TEAM) {
  const int row = min(int(threadgroup_position_in_grid.x) * TEAM * ROWS + r, rows - 1);
  load_query<D, ROTATED>(queries + (head * rows + row) * D, scale, words,
      head % args[ARG_KV_HEADS], (SHARED_POINTER(float))all_queries + r * D, lane);
}
if (simdgroup == 0u) level_table[lane] = levels[lane];
if (team == 0u && lane < uint(ROWS)) {
  const int query = min(first_row + int(lane), rows - 1) % args[ARG_QUERIES];
  oldest[lane] = lowest[query];
  newest[lane] = args[ARG_POSITION] + query;
}
threadgroup_barrier(mem_flags::mem_threadgroup);

Running<ROWS, D> state;
state.clear();
const int sub = int(lane) / Running<ROWS, D>::RUNS;
const int run = int(lane) % Running<ROWS, D>::RUNS;
const int per_span = (args[ARG_BLOCKS] + spans - 1) / spans;
const int last_block = min((span + 1) * per_span, args[ARG_BLOCKS]);

// Teams of more than one wait for each other, so all go as often around.
ROLLED for (int step = 0; step < per_span; step += TEAMS) {
  const int block = span * per_span + step + int(team);
  const Place place = place_of_block(args, block);
  const int segment = place.segment;
  const bool there = block < last_block && segment >= 0;
  if (!there && (TEAM == 1 || TEAMS == 1)) continue;
  const uint held = uint(place.slot * args[ARG_HEADS] + head);
  ROLLED for (int first = 0; first < M; first += 32) {
    const int count = min(32, M - first);
    KEYS keys = {KEY_PARTS};
    keys.seek(held);
    VALUES values = {VALUE_PARTS};
    values.seek(held);
    if (there) {
      if (KEYS::CHANNELS && first == 0) stage_channels<D, TEAM * 32>(keys, key_channels, worker);
      if (VALUES::CHANNELS && first == 0) {
        stage_channels<D, TEAM * 32>(values, value_channels, worker);
      }
      stage_keys<TEAM * 32>(keys, uint(first), count, key_tile, worker);
      stage_values<TEAM * 32>(values, uint(first), count, value_tile, worker);
    }
    team_barrier<TEAM>();
    if (there) {
      if (KEYS::CHANNELS && first == 0) {
        fold<ROWS, D>(own_queries, key_channels, folded, biases, lane);
        simdgroup_barrier(mem_flags::mem_threadgroup);
      }

      const bool held_token = int(lane) < count;
      float scores[ROWS];
      float value_factor = 0.0f;
      UNROLL for (int r = 0; r < ROWS; r++) scores[r] = 0.0f;
      if (held_token) {
        SHARED_POINTER(const uint) numbers = key_tile + Tile<KEYS>::KEY_NUMBERS + lane;
        SHARED_POINTER(const uint) chunk = key_tile + lane;
        ROLLED for (int at = 0; at < D / RUN; at += Tile<KEYS>::RUNS) {
          UNROLL for (int i = 0; i < Tile<KEYS>::RUNS; i++) {
            if (D / RUN % Tile<KEYS>::RUNS != 0 && at + i >= D / RUN) continue;
            float key[RUN];
            key_run(keys, chunk, numbers, i, at + i, level_table, key);
            add_scores<ROWS, D>(folded, key, at + i, scores);
          }
          chunk += Tile<KEYS>::RUNS * KEYS::BITS / 4 * Columns<KEYS::WORDS>::STRIDE;
        }
        const float key_factor = keys.factor(numbers);
        UNROLL for (int r = 0; r < ROWS; r++) scores[r] = scores[r] * key_factor;
        if (KEYS::CHANNELS) {
          UNROLL for (int r = 0; r < ROWS; r++) scores[r] += biases[r];
        }
        value_factor = values.factor(value_tile + Tile<VALUES>::VALUE_NUMBERS + lane);
      }

      const int position = args[ARG_COLD_POSITION] + block * M + first + int(lane);
      float of_rows[4] = {0.0f, 0.0f, 0.0f, 0.0f};
      float tile_totals[ROWS];
      UNROLL for (int r = 0; r < ROWS; r++) {
        const bool in_window = position >= oldest[r] && position <= newest[r];
        const float weight = state.weigh(r, scores[r], held_token && in_window);
        of_rows[r] = weight * value_factor;
        tile_totals[r] = VALUES::CHANNELS ? simd_sum(weight) : 0.0f;
      }
      weights[lane] = float4(of_rows[0], of_rows[1], of_rows[2], of_rows[3]);
      simdgroup_barrier(mem_flags::mem_threadgroup);
      float value_scale[RUN];
      if (VALUES::CHANNELS) {
        UNROLL for (int j = 0; j < RUN; j++) {
          value_scale[j] = channel_number(value_channels, run * RUN + j);
          const float value_offset = channel_number(value_channels, D + run * RUN + j);
          UNROLL for (int r = 0; r < ROWS; r++) {
            if (sub == 0) state.sums[r * RUN + j] += tile_totals[r] * value_offset;
          }
        }
      }
      if (sub < Running<ROWS, D>::SUBS) {
        ROLLED for (int t = sub; t < count; t += Running<ROWS, D>::SUBS) {
          float value[RUN];
          value_run(values, value_tile, uint(first), t, run, level_table + 16, value);
          if (VALUES::CHANNELS) {
            UNROLL for (int j = 0; j < RUN; j++) value[j] *= value_scale[j];
          }
          state.add(weights[t], value);
        }
      }
    }
    team_barrier<TEAM>();
  }
}

// Where this goes, from the beginning: nothing of it has taken a register through the loop.
const int own_row = (int(threadgroup_position_in_grid.x) * TEAM + int(member)) * ROWS;
const int partial = int(threadgroup_position_in_grid.y) * args[ARG_SPANS] +
    int(threadgroup_position_in_grid.z);
const int at = partial * args[ARG_ROWS] + own_row;
write_partial<ROWS, D, TEAM, TEAMS>(state, tops, totals, (SHARED_POINTER(float))all_staged,
    sums + at * D, stats + at * 2, args[ARG_ROWS] - own_row, simdgroup, lane);
