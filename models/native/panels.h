// Products of many activation rows: a panel of weight rows is unpacked once and meets all of them.
#pragma once

#include <vector>

#include "activations.h"
#include "blocks.h"
#include "product.h"

namespace ember {

constexpr int64_t kPanel = 32;  // weight rows of a panel

// Weights as floats, some columns at a time: [columns][kPanel], so that a vector holds a column of
// some rows.
struct FloatPanel {
    static constexpr Form kForm = Form::Floats;
    // Columns that stay in cache, beside their part of the activations.
    static constexpr int64_t kDepth = 4 * kMostBlock;

    std::vector<float> numbers = std::vector<float>(kDepth * kPanel);

    // out[m] = kPanel weight rows from `first` on times activation row m.
    template <Type kType>
    void multiply(const Weight& w, int64_t first, const Activation* x, int64_t rows,
                  float (*out)[kPanel]) {
        multiply(decode_columns<kType>, w, first, x, rows, out);
    }

  private:
    using Decode = void(const Weight&, int64_t row, int64_t at, int64_t count, float* out);

    // In the code for all types once, and so is what it calls.
    void multiply(Decode* decode, const Weight& w, int64_t first, const Activation* x, int64_t rows,
                  float (*out)[kPanel]) {
        static constexpr float kOnce[kProductRows] = {1, 1, 1, 1, 1, 1};
        for (int64_t at = 0; at < w.columns; at += kDepth) {
            const int64_t depth = std::min(kDepth, w.columns - at);
            load(decode, w, first, at, depth);
            for (int64_t m = 0; m < rows; m += kProductRows)
                with_constant<kProductRows>(rows - m, [&](auto count) {
                    multiply_rows<count>({x[m].numbers + at, w.columns}, {numbers.data(), kPanel},
                                         depth, kPanel, at ? kOnce : nullptr, {out[m], kPanel});
                });
        }
    }

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

// A thread's own.
template <typename Panel>
Panel& own_panel() {
    thread_local Panel panel;
    return panel;
}

// Which panel a type's weights are unpacked into. Types with panels of their own specialise this.
template <Type kType>
struct PanelOf {
    using Panel = FloatPanel;
};

}  // namespace ember
