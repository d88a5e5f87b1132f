// K-quants: blocks of 256 weights in groups with small scales of their own.
#pragma once

#include "few_rows.h"
#include "panels.h"

namespace ember {

// scales[16], 4 bits of scale low and of minimum high; codes[64]; half scale, minimum.
// Groups of 16: scale * group scale * code - minimum * group minimum.
template <>
struct BlockOf<Type::Q2_K> {
    static constexpr int64_t kColumns = 256, kBytes = 84;
};

// third bits[32]; low bits[64] of codes; scales[12]; half scale.
// Groups of 16: scale * (group scale - 32) * (code - 4).
template <>
struct BlockOf<Type::Q3_K> {
    static constexpr int64_t kColumns = 256, kBytes = 110;
};

// half scale, minimum; scales[12]; nibbles[128].
// Groups of 32: scale * group scale * code - minimum * group minimum.
template <>
struct BlockOf<Type::Q4_K> {
    static constexpr int64_t kColumns = 256, kBytes = 144;
};

// half scale, minimum; scales[12]; fifth bits[32]; nibbles[128].
// Groups of 32: scale * group scale * code - minimum * group minimum.
template <>
struct BlockOf<Type::Q5_K> {
    static constexpr int64_t kColumns = 256, kBytes = 176;
};

// low nibbles[128]; high bits[64], 2 a weight; scales[16], signed; half scale.
// Groups of 16: scale * group scale * (code - 32).
template <>
struct BlockOf<Type::Q6_K> {
    static constexpr int64_t kColumns = 256, kBytes = 210;
};

// Two bits a weight: byte j of the low (high) 32 holds weights j, j + 32, j + 64 and j + 96 of the
// block's first (second) half, from the lowest bits up. (In the third bits of Q3_K, bit i of byte
// j belongs to weight j + 32 * i of the block.)
inline int two_bits(const uint8_t* codes, int at) {
    return codes[at / 128 * 32 + at % 32] >> at % 128 / 32 * 2 & 3;
}

// Nibbles of Q4_K and Q5_K: byte j of each 32 holds weight j of 64 low, weight j + 32 high. (Of
// the fifth bits of Q5_K, bit i of byte j belongs to weight j + 32 * i.)
inline int nibble(const uint8_t* nibbles, int at) {
    return nibbles[at / 64 * 32 + at % 32] >> at % 64 / 32 * 4 & 15;
}

// Low nibbles of Q6_K: byte j of each 64 holds weight j of 128 low, weight j + 64 high.
inline int wide_nibble(const uint8_t* nibbles, int at) {
    return nibbles[at / 128 * 64 + at % 64] >> at % 128 / 64 * 4 & 15;
}

// 8 scales and 8 minimums of 6 bits in 12 bytes: of groups 0 to 3 the low six bits of bytes 0 to 3
// and 4 to 7; of group 4 + i the nibbles of byte 8 + i below the two high bits of bytes i and 4 + i.
struct GroupScales {
    uint8_t scales[8], minimums[8];

    explicit GroupScales(const uint8_t* from) {
        for (int i = 0; i < 4; ++i) {
            scales[i] = from[i] & 63;
            minimums[i] = from[4 + i] & 63;
            scales[4 + i] = uint8_t((from[8 + i] & 15) | (from[i] >> 6) << 4);
            minimums[4 + i] = uint8_t(from[8 + i] >> 4 | (from[4 + i] >> 6) << 4);
        }
    }
};

// 16 scales of 6 bits in 12 bytes: low nibbles of scales i and 8 + i in byte i, above them two bits
// each in bytes 8 to 11, where byte 8 + i holds those of scales i, 4 + i, 8 + i and 12 + i.
inline int q3_scale(const uint8_t* from, int i) {
    const int low = from[i % 8] >> i / 8 * 4 & 15;
    return (low | (from[8 + i % 4] >> i / 4 * 2 & 3) << 4) - 32;
}

template <>
inline void decode_block<Type::Q2_K>(const uint8_t* block, float* out) {
    const float scale = read_half(block + 80), minimum = read_half(block + 82);
    for (int i = 0; i < 256; ++i) {
        const int group = block[i / 16];
        out[i] = scale * float(group & 15) * float(two_bits(block + 16, i)) -
                 minimum * float(group >> 4);
    }
}

template <>
inline void decode_block<Type::Q3_K>(const uint8_t* block, float* out) {
    const float scale = read_half(block + 108);
    for (int i = 0; i < 256; ++i) {
        const int third = block[i % 32] >> i / 32 & 1;
        const int code = two_bits(block + 32, i) + 4 * third - 4;
        out[i] = scale * float(q3_scale(block + 96, i / 16)) * float(code);
    }
}

template <>
inline void decode_block<Type::Q4_K>(const uint8_t* block, float* out) {
    const float scale = read_half(block), minimum = read_half(block + 2);
    const GroupScales groups(block + 4);
    for (int i = 0; i < 256; ++i)
        out[i] = scale * float(groups.scales[i / 32]) * float(nibble(block + 16, i)) -
                 minimum * float(groups.minimums[i / 32]);
}

template <>
inline void decode_block<Type::Q5_K>(const uint8_t* block, float* out) {
    const float scale = read_half(block), minimum = read_half(block + 2);
    const GroupScales groups(block + 4);
    for (int i = 0; i < 256; ++i) {
        const int code = nibble(block + 48, i) | (block[16 + i % 32] >> i / 32 & 1) << 4;
        out[i] = scale * float(groups.scales[i / 32]) * float(code) -
                 minimum * float(groups.minimums[i / 32]);
    }
}

template <>
inline void decode_block<Type::Q6_K>(const uint8_t* block, float* out) {
    const float scale = read_half(block + 208);
    for (int i = 0; i < 256; ++i) {
        const int code = wide_nibble(block, i) | two_bits(block + 128, i) << 4;
        out[i] = scale * float(int8_t(block[192 + i / 16])) * float(code - 32);
    }
}

}  // namespace ember
