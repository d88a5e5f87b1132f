// Products of a few activation rows with weight rows, straight from the blocks.
#pragma once

#include "activations.h"
#include "blocks.h"

namespace ember {

constexpr int kFewRows = 8;      // more go by panels
constexpr int64_t kBlock = 32;  // weight rows of one task

// Products of up to kFewRows activation rows with a block of weight rows.
struct Block {
    alignas(64) float values[kFewRows][kBlock];
};

// Weights stream from memory once per token. A thread asks for what it will most likely read next:
// the same place two blocks on.
constexpr int64_t kRowsAhead = 64;

// Never a call, which GCC would leave out as one without an effect.
[[gnu::always_inline]] inline void prefetch_line(const void* at) { __builtin_prefetch(at); }

// Sums that hide each other's latencies where there are few.
template <int kSums>
constexpr int kSplits = std::max(1, 8 / kSums);

// out[m * R + r] += weight row r times activation row m over `count` columns, whole registers:
// load(r, i) is a register of row r's numbers from column i of these on, which meet x[m].numbers
// from column `at` + i on.
template <int M, int R, typename Load>
[[gnu::always_inline]] inline void add_dots(const Load& load, const Activation* x, int64_t at,
                                            int64_t count, float* out) {
    constexpr int U = kSplits<M * R>;
    Native sums[M * R][U] = {};
    const auto add = [&](int64_t i, int u) {
        Native numbers[M];
        for (int m = 0; m < M; ++m) numbers[m] = load_native(x[m].numbers + at + i);
        for (int r = 0; r < R; ++r) {
            const Native weights = load(r, i);
            for (int m = 0; m < M; ++m) sums[m * R + r][u] += weights * numbers[m];
        }
    };
    int64_t i = 0;
    for (; i + U * kNativeLanes <= count; i += U * kNativeLanes)
        for (int u = 0; u < U; ++u) add(i + u * kNativeLanes, u);
    for (; i < count; i += kNativeLanes) add(i, 0);
    for (int k = 0; k < M * R; ++k) {
        for (int u = 1; u < U; ++u) sums[k][0] += sums[k][u];
        out[k] += sum(sums[k][0]);
    }
}

// Products of a block by `Rows`, which has
//     template <int M, int R> static void dot(const Weight&, int64_t row, const Activation* x,
//                                             float* out)
// for out[m * R + r] = weight row `row` + r times activation row m, and at_once(M), the R that M
// activation rows meet together.
template <typename Rows>
struct RowByRow {
    static void multiply(const Weight& w, const Activation* x, int rows, int64_t first,
                         int64_t count, Block& out) {
        switch (rows) {
            case 1: return multiply_rows<1>(w, x, first, count, out);
            case 2: return multiply_rows<2>(w, x, first, count, out);
            case 3: return multiply_rows<3>(w, x, first, count, out);
            case 4: return multiply_rows<4>(w, x, first, count, out);
            case 5: return multiply_rows<5>(w, x, first, count, out);
            case 6: return multiply_rows<6>(w, x, first, count, out);
            case 7: return multiply_rows<7>(w, x, first, count, out);
            default: return multiply_rows<8>(w, x, first, count, out);
        }
    }

  private:
    template <int M>
    static void multiply_rows(const Weight& w, const Activation* x, int64_t first, int64_t count,
                              Block& out) {
        constexpr int R = Rows::at_once(M);
        int64_t n = 0;
        float some[M * R];
        for (; n + R <= count; n += R) {
            Rows::template dot<M, R>(w, first + n, x, some);
            for (int m = 0; m < M; ++m) std::copy_n(some + m * R, R, out.values[m] + n);
        }
        for (; n < count; ++n)
            for (int m = 0; m < M; ++m)
                Rows::template dot<1, 1>(w, first + n, x + m, out.values[m] + n);
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
            add_dots<M, 1>([&](int, int64_t i) { return load_native(weights + i); }, x, at, count,
                           out);
        }
    }
};

}  // namespace ember
