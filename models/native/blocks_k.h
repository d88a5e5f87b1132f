// K-quants: blocks of 256 weights in groups with small scales of their own.
#pragma once

#include "groups.h"

namespace ember {

// Scales and minimums of 8 groups, 6 bits each, in 12 bytes: of groups 0 to 3 the low six bits of
// bytes 0 to 3 and 4 to 7; of group 4 + i the nibbles of byte 8 + i below the two high bits of
// bytes i and 4 + i.
inline int wide_scale(const uint8_t* from, int i) {
    return i < 4 ? from[i] & 63 : (from[4 + i] & 15) | (from[i - 4] >> 6) << 4;
}

inline int wide_minimum(const uint8_t* from, int i) {
    return i < 4 ? from[4 + i] & 63 : from[4 + i] >> 4 | (from[i] >> 6) << 4;
}

// 16 scales of 6 bits, less 32, in 12 bytes: low nibbles of scales i and 8 + i in byte i, above
// them two bits each in bytes 8 to 11, where byte 8 + i holds those of scales i, 4 + i, 8 + i and
// 12 + i.
inline int narrow_scale(const uint8_t* from, int i) {
    const int low = from[i % 8] >> i / 8 * 4 & 15;
    return (low | (from[8 + i % 4] >> i / 4 * 2 & 3) << 4) - 32;
}

// kSize weights of a block from number `first` on; code(i) is the code of weight i.
template <int kSize, typename Code>
inline Group<kSize> read_group(float scale, float minimum, int first, const Code& code) {
    Group<kSize> group;
    group.scale = scale;
    group.minimum = minimum;
    for (int j = 0; j < kSize; ++j) group.codes[j] = int8_t(code(first + j));
    return group;
}

// scales[16], 4 bits of scale low and of minimum high; codes[64], 2 bits; half scale, minimum.
// Byte j of the codes' first (second) 32 holds weights j, j + 32, j + 64 and j + 96 of the block's
// first (second) half, from the lowest bits up.
// Groups of 16: scale * group scale * code - minimum * group minimum.
template <>
struct BlockOf<Type::Q2_K> {
    static constexpr int64_t kColumns = 256, kBytes = 84;

    static Group<16> group(const uint8_t* block, int i) {
        return read_group<16>(read_half(block + 80) * float(block[i] & 15),
                              -read_half(block + 82) * float(block[i] >> 4), 16 * i,
                              [&](int at) { return two_bits(block + 16, at); });
    }

    static int two_bits(const uint8_t* codes, int at) {
        return codes[at / 128 * 32 + at % 32] >> at % 128 / 32 * 2 & 3;
    }
};

// third bits[32]; low bits[64] of codes, as Q2_K's; scales[12], see narrow_scale; half scale.
// Bit i of byte j of the third bits belongs to weight j + 32 * i.
// Groups of 16: scale * group scale * (code - 4).
template <>
struct BlockOf<Type::Q3_K> {
    static constexpr int64_t kColumns = 256, kBytes = 110;

    static Group<16> group(const uint8_t* block, int i) {
        const auto code = [&](int at) {
            const int third = block[at % 32] >> at / 32 & 1;
            return BlockOf<Type::Q2_K>::two_bits(block + 32, at) + 4 * third - 4;
        };
        const float scale = read_half(block + 108) * float(narrow_scale(block + 96, i));
        return read_group<16>(scale, 0, 16 * i, code);
    }
};

// half scale, minimum; scales[12], see wide_scale; nibbles[128].
// Byte j of each 32 nibbles holds weight j of 64 low, weight j + 32 high.
// Groups of 32: scale * group scale * code - minimum * group minimum.
template <>
struct BlockOf<Type::Q4_K> {
    static constexpr int64_t kColumns = 256, kBytes = 144;

    static Group<> group(const uint8_t* block, int i) {
        return read_group<32>(read_half(block) * float(wide_scale(block + 4, i)),
                              -read_half(block + 2) * float(wide_minimum(block + 4, i)), 32 * i,
                              [&](int at) { return nibble(block + 16, at); });
    }

    static int nibble(const uint8_t* nibbles, int at) {
        return nibbles[at / 64 * 32 + at % 32] >> at % 64 / 32 * 4 & 15;
    }
};

// half scale, minimum; scales[12]; fifth bits[32]; nibbles[128], as Q4_K's.
// Bit i of byte j of the fifth bits belongs to weight j + 32 * i.
// Groups of 32: scale * group scale * code - minimum * group minimum.
template <>
struct BlockOf<Type::Q5_K> {
    static constexpr int64_t kColumns = 256, kBytes = 176;

    static Group<> group(const uint8_t* block, int i) {
        const auto code = [&](int at) {
            const int fifth = block[16 + at % 32] >> at / 32 & 1;
            return BlockOf<Type::Q4_K>::nibble(block + 48, at) | fifth << 4;
        };
        return read_group<32>(read_half(block) * float(wide_scale(block + 4, i)),
                              -read_half(block + 2) * float(wide_minimum(block + 4, i)), 32 * i,
                              code);
    }
};

// low nibbles[128]; high bits[64], as Q2_K's codes; scales[16], signed; half scale.
// Byte j of each 64 nibbles holds weight j of 128 low, weight j + 64 high.
// Groups of 16: scale * group scale * (code - 32).
template <>
struct BlockOf<Type::Q6_K> {
    static constexpr int64_t kColumns = 256, kBytes = 210;

    static Group<16> group(const uint8_t* block, int i) {
        const auto code = [&](int at) {
            const int low = block[at / 128 * 64 + at % 64] >> at % 128 / 64 * 4 & 15;
            return (low | BlockOf<Type::Q2_K>::two_bits(block + 128, at) << 4) - 32;
        };
        const float scale = read_half(block + 208) * float(int8_t(block[192 + i]));
        return read_group<16>(scale, 0, 16 * i, code);
    }
};

}  // namespace ember
