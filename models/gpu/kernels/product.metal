// Up to INPUTS rows of x times a matrix of blocks: y [rows of x, rows] = x [rows of x, columns] W^T.
//
// Grid: (threads for ROWS * SIMDGROUPS rows of the matrix, 1, 1). A simdgroup takes ROWS rows of
// it, in steps; each code is loaded and decoded once for all rows of x. Sums are float32. Template:
// TYPE, of blocks.h, comes as a macro; Y is the type of x and y.
//
// What lanes need of several rows of x lies far apart for each: the simdgroups bring it to
// threadgroup memory together, side by side.
const uint lane = thread_index_in_simdgroup;
const uint simdgroup = simdgroup_index_in_threadgroup;
const int rows = args[ARG_ROWS];
const int columns = args[ARG_COLUMNS];
const int blocks_in_row = args[ARG_BLOCKS];
const int inputs = args[ARG_INPUTS];
const int first_row =
    (int(threadgroup_position_in_grid.x) * SIMDGROUPS + int(simdgroup)) * ROWS;
const Planes planes = planes_of(blocks, args);

enum {
  EACH = TYPE::EACH,
  WORDS = EACH * int(sizeof(Y)) / 4,  // of a run of x
  WIDE = WORDS % 4 == 0 ? 4 : 1,
  RUNS = 2 * INPUTS
};
threadgroup uint4 all_staged[INPUTS > 1 ? RUNS * 8 * WORDS : 1];
SHARED_POINTER(uint) staged = (SHARED_POINTER(uint))all_staged;

float sums[ROWS][INPUTS];
UNROLL for (int r = 0; r < ROWS; r++) {
  UNROLL for (int m = 0; m < INPUTS; m++) sums[r][m] = 0.0f;
}

ROLLED for (int step = 0; step * TYPE::STEP < columns; step++) {
  TYPE held[ROWS];
  UNROLL for (int r = 0; r < ROWS; r++) {
    // Rows behind the last one have no blocks.
    const int row = first_row + r;
    const uint block = uint(args[ARG_FIRST_BLOCK]) + uint(row) * uint(blocks_in_row);
    held[r].load(planes, block, row < rows ? blocks_in_row : 0, step, lane);
  }
  ROLLED for (int part = 0; part < TYPE::PARTS; part++) {
    const int first = step * TYPE::STEP + part * TYPE::APART;
    if (INPUTS > 1) {
      threadgroup_barrier(mem_flags::mem_threadgroup);
      for (int n = int(simdgroup); n < RUNS; n += SIMDGROUPS) {
        const int column = first + held[0].column(lane, n % 2);
        uint words[WORDS];
        load_inside<WORDS>((const device uint*)(x + min(n / 2, inputs - 1) * columns + column),
            column < columns, words);
        UNROLL for (int i = 0; i < WORDS; i += WIDE) {
          store_words<WIDE>(words + i, staged + (n * 32 + int(lane)) * WORDS + i);
        }
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    UNROLL for (int run = 0; run < 2; run++) {
      float weights[ROWS][EACH];
      UNROLL for (int r = 0; r < ROWS; r++) {
        if (INPUTS == 1) {
          held[r].codes(run, weights[r]);
        } else {
          weights_of(held[r], run, weights[r]);
        }
      }
      UNROLL for (int m = 0; m < INPUTS; m++) {
        uint words[WORDS];
        if (INPUTS == 1) {
          const int column = first + held[0].column(lane, run);
          load_inside<WORDS>((const device uint*)(x + column), column < columns, words);
        } else {
          UNROLL for (int i = 0; i < WORDS; i++) {
            words[i] = staged[((2 * m + run) * 32 + int(lane)) * WORDS + i];
          }
        }
        float own[EACH];
        numbers_of<WORDS>(words, own, Y(0));
        if (INPUTS == 1) {
          // What codes need to be weights, x takes for all rows, and the sums of a run.
          float all = 0.0f;
          UNROLL for (int i = 0; i < EACH; i++) {
            all += own[i];
            own[i] *= unit_of<TYPE>(i);
          }
          UNROLL for (int r = 0; r < ROWS; r++) {
            float dot = 0.0f;
            UNROLL for (int i = 0; i < EACH; i++) dot += own[i] * weights[r][i];
            sums[r][m] += held[r].scale() * dot;
            if (TYPE::OFFSETS) sums[r][m] += held[r].offset() * all;
          }
        } else {
          UNROLL for (int r = 0; r < ROWS; r++) {
            UNROLL for (int i = 0; i < EACH; i++) sums[r][m] += own[i] * weights[r][i];
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
      y[m * rows + row] = Y(ADDED ? sum + float(added[row]) : sum);
    }
  }
}
