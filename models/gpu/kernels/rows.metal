// Rows of a matrix of blocks as numbers: out [INPUTS, columns], times a factor. They are the first
// ones, or those of `ids`; an id of no row is taken for the nearest that there is.
//
// Grid: (threads for INPUTS * steps / SIMDGROUPS, 1, 1), one simdgroup for each step of a row.
// Template: TYPE, of blocks.h, comes as a macro.
const uint lane = thread_index_in_simdgroup;
const int columns = args[ARG_COLUMNS];
const int blocks_in_row = args[ARG_BLOCKS];
const int steps = (columns + TYPE::STEP - 1) / TYPE::STEP;
const int task = int(threadgroup_position_in_grid.x) * SIMDGROUPS +
                 int(simdgroup_index_in_threadgroup);
const int number = task / steps;
const int step = task % steps;

if (number < args[ARG_INPUTS]) {
  const int row = BY_ID ? max(0, min(int(ids[number]), args[ARG_ROWS] - 1)) : number;
  const uint block = uint(args[ARG_FIRST_BLOCK]) + uint(row) * uint(blocks_in_row);
  const float factor = as_type<float>(args[ARG_FACTOR]);
  const Planes planes = planes_of(blocks, args);
  TYPE held;
  held.load(planes, block, blocks_in_row, step, lane);
  UNROLL for (int part = 0; part < TYPE::PARTS; part++) {
    UNROLL for (int run = 0; run < 2; run++) {
      float numbers[TYPE::EACH];
      weights_of(held, run, numbers);
      UNROLL for (int i = 0; i < TYPE::EACH; i++) numbers[i] *= factor;
      const int column = step * TYPE::STEP + part * TYPE::APART + held.column(lane, run);
      if (column < columns) store_run(numbers, out + number * columns + column);
    }
    held.advance();
  }
}
