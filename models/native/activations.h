// Rows of activations in the forms in which products read them.
//
// Beside the numbers themselves there are codes of 15 bits, x = scale * code with a scale for 32
// columns, so that integer products stay faithful where a single int8 changes answers; and their
// two int8 parts, code = 128 * high + low, in the order in which a type's codes leave a vector.
#pragma once

#include <array>

#include "simd.h"

namespace ember {

constexpr int kXGroup = 32;  // columns that share an activation scale
constexpr int kXHalf = 16;   // columns that orders keep together
constexpr int kHighUnit = 128;
constexpr float kVanishing = 1e-30f;  // smaller groups are zero; their inverse would overflow
constexpr int kMaxCode = 127 * kHighUnit + 63;

enum class Form {
    Floats,    // the numbers
    Codes,     // the codes, with scales and sums, which the parts have too
    InOrder,   // parts in the order of the columns
    Halves,    // of every 128 columns the first 16 of each 32, then the others
    Pairs,     // of every 128 columns the first and third 32, then the second and fourth
    Quarters,  // of every 256 columns the 32 from 0 and 128 on, from 32 and 160, ...
};

// Where every 16 of 256 parts come from, in columns / 16; for each form from InOrder on.
constexpr uint8_t kOrders[][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
    {0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15},
    {0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15},
    {0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15},
};
constexpr int kForms = int(Form::InOrder) + int(std::size(kOrders));

// One row. All but its numbers is padded with zeros to whole spans.
struct Activation {
    const float* numbers;
    int16_t* codes;
    int8_t* high;
    int8_t* low;
    float* scales;  // one per 32 columns
    float* sums;    // one per 32 columns: sum of the represented values
    float* halves;  // one per 16 columns: the same
};

constexpr int64_t kSpan = 512;  // columns of 16 scales

inline int64_t padded(int64_t columns) { return (columns + kSpan - 1) / kSpan * kSpan; }

inline void quantize_group(const float* x, int16_t* codes, float* scale, float* sum,
                           float* halves) {
    using Shorts = int16_t __attribute__((vector_size(32)));
    const Vector a = magnitude(load(x)), b = magnitude(load(x + kLanes));
    const float top = max(a > b ? a : b);
    const float inverse = top < kVanishing ? 0.0f : kMaxCode / top;
    float sums[2];
    for (int half = 0; half < 2; ++half) {
        const Vector code = round(load(x + half * kXHalf) * inverse);
        const Shorts whole =
            __builtin_convertvector(__builtin_convertvector(code, Integers), Shorts);
        std::memcpy(codes + half * kXHalf, &whole, sizeof whole);
        sums[half] = ember::sum(code);
    }
    // What is not finite stays so, whatever the products read.
    *scale = top / kMaxCode + 0 * (sums[0] + sums[1]);
    *sum = *scale * (sums[0] + sums[1]);
    for (int half = 0; half < 2; ++half) halves[half] = *scale * sums[half];
}

// The same of 16 groups side by side.
inline void quantize_groups(const float* x, int16_t* codes, float* scales, float* sums,
                            float* halves) {
    using Shorts = int16_t __attribute__((vector_size(32)));
    Vector tops[kLanes], top = {};
    for (int g = 0; g < kLanes; ++g) {
        const float* group = x + g * kXGroup;
        tops[g] = larger(magnitude(load(group)), magnitude(load(group + kXHalf)));
    }
    transpose(tops);
    for (const Vector& some : tops) top = larger(some, top);
    float inverses[kLanes];
    store(inverses, top < kVanishing ? Vector{} : float(kMaxCode) / top);
    Vector half_sums[2];
    for (int half = 0; half < 2; ++half) {
        Vector rounded[kLanes];
        for (int g = 0; g < kLanes; ++g) {
            const int64_t at = g * kXGroup + half * kXHalf;
            rounded[g] = round(load(x + at) * inverses[g]);
            const Shorts whole =
                __builtin_convertvector(__builtin_convertvector(rounded[g], Integers), Shorts);
            std::memcpy(codes + at, &whole, sizeof whole);
        }
        half_sums[half] = sums_of(rounded);
    }
    const Vector sum = half_sums[0] + half_sums[1], scale = top / float(kMaxCode) + 0 * sum;
    store(scales, scale);
    store(sums, scale * sum);
    const Vector low = scale * half_sums[0], high = scale * half_sums[1];
    store(halves, __builtin_shufflevector(low, high, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6,
                                          22, 7, 23));
    store(halves + kLanes, __builtin_shufflevector(low, high, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28,
                                                   13, 29, 14, 30, 15, 31));
}

// `columns` is a multiple of 32.
inline void quantize_row(const float* x, int64_t columns, const Activation& out) {
    int64_t at = 0, group = 0;
    for (; at + kSpan <= columns; at += kSpan, group += kLanes)
        quantize_groups(x + at, out.codes + at, out.scales + group, out.sums + group,
                        out.halves + 2 * group);
    for (; at < columns; at += kXGroup, ++group)
        quantize_group(x + at, out.codes + at, out.scales + group, out.sums + group,
                       out.halves + 2 * group);
    const int64_t rest = padded(columns) - columns;
    std::fill_n(out.codes + columns, rest, 0);
    std::fill_n(out.scales + columns / kXGroup, rest / kXGroup, 0.0f);
    std::fill_n(out.sums + columns / kXGroup, rest / kXGroup, 0.0f);
    std::fill_n(out.halves + columns / kXHalf, rest / kXHalf, 0.0f);
}

// The parts of a row's codes in the order of a form.
inline void split_row(int64_t columns, Form form, const Activation& out) {
    using Shorts = int16_t __attribute__((vector_size(32)));
    using Bytes = int8_t __attribute__((vector_size(16)));
    const uint8_t* order = kOrders[int(form) - int(Form::InOrder)];
    for (int64_t at = 0; at < padded(columns); at += 16 * kXHalf)
        for (int i = 0; i < 16; ++i) {
            Shorts codes;
            std::memcpy(&codes, out.codes + at + order[i] * kXHalf, sizeof codes);
            const Shorts upper = (codes + kHighUnit / 2) >> 7;
            const Bytes high = __builtin_convertvector(upper, Bytes);
            const Bytes low = __builtin_convertvector(codes - upper * kHighUnit, Bytes);
            std::memcpy(out.high + at + i * kXHalf, &high, sizeof high);
            std::memcpy(out.low + at + i * kXHalf, &low, sizeof low);
        }
}

}  // namespace ember
