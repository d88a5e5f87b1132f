// Products of a few activation rows with weight rows, straight from the blocks.
#pragma once

#include "activations.h"
#include "blocks.h"

namespace ember {

constexpr int kFewRows = 8;  // more go by panels

// Weights stream from memory once per token. A thread asks for what it will most likely read next:
// the same place two blocks of 32 rows on.
constexpr int64_t kRowsAhead = 64;

inline void prefetch_line(const void* at) { __builtin_prefetch(at); }

// Sums that hide each other's latencies where there are few.
template <int kSums>
constexpr int kSplits = std::max(1, 8 / kSums);

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
// from column `at` + i on.
template <int M, int R, typename Load>
[[gnu::always_inline]] inline void add_dots(const Load& load, const Activation* x, int64_t at,
                                            int64_t count, float* out) {
    constexpr int U = kSplits<M * R>;
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

// How weights of a type meet up to kFewRows activation rows, which they read in a form: here as
// floats. Types with products of their own specialise this.
template <Type kType>
struct FewRows {
    static constexpr Form kForm = Form::Floats;
    // Weight rows that M activation rows meet together.
    static constexpr int at_once(int) { return 1; }

    // out[m * R + r] = weight row `row` + r times activation row m.
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
