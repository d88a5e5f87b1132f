// Vectors of 16 floats in the compiler's own terms, for any processor.
//
// Loops that carry a sum or a maximum are not vectorised by compilers that keep the order of
// floating-point operations, so those are written in vectors by hand.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__)
#define EMBER_VNNI 1
#endif

namespace ember {

using Vector = float __attribute__((vector_size(64)));
using Integers = int32_t __attribute__((vector_size(64)));
using Words = uint32_t __attribute__((vector_size(64)));
constexpr int64_t kLanes = 16;

using Half = float __attribute__((vector_size(32)));
using Quarter = float __attribute__((vector_size(16)));

// What a register holds. Compilers keep wider vectors in memory, so hot loops are written in it.
#if defined(__AVX512F__)
using Native = Vector;
#elif defined(__AVX__)
using Native = Half;
#else
using Native = Quarter;
#endif
constexpr int64_t kNativeLanes = sizeof(Native) / 4;

inline Native load_native(const float* from) {
    Native vector;
    std::memcpy(&vector, from, sizeof vector);
    return vector;
}

inline Vector splat(float x) { return Vector{} + x; }

template <typename V>
inline V magnitude(V x) {
    return reinterpret_cast<V>(reinterpret_cast<decltype(x < x)>(x) & 0x7fffffff);
}

template <typename V>
inline V larger(V a, V b) {
    return a > b ? a : b;
}

template <typename V>
inline V smaller(V a, V b) {
    return a < b ? a : b;
}

#if defined(__aarch64__)
using Float16 = __fp16;  // GCC before 13 has no _Float16 there.
#else
using Float16 = _Float16;
#endif

inline float half_to_float(uint16_t half) {
    Float16 value;
    std::memcpy(&value, &half, sizeof value);
    return static_cast<float>(value);
}

inline uint16_t float_to_half(float x) {
    const Float16 value = static_cast<Float16>(x);
    uint16_t half;
    std::memcpy(&half, &value, sizeof half);
    return half;
}

inline float bfloat_to_float(uint16_t bits) {
    const uint32_t wide = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
}

inline uint16_t float_to_bfloat(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    // To the nearest, ties to even.
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline Vector load(const float* from) {
    Vector vector;
    std::memcpy(&vector, from, sizeof vector);
    return vector;
}

inline Words load_words(const void* from) {
    Words words;
    std::memcpy(&words, from, sizeof words);
    return words;
}

// 16 codes below 2^31 as floats.
inline Vector to_float(Words codes) {
    return __builtin_convertvector(reinterpret_cast<Integers>(codes), Vector);
}

// table[i] for each lane's i; only its low four bits count.
inline Vector lookup(const float* table, Words i) {
#if defined(__AVX512F__)
    return reinterpret_cast<Vector>(_mm512_permutexvar_ps(
        reinterpret_cast<__m512i>(i), reinterpret_cast<__m512>(load(table))));
#else
    Vector found;
    for (int lane = 0; lane < kLanes; ++lane) found[lane] = table[i[lane] & 15];
    return found;
#endif
}

inline float sum(Quarter v) { return (v[0] + v[2]) + (v[1] + v[3]); }

inline float sum(Half v) {
    return sum(__builtin_shufflevector(v, v, 0, 1, 2, 3) +
               __builtin_shufflevector(v, v, 4, 5, 6, 7));
}

inline float sum(Vector v) {
    return sum(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
               __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
}

inline float max(Quarter v) { return std::max(std::max(v[0], v[1]), std::max(v[2], v[3])); }

inline float max(Half v) {
    const Quarter a = __builtin_shufflevector(v, v, 0, 1, 2, 3);
    const Quarter b = __builtin_shufflevector(v, v, 4, 5, 6, 7);
    return max(a > b ? a : b);
}

inline float max(Vector v) {
    const Half a = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7);
    const Half b = __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
    return max(a > b ? a : b);
}

template <typename V>
inline void store(float* to, V vector) {
    std::memcpy(to, &vector, sizeof vector);
}

// To the nearest integer, for magnitudes below 2^22: adding 1.5 * 2^23 leaves no fraction.
inline Vector round(Vector x) { return (x + 12582912.0f) - 12582912.0f; }

// 2^r for |r| <= 1/2, relative error below 2e-7: the Taylor series.
template <typename V>
inline V exp2_near_zero(V r) {
    V p = r * 1.5403530e-4f + 1.3333558e-3f;
    p = p * r + 9.6181291e-3f;
    p = p * r + 5.5504109e-2f;
    p = p * r + 2.4022651e-1f;
    p = p * r + 6.9314718e-1f;
    return p * r + 1.0f;
}

// 2^x for x <= 0: 2^n * 2^r.
template <typename V>
inline V exp2_below(V x) {
    using Bits = decltype(x < x);
    const V floor = V{} - 125.0f;
    x = x < floor ? floor : x;
    const V shifted = x + 12582912.0f;  // n in its lowest bits, see round
    const V p = exp2_near_zero(x - (shifted - 12582912.0f));
    // Without its sign, so that the shift is one of plain bits.
    const Bits exponent = (reinterpret_cast<Bits>(shifted) & 511) << 23;
    return reinterpret_cast<V>(reinterpret_cast<Bits>(p) + exponent);
}

#if defined(__AVX512DQ__)

// The same, with instructions that take the fraction and add to the exponent.
inline Vector exp2_below(Vector x) {
    constexpr int kToNearest = 8;  // a whole number, without a word about what is lost
    const Vector r =
        reinterpret_cast<Vector>(_mm512_reduce_ps(reinterpret_cast<__m512>(x), kToNearest));
    return reinterpret_cast<Vector>(
        _mm512_scalef_ps(reinterpret_cast<__m512>(exp2_near_zero(r)),
                         reinterpret_cast<__m512>(x - r)));
}

#endif

inline float exp2_below(float x) { return exp2_below(Quarter{x, x, x, x})[0]; }

constexpr float kLog2E = 1.44269504f;

// A register of float16; compilers do not vectorise the conversion by themselves.
inline Native load_native_halves(const uint16_t* from) {
#if defined(__AVX512F__)
    return reinterpret_cast<Native>(_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from)));
#elif defined(__F16C__)
    return reinterpret_cast<Native>(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from)));
#elif defined(__aarch64__)
    return reinterpret_cast<Native>(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from))));
#else
    Native wide;
    for (int i = 0; i < kNativeLanes; ++i) wide[i] = half_to_float(from[i]);
    return wide;
#endif
}

inline Vector load_halves(const uint16_t* from) {
    alignas(64) float wide[kLanes];
    for (int64_t i = 0; i < kLanes; i += kNativeLanes)
        store(wide + i, load_native_halves(from + i));
    return load(wide);
}

inline Vector load_bfloats(const uint16_t* from) {
    using Shorts = uint16_t __attribute__((vector_size(32)));
    Shorts bits;
    std::memcpy(&bits, from, sizeof bits);
    return reinterpret_cast<Vector>(__builtin_convertvector(bits, Words) << 16);
}

// Ask for memory that will soon be read: processors do not foresee a jump to another page.
inline void prefetch(const void* from, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64)
        __builtin_prefetch(static_cast<const char*>(from) + at);
}

#ifdef EMBER_VNNI

// Sums over the bytes, or the pairs of 16 bits, of each lane. Not the compiler's own functions:
// with those GCC copies each sum once more, and keeps half of them in memory.
[[gnu::always_inline]] inline void add_bytes(__m512i& sums, __m512i codes, __m512i whole) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(codes), "v"(whole));
}

[[gnu::always_inline]] inline void add_pairs(__m512i& sums, __m512i a, __m512i b) {
    asm("vpdpwssd %2, %1, %0" : "+v"(sums) : "v"(a), "v"(b));
}

#endif

#if defined(__AVX512F__)

// Swap the off-diagonal quarters of each square of 2 * kStep rows and lanes; a and b lie kStep
// rows apart.
template <int kStep, size_t... kLane>
inline void swap_quarters(Vector& a, Vector& b, std::index_sequence<kLane...>) {
    const Vector first = __builtin_shufflevector(
        a, b, ((kLane & kStep) ? int(kLane) + 16 - kStep : int(kLane))...);
    b = __builtin_shufflevector(a, b, ((kLane & kStep) ? int(kLane) + 16 : int(kLane) + kStep)...);
    a = first;
}

template <int kStep>
inline void transpose_step(Vector* rows) {
    for (int i = 0; i < kLanes; ++i)
        if (!(i & kStep))
            swap_quarters<kStep>(rows[i], rows[i + kStep], std::make_index_sequence<kLanes>());
}

// Lanes without kStep: a[i] + a[i + kStep]; lanes with it: b[i - kStep] + b[i].
template <int kStep, size_t... kLane>
inline Vector fold(Vector a, Vector b, std::index_sequence<kLane...>) {
    return __builtin_shufflevector(a, b, ((kLane & kStep) ? int(kLane) + 16 : int(kLane))...) +
           __builtin_shufflevector(
               a, b, ((kLane & kStep) ? int(kLane) + 16 - kStep : int(kLane) + kStep)...);
}

template <int kStep>
inline void fold_step(Vector* rows) {
    for (int i = 0; i < kStep; ++i)
        rows[i] = fold<kStep>(rows[i], rows[i + kStep], std::make_index_sequence<kLanes>());
}

#endif

// Without shuffles of 16 lanes both are faster one number at a time.

// 16 rows of 16 lanes, in place.
inline void transpose(Vector* rows) {
#if defined(__AVX512F__)
    transpose_step<8>(rows);
    transpose_step<4>(rows);
    transpose_step<2>(rows);
    transpose_step<1>(rows);
#else
    float numbers[kLanes][kLanes];
    std::memcpy(numbers, rows, sizeof numbers);
    for (int i = 0; i < kLanes; ++i)
        for (int j = 0; j < i; ++j) std::swap(numbers[i][j], numbers[j][i]);
    std::memcpy(rows, numbers, sizeof numbers);
#endif
}

// The sums of 16 vectors as one vector; overwrites them.
inline Vector sums_of(Vector* rows) {
#if defined(__AVX512F__)
    fold_step<8>(rows);
    fold_step<4>(rows);
    fold_step<2>(rows);
    fold_step<1>(rows);
    return rows[0];
#else
    float sums[kLanes];
    for (int i = 0; i < kLanes; ++i) sums[i] = sum(rows[i]);
    return load(sums);
#endif
}

// fold(a, b) for each of four vectors over its lanes: lane i has the result of vector i % 4.
template <typename Fold>
inline Vector fold_four(Vector a, Vector b, Vector c, Vector d, const Fold& fold) {
    const auto pairs = [&](Vector x, Vector y) {
        return fold(__builtin_shufflevector(x, y, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28,
                                            13, 29),
                    __builtin_shufflevector(x, y, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14,
                                            30, 15, 31));
    };
    const Vector ab = pairs(a, b), cd = pairs(c, d);
    const Vector all = fold(__builtin_shufflevector(ab, cd, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24,
                                                    25, 12, 13, 28, 29),
                            __builtin_shufflevector(ab, cd, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26,
                                                    27, 14, 15, 30, 31));
    const Vector halves = fold(all, __builtin_shufflevector(all, all, 8, 9, 10, 11, 12, 13, 14, 15,
                                                            0, 1, 2, 3, 4, 5, 6, 7));
    return fold(halves, __builtin_shufflevector(halves, halves, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14,
                                                15, 8, 9, 10, 11));
}

// Lane kLane of each four lanes, four times.
template <int kLane>
inline Vector repeat_lane(Vector x) {
    constexpr int a = kLane, b = 4 + kLane, c = 8 + kLane, d = 12 + kLane;
    return __builtin_shufflevector(x, x, a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d);
}

}  // namespace ember
