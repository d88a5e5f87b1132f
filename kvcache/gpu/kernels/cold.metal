// Attention of up to ROWS query rows of one KV head to a span of cold blocks: a partial result.
//
// Grid: (row tiles * threads, B * Hkv, spans). Template: KEYS and VALUES, the codec families, come
// as macros; ROWS, D, M and SIMDGROUPS as template constants; all lengths in `args`.
// queries [B * Hkv, rows, D], taken into the keys' basis first where they have one (ROTATED); outputs
// sums [B * Hkv, spans, rows, D] and stats [B * Hkv, spans, rows, 2].
//
// Each simdgroup takes blocks of its own: no barrier of the threadgroup until the end.
const uint lane = thread_index_in_simdgroup;
const uint simdgroup = simdgroup_index_in_threadgroup;
const int first_row = int(threadgroup_position_in_grid.x) * ROWS;
const int head = int(threadgroup_position_in_grid.y);
const int span = int(threadgroup_position_in_grid.z);
const int rows = args[ARG_ROWS];
const int spans = args[ARG_SPANS];
const float scale = as_type<float>(args[ARG_SCALE]);
const device int* lowest = args + ARG_LOWEST;

threadgroup float level_table[16 + 16];
threadgroup float rotated[ROWS * D];
threadgroup float all_folded[SIMDGROUPS * ROWS * D];
threadgroup float all_weights[SIMDGROUPS * 32 * ROWS];
threadgroup uint all_staged[SIMDGROUPS * VALUES::STAGED];
threadgroup float tops[SIMDGROUPS * ROWS];
threadgroup float totals[SIMDGROUPS * ROWS];
threadgroup float slices[SIMDGROUPS * (32 / (D / RUN)) * D];
SHARED_POINTER(float) folded = all_folded + simdgroup * uint(ROWS * D);
SHARED_POINTER(float) weights = all_weights + simdgroup * uint(32 * ROWS);
SHARED_POINTER(uint) staged = all_staged + simdgroup * uint(VALUES::STAGED);

for (int r = int(simdgroup); r < ROWS; r += SIMDGROUPS) {
  const int from = (head * rows + min(first_row + r, rows - 1)) * D;
  load_query<D, ROTATED>(
      queries + from, scale, words, head % args[ARG_KV_HEADS], rotated + r * D, lane);
}
if (simdgroup == 0u) level_table[lane] = levels[lane];
threadgroup_barrier(mem_flags::mem_threadgroup);

Running<ROWS, D> state;
state.clear();
float bias[ROWS];
int oldest[ROWS];
int newest[ROWS];
UNROLL for (int r = 0; r < ROWS; r++) {
  const int query = min(first_row + r, rows - 1) % args[ARG_QUERIES];
  oldest[r] = lowest[query];
  newest[r] = args[ARG_POSITION] + query;
}
const int sub = int(lane) / Running<ROWS, D>::RUNS;
const int run = int(lane) % Running<ROWS, D>::RUNS;
const int per_span = (args[ARG_BLOCKS] + spans - 1) / spans;
bool folded_once = false;
const int last_block = min((span + 1) * per_span, args[ARG_BLOCKS]);

for (int block = span * per_span + int(simdgroup); block < last_block; block += SIMDGROUPS) {
  const Place place = place_of_block(args, block);
  const int segment = place.segment;
  if (segment < 0) continue;
  const uint held = uint(place.slot * args[ARG_HEADS] + head);
  KEYS keys = {KEY_PARTS};
  keys.seek(held);
  VALUES values = {VALUE_PARTS};
  values.seek(held);

  // The channels' scales go into the queries, their offsets into a bias. Whoever read the block
  // before has passed the barrier at its end.
  if (!folded_once) {
    UNROLL for (int r = 0; r < ROWS; r++) bias[r] = 0.0f;
    for (int d = int(lane); d < D; d += 32) {
      const float channel_scale = keys.channel_scale(uint(d));
      const float channel_offset = keys.channel_offset(uint(d));
      UNROLL for (int r = 0; r < ROWS; r++) {
        const float query = rotated[r * D + d];
        folded[r * D + d] = query * channel_scale;
        bias[r] += query * channel_offset;
      }
    }
    if (KEYS::CHANNELS) {
      UNROLL for (int r = 0; r < ROWS; r++) bias[r] = simd_sum(bias[r]);
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    folded_once = !KEYS::CHANNELS;
  }

  float value_scale[RUN];
  float value_offset[RUN];
  if (VALUES::CHANNELS) {
    if (sub == 0) values.channel_runs(uint(run), value_scale, value_offset);
    UNROLL for (int j = 0; j < RUN; j++) {
      value_scale[j] = simd_shuffle(value_scale[j], ushort(run));
      value_offset[j] = simd_shuffle(value_offset[j], ushort(run));
    }
  }

  for (int first = 0; first < M; first += 32) {
    const int count = min(32, M - first);
    const uint token = uint(first) + lane;
    const bool held_token = int(lane) < count;
    float scores[ROWS];
    float value_factor = 0.0f;
    UNROLL for (int r = 0; r < ROWS; r++) scores[r] = 0.0f;
    if (held_token) {
      typename KEYS::Row row;
      keys.load(token, row);
      UNROLL for (int i = 0; i < D / RUN; i++) {
        float key[RUN];
        keys.key_run(row, i, level_table, key);
        add_scores<ROWS, D>(folded, key, i, scores);
      }
      const float key_factor = keys.factor(token);
      UNROLL for (int r = 0; r < ROWS; r++) scores[r] = scores[r] * key_factor + bias[r];
      value_factor = values.factor(token);
    }
    values.stage(uint(first), count, staged, lane);
    const int position = args[ARG_COLD_POSITION] + block * M + int(token);
    UNROLL for (int r = 0; r < ROWS; r++) {
      const bool in_window = position >= oldest[r] && position <= newest[r];
      const float weight = state.weigh(r, scores[r], held_token && in_window);
      weights[int(lane) * ROWS + r] = weight * value_factor;
      if (VALUES::CHANNELS) {
        const float tile_total = simd_sum(weight);
        UNROLL for (int j = 0; j < RUN; j++) {
          if (sub == 0) state.sums[r * RUN + j] += tile_total * value_offset[j];
        }
      }
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    if (sub < Running<ROWS, D>::SUBS) {
      for (int t = sub; t < count; t += Running<ROWS, D>::SUBS) {
        float value[RUN];
        values.value_run(staged, uint(first), t, run, level_table + 16, value);
        if (VALUES::CHANNELS) {
          UNROLL for (int j = 0; j < RUN; j++) value[j] *= value_scale[j];
        }
        state.add(weights + t * ROWS, value);
      }
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
  }
}

const int partial = (head * spans + span) * rows + first_row;
write_partial<ROWS, D, SIMDGROUPS>(state, tops, totals, slices, sums + partial * D,
    stats + partial * 2, rows - first_row, simdgroup, lane);
