// Weights in MLX's affine layout, and activations in two int8 parts.
//
// A weight row is a little-endian bit stream of `columns` codes of `bits` bits; every `group`
// codes share a float16 scale and bias: w = scale * code + bias. Codes are unpacked 64 at a time
// (a chunk: 8 * bits bytes, always whole bytes).
//
// An activation row is x = scale * (128 * high + low) per 32 columns: 15 bits, so that integer
// products stay faithful where a single int8 changes answers.
#pragma once

#include "simd.h"

namespace ember {

constexpr int kChunk = 64;    // codes unpacked together
constexpr int kNibbles = 128;  // 4-bit codes of one vector, see split_nibbles
constexpr int kXGroup = 32;   // columns that share an activation scale
constexpr int kHighUnit = 128;
constexpr float kVanishing = 1e-30f;  // smaller groups are zero; their inverse would overflow
constexpr int kMaxCode = 127 * kHighUnit + 63;

struct Weight {
    const uint8_t* codes;
    const uint16_t* scales;
    const uint16_t* biases;
    const float* added;  // to each row's products; or null
    int64_t rows, columns;
    int32_t bits, group;

    int64_t row_bytes() const { return columns * bits / 8; }
    int64_t groups() const { return columns / group; }
};

// The 32 codes of a row from column `at` on, a multiple of 32, to bytes.
inline void unpack_group(const uint8_t* row, int bits, int64_t at, uint8_t* out) {
    const uint8_t* from = row + at * bits / 8;
    if (bits == 8) {
        std::memcpy(out, from, kXGroup);
    } else if (bits == 4) {
        for (int i = 0; i < kXGroup / 2; ++i) {
            out[2 * i] = from[i] & 15;
            out[2 * i + 1] = from[i] >> 4;
        }
    } else {
        uint64_t held = 0;
        int left = 0;
        for (int i = 0; i < kXGroup; ++i, held >>= bits, left -= bits) {
            for (; left < bits; left += 8) held |= uint64_t(*from++) << left;
            out[i] = uint8_t(held & ((1u << bits) - 1));
        }
    }
}

#ifdef EMBER_VNNI
// Unpacks a chunk in three instructions: bytes of 8 codes to each quadword, shift each code to
// its byte, mask.
class Unpacker {
  public:
    explicit Unpacker(int bits) : bits_(bits) {
        alignas(64) uint8_t bytes[64], shifts[64];
        for (int q = 0; q < 8; ++q)
            for (int b = 0; b < 8; ++b) {
                bytes[8 * q + b] = uint8_t(std::min(q * bits + b, 63));
                shifts[8 * q + b] = uint8_t(b * bits);
            }
        bytes_ = _mm512_load_si512(bytes);
        shifts_ = _mm512_load_si512(shifts);
        mask_ = _mm512_set1_epi8(char((1u << bits) - 1));
    }

    int bits() const { return bits_; }

    // `count` codes (a multiple of 8) from a whole number of bytes on; the rest are zero.
    __m512i operator()(const uint8_t* from, int count) const {
        const uint64_t present = ~uint64_t(0) >> (64 - count * bits_ / 8);
        const __m512i raw = _mm512_maskz_loadu_epi8(present, from);
        const __m512i spread = _mm512_permutexvar_epi8(bytes_, raw);
        return _mm512_and_si512(_mm512_multishift_epi64_epi8(shifts_, spread), mask_);
    }

  private:
    int bits_;
    __m512i bytes_, shifts_, mask_;
};
#endif

// One row of activations, its parts padded with zeros to whole nibble spans.
struct Activation {
    int8_t* high;
    int8_t* low;
    float* scales;  // one per 32 columns
    float* sums;    // one per 32 columns: sum of the represented values, for the bias
};

inline void quantize_group(const float* x, int8_t* high, int8_t* low, float* scale, float* sum) {
    using Bytes = int8_t __attribute__((vector_size(16)));
    const Vector first = load(x), second = load(x + kLanes);
    const Vector a = first < 0 ? -first : first, b = second < 0 ? -second : second;
    const float top = max(a > b ? a : b);
    const float inverse = top < kVanishing ? 0.0f : kMaxCode / top;
    float total = 0;
    for (int half = 0; half < kXGroup; half += kLanes) {
        const Vector code = round(load(x + half) * inverse);
        const Integers whole = __builtin_convertvector(code, Integers);
        const Integers upper = (whole + kHighUnit / 2) >> 7;
        const Bytes high_part = __builtin_convertvector(upper, Bytes);
        const Bytes low_part = __builtin_convertvector(whole - upper * kHighUnit, Bytes);
        std::memcpy(high + half, &high_part, sizeof high_part);
        std::memcpy(low + half, &low_part, sizeof low_part);
        total += ember::sum(code);
    }
    *scale = top / kMaxCode;
    *sum = *scale * total;
}

inline int64_t padded(int64_t columns) { return (columns + kNibbles - 1) / kNibbles * kNibbles; }

// `columns` is a multiple of 32.
inline void quantize_row(const float* x, int64_t columns, const Activation& out) {
    for (int64_t at = 0; at < columns; at += kXGroup)
        quantize_group(x + at, out.high + at, out.low + at, out.scales + at / kXGroup,
                       out.sums + at / kXGroup);
    const size_t rest = size_t(padded(columns) - columns);
    std::memset(out.high + columns, 0, rest);
    std::memset(out.low + columns, 0, rest);
}

// Bring one part of a row into the order in which 4-bit codes leave a vector: of every 128
// columns the even ones, then the odd ones.
inline void split_nibbles(const int8_t* from, int64_t columns, int8_t* to) {
    for (int64_t at = 0; at < padded(columns); at += kNibbles)
        for (int i = 0; i < kNibbles / 2; ++i) {
            to[at + i] = from[at + 2 * i];
            to[at + kNibbles / 2 + i] = from[at + 2 * i + 1];
        }
}

}  // namespace ember
