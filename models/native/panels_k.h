// Rows of K-quants' panels: codes times the scales of their groups, which fit 16 bits, and so do
// the sums of 32 products with activations in 32. Needs 16-bit vector products.
#pragma once

#include "blocks_k.h"
#include "panels.h"

#ifdef EMBER_VNNI

namespace ember {

// Bits of bytes, shifted down.
inline __m256i bits(__m256i bytes, int shift, int mask) {
    return _mm256_and_si256(_mm256_srli_epi16(bytes, shift), _mm256_set1_epi8(char(mask)));
}

// 32 codes times the scales of the two 16.
inline __m512i scaled(__m512i codes, int first, int second) {
    return _mm512_mullo_epi16(codes, _mm512_inserti64x4(_mm512_set1_epi16(int16_t(first)),
                                                        _mm256_set1_epi16(int16_t(second)), 1));
}

struct WideRow {
    static constexpr int kMinimums = 8;

    const uint8_t* block;

    explicit WideRow(const uint8_t* from) : block(from) {}

    float scale() const { return read_half(block); }
    float minimum(int i) const {
        return read_half(block + 2) * float(wide_minimum(block + 4, i));
    }

    __m256i nibbles(const uint8_t* from, int g) const {
        return bits(read<__m256i>(from + 32 * (g / 2)), 4 * (g % 2), 15);
    }
    __m512i times_scale(__m256i codes, int g) const {
        return _mm512_mullo_epi16(_mm512_cvtepu8_epi16(codes),
                                  _mm512_set1_epi16(int16_t(wide_scale(block + 4, g))));
    }
};

template <>
struct PanelRow<Type::Q4_K> : WideRow {
    using WideRow::WideRow;
    __m512i codes(int g) const { return times_scale(nibbles(block + 16, g), g); }
};

template <>
struct PanelRow<Type::Q5_K> : WideRow {
    using WideRow::WideRow;
    __m512i codes(int g) const {
        const __m256i fifth = _mm256_slli_epi16(bits(read<__m256i>(block + 16), g, 1), 4);
        return times_scale(_mm256_or_si256(nibbles(block + 48, g), fifth), g);
    }
};

template <>
struct PanelRow<Type::Q6_K> {
    static constexpr int kMinimums = 0;

    const uint8_t* block;

    explicit PanelRow(const uint8_t* from) : block(from) {}

    float scale() const { return read_half(block + 208); }
    float minimum(int) const { return 0; }

    __m512i codes(int g) const {
        const int half = g / 4, part = g % 4;
        const __m256i low = read<__m256i>(block + 64 * half + 32 * (part % 2));
        const __m256i high = bits(read<__m256i>(block + 128 + 32 * half), 2 * part, 3);
        const __m256i whole =
            _mm256_or_si256(bits(low, 4 * (part / 2), 15), _mm256_slli_epi16(high, 4));
        const int8_t* scales = reinterpret_cast<const int8_t*>(block + 192) + 2 * g;
        return scaled(_mm512_sub_epi16(_mm512_cvtepu8_epi16(whole), _mm512_set1_epi16(32)),
                      scales[0], scales[1]);
    }
};

template <>
struct PanelRow<Type::Q2_K> {
    static constexpr int kMinimums = 16;

    const uint8_t* block;

    explicit PanelRow(const uint8_t* from) : block(from) {}

    float scale() const { return read_half(block + 80); }
    float minimum(int i) const { return read_half(block + 82) * float(block[i] >> 4); }

    __m512i codes(int g) const {
        const __m256i low = bits(read<__m256i>(block + 16 + 32 * (g / 4)), 2 * (g % 4), 3);
        return scaled(_mm512_cvtepu8_epi16(low), block[2 * g] & 15, block[2 * g + 1] & 15);
    }
};

template <>
struct PanelRow<Type::Q3_K> {
    static constexpr int kMinimums = 0;

    const uint8_t* block;

    explicit PanelRow(const uint8_t* from) : block(from) {}

    float scale() const { return read_half(block + 108); }
    float minimum(int) const { return 0; }

    __m512i codes(int g) const {
        const __m256i low = bits(read<__m256i>(block + 32 + 32 * (g / 4)), 2 * (g % 4), 3);
        const __m256i third = _mm256_slli_epi16(bits(read<__m256i>(block), g, 1), 2);
        const __m512i whole = _mm512_cvtepu8_epi16(_mm256_or_si256(low, third));
        return scaled(_mm512_sub_epi16(whole, _mm512_set1_epi16(4)),
                      narrow_scale(block + 96, 2 * g), narrow_scale(block + 96, 2 * g + 1));
    }
};

template <Type kType>
    requires requires { PanelRow<kType>::kMinimums; }
struct PanelOf<kType> {
    using Panel = CodePanel<PanelRow<kType>::kMinimums>;
};

}  // namespace ember

#endif
