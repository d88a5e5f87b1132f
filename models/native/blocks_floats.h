// Weights that are floats: blocks of one.
#pragma once

#include "few_rows.h"
#include "panels.h"

namespace ember {

template <>
struct BlockOf<Type::F32> {
    static constexpr int64_t kColumns = 1, kBytes = 4;
};

template <>
struct BlockOf<Type::F16> {
    static constexpr int64_t kColumns = 1, kBytes = 2;
};

template <>
struct BlockOf<Type::BF16> {
    static constexpr int64_t kColumns = 1, kBytes = 2;
};

template <>
inline void decode_block<Type::F32>(const uint8_t* block, float* out) {
    *out = read<float>(block);
}

template <>
inline void decode_block<Type::F16>(const uint8_t* block, float* out) {
    *out = read_half(block);
}

template <>
inline void decode_block<Type::BF16>(const uint8_t* block, float* out) {
    *out = bfloat_to_float(read<uint16_t>(block));
}

}  // namespace ember
