// Whether weights are finite.
//
// Floats that are NaN or infinite have all bits of their exponent set. Of blocks only the scales
// are read: where these are finite, all weights are, and where one is not, no weight of its own is.
#pragma once

#include <array>

#include "blocks.h"

namespace ember {

template <typename Bits, Bits kExponent>
inline bool is_finite(const uint8_t* from) {
    return (read<Bits>(from) & kExponent) != kExponent;
}

// Where the float16 numbers of a block lie.
template <Type kType>
constexpr auto halves_of() {
    if constexpr (kType == Type::Q2_K) return std::array{80, 82};
    else if constexpr (kType == Type::Q3_K) return std::array{108};
    else if constexpr (kType == Type::Q6_K) return std::array{208};
    else if constexpr (kType == Type::Q4_1 || kType == Type::Q5_1 || kType == Type::Q4_K ||
                       kType == Type::Q5_K)
        return std::array{0, 2};
    else return std::array{0};
}

// A power of two may be too large for some codes.
template <Type kType>
inline bool is_finite_power(const uint8_t* block) {
    constexpr uint8_t kLargest = 252;  // that is not
    if (block[0] <= kLargest) return true;
    float weights[BlockOf<kType>::kColumns];
    decode_block<kType>(block, weights);
    return std::all_of(std::begin(weights), std::end(weights),
                       [](float weight) { return std::isfinite(weight); });
}

template <Type kType>
inline bool is_finite_block(const uint8_t* block) {
    if constexpr (kType == Type::MXFP4) return is_finite_power<kType>(block);
    else if constexpr (kType == Type::F32) return is_finite<uint32_t, 0x7F800000>(block);
    else if constexpr (kType == Type::BF16) return is_finite<uint16_t, 0x7F80>(block);
    else {
        bool finite = true;
        for (const int at : halves_of<kType>()) finite &= is_finite<uint16_t, 0x7C00>(block + at);
        return finite;
    }
}

template <Type kType>
bool are_finite_blocks(const uint8_t* blocks, int64_t count) {
    bool finite = true;
    for (int64_t i = 0; i < count; ++i)
        finite &= is_finite_block<kType>(blocks + i * BlockOf<kType>::kBytes);
    return finite;
}

}  // namespace ember
