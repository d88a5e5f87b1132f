// Softmax weights as integers, and what they sum codes with: levels of 16 bits. Without AVX-512
// only for values of 4 bits, whose codes fill bytes (see value_codes.h): of 8 tokens the low
// halves of a channel's bytes are tokens 0, 4, 1, 5, the high ones 2, 6, 3, 7. A look-up among 16
// bytes gives half a level, so that two give all of it.
#pragma once

#include "byte_products.h"
#include "unencoded.h"

namespace ember {

#if defined(__aarch64__)

// Levels, weights and plain codes fill two int8 parts.
constexpr float kMostWeight = 127 * 256 + 127, kMostLevel = kMostWeight, kMostSum = 3e38f;
constexpr int kCodeShift = 11;

#else

// Weights of 16 bits, and levels of fewer, so that their sums fit 32.
constexpr float kMostWeight = 32767, kMostLevel = 8191, kMostSum = 2.1e9f;
constexpr int kCodeShift = 0;

#endif

#ifdef EMBER_BYTES

constexpr int64_t kNibbleRun = 8;  // tokens of a channel's lane

#if defined(EMBER_VNNI)

struct WholeWeights {
    alignas(64) int16_t numbers[kTile];

    // Of x * unit, `count` of them. Returns what is lost, lane by lane.
    Native round(const Native* x, Native unit, int64_t count) {
        Native lost = {};
        for (int64_t t = 0; t < count; t += kNativeLanes) {
            const Native scaled = x[t / kNativeLanes] * unit;
            const Lot whole = to_whole(scaled);
            _mm256_store_si256((__m256i*)(numbers + t),
                               _mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(whole)));
            lost += scaled - to_native(whole);
        }
        return lost;
    }
};

#elif defined(__AVX2__)

struct WholeWeights {
    alignas(64) int16_t numbers[kTile];  // of each run tokens 0, 4, 1, 5, 2, 6, 3, 7

    Native round(const Native* x, Native unit, int64_t count) {
        const __m128i order = _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
        Native lost = {};
        for (int64_t t = 0; t < count; t += kNibbleRun) {
            const Native scaled = x[t / kNibbleRun] * unit;
            const Lot whole = to_whole(scaled);
            const __m256i wide = reinterpret_cast<__m256i>(whole);
            const __m128i shorts = _mm_packs_epi32(_mm256_castsi256_si128(wide),
                                                   _mm256_extracti128_si256(wide, 1));
            _mm_store_si128((__m128i*)(numbers + t), _mm_shuffle_epi8(shorts, order));
            lost += scaled - to_native(whole);
        }
        return lost;
    }
};

// Of 8 channels, in pairs of tokens.
template <int kRows>
class NibbleSums {
  public:
    explicit NibbleSums(const int16_t* levels) {
        const __m256i both = _mm256_load_si256((const __m256i*)levels);
        const __m256i low = _mm256_and_si256(both, _mm256_set1_epi16(255));
        low_ = halves(low);
        high_ = halves(_mm256_srli_epi16(both, 8));
    }

    [[gnu::always_inline]] void add(const uint8_t* codes, const WholeWeights (&weights)[kRows],
                                    int64_t t) {
        const __m256i bytes = _mm256_loadu_si256((const __m256i*)codes);
        const __m256i nibble = _mm256_set1_epi8(15);
        add_half(_mm256_and_si256(bytes, nibble), weights, t);
        add_half(_mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble), weights, t + 4);
    }

    Native all(int r) const {
        return to_native(reinterpret_cast<Lot>(_mm256_hadd_epi32(sums_[r][0], sums_[r][1])));
    }

  private:
    // 16 words below 256 as bytes, twice.
    static __m256i halves(__m256i words) {
        return _mm256_permute4x64_epi64(_mm256_packus_epi16(words, words), 0x88);
    }

    [[gnu::always_inline]] void add_half(__m256i codes, const WholeWeights (&weights)[kRows],
                                         int64_t t) {
        const __m256i low = _mm256_shuffle_epi8(low_, codes);
        const __m256i high = _mm256_shuffle_epi8(high_, codes);
        const __m256i a = _mm256_unpacklo_epi8(low, high), b = _mm256_unpackhi_epi8(low, high);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
            int64_t four;
            std::memcpy(&four, weights[r].numbers + t, sizeof four);
            const __m256i all = _mm256_set1_epi64x(four);
            sums_[r][0] = _mm256_add_epi32(sums_[r][0], _mm256_madd_epi16(a, all));
            sums_[r][1] = _mm256_add_epi32(sums_[r][1], _mm256_madd_epi16(b, all));
        }
    }

    __m256i low_, high_, sums_[kRows][2] = {};
};

#else

struct WholeWeights {
    alignas(64) int8_t high[kTile], low[kTile];  // of each run tokens 0, 4, 1, 5, 2, 6, 3, 7

    Native round(const Native* x, Native unit, int64_t count) {
        Native lost = {};
        for (int64_t t = 0; t < count; t += kNibbleRun) {
            const int64_t v = t / kNativeLanes;
            const Native a = x[v] * unit, b = x[v + 1] * unit;
            const Lot first = to_whole(a), second = to_whole(b);
            lost += a - to_native(first) + (b - to_native(second));
            const int16x4_t early = vmovn_s32(reinterpret_cast<int32x4_t>(first));
            const int16x4_t late = vmovn_s32(reinterpret_cast<int32x4_t>(second));
            const int16x8_t shorts = vcombine_s16(vzip1_s16(early, late), vzip2_s16(early, late));
            vst1_s8(high + t, vrshrn_n_s16(shorts, 8));
            vst1_s8(low + t, vmovn_s16(shorts));
        }
        return lost;
    }
};

// Of 4 channels. Levels and weights are 256 * high + low; products of two low parts do not matter.
template <int kRows>
class NibbleSums {
  public:
    explicit NibbleSums(const int16_t* levels) {
        const int16x8_t first = vld1q_s16(levels), second = vld1q_s16(levels + 8);
        high_ = vcombine_s8(vrshrn_n_s16(first, 8), vrshrn_n_s16(second, 8));
        low_ = vcombine_s8(vmovn_s16(first), vmovn_s16(second));
    }

    [[gnu::always_inline]] void add(const uint8_t* codes, const WholeWeights (&weights)[kRows],
                                    int64_t t) {
        const uint8x16_t bytes = vld1q_u8(codes);
        const uint8x16_t first = vandq_u8(bytes, vdupq_n_u8(15)), second = vshrq_n_u8(bytes, 4);
        add_half<0>(first, weights, t);
        add_half<1>(second, weights, t);
    }

    Native all(int r) const {
        return to_native(reinterpret_cast<Lot>(high_sums_[r])) * 65536.0f +
               to_native(reinterpret_cast<Lot>(middle_sums_[r])) * 256.0f;
    }

  private:
    template <int kHalf>
    [[gnu::always_inline]] void add_half(uint8x16_t codes, const WholeWeights (&weights)[kRows],
                                         int64_t t) {
        const int8x16_t high = vqtbl1q_s8(high_, codes), low = vqtbl1q_s8(low_, codes);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
            const int8x8_t upper = vld1_s8(weights[r].high + t);
            const int8x8_t lower = vld1_s8(weights[r].low + t);
            high_sums_[r] = vdotq_lane_s32(high_sums_[r], high, upper, kHalf);
            middle_sums_[r] = vdotq_lane_s32(middle_sums_[r], high, lower, kHalf);
            middle_sums_[r] = vdotq_lane_s32(middle_sums_[r], low, upper, kHalf);
        }
    }

    int8x16_t high_, low_;
    int32x4_t high_sums_[kRows] = {}, middle_sums_[kRows] = {};
};

#endif

#endif

}  // namespace ember
