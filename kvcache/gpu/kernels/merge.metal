// Partial results of all spans, merged exactly: cold [B * Hkv, rows, D] and dense, apart because
// the cold one is in the values' basis; their sum, once that is undone, is the attention.
//
// Grid: (threads, B * Hkv * rows, 1), one thread per channel.
const int d = int(thread_index_in_threadgroup);
const int rows = args[ARG_ROWS];
const int head = int(threadgroup_position_in_grid.y) / rows;
const int row = int(threadgroup_position_in_grid.y) % rows;
const int cold_spans = args[ARG_COLD_SPANS];
const int dense_spans = args[ARG_DENSE_SPANS];
const int cold_first = head * cold_spans * rows + row;
const int dense_first = head * dense_spans * rows + row;

float top = LOWEST_SCORE;
for (int s = 0; s < cold_spans; s++) top = max(top, cold_stats[(cold_first + s * rows) * 2]);
for (int s = 0; s < dense_spans; s++) top = max(top, dense_stats[(dense_first + s * rows) * 2]);

float total = 0.0f;
float cold_sum = 0.0f;
float dense_sum = 0.0f;
for (int s = 0; s < cold_spans; s++) {
  const int at = cold_first + s * rows;
  const float weight = power_of_two(cold_stats[at * 2] - top);
  total += cold_stats[at * 2 + 1] * weight;
  if (d < D) cold_sum += cold_sums[at * D + d] * weight;
}
for (int s = 0; s < dense_spans; s++) {
  const int at = dense_first + s * rows;
  const float weight = power_of_two(dense_stats[at * 2] - top);
  total += dense_stats[at * 2 + 1] * weight;
  if (d < D) dense_sum += dense_sums[at * D + d] * weight;
}
if (d < D) {
  const int to = (head * rows + row) * D + d;
  cold[to] = cold_sum / total;
  dense[to] = dense_sum / total;
}
