// Sums of products of bytes, four to a lane: what scores and weighted sums of codes are made of.
// In registers of 32-bit lanes, for AVX-512 VNNI, AVX2, and ARM's dot products; on other processors
// EMBER_BYTES is not defined, and codes are decoded to floats.
#pragma once

#include "simd.h"

#if defined(EMBER_VNNI) || (defined(__AVX2__) && !defined(__AVX512F__)) || \
    defined(__ARM_FEATURE_DOTPROD)
#define EMBER_BYTES 1

namespace ember {

// As many lanes as a register of floats.
using Lot = int32_t __attribute__((vector_size(sizeof(Native))));
using LotWords = uint32_t __attribute__((vector_size(sizeof(Native))));

constexpr int kParted = 32;  // numbers that are parted together
constexpr int kLotsParted = kParted / kNativeLanes;

inline Native to_native(Lot whole) { return __builtin_convertvector(whole, Native); }

#if defined(EMBER_VNNI)

constexpr int kMostCodeBits = 8;  // of codes in products

inline Lot to_whole(Native x) {
    return reinterpret_cast<Lot>(_mm512_cvtps_epi32(reinterpret_cast<__m512>(x)));
}

// Sums over the bytes of each lane: codes times signed bytes.
struct ByteSums {
    __m512i sums = {};

    // Codes times the kLane-th four of 16 bytes, each.
    template <int... kLane>
    [[gnu::always_inline]] void add(const LotWords* codes, const int8_t* sixteen) {
        (add_bytes(sums, reinterpret_cast<__m512i>(*codes++), four<kLane>(sixteen)), ...);
    }

    [[gnu::always_inline]] Lot all() const { return reinterpret_cast<Lot>(sums); }

  private:
    template <int kLane>
    static __m512i four(const int8_t* sixteen) {
        int32_t bytes;
        std::memcpy(&bytes, sixteen + 4 * kLane, sizeof bytes);
        return _mm512_set1_epi32(bytes);
    }
};

// Numbers of 16 bits as 256 * high + low.
inline void part(const Lot (&whole)[kLotsParted], int8_t* high, int8_t* low) {
    // Of two vectors packed quarter by quarter: all first bytes in order, then all second ones.
    alignas(64) static constexpr uint8_t kOrder[64] = {
        0, 2,  4,  6,  16, 18, 20, 22, 32, 34, 36, 38, 48, 50, 52, 54,
        8, 10, 12, 14, 24, 26, 28, 30, 40, 42, 44, 46, 56, 58, 60, 62,
        1, 3,  5,  7,  17, 19, 21, 23, 33, 35, 37, 39, 49, 51, 53, 55,
        9, 11, 13, 15, 25, 27, 29, 31, 41, 43, 45, 47, 57, 59, 61, 63};
    const __m512i half = _mm512_set1_epi16(128);
    const __m512i shorts = _mm512_packs_epi32(reinterpret_cast<__m512i>(whole[0]),
                                              reinterpret_cast<__m512i>(whole[1]));
    // The second byte of x + 128 is the high part, the first one 128 more than the low part.
    const __m512i bytes = _mm512_permutexvar_epi8(
        _mm512_load_si512(kOrder), _mm512_xor_si512(_mm512_add_epi16(shorts, half), half));
    _mm256_store_si256((__m256i*)low, _mm512_castsi512_si256(bytes));
    _mm256_store_si256((__m256i*)high, _mm512_extracti64x4_epi64(bytes, 1));
}

#elif defined(__AVX2__)

constexpr int kMostCodeBits = 5;  // four sums of two products are below 2^15

inline Lot to_whole(Native x) {
    return reinterpret_cast<Lot>(_mm256_cvtps_epi32(reinterpret_cast<__m256>(x)));
}

struct ByteSums {
    __m256i sums = {};

    template <int... kLane>
    [[gnu::always_inline]] void add(const LotWords* codes, const int8_t* sixteen) {
        __m256i few = {};
        ((few = _mm256_add_epi16(few, product<kLane>(*codes++, sixteen))), ...);
        sums = _mm256_add_epi32(sums, _mm256_madd_epi16(few, _mm256_set1_epi16(1)));
    }

    [[gnu::always_inline]] Lot all() const { return reinterpret_cast<Lot>(sums); }

  private:
    template <int kLane>
    static __m256i product(LotWords codes, const int8_t* sixteen) {
        int32_t four;
        std::memcpy(&four, sixteen + 4 * kLane, sizeof four);
        return _mm256_maddubs_epi16(reinterpret_cast<__m256i>(codes), _mm256_set1_epi32(four));
    }
};

inline void part(const Lot (&whole)[kLotsParted], int8_t* high, int8_t* low) {
    const auto packed = [&](int i) {
        return _mm256_packs_epi32(reinterpret_cast<__m256i>(whole[i]),
                                  reinterpret_cast<__m256i>(whole[i + 1]));
    };
    const __m256i half = _mm256_set1_epi16(128), first = _mm256_set1_epi16(255);
    const __m256i a = _mm256_add_epi16(packed(0), half), b = _mm256_add_epi16(packed(2), half);
    // Of four vectors packed half by half.
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i firsts = _mm256_xor_si256(
        _mm256_packus_epi16(_mm256_and_si256(a, first), _mm256_and_si256(b, first)),
        _mm256_set1_epi8(-128));
    const __m256i seconds = _mm256_packs_epi16(_mm256_srai_epi16(a, 8), _mm256_srai_epi16(b, 8));
    _mm256_store_si256((__m256i*)low, _mm256_permutevar8x32_epi32(firsts, order));
    _mm256_store_si256((__m256i*)high, _mm256_permutevar8x32_epi32(seconds, order));
}

#else

constexpr int kMostCodeBits = 6;

inline Lot to_whole(Native x) {
    return reinterpret_cast<Lot>(vcvtnq_s32_f32(reinterpret_cast<float32x4_t>(x)));
}

struct ByteSums {
    int32x4_t sums = {};

    template <int... kLane>
    [[gnu::always_inline]] void add(const LotWords* codes, const int8_t* sixteen) {
        const int8x16_t bytes = vld1q_s8(sixteen);
        ((sums = vdotq_laneq_s32(sums, reinterpret_cast<int8x16_t>(*codes++), bytes, kLane)), ...);
    }

    [[gnu::always_inline]] Lot all() const { return reinterpret_cast<Lot>(sums); }
};

inline void part(const Lot (&whole)[kLotsParted], int8_t* high, int8_t* low) {
    for (int i = 0; i < kLotsParted; i += 2) {
        const int16x8_t shorts = vcombine_s16(vmovn_s32(reinterpret_cast<int32x4_t>(whole[i])),
                                              vmovn_s32(reinterpret_cast<int32x4_t>(whole[i + 1])));
        vst1_s8(high + i * kNativeLanes, vrshrn_n_s16(shorts, 8));
        vst1_s8(low + i * kNativeLanes, vmovn_s16(shorts));
    }
}

#endif

}  // namespace ember

#endif
