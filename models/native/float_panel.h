// The panel of all types that have none of their own: weights as floats.
#pragma once

#include <vector>

#include "panels.h"
#include "product.h"

namespace ember {

// multiply_rows<1> to <kProductRows>, lent by the library of the caches.
static MultiplyRows* const* multiply_rows_of;

// Weights as floats, some columns at a time: [columns][kPanel], so that a vector holds a column of
// some rows.
struct FloatPanel {
    // Columns that stay in cache, beside their part of the activations.
    static constexpr int64_t kDepth = 4 * kMostBlock;

    std::vector<float> numbers = std::vector<float>(kDepth * kPanel);

    using Decode = void(const Weight&, int64_t row, int64_t at, int64_t count, float* out);

    // out[m] = kPanel weight rows from `first` on times activation row m.
    void multiply(Decode* decode, const Weight& w, int64_t first, const Activation* x, int64_t rows,
                  float (*out)[kPanel]) {
        static constexpr float kOnce[kProductRows] = {1, 1, 1, 1, 1, 1};
        for (int64_t at = 0; at < w.columns; at += kDepth) {
            const int64_t depth = std::min(kDepth, w.columns - at);
            load(decode, w, first, at, depth);
            for (int64_t m = 0; m < rows; m += kProductRows)
                multiply_rows_of[std::min<int64_t>(kProductRows, rows - m) - 1](
                    {x[m].numbers + at, w.columns}, {numbers.data(), kPanel}, depth, kPanel,
                    at ? kOnce : nullptr, {out[m], kPanel});
        }
    }

  private:
    void load(Decode* decode, const Weight& w, int64_t first, int64_t from, int64_t depth) {
        alignas(64) float rows[kLanes][kMostBlock];
        for (int64_t r = 0; r < kPanel; r += kLanes)
            for (int64_t at = 0; at < depth; at += kMostBlock) {
                const int64_t count = std::min(kMostBlock, depth - at);
                for (int64_t i = 0; i < kLanes; ++i) {
                    if (first + r + i < w.rows)
                        decode(w, first + r + i, from + at, count, rows[i]);
                    else
                        std::fill_n(rows[i], count, 0.0f);
                }
                // Behind the last columns there is room, on both sides, for whole vectors.
                for (int64_t k = 0; k < count; k += kLanes) {
                    Vector some[kLanes];
                    for (int64_t i = 0; i < kLanes; ++i) some[i] = ember::load(rows[i] + k);
                    transpose(some);
                    for (int64_t i = 0; i < kLanes; ++i)
                        store(&numbers[(at + k + i) * kPanel + r], some[i]);
                }
            }
    }
};

}  // namespace ember
