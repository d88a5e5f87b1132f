// Weight matrices as they lie in a GGUF file: rows of blocks, each with its scales among its codes.
//
// How a block is laid out is drawn once, in the header of its family (blocks_*.h), beside
// `decode_block`, which says what a block's numbers are.
#pragma once

#include "simd.h"

namespace ember {

// ggml's numbers.
enum class Type : int32_t {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q2_K = 10,
    Q3_K = 11,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    IQ4_NL = 20,
    IQ4_XS = 23,
    BF16 = 30,
};

// A matrix in the mapped file. Nothing is aligned, and the mapping may end with the last row: no
// byte behind it may be read.
struct Weight {
    const uint8_t* data;
    const float* added;  // [rows], to each row's products; or null
    int64_t rows, columns, row_bytes;
    Type type;

    const uint8_t* row(int64_t n) const { return data + n * row_bytes; }
};

// Call body.operator()<type>().
template <typename Body>
inline auto with_type(Type type, const Body& body) {
    switch (type) {
        case Type::F32: return body.template operator()<Type::F32>();
        case Type::F16: return body.template operator()<Type::F16>();
        case Type::Q4_0: return body.template operator()<Type::Q4_0>();
        case Type::Q4_1: return body.template operator()<Type::Q4_1>();
        case Type::Q5_0: return body.template operator()<Type::Q5_0>();
        case Type::Q5_1: return body.template operator()<Type::Q5_1>();
        case Type::Q8_0: return body.template operator()<Type::Q8_0>();
        case Type::Q2_K: return body.template operator()<Type::Q2_K>();
        case Type::Q3_K: return body.template operator()<Type::Q3_K>();
        case Type::Q4_K: return body.template operator()<Type::Q4_K>();
        case Type::Q5_K: return body.template operator()<Type::Q5_K>();
        case Type::Q6_K: return body.template operator()<Type::Q6_K>();
        case Type::IQ4_NL: return body.template operator()<Type::IQ4_NL>();
        case Type::IQ4_XS: return body.template operator()<Type::IQ4_XS>();
        case Type::BF16: return body.template operator()<Type::BF16>();
    }
    __builtin_unreachable();  // `packed.Weight` takes no other
}

// Weights of a block (kColumns), and its bytes (kBytes).
template <Type>
struct BlockOf;

// A block's weights.
template <Type kType>
void decode_block(const uint8_t* block, float* out);

constexpr int64_t kMostBlock = 256;  // weights of the largest block

// The block of a row whose first column is `at`.
template <Type kType>
inline const uint8_t* block_at(const Weight& w, int64_t row, int64_t at) {
    return w.row(row) + at / BlockOf<kType>::kColumns * BlockOf<kType>::kBytes;
}

// `count` weights, whole blocks. Once in the code for each type.
template <Type kType>
[[gnu::noinline]] void decode_blocks(const uint8_t* blocks, int64_t count, float* out) {
    using Block = BlockOf<kType>;
    for (int64_t at = 0; at < count; at += Block::kColumns, blocks += Block::kBytes)
        decode_block<kType>(blocks, out + at);
}

template <typename T>
inline T read(const uint8_t* from) {
    T value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

inline float read_half(const uint8_t* from) { return half_to_float(read<uint16_t>(from)); }

}  // namespace ember
