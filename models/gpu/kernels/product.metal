// Up to INPUTS rows of x times a matrix of blocks: y [rows of x, rows] = x [rows of x, columns] W^T.
//
// Grid: (threads for ROWS * SIMDGROUPS rows of the matrix, 1, 1). A simdgroup takes ROWS rows of
// it, in steps; each code is loaded and decoded once for all rows of x, each run of x once for all
// its rows of the matrix. Sums are float32. Template: TYPE, of blocks.h, comes as a macro.
const uint lane = thread_index_in_simdgroup;
const int rows = args[ARG_ROWS];
const int columns = args[ARG_COLUMNS];
const int blocks_in_row = args[ARG_BLOCKS];
const int inputs = args[ARG_INPUTS];
const int first_row =
    (int(threadgroup_position_in_grid.x) * SIMDGROUPS + int(simdgroup_index_in_threadgroup)) * ROWS;
const Planes planes = planes_of(blocks, args);

float sums[ROWS][INPUTS];
UNROLL for (int r = 0; r < ROWS; r++) {
  UNROLL for (int m = 0; m < INPUTS; m++) sums[r][m] = 0.0f;
}

ROLLED for (int step = 0; step * TYPE::STEP < columns; step++) {
  TYPE held[ROWS];
  UNROLL for (int r = 0; r < ROWS; r++) {
    // Rows behind the last one are the last one, and are not written.
    const int row = min(first_row + r, rows - 1);
    const uint block = uint(args[ARG_FIRST_BLOCK]) + uint(row) * uint(blocks_in_row);
    held[r].load(planes, block, blocks_in_row, step, lane);
  }
  ROLLED for (int part = 0; part < 2; part++) {
    UNROLL for (int run = 0; run < 2; run++) {
      const int column = step * TYPE::STEP + part * TYPE::APART + held[0].column(lane, run);
      const bool inside = column < columns;
      float weights[ROWS][TYPE::EACH];
      UNROLL for (int r = 0; r < ROWS; r++) {
        if (INPUTS == 1) {
          held[r].codes(run, weights[r]);
        } else {
          weights_of(held[r], run, weights[r]);
        }
      }
      UNROLL for (int m = 0; m < INPUTS; m++) {
        if (!inside) continue;
        float own[TYPE::EACH];
        load_run<TYPE::EACH>(x + min(m, inputs - 1) * columns + column, own);
        if (INPUTS == 1) {
          // What codes need to be weights, x takes for all rows, and the sums of a run.
          float all = 0.0f;
          UNROLL for (int i = 0; i < TYPE::EACH; i++) {
            all += own[i];
            own[i] *= unit_of<TYPE>(i);
          }
          UNROLL for (int r = 0; r < ROWS; r++) {
            float dot = 0.0f;
            UNROLL for (int i = 0; i < TYPE::EACH; i++) dot += own[i] * weights[r][i];
            sums[r][m] += held[r].scale(run) * dot;
            if (TYPE::OFFSETS) sums[r][m] += held[r].offset(run) * all;
          }
        } else {
          UNROLL for (int r = 0; r < ROWS; r++) {
            UNROLL for (int i = 0; i < TYPE::EACH; i++) sums[r][m] += own[i] * weights[r][i];
          }
        }
      }
    }
    UNROLL for (int r = 0; r < ROWS; r++) held[r].advance();
  }
}

UNROLL for (int r = 0; r < ROWS; r++) {
  UNROLL for (int m = 0; m < INPUTS; m++) {
    const float sum = simd_sum(sums[r][m]);
    const int row = first_row + r;
    if (int(lane) == r * INPUTS + m && row < rows && m < inputs) {
      y[m * rows + row] = Y(sum + (ADDED ? added[row] : 0.0f));
    }
  }
}
