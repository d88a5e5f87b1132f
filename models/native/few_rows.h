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

// Of weights and activations as they are; `count` columns.
inline float dot(const float* w, const float* x, int64_t count) {
    const int64_t whole = count / kLanes * kLanes;
    Vector products = {};
    for (int64_t i = 0; i < whole; i += kLanes) products += load(w + i) * load(x + i);
    float total = sum(products);
    for (int64_t i = whole; i < count; ++i) total += w[i] * x[i];
    return total;
}

// How weights of a type meet up to kFewRows activation rows, which they read in a form: here as
// floats. Types with products of their own specialise this.
template <Type kType>
struct FewRows {
    static constexpr Form kForm = Form::Floats;
    static constexpr int kAtOnce = 1;  // weight rows that one activation row meets together

    // out[m * R + r] = weight row `row` + r times activation row m.
    template <int M, int R>
    static void dot(const Weight& w, int64_t row, const Activation* x, float* out) {
        for (int i = 0; i < M * R; ++i) out[i] = 0;
        for (int r = 0; r < R; ++r) {
            const uint8_t* blocks = w.row(row + r);
            for (int64_t at = 0; at < w.columns; at += kMostBlock) {
                alignas(64) float numbers[kMostBlock];
                const int64_t count = std::min(kMostBlock, w.columns - at);
                decode_blocks<kType>(blocks, count, numbers);
                blocks += count / BlockOf<kType>::kColumns * BlockOf<kType>::kBytes;
                for (int m = 0; m < M; ++m)
                    out[m * R + r] += ember::dot(numbers, x[m].numbers + at, count);
            }
        }
    }
};

// out[m] = weight row `row` times activation row m, for a row count that is known only at run
// time, 1 to kFewRows.
template <Type kType>
void dot_few(const Weight& w, int64_t row, const Activation* x, int count, float* out) {
    using Rows = FewRows<kType>;
    switch (count) {
        case 1: return Rows::template dot<1, 1>(w, row, x, out);
        case 2: return Rows::template dot<2, 1>(w, row, x, out);
        case 3: return Rows::template dot<3, 1>(w, row, x, out);
        case 4: return Rows::template dot<4, 1>(w, row, x, out);
        case 5: return Rows::template dot<5, 1>(w, row, x, out);
        case 6: return Rows::template dot<6, 1>(w, row, x, out);
        case 7: return Rows::template dot<7, 1>(w, row, x, out);
        default: return Rows::template dot<8, 1>(w, row, x, out);
    }
}

}  // namespace ember
