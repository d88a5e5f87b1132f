// Partial results of all spans, merged exactly into the attention [B * Hkv, rows, D].
//
// The cold part is in the values' basis, so it is summed apart and, where ROTATED, taken back:
// (cold @ matrix) * signs. Grid: (threads, B * Hkv * rows, 1), one thread per channel.
const int d = int(thread_index_in_threadgroup);
const int rows = args[ARG_ROWS];
const int head = int(threadgroup_position_in_grid.y) / rows;
const int row = int(threadgroup_position_in_grid.y) % rows;
const int cold_spans = args[ARG_COLD_SPANS];
const int dense_spans = args[ARG_DENSE_SPANS];
const int cold_first = head * cold_spans * rows + row;
const int dense_first = head * dense_spans * rows + row;

threadgroup float coded[D];

float top = LOWEST_SCORE;
for (int s = 0; s < cold_spans; s++) top = max(top, cold_stats[(cold_first + s * rows) * 2]);
for (int s = 0; s < dense_spans; s++) top = max(top, dense_stats[(dense_first + s * rows) * 2]);

float total = 0.0f;
float cold = 0.0f;
float dense = 0.0f;
for (int s = 0; s < cold_spans; s++) {
  const int at = cold_first + s * rows;
  const float weight = power_of_two(cold_stats[at * 2] - top);
  total += cold_stats[at * 2 + 1] * weight;
  if (d < D) cold += cold_sums[at * D + d] * weight;
}
for (int s = 0; s < dense_spans; s++) {
  const int at = dense_first + s * rows;
  const float weight = power_of_two(dense_stats[at * 2] - top);
  total += dense_stats[at * 2 + 1] * weight;
  if (d < D) dense += dense_sums[at * D + d] * weight;
}

if (ROTATED) {
  if (d < D) coded[d] = cold;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  cold = 0.0f;
  if (d < D) {
    for (int j = 0; j < D; j++) cold += coded[j] * matrix[j * D + d];
    cold *= signs[head % args[ARG_KV_HEADS] * D + d];
  }
}
if (d < D) out[(head * rows + row) * D + d] = OUT((cold + dense) / total);
