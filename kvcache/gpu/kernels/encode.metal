// Blocks of a layer encoded, keys and values in one launch (encoders.h).
//
// Grid: (threads * tiles, B * Hkv, 2 * blocks); keys and values alternate along the last axis.
// Tokens lie in ring_* [B * Hkv, RING, D], those of numbers from END on in new_* [B * Hkv, NEW, D].
// Outputs [blocks, B * Hkv, ...], by the codecs' parts.
const int index = int(thread_index_in_threadgroup);
const int lane = int(thread_index_in_simdgroup);
const int simdgroup = int(simdgroup_index_in_threadgroup);
const int tile = int(threadgroup_position_in_grid.x);
const int head = int(threadgroup_position_in_grid.y);
const int number = int(threadgroup_position_in_grid.z) / 2;
const bool of_keys = threadgroup_position_in_grid.z % 2u == 0u;
const int kv_head = head % args[ARG_KV_HEADS];
const int at = number * args[ARG_HEADS] + head;
const int ring_start = head * args[ARG_RING] * D;
const int new_start = head * args[ARG_NEW] * D;

threadgroup float rows[HELD * (D + 1)];
threadgroup float scratch[KEYS::SCRATCH > VALUES::SCRATCH ? KEYS::SCRATCH : VALUES::SCRATCH];

if (of_keys) {
  if (tile > 0 && !KEYS::TILED) return;
  const Leaving<HOT, D, M, HELD, TILE, FACTOR, KEY_ROTATED, 32 * SIMDGROUPS> block = {
      ring_keys + ring_start, new_keys + new_start, key_signs + kv_head * D, minuses, rows, scratch,
      as_type<float>(args[ARG_SCALE]), args[ARG_NUMBER] + number * M, args[ARG_END],
      args[ARG_CAPACITY], index};
  KEYS keys = {KEY_PARTS};
  keys.encode(block, numbers, tile, at, simdgroup, lane);
} else {
  if (tile > 0 && !VALUES::TILED) return;
  const Leaving<HOT, D, M, HELD, TILE, FACTOR, VALUE_ROTATED, 32 * SIMDGROUPS> block = {
      ring_values + ring_start, new_values + new_start, value_signs + kv_head * D, minuses, rows,
      scratch, as_type<float>(args[ARG_SCALE]), args[ARG_NUMBER] + number * M, args[ARG_END],
      args[ARG_CAPACITY], index};
  VALUES values = {VALUE_PARTS};
  values.encode(block, numbers + NUMBERS_EACH, tile, at, simdgroup, lane);
}
