// Cold blocks of one tensor, decoded but not rotated back: out [B * HEADS_TAKEN, ROOM, D], whose
// first tokens they become.
//
// Grid: (blocks * threads / SIMDGROUPS, B * HEADS_TAKEN, 1), one simdgroup for each block. Of the
// Hkv heads those from FIRST_HEAD are taken.
const uint lane = thread_index_in_simdgroup;
const uint simdgroup = simdgroup_index_in_threadgroup;
const int block = int(threadgroup_position_in_grid.x) * SIMDGROUPS + int(simdgroup);
const int row = int(threadgroup_position_in_grid.y);
const int taken = args[ARG_HEADS_TAKEN];
const int head = row / taken * args[ARG_KV_HEADS] + args[ARG_FIRST_HEAD] + row % taken;

threadgroup uint4 all_staged[SIMDGROUPS * Tile<VALUES, 32>::VALUE_STAGED / 4];
SHARED_POINTER(uint) staged = (SHARED_POINTER(uint))(
    all_staged + simdgroup * uint(Tile<VALUES, 32>::VALUE_STAGED / 4));

const float level = levels[lane];
const int runs = D / RUN;
const int subs = 32 / runs;
const int sub = int(lane) / runs;
const int run = int(lane) % runs;

if (block < args[ARG_BLOCKS]) {
  const Place place = place_of_block(args, block);
  const int segment = place.segment;
  VALUES values = {VALUE_PARTS};
  values.seek(uint(place.slot * args[ARG_HEADS] + head));
  float scale[RUN];
  float offset[RUN];
  if (VALUES::CHANNELS) {
    load_run<RUN>(values.channel(0) + run * RUN, scale);
    load_run<RUN>(values.channel(1) + run * RUN, offset);
  }

  for (int first = 0; first < M; first += 32) {
    const int count = min(32, M - first);
    simdgroup_barrier(mem_flags::mem_threadgroup);
    stage_values<32, 32>(values, uint(first), count, staged, lane);
    simdgroup_barrier(mem_flags::mem_threadgroup);
    for (int begin = 0; begin < count; begin += subs) {
      const bool taken = sub < subs && begin + sub < count;
      const int t = taken ? begin + sub : begin;
      float value[RUN];
      SHARED_POINTER(const uint) numbers = staged + Tile<VALUES, 32>::VALUE_NUMBERS + t;
      value_run<RUN, 32>(
          values, staged + t * VALUES::WORDS, numbers, uint(first), t, run * RUN, level, value);
      const float factor = values.factor(numbers);
      const int token = row * args[ARG_ROOM] + block * M + first + t;
      UNROLL for (int j = 0; j < RUN; j++) {
        value[j] *= factor;
        if (VALUES::CHANNELS) value[j] = value[j] * scale[j] + offset[j];
        if (taken) out[token * D + run * RUN + j] = OUT(value[j]);
      }
    }
  }
}
