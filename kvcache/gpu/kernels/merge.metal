// Partial results of all spans, merged exactly into the attention [B * Hkv, rows, D].
//
// Grid: (threads, B * Hkv * rows, 1), a threadgroup for each row; its simdgroups share the spans,
// encoded ones first. A lane holds every 32nd channel. The encoded part is in the values' basis, so
// it is summed apart and, where ROTATED, taken back by one simdgroup.
const uint lane = thread_index_in_simdgroup;
const uint simdgroup = simdgroup_index_in_threadgroup;
const int rows = args[ARG_ROWS];
const int head = int(threadgroup_position_in_grid.y) / rows;
const int row = int(threadgroup_position_in_grid.y) % rows;
const int cold_spans = args[ARG_COLD_SPANS];
const int spans = cold_spans + args[ARG_UNENCODED_SPANS];
// Where span s of either kind has this row is so much plus s * rows.
const int in_cold = head * cold_spans * rows + row;
const int in_unencoded = (head * args[ARG_UNENCODED_SPANS] - cold_spans) * rows + row;

threadgroup float shares[2 * SIMDGROUPS * D];

float top = LOWEST_SCORE;
for (int s = int(lane); s < spans; s += 32) {
  top = max(top, s < cold_spans ? cold_stats[(in_cold + s * rows) * 2]
                                : unencoded_stats[(in_unencoded + s * rows) * 2]);
}
top = simd_max(top);

float total = 0.0f;
float coded[Hadamard<D>::EACH];
float unencoded[Hadamard<D>::EACH];
UNROLL for (int e = 0; e < Hadamard<D>::EACH; e++) {
  coded[e] = 0.0f;
  unencoded[e] = 0.0f;
}
for (int first = 0; first < spans; first += 32) {
  const int own = first + int(lane);
  float weight = 0.0f;
  if (own < spans) {
    const device float* stats = own < cold_spans ? cold_stats + (in_cold + own * rows) * 2
                                                 : unencoded_stats + (in_unencoded + own * rows) * 2;
    weight = power_of_two(stats[0] - top);
    total += stats[1] * weight;
  }
  const int stop = min(first + 32, spans);
  for (int s = first + int(simdgroup); s < stop; s += SIMDGROUPS) {
    const float share = simd_shuffle(weight, ushort(s - first));
    const device float* sums = s < cold_spans ? cold_sums + (in_cold + s * rows) * D
                                              : unencoded_sums + (in_unencoded + s * rows) * D;
    UNROLL for (int e = 0; e < Hadamard<D>::EACH; e++) {
      const int d = 32 * e + int(lane);
      const float part = d < D ? sums[d] * share : 0.0f;
      if (s < cold_spans) {
        coded[e] += part;
      } else {
        unencoded[e] += part;
      }
    }
  }
}
total = simd_sum(total);

UNROLL for (int e = 0; 32 * e < D; e++) {
  const int d = 32 * e + int(lane);
  if (d < D) {
    shares[int(simdgroup) * D + d] = coded[e];
    shares[(SIMDGROUPS + int(simdgroup)) * D + d] = unencoded[e];
  }
}
threadgroup_barrier(mem_flags::mem_threadgroup);
if (simdgroup == 0u) {
  UNROLL for (int e = 0; 32 * e < D; e++) {
    const int d = 32 * e + int(lane);
    for (int s = 1; s < SIMDGROUPS; s++) {
      if (d < D) {
        coded[e] += shares[s * D + d];
        unencoded[e] += shares[(SIMDGROUPS + s) * D + d];
      }
    }
  }
  if (ROTATED) {
    transform<D>(coded, words, shares, lane);
    apply_signs<D>(coded, words, head % args[ARG_KV_HEADS], lane);
  }
  UNROLL for (int e = 0; 32 * e < D; e++) {
    const int d = 32 * e + int(lane);
    if (d < D) out[(head * rows + row) * D + d] = OUT((coded[e] + unencoded[e]) / total);
  }
}
