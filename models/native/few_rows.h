// Products of a few activation rows with weight rows, straight from the blocks.
#pragma once

#include "activations.h"
#include "blocks.h"
#include "product.h"

namespace ember {

constexpr int kFewRows = 8;      // more go by panels
constexpr int64_t kStrip = 32;  // weight rows of one task

// Products of up to kFewRows activation rows with a strip of weight rows.
struct Strip {
    alignas(64) float values[kFewRows][kStrip];
};

// Weights stream from memory once per token. While a thread reads rows side by side, it asks for
// what lies behind them in the order in which it lies there, this far ahead of the last row.
constexpr int64_t kAhead = 5120;  // bytes; with the rows well within the nearest cache

class Ahead {
  public:
    // Of `rows` rows from `first` on, which are read side by side.
    Ahead(const Weight& w, int64_t first, int64_t rows)
        : next_(w.row(first) + rows * w.row_bytes + kAhead) {}

    // With each `kBytes` that are read.
    template <int64_t kBytes>
    [[gnu::always_inline]] void prefetch() {
        for (int64_t line = 0; line < kBytes; line += 64) prefetch_line(next_ + line);
        next_ += kBytes;
    }

    // While something is computed with `bytes` that were read.
    void prefetch(int64_t bytes) {
        for (int64_t line = 0; line < bytes; line += 64) prefetch_line(next_ + line);
        next_ += bytes;
    }

  private:
    const uint8_t* next_;
};

template <int M, int R, typename Load>
[[gnu::always_inline]] inline void add_register(const Load& load, const Activation* x, int64_t at,
                                                int64_t i, Native* sums) {
    Native weights[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) weights[r] = load(r, i);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
        const Native numbers = load_native(x[m].numbers + at + i);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) sums[m * R + r] += weights[r] * numbers;
    }
}

// out[m * R + r] += weight row r times activation row m over `count` columns, whole registers:
// load(r, i) is a register of row r's numbers from column i of these on, which meet x[m].numbers
// from column `at` + i on. Every product is U sums, which hide each other's latencies: as many
// whatever M and R are, so that a row among others is to the last bit what it is alone.
template <int M, int R, int U, typename Load>
[[gnu::always_inline]] inline void add_dots(const Load& load, const Activation* x, int64_t at,
                                            int64_t count, float* out) {
    Native sums[U][M * R] = {};
    int64_t i = 0;
    for (; i + U * kNativeLanes <= count; i += U * kNativeLanes)
#pragma GCC unroll 8
        for (int u = 0; u < U; ++u)
            add_register<M, R>(load, x, at, i + u * kNativeLanes, sums[u]);
    for (; i < count; i += kNativeLanes) add_register<M, R>(load, x, at, i, sums[0]);
    // Or the sums stay in memory.
#pragma GCC unroll 32
    for (int k = 0; k < M * R; ++k) {
#pragma GCC unroll 8
        for (int u = 1; u < U; ++u) sums[0][k] += sums[u][k];
        out[k] += sum(sums[0][k]);
    }
}

// Call body(count, m) for four, and at last fewer, of `rows` activation rows from row m on, as
// constants: all but the first find the weights in the cache.
template <typename Body>
inline void each_few(int rows, const Body& body) {
    int m = 0;
    for (; m + 4 <= rows; m += 4) body(std::integral_constant<int, 4>(), m);
    if (rows > m) with_constant<3>(rows - m, [&](auto count) { body(count, m); });
}

// Products of a strip by `Rows`, which has
//     template <int M, int R> static void dot(const Weight&, int64_t row, const Activation* x,
//                                             float* out)
// for out[m * R + r] = weight row `row` + r times activation row m, and at_once(M), the R that M
// activation rows meet together.
template <typename Rows>
struct RowByRow {
    static void multiply(const Weight& w, const Activation* x, int rows, int64_t first,
                         int64_t count, Strip& out) {
        each_few(rows, [&](auto some, int m) {
            multiply_rows<some>(w, x + m, first, count, out.values + m);
        });
    }

  private:
    template <int M>
    static void multiply_rows(const Weight& w, const Activation* x, int64_t first, int64_t count,
                              float (*out)[kStrip]) {
        constexpr int R = Rows::at_once(M);
        int64_t n = 0;
        float some[M * R];
        for (; n + R <= count; n += R) {
            Rows::template dot<M, R>(w, first + n, x, some);
            for (int m = 0; m < M; ++m) std::copy_n(some + m * R, R, out[m] + n);
        }
        for (; n < count; ++n)
            for (int m = 0; m < M; ++m)
                Rows::template dot<1, 1>(w, first + n, x + m, out[m] + n);
    }
};

// How weights of a type meet up to kFewRows activation rows, which they read in a form: here as
// floats. Types with products of their own specialise this.
template <Type kType>
struct FewRows : RowByRow<FewRows<kType>> {
    static constexpr Form kForm = Form::Floats;
    static constexpr int at_once(int) { return 1; }

    template <int M, int R>
    static void dot(const Weight& w, int64_t row, const Activation* x, float* out) {
        static_assert(R == 1);
        std::fill_n(out, M, 0.0f);
        for (int64_t at = 0; at < w.columns; at += kMostBlock) {
            alignas(64) float weights[kMostBlock];
            const int64_t count = std::min(kMostBlock, w.columns - at);
            decode_columns<kType>(w, row, at, count, weights);
            for (int m = 0; m < M; ++m)
                add_dots<1, 1, 8>([&](int, int64_t i) { return load_native(weights + i); }, x + m,
                                  at, count, out + m);
        }
    }
};

}  // namespace ember
