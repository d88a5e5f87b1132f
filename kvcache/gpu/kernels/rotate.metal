// Queries in the keys' basis: rotated = (queries * signs) @ matrix, row by row, float32.
//
// Grid: (threads, B * Hkv * rows, 1), one thread per channel. queries, rotated [B * Hkv, rows, D];
// signs [Hkv, D]; matrix [D, D].
const int d = int(thread_index_in_threadgroup);
const int row = int(threadgroup_position_in_grid.y);
const int kv_head = row / args[ARG_ROWS] % args[ARG_KV_HEADS];

threadgroup float query[D];
if (d < D) query[d] = float(queries[row * D + d]) * signs[kv_head * D + d];
threadgroup_barrier(mem_flags::mem_threadgroup);
if (d < D) {
  float sum = 0.0f;
  for (int j = 0; j < D; j++) sum += query[j] * matrix[j * D + d];
  rotated[row * D + d] = sum;
}
