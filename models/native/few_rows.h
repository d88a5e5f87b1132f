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
    // Weight rows that M activation rows meet together.
    static constexpr int at_once(int) { return 1; }

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

}  // namespace ember
