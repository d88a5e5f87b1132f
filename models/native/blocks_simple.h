// Blocks of 32 weights with one scale, and IQ4_XS, which has eight of them.
#pragma once

#include "groups.h"
#include "lanes.h"

namespace ember {

// Nibbles: byte j holds weight j low and weight j + 16 high. Of fifth bits, bit j belongs to weight
// j. code(nibble, j) is the code of weight j.
template <typename Code>
inline Group<> read_nibbles(float scale, float minimum, const uint8_t* nibbles, const Code& code) {
    Group<> group;
    group.scale = scale;
    group.minimum = minimum;
    for (int j = 0; j < 16; ++j) {
        group.codes[j] = int8_t(code(nibbles[j] & 15, j));
        group.codes[j + 16] = int8_t(code(nibbles[j] >> 4, j + 16));
    }
    return group;
}

inline int with_fifth(int nibble, uint32_t bits, int j) {
    return nibble | int(bits >> j & 1) << 4;
}

constexpr int8_t kIQ4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                   1,    13,   25,  38,  53,  69,  89,  113};

constexpr int8_t kFP4Values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// 2^(exponent - 128), of which the least two are below what floats hold in full.
inline float half_power(uint8_t exponent) {
    const uint32_t bits = exponent < 2 ? 0x200000u << exponent : uint32_t(exponent - 1) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return power;
}

// half scale; nibbles[16]: scale * (code - 8)
template <>
struct BlockOf<Type::Q4_0> {
    static constexpr int64_t kColumns = 32, kBytes = 18;

    static Group<> group(const uint8_t* block, int) {
        return read_nibbles(read_half(block), 0, block + 2, [](int code, int) { return code - 8; });
    }
};

// half scale, minimum; nibbles[16]: scale * code + minimum
template <>
struct BlockOf<Type::Q4_1> {
    static constexpr int64_t kColumns = 32, kBytes = 20;

    static Group<> group(const uint8_t* block, int) {
        return read_nibbles(read_half(block), read_half(block + 2), block + 4,
                            [](int code, int) { return code; });
    }
};

// half scale; fifth bits[4]; nibbles[16]: scale * (code - 16)
template <>
struct BlockOf<Type::Q5_0> {
    static constexpr int64_t kColumns = 32, kBytes = 22;

    static Group<> group(const uint8_t* block, int) {
        const uint32_t fifth = read<uint32_t>(block + 2);
        return read_nibbles(read_half(block), 0, block + 6, [&](int code, int j) {
            return with_fifth(code, fifth, j) - 16;
        });
    }
};

// half scale, minimum; fifth bits[4]; nibbles[16]: scale * code + minimum
template <>
struct BlockOf<Type::Q5_1> {
    static constexpr int64_t kColumns = 32, kBytes = 24;

    static Group<> group(const uint8_t* block, int) {
        const uint32_t fifth = read<uint32_t>(block + 4);
        return read_nibbles(read_half(block), read_half(block + 2), block + 8,
                            [&](int code, int j) { return with_fifth(code, fifth, j); });
    }
};

// half scale; codes[32], signed: scale * code
template <>
struct BlockOf<Type::Q8_0> {
    static constexpr int64_t kColumns = 32, kBytes = 34;

    static Group<> group(const uint8_t* block, int) {
        Group<> group{{}, read_half(block), 0};
        std::memcpy(group.codes, block + 2, sizeof group.codes);
        return group;
    }
};

// half scale; nibbles[16]: scale * kIQ4Values[code]
template <>
struct BlockOf<Type::IQ4_NL> {
    static constexpr int64_t kColumns = 32, kBytes = 18;

    static Group<> group(const uint8_t* block, int) {
        return read_nibbles(read_half(block), 0, block + 2,
                            [](int code, int) { return kIQ4Values[code]; });
    }
};

// half scale; high bits of the 8 scales, 2 each, in 2 bytes; their low nibbles[4]; nibbles[8][16]:
// scale * (6-bit scale - 32) * kIQ4Values[code], 32 weights for each of the 8
template <>
struct BlockOf<Type::IQ4_XS> {
    static constexpr int64_t kColumns = 256, kBytes = 136;

    static Group<> group(const uint8_t* block, int i) {
        const int high = read<uint16_t>(block + 2) >> 2 * i & 3;
        const int low = block[4 + i / 2] >> 4 * (i & 1) & 15;
        return read_nibbles(read_half(block) * float((low | high << 4) - 32), 0,
                            block + 8 + 16 * i, [](int code, int) { return kIQ4Values[code]; });
    }
};

// exponent; nibbles[16]: 2^(exponent - 128) * kFP4Values[code]
template <>
struct BlockOf<Type::MXFP4> {
    static constexpr int64_t kColumns = 32, kBytes = 17;

    static Group<> group(const uint8_t* block, int) {
        return read_nibbles(half_power(block[0]), 0, block + 1,
                            [](int code, int) { return kFP4Values[code]; });
    }
};

#ifdef EMBER_VNNI

// What moves tables' values up to unsigned ones.
constexpr int kIQ4Zero = 128, kFP4Zero = 12;

// The lanes of a block by the places of its parts in a span.
template <typename Span>
class BlockLanes {
  public:
    [[gnu::always_inline]] explicit BlockLanes(const Span& span) : span_(span) {}

    operator Lanes() const { return lanes_; }

    // scale * code + minimum, which follows the scale
    [[gnu::always_inline]] BlockLanes& scale_and_minimum(int at) {
        lanes_.scale = span_.half(at);
        lanes_.bias = span_.half(at + 2);
        return *this;
    }

    // scale * (code - zero)
    [[gnu::always_inline]] BlockLanes& scale(__m512 scale, int zero) {
        lanes_.scale = scale;
        lanes_.bias = _mm512_mul_ps(scale, _mm512_set1_ps(float(-zero)));
        return *this;
    }

    [[gnu::always_inline]] BlockLanes& scale(int at, int zero) {
        return scale(span_.half(at), zero);
    }

    [[gnu::always_inline]] BlockLanes& nibbles(int at) {
        const __m512i mask = _mm512_set1_epi8(15);
        for (int i = 0; i < 4; ++i) {
            const __m512i both = span_.word(at + 4 * i);
            lanes_.codes[i] = _mm512_and_si512(both, mask);
            lanes_.codes[4 + i] = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
        }
        return *this;
    }

    // Bit 4 * i + j of a word above byte j of codes i.
    [[gnu::always_inline]] BlockLanes& fifth_bits(int at) {
        const __m512i bits = span_.word(at);
        // Where to read the bytes of two words for a bit to be the fifth of its byte.
        const __m512i first = _mm512_set1_epi64(0x1f1e1d1c3f3e3d3c);
        for (int i = 0; i < 8; ++i) {
            const __m512i from = _mm512_add_epi8(first, _mm512_set1_epi8(char(4 * i)));
            lanes_.codes[i] =
                _mm512_ternarylogic_epi32(lanes_.codes[i], _mm512_multishift_epi64_epi8(from, bits),
                                          _mm512_set1_epi8(16), 0xf8);
        }
        return *this;
    }

    // Codes by a table, whose values move up by `zero`.
    [[gnu::always_inline]] BlockLanes& values(const int8_t* table, int zero) {
        const __m128i moved = _mm_add_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)),
                                           _mm_set1_epi8(char(zero)));
        for (auto& codes : lanes_.codes)
            codes = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(moved), codes);
        return *this;
    }

    // Signed ones, moved up by 128.
    [[gnu::always_inline]] BlockLanes& bytes(int at) {
        for (int i = 0; i < 8; ++i)
            lanes_.codes[i] = _mm512_xor_si512(span_.word(at + 4 * i), _mm512_set1_epi8(-128));
        return *this;
    }

  private:
    const Span& span_;
    Lanes lanes_;
};

template <>
struct LanesOf<Type::Q4_0> {
    static constexpr int kAtOnce = 4;

    template <typename Span>
    [[gnu::always_inline]] static Lanes lanes(const Span& span, int i) {
        return BlockLanes(span).scale(18 * i, 8).nibbles(18 * i + 2);
    }
};

template <>
struct LanesOf<Type::Q4_1> {
    static constexpr int kAtOnce = 4;

    template <typename Span>
    [[gnu::always_inline]] static Lanes lanes(const Span& span, int i) {
        return BlockLanes(span).scale_and_minimum(20 * i).nibbles(20 * i + 4);
    }
};

template <>
struct LanesOf<Type::Q5_0> {
    static constexpr int kAtOnce = 4;

    template <typename Span>
    [[gnu::always_inline]] static Lanes lanes(const Span& span, int i) {
        return BlockLanes(span).scale(22 * i, 16).nibbles(22 * i + 6).fifth_bits(22 * i + 2);
    }
};

template <>
struct LanesOf<Type::Q5_1> {
    static constexpr int kAtOnce = 4;

    template <typename Span>
    [[gnu::always_inline]] static Lanes lanes(const Span& span, int i) {
        return BlockLanes(span)
            .scale_and_minimum(24 * i)
            .nibbles(24 * i + 8)
            .fifth_bits(24 * i + 4);
    }
};

template <>
struct LanesOf<Type::Q8_0> {
    static constexpr int kAtOnce = 2;

    template <typename Span>
    [[gnu::always_inline]] static Lanes lanes(const Span& span, int i) {
        return BlockLanes(span).scale(34 * i, 128).bytes(34 * i + 2);
    }
};

template <>
struct LanesOf<Type::IQ4_NL> {
    static constexpr int kAtOnce = 4;

    template <typename Span>
    [[gnu::always_inline]] static Lanes lanes(const Span& span, int i) {
        return BlockLanes(span)
            .scale(18 * i, kIQ4Zero)
            .nibbles(18 * i + 2)
            .values(kIQ4Values, kIQ4Zero);
    }
};

template <>
struct LanesOf<Type::IQ4_XS> {
    static constexpr int kAtOnce = 1;

    template <typename Span>
    [[gnu::always_inline]] static Lanes lanes(const Span& span, int i) {
        const auto bits = [&](int at, int from, int mask) {
            const __m128i by = _mm_cvtsi32_si128(from);
            return _mm512_and_si512(_mm512_srl_epi32(span.word(at), by), _mm512_set1_epi32(mask));
        };
        const __m512i high = _mm512_slli_epi32(bits(0, 16 + 2 * i, 3), 4);
        const __m512i step = _mm512_or_si512(bits(4, 4 * i, 15), high);
        const __m512 whole = _mm512_cvtepi32_ps(_mm512_sub_epi32(step, _mm512_set1_epi32(32)));
        return BlockLanes(span)
            .scale(_mm512_mul_ps(span.half(0), whole), kIQ4Zero)
            .nibbles(8 + 16 * i)
            .values(kIQ4Values, kIQ4Zero);
    }
};

template <>
struct LanesOf<Type::MXFP4> {
    static constexpr int kAtOnce = 4;

    template <typename Span>
    [[gnu::always_inline]] static Lanes lanes(const Span& span, int i) {
        const __m512i one = _mm512_set1_epi32(1);
        const __m512i exponent = _mm512_and_si512(span.word(17 * i), _mm512_set1_epi32(255));
        // See half_power.
        const __m512i power = _mm512_mask_sllv_epi32(
            _mm512_slli_epi32(_mm512_sub_epi32(exponent, one), 23),
            _mm512_cmple_epi32_mask(exponent, one), _mm512_set1_epi32(0x200000), exponent);
        return BlockLanes(span)
            .scale(_mm512_castsi512_ps(power), kFP4Zero)
            .nibbles(17 * i + 1)
            .values(kFP4Values, kFP4Zero);
    }
};

template <Type kType>
    requires requires { LanesOf<kType>::kAtOnce; }
struct FewRows<kType> : LaneFewRows<kType> {};

template <Type kType>
    requires requires { LanesOf<kType>::kAtOnce; }
struct PanelOf<kType> {
    using Panel = LanePanel;
};

#endif

}  // namespace ember
