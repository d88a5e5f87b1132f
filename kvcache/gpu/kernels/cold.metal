// Attention of TEAM * ROWS query rows of one KV head to a span of cold blocks: a partial result.
//
// Grid: (row parts * threads, B * Hkv, spans). Template: KEYS and VALUES, the codec families, come
// as macros; ROWS, D, M, TEAM and TEAMS as template constants; all lengths in `args`.
// queries [B * Hkv, rows, D], taken into the keys' basis first where they have one (ROTATED); outputs
// sums [B * Hkv, spans, rows, D] and stats [B * Hkv, spans, rows, 2].
//
// Each team takes blocks of its own. Its simdgroups bring TILE tokens at a time to threadgroup memory
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

// Two tokens a lane halve the loads of queries, where both have room: 20 KB of Metal's 32, as other
// things need some too. A simdgroup alone writes its weights over the keys; after the last tile the
// sums of the simdgroups lie where tokens did.
enum {
  PADDED = Running<ROWS, D>::PADDED,
  SLICE = Running<ROWS, D>::SLICE,
  SUBS = Running<ROWS, D>::SUBS,
  WORDS = KEYS::WORDS + VALUES::STAGES_VALUES * VALUES::WORDS,
  OF_TOKEN = WORDS + KEYS::NUMBERS + VALUES::NUMBERS + (TEAM == 1 ? 0 : TEAM * PADDED),
  TOKENS = M > 32 && OF_TOKEN * TEAMS <= 80 ? 2 : 1,
  TILE = 32 * TOKENS,
  ONE_BY_ONE = ROWS > 4 && (TOKENS == 1 || !KEYS::CHANNELS),
  EVEN = M % TILE == 0 && TILE % SUBS == 0,
  WEIGHTS = TILE * PADDED,
  KEY_WORDS = Tile<KEYS, TILE>::KEY_STAGED,
  VALUES_AT = TEAM == 1 && WEIGHTS > KEY_WORDS ? WEIGHTS : KEY_WORDS,
  KEY_CHANNELS = VALUES_AT + Tile<VALUES, TILE>::VALUE_STAGED,
  VALUE_CHANNELS = KEY_CHANNELS + KEYS::CHANNELS * 2 * D,
  WEIGHTS_AT = VALUE_CHANNELS + VALUES::CHANNELS * 2 * D,
  TILE_WORDS = TEAM == 1 ? WEIGHTS_AT : WEIGHTS_AT + TEAM * WEIGHTS,
  SLICE_WORDS = TEAM * SUBS * D,
  STAGED = TILE_WORDS > SLICE_WORDS ? TILE_WORDS : SLICE_WORDS
};
threadgroup float4 all_queries[TEAM * ROWS * D / 4];
threadgroup uint4 all_staged[TEAMS * STAGED / 4];
threadgroup float tops[TEAMS * TEAM * ROWS];
threadgroup float totals[TEAMS * TEAM * ROWS];
SHARED_POINTER(float) own_tops = tops + simdgroup * uint(ROWS);
SHARED_POINTER(float4) own_queries = all_queries + member * uint(ROWS * D / 4);
SHARED_POINTER(uint) key_tile = (SHARED_POINTER(uint))(all_staged + team * uint(STAGED / 4));
SHARED_POINTER(uint) value_tile = key_tile + VALUES_AT;
SHARED_POINTER(float4) key_channels = (SHARED_POINTER(float4))(key_tile + KEY_CHANNELS);
SHARED_POINTER(float4) value_channels = (SHARED_POINTER(float4))(key_tile + VALUE_CHANNELS);
SHARED_POINTER(float4) weights = (SHARED_POINTER(float4))(
    TEAM == 1 ? key_tile : key_tile + WEIGHTS_AT + member * uint(WEIGHTS));

for (int r = int(simdgroup); r < TEAM * ROWS; r += TEAMS * TEAM) {
  const int row = min(int(threadgroup_position_in_grid.x) * TEAM * ROWS + r, rows - 1);
  load_query<D, ROTATED>(queries + (head * rows + row) * D, scale, words,
      head % args[ARG_KV_HEADS], (SHARED_POINTER(float))all_queries + r * D, lane);
}
Running<ROWS, D> state;
state.clear(own_tops, lane);
threadgroup_barrier(mem_flags::mem_threadgroup);

const float key_level = levels[lane];
const float value_level = levels[32u + lane];
const int sub = min(int(lane) / Running<ROWS, D>::SLICES, SUBS - 1);
const int channel = int(lane) % Running<ROWS, D>::SLICES * SLICE;
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
  ROLLED for (int first = 0; first < M; first += TILE) {
    const int count = min(int(TILE), M - first);
    KEYS keys = {KEY_PARTS};
    keys.seek(held);
    VALUES values = {VALUE_PARTS};
    values.seek(held);
    if (there) {
      if (KEYS::CHANNELS && first == 0) {
        stage_channels<D, KEYS::BITS, TEAM * 32>(keys, key_channels, worker);
      }
      if (VALUES::CHANNELS && first == 0) {
        stage_channels<D, 0, TEAM * 32>(values, value_channels, worker);
      }
      stage_keys<TILE, TEAM * 32>(keys, uint(first), count, key_tile, worker);
      stage_values<TILE, TEAM * 32>(values, uint(first), count, value_tile, worker);
    }
    team_barrier<TEAM>();
    if (there) {
      float scores[TOKENS * PADDED];
      UNROLL for (int i = 0; i < TOKENS * PADDED; i++) scores[i] = 0.0f;
      SHARED_POINTER(const uint) numbers = key_tile + Tile<KEYS, TILE>::KEY_NUMBERS + lane;
      ROLLED for (int channel = 0; channel < D; channel += KEY_CODES) {
        uint key[TOKENS][KEY_CODES * KEYS::BITS / 32 + 1];
        UNROLL for (int k = 0; k < TOKENS; k++) {
          key_words<TILE>(keys, key_tile + int(lane) + 32 * k, channel, key[k]);
        }
        UNROLL for (int i = 0; i < KEY_CODES; i += KEY_RUN) {
          if (D % KEY_CODES != 0 && channel + i >= D) continue;
          // Or compilers load all the queries ahead, into more registers than there are.
          if (ONE_BY_ONE) simdgroup_barrier(mem_flags::mem_threadgroup);
          float elements[TOKENS * KEY_RUN];
          UNROLL for (int k = 0; k < TOKENS; k++) {
            key_run<TILE>(
                keys, key[k], numbers + 32 * k, channel + i, i, key_level, elements + k * KEY_RUN);
          }
          if (KEYS::CHANNELS) {
            UNROLL for (int k = 0; k < TOKENS; k++) {
              with_channels<D>(key_channels, channel + i, keys.factor(numbers + 32 * k),
                  elements + k * KEY_RUN);
            }
          }
          add_scores<ROWS, D, TOKENS>(own_queries, elements, channel + i, scores);
        }
      }
      UNROLL for (int k = 0; k < TOKENS; k++) {
        const float factor = KEYS::CHANNELS ? 1.0f : keys.factor(numbers + 32 * k);
        UNROLL for (int r = 0; r < ROWS; r++) scores[k * PADDED + r] *= factor;
      }
      const int position = args[ARG_COLD_POSITION] + block * M + first;
      if (count < TILE || !all_see(position, TILE, false, args)) {
        hide_unseen<ROWS, D, TOKENS>(
            scores, int(lane), count, position + int(lane), false, first_row, args);
      }
      state.template weigh<TOKENS>(scores, own_tops, lane);
      simdgroup_barrier(mem_flags::mem_threadgroup);
      UNROLL for (int k = 0; k < TOKENS; k++) {
        const int token = int(lane) + 32 * k;
        thread float* of_rows = scores + k * PADDED;
        if (!VALUES::CHANNELS) {
          const float factor = token < count
              ? values.factor(value_tile + Tile<VALUES, TILE>::VALUE_NUMBERS + token)
              : 0.0f;
          UNROLL for (int r = 0; r < ROWS; r++) of_rows[r] *= factor;
        }
        put_weights<ROWS, TILE>(of_rows, weights + token);
      }
      simdgroup_barrier(mem_flags::mem_threadgroup);
      SHARED_POINTER(const uint) row = value_tile + sub * VALUES::WORDS;
      SHARED_POINTER(const uint) row_numbers =
          value_tile + Tile<VALUES, TILE>::VALUE_NUMBERS + sub;
      SHARED_POINTER(const float4) row_weights = weights + sub;
      UNROLL_TWICE for (int begin = 0; begin < count; begin += SUBS) {
        const bool in = EVEN || begin + sub < count;
        const int back = in ? 0 : sub;
        float value[SLICE];
        value_run<SLICE, TILE>(values, row - back * VALUES::WORDS, row_numbers - back, uint(first),
            begin + sub - back, channel, value_level, value);
        if (VALUES::CHANNELS) {
          const float factor = values.factor(row_numbers - back);
          UNROLL for (int j = 0; j < SLICE; j += 4) {
            with_channels<D>(value_channels, channel + j, factor, value + j);
          }
        }
        if (in) state.template add<TILE>(row_weights, value);
        row += SUBS * VALUES::WORDS;
        row_numbers += SUBS;
        row_weights += SUBS;
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
