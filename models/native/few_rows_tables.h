// How the products of a few activation rows read blocks whose codes name runs of weights in a grid.
#pragma once

#include "blocks_tables.h"
#include "few_rows_k.h"

#ifdef EMBER_VNNI

namespace ember {

// What the lookups of a block's magnitudes need beside Grid: 32 runs at a time as numbers (a block
// has 32 or 64), of kRuns in all.
template <Type>
struct Runs;

template <>
struct Runs<Type::IQ2_XXS> {
    static constexpr int kRuns = 256;

    static __m512i numbers(const uint8_t* block, int) {
        const __m512i words = _mm512_loadu_si512(block + 2);
        const __m512i even = _mm512_permutexvar_epi32(
            _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 0, 0, 0, 0, 0, 0, 0, 0), words);
        return _mm512_cvtepu8_epi16(_mm512_castsi512_si256(even));
    }
};

template <>
struct Runs<Type::IQ2_XS> {
    static constexpr int kRuns = 512;

    static __m512i numbers(const uint8_t* block, int) {
        return _mm512_and_si512(_mm512_loadu_si512(block + 2), _mm512_set1_epi16(511));
    }
};

template <>
struct Runs<Type::IQ2_S> {
    static constexpr int kRuns = 1024;

    static __m512i numbers(const uint8_t* block, int) {
        // Bytes of high bits, each beside itself 4 times, shifted to their place.
        const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(block + 66));
        const __m512i spread = _mm512_mullo_epi16(
            _mm512_cvtepu8_epi16(_mm256_shuffle_epi8(
                _mm256_broadcastsi128_si256(eight),
                _mm256_setr_epi8(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5,
                                 5, 5, 6, 6, 6, 6, 7, 7, 7, 7))),
            _mm512_set1_epi64(0x0004001000400100));
        return _mm512_or_si512(_mm512_cvtepu8_epi16(read<__m256i>(block + 2)),
                               _mm512_and_si512(spread, _mm512_set1_epi16(0x300)));
    }
};

template <>
struct Runs<Type::IQ3_XXS> {
    static constexpr int kRuns = 256;

    static __m512i numbers(const uint8_t* block, int i) {
        return _mm512_cvtepu8_epi16(read<__m256i>(block + 2 + 32 * i));
    }
};

template <>
struct Runs<Type::IQ3_S> {
    static constexpr int kRuns = 512;

    static __m512i numbers(const uint8_t* block, int i) {
        const __m512i low = _mm512_cvtepu8_epi16(read<__m256i>(block + 2 + 32 * i));
        return _mm512_mask_add_epi16(low, read<uint32_t>(block + 66 + 4 * i), low,
                                     _mm512_set1_epi16(256));
    }
};

// 32 of kRuns words by their numbers.
template <int kRuns>
[[gnu::always_inline]] inline __m512i look_up(const uint8_t* words, __m512i numbers) {
    constexpr int kParts = kRuns / 64;
    __m512i parts[kParts];
    for (int i = 0; i < kParts; ++i)
        parts[i] = _mm512_permutex2var_epi16(_mm512_loadu_si512(words + 128 * i), numbers,
                                             _mm512_loadu_si512(words + 128 * i + 64));
    for (int left = kParts, bit = 64; left > 1; left /= 2, bit *= 2) {
        const __mmask32 odd = _mm512_test_epi16_mask(numbers, _mm512_set1_epi16(int16_t(bit)));
        for (int i = 0; i < left / 2; ++i)
            parts[i] = _mm512_mask_blend_epi16(odd, parts[2 * i], parts[2 * i + 1]);
    }
    return parts[0];
}

// Codes are weights without their scale, moved up by the largest magnitude.
template <Type kType>
struct GridReader : NarrowGroups {
    static constexpr Form kForm = Form::InOrder;
    static constexpr const auto& kLevels = Grid<kType>::kLevels;
    static constexpr int kMost = kLevels[std::size(kLevels) - 1];
    static constexpr int kRun = std::size(kLevels) == 3 ? 8 : 4, kBits = 16 / kRun;

    static Factors factors(const uint8_t* block) {
        const __m512 scales = reinterpret_cast<__m512>(Grid<kType>::scales(block));
        return {scales, _mm512_mul_ps(scales, _mm512_set1_ps(kMost))};
    }

    template <int kVector>
    static __m512i lanes() {
        return group_lanes<4 * kVector, 4 * kVector + 2>();
    }

    template <int kVector>
    static __m512i codes(const uint8_t* block, const uint8_t* grid) {
        // The compiler sees that vectors share what is looked up.
        constexpr int kWords = 64 / kRun, kFirst = kVector * kWords;
        const __m512i numbers = Runs<kType>::numbers(block, kFirst / 32);
        const __m512i words =
            look_up<Runs<kType>::kRuns>(grid + Runs<kType>::kRuns * kRun, numbers);
        const __m512i magnitudes = unpacked<kFirst % 32>(words);
        const __m512i most = _mm512_set1_epi8(kMost);
        return _mm512_mask_sub_epi8(_mm512_add_epi8(most, magnitudes),
                                    Grid<kType>::signs(block, kVector), most, magnitudes);
    }

  private:
    // The magnitudes of the runs of 64 weights, from word kFirst on.
    template <int kFirst>
    static __m512i unpacked(__m512i words) {
        struct Tables {
            uint8_t from[64], shifts[64], levels[64];
        };
        alignas(64) static constexpr Tables kTables = [] {
            Tables tables{};
            for (int i = 0; i < 64; ++i) {
                tables.from[i] = uint8_t(2 * kFirst + i / 8 * (16 / kRun) + i % (16 / kRun));
                tables.shifts[i] = uint8_t(i % 8 / kRun * 16 + i % kRun * kBits);
                tables.levels[i] = kLevels[std::min<int>(i % (1 << kBits), std::size(kLevels) - 1)];
            }
            return tables;
        }();
        const __m512i spread = _mm512_permutexvar_epi8(_mm512_load_si512(kTables.from), words);
        return _mm512_permutexvar_epi8(
            _mm512_multishift_epi64_epi8(_mm512_load_si512(kTables.shifts), spread),
            _mm512_load_si512(kTables.levels));
    }
};

template <Type kType>
    requires requires { Grid<kType>::kLevels; }
struct Reader<kType> : GridReader<kType> {};

}  // namespace ember

#endif
