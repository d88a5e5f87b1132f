// Small dense products in registers: out[r] = factors[r] * out[r] + sum over k of a[r][k] * b[k].
//
// Both halves of attention have this form: scores (a: queries, b: keys with tokens as lanes) and
// weighted values (a: softmax weights, b: values), and so has a change of basis.
#pragma once

#include <type_traits>

#include "simd.h"

namespace ember {

#if defined(__AVX512F__)
constexpr int kProductRows = 6, kProductVectors = 4;  // 24 of 32 registers hold sums
#else
constexpr int kProductRows = 2, kProductVectors = 2;
#endif

// f(integral constant n) for n in [1, kMost], so that n is known when f is compiled.
template <int kMost, typename F>
inline void with_constant(int64_t n, const F& f) {
    if constexpr (kMost > 1)
        if (n < kMost) return with_constant<kMost - 1>(n, f);
    f(std::integral_constant<int, kMost>());
}

// Row-major matrices: `stride` floats from one row to the next.
struct ConstMatrix {
    const float* data;
    int64_t stride;
};

struct Matrix {
    float* data;
    int64_t stride;
};

template <int kRows, int kVectors>
inline void multiply_registers(ConstMatrix a, ConstMatrix b, int64_t depth, const float* factors,
                               Matrix out) {
    Vector sums[kRows][kVectors];
    for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v)
            sums[r][v] = factors ? load(out.data + r * out.stride + v * kLanes) * factors[r]
                                 : Vector{};
    for (int64_t k = 0; k < depth; ++k) {
        Vector right[kVectors];
        for (int v = 0; v < kVectors; ++v) right[v] = load(b.data + k * b.stride + v * kLanes);
        for (int r = 0; r < kRows; ++r) {
            const float left = a.data[r * a.stride + k];
            for (int v = 0; v < kVectors; ++v) sums[r][v] += right[v] * left;
        }
    }
    for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v)
            store(out.data + r * out.stride + v * kLanes, sums[r][v]);
}

// kRows rows, any number of columns (a multiple of 16). Without factors `out` is overwritten.
template <int kRows>
inline void multiply_rows(ConstMatrix a, ConstMatrix b, int64_t depth, int64_t columns,
                          const float* factors, Matrix out) {
    for (int64_t at = 0; at < columns; at += kProductVectors * kLanes)
        with_constant<kProductVectors>((columns - at) / kLanes, [&](auto vectors) {
            multiply_registers<kRows, vectors>(a, {b.data + at, b.stride}, depth, factors,
                                               {out.data + at, out.stride});
        });
}

// out = a b for any number of rows.
inline void multiply(ConstMatrix a, int64_t rows, ConstMatrix b, int64_t depth, int64_t columns,
                     Matrix out) {
    for (int64_t r = 0; r < rows; r += kProductRows)
        with_constant<kProductRows>(rows - r, [&](auto count) {
            multiply_rows<count>({a.data + r * a.stride, a.stride}, b, depth, columns, nullptr,
                                 {out.data + r * out.stride, out.stride});
        });
}

}  // namespace ember
