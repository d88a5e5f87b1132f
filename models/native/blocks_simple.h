// Blocks of 32 weights with one scale, and IQ4_XS, which has eight of them.
#pragma once

#include "few_rows.h"
#include "panels.h"

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

}  // namespace ember
