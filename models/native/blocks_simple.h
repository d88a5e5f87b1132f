// Blocks of 32 weights with one scale, and IQ4_XS, which has eight of them.
#pragma once

#include "lanes.h"

namespace ember {

// In all of them byte j of the nibbles holds weight j low and weight j + 16 high; bit j of the
// fifth bits belongs to weight j.

// half scale; nibbles[16]: scale * (code - 8)
template <>
struct BlockOf<Type::Q4_0> {
    static constexpr int64_t kColumns = 32, kBytes = 18;
};

// half scale, minimum; nibbles[16]: scale * code + minimum
template <>
struct BlockOf<Type::Q4_1> {
    static constexpr int64_t kColumns = 32, kBytes = 20;
};

// half scale; fifth bits[4]; nibbles[16]: scale * (code - 16)
template <>
struct BlockOf<Type::Q5_0> {
    static constexpr int64_t kColumns = 32, kBytes = 22;
};

// half scale, minimum; fifth bits[4]; nibbles[16]: scale * code + minimum
template <>
struct BlockOf<Type::Q5_1> {
    static constexpr int64_t kColumns = 32, kBytes = 24;
};

// half scale; codes[32], signed: scale * code
template <>
struct BlockOf<Type::Q8_0> {
    static constexpr int64_t kColumns = 32, kBytes = 34;
};

// half scale; nibbles[16]: scale * kIQ4Values[code]
template <>
struct BlockOf<Type::IQ4_NL> {
    static constexpr int64_t kColumns = 32, kBytes = 18;
};

// half scale; high bits of the 8 scales, 2 each, in 2 bytes; their low nibbles[4]; nibbles[8][16]:
// scale * (6-bit scale - 32) * kIQ4Values[code], 32 weights for each of the 8
template <>
struct BlockOf<Type::IQ4_XS> {
    static constexpr int64_t kColumns = 256, kBytes = 136;
};

constexpr int8_t kIQ4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                   1,    13,   25,  38,  53,  69,  89,  113};

template <typename Number>
inline void decode_nibbles(const uint8_t* nibbles, const Number& number, float* out) {
    for (int j = 0; j < 16; ++j) {
        out[j] = number(j, nibbles[j] & 15);
        out[j + 16] = number(j + 16, nibbles[j] >> 4);
    }
}

template <>
inline void decode_block<Type::Q4_0>(const uint8_t* block, float* out) {
    const float scale = read_half(block);
    decode_nibbles(block + 2, [&](int, int code) { return scale * float(code - 8); }, out);
}

template <>
inline void decode_block<Type::Q4_1>(const uint8_t* block, float* out) {
    const float scale = read_half(block), minimum = read_half(block + 2);
    decode_nibbles(block + 4, [&](int, int code) { return scale * float(code) + minimum; }, out);
}

template <>
inline void decode_block<Type::Q5_0>(const uint8_t* block, float* out) {
    const float scale = read_half(block);
    const uint32_t fifth = read<uint32_t>(block + 2);
    const auto number = [&](int j, int code) {
        return scale * float((code | int(fifth >> j & 1) << 4) - 16);
    };
    decode_nibbles(block + 6, number, out);
}

template <>
inline void decode_block<Type::Q5_1>(const uint8_t* block, float* out) {
    const float scale = read_half(block), minimum = read_half(block + 2);
    const uint32_t fifth = read<uint32_t>(block + 4);
    const auto number = [&](int j, int code) {
        return scale * float(code | int(fifth >> j & 1) << 4) + minimum;
    };
    decode_nibbles(block + 8, number, out);
}

template <>
inline void decode_block<Type::Q8_0>(const uint8_t* block, float* out) {
    const float scale = read_half(block);
    for (int j = 0; j < 32; ++j) out[j] = scale * float(int8_t(block[2 + j]));
}

template <>
inline void decode_block<Type::IQ4_NL>(const uint8_t* block, float* out) {
    const float scale = read_half(block);
    decode_nibbles(block + 2, [&](int, int code) { return scale * float(kIQ4Values[code]); }, out);
}

template <>
inline void decode_block<Type::IQ4_XS>(const uint8_t* block, float* out) {
    const int high = read<uint16_t>(block + 2);
    for (int b = 0; b < 8; ++b) {
        const int low = block[4 + b / 2] >> 4 * (b & 1) & 15;
        const float scale = read_half(block) * float((low | (high >> 2 * b & 3) << 4) - 32);
        const auto number = [&](int, int code) { return scale * float(kIQ4Values[code]); };
        decode_nibbles(block + 8 + 16 * b, number, out + 32 * b);
    }
}

#ifdef EMBER_VNNI

// Codes of nibbles, which `code` may still change, given their index.
template <typename Code>
[[gnu::always_inline]] inline void spread_nibbles(const Quad& nibbles, Lanes& to,
                                                  const Code& code) {
    const __m512i mask = _mm512_set1_epi8(15);
    for (int i = 0; i < 4; ++i) {
        to.codes[i] = code(i, _mm512_and_si512(nibbles[i], mask));
        to.codes[4 + i] = code(4 + i, _mm512_and_si512(_mm512_srli_epi16(nibbles[i], 4), mask));
    }
}

[[gnu::always_inline]] inline void spread_nibbles(const Quad& nibbles, Lanes& to) {
    spread_nibbles(nibbles, to, [](int, __m512i codes) { return codes; });
}

// The same with bit 4 * i + j of `fifth` above byte j of codes i.
[[gnu::always_inline]] inline void spread_nibbles(const Quad& nibbles, __m512i fifth, Lanes& to) {
    // Where to read a byte of each 8 of both rows, for the bit to be its fifth.
    const __m512i first = _mm512_set1_epi64(0x1f1e1d1c3f3e3d3c);
    spread_nibbles(nibbles, to, [&](int i, __m512i codes) {
        const __m512i from = _mm512_add_epi8(first, _mm512_set1_epi8(char(4 * i)));
        return _mm512_ternarylogic_epi32(codes, _mm512_multishift_epi64_epi8(from, fifth),
                                         _mm512_set1_epi8(16), 0xf8);
    });
}

// The same by the table, moved up by kIQ4Zero.
constexpr int kIQ4Zero = 128;

[[gnu::always_inline]] inline void spread_table(const Quad& nibbles, Lanes& to) {
    const __m128i values = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kIQ4Values));
    const __m512i table = _mm512_broadcast_i32x4(_mm_xor_si128(values, _mm_set1_epi8(-128)));
    spread_nibbles(nibbles, to, [&](int, __m512i codes) {
        return _mm512_shuffle_epi8(table, codes);
    });
}

// scale * (code - zero)
[[gnu::always_inline]] inline void set_zero(__m512 scale, int zero, Lanes& to) {
    to.scale = scale;
    to.bias = _mm512_mul_ps(scale, _mm512_set1_ps(float(-zero)));
}

template <>
struct LanesOf<Type::Q4_0> {
    static constexpr int kAtOnce = 1;

    template <int N, typename Use>
    [[gnu::always_inline]] static void load(const LaneRows& rows, int64_t at, const Use& use) {
        Lanes lanes;
        set_zero(low_halves(rows.quad(at)[0]), 8, lanes);
        spread_nibbles(rows.quad(at + 2), lanes);
        use(0, lanes);
    }
};

template <>
struct LanesOf<Type::Q4_1> {
    static constexpr int kAtOnce = 4;  // 20 words, 4 at a time

    template <int N, typename Use>
    [[gnu::always_inline]] static void load(const LaneRows& rows, int64_t at, const Use& use) {
        __m512i words[5 * N];
        for (int i = 0; i < 5 * N; i += 4) {
            const int from = std::min(i, 5 * N - 4);
            const Quad quad = rows.quad(at + 4 * from);
            for (int j = 0; j < 4; ++j) words[from + j] = quad[j];
        }
        for (int i = 0; i < N; ++i) {
            const __m512i* block = words + 5 * i;
            Lanes lanes;
            lanes.scale = low_halves(block[0]);
            lanes.bias = high_halves(block[0]);
            spread_nibbles({{block[1], block[2], block[3], block[4]}}, lanes);
            use(i, lanes);
        }
    }
};

template <>
struct LanesOf<Type::Q5_0> {
    static constexpr int kAtOnce = 1;

    template <int N, typename Use>
    [[gnu::always_inline]] static void load(const LaneRows& rows, int64_t at, const Use& use) {
        const Quad head = rows.quad(at);
        Lanes lanes;
        set_zero(low_halves(head[0]), 16, lanes);
        spread_nibbles(rows.quad(at + 6), _mm512_shrdi_epi32(head[0], head[1], 16), lanes);
        use(0, lanes);
    }
};

template <>
struct LanesOf<Type::Q5_1> {
    static constexpr int kAtOnce = 1;

    template <int N, typename Use>
    [[gnu::always_inline]] static void load(const LaneRows& rows, int64_t at, const Use& use) {
        const Quad head = rows.quad(at);
        Lanes lanes;
        lanes.scale = low_halves(head[0]);
        lanes.bias = high_halves(head[0]);
        spread_nibbles(rows.quad(at + 8), head[1], lanes);
        use(0, lanes);
    }
};

template <>
struct LanesOf<Type::Q8_0> {
    static constexpr int kAtOnce = 1;

    template <int N, typename Use>
    [[gnu::always_inline]] static void load(const LaneRows& rows, int64_t at, const Use& use) {
        const Quad halves[] = {rows.quad(at + 2), rows.quad(at + 18)};
        Lanes lanes;
        set_zero(low_halves(rows.quad(at)[0]), 128, lanes);
        for (int i = 0; i < 8; ++i)
            lanes.codes[i] = _mm512_xor_si512(halves[i / 4][i % 4], _mm512_set1_epi8(-128));
        use(0, lanes);
    }
};

template <>
struct LanesOf<Type::IQ4_NL> {
    static constexpr int kAtOnce = 1;

    template <int N, typename Use>
    [[gnu::always_inline]] static void load(const LaneRows& rows, int64_t at, const Use& use) {
        Lanes lanes;
        set_zero(low_halves(rows.quad(at)[0]), kIQ4Zero, lanes);
        spread_table(rows.quad(at + 2), lanes);
        use(0, lanes);
    }
};

template <>
struct LanesOf<Type::IQ4_XS> {
    static constexpr int kAtOnce = 1;

    template <int N, typename Use>
    [[gnu::always_inline]] static void load(const LaneRows& rows, int64_t at, const Use& use) {
        const Quad head = rows.quad(at);
        const __m512 scale = low_halves(head[0]);
        const __m512i high = _mm512_srli_epi32(head[0], 16);
        const auto bits = [](__m512i words, int from, int mask) {
            return _mm512_and_si512(_mm512_srl_epi32(words, _mm_cvtsi32_si128(from)),
                                    _mm512_set1_epi32(mask));
        };
        for (int b = 0; b < 8; ++b) {
            const __m512i step = _mm512_or_si512(
                bits(head[1], 4 * b, 15), _mm512_slli_epi32(bits(high, 2 * b, 3), 4));
            const __m512 whole =
                _mm512_cvtepi32_ps(_mm512_sub_epi32(step, _mm512_set1_epi32(32)));
            Lanes lanes;
            set_zero(_mm512_mul_ps(scale, whole), kIQ4Zero, lanes);
            spread_table(rows.quad(at + 8 + 16 * b), lanes);
            use(b, lanes);
        }
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
