// Small dense products in registers: out[r] = factors[r] * out[r] + sum over k of a[r][k] * b[k].
//
// Both halves of attention have this form: scores (a: queries, b: keys with tokens as lanes) and
// weighted values (a: softmax weights, b: values), and so has a change of basis.
#pragma once

#include <type_traits>

#include "simd.h"

namespace ember {

// The sums fill most of the registers: 24 of 32, or 12 of AVX2's 16.
constexpr int kProductRows = 6;
#if defined(__AVX__) && !defined(__AVX512F__)
constexpr int kProductVectors = 2;
#else
constexpr int kProductVectors = 4;
#endif

// f(integral constant n) for n in [1, kMost], so that n is known when f is compiled.
template <int kMost, typename F>
inline void with_constant(int64_t n, const F& f) {
    if constexpr (kMost > 1)
        if (n < kMost) return with_constant<kMost - 1>(n, f);
    f(std::integral_constant<int, kMost>());
}

// f(integral constant n, at) for vectors `at` to at + n of `count`: kMost together, a power of two,
// as long as there are so many, then half as many, and so on.
template <int kMost, typename F>
inline void in_halves(int64_t count, const F& f, int64_t at = 0) {
    for (; at + kMost <= count; at += kMost) f(std::integral_constant<int, kMost>(), at);
    if constexpr (kMost > 1) in_halves<kMost / 2>(count, f, at);
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
    Native sums[kRows][kVectors];
    for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v)
            sums[r][v] =
                factors ? load_native(out.data + r * out.stride + v * kNativeLanes) * factors[r]
                        : Native{};
    for (int64_t k = 0; k < depth; ++k) {
        Native right[kVectors];
        for (int v = 0; v < kVectors; ++v)
            right[v] = load_native(b.data + k * b.stride + v * kNativeLanes);
        for (int r = 0; r < kRows; ++r) {
            const float left = a.data[r * a.stride + k];
            for (int v = 0; v < kVectors; ++v) sums[r][v] += right[v] * left;
        }
    }
    for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v)
            store(out.data + r * out.stride + v * kNativeLanes, sums[r][v]);
}

// kRows rows, any number of columns (a multiple of 16). Without factors `out` is overwritten.
template <int kRows>
[[gnu::noinline]] void multiply_rows(ConstMatrix a, ConstMatrix b, int64_t depth, int64_t columns,
                          const float* factors, Matrix out) {
    in_halves<kProductVectors>(columns / kNativeLanes, [&](auto vectors, int64_t from) {
        const int64_t at = from * kNativeLanes;
        multiply_registers<kRows, vectors>(a, {b.data + at, b.stride}, depth, factors,
                                           {out.data + at, out.stride});
    });
}

using MultiplyRows = void(ConstMatrix a, ConstMatrix b, int64_t depth, int64_t columns,
                          const float* factors, Matrix out);

// Compiled once, in unencoded.cpp.
extern template void multiply_rows<1>(ConstMatrix, ConstMatrix, int64_t, int64_t, const float*,
                                      Matrix);
extern template void multiply_rows<2>(ConstMatrix, ConstMatrix, int64_t, int64_t, const float*,
                                      Matrix);
extern template void multiply_rows<3>(ConstMatrix, ConstMatrix, int64_t, int64_t, const float*,
                                      Matrix);
extern template void multiply_rows<4>(ConstMatrix, ConstMatrix, int64_t, int64_t, const float*,
                                      Matrix);
extern template void multiply_rows<5>(ConstMatrix, ConstMatrix, int64_t, int64_t, const float*,
                                      Matrix);
extern template void multiply_rows<6>(ConstMatrix, ConstMatrix, int64_t, int64_t, const float*,
                                      Matrix);

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
