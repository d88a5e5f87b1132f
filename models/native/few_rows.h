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
