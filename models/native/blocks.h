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
    IQ2_XXS = 16,
    IQ2_XS = 17,
    IQ3_XXS = 18,
    IQ4_NL = 20,
    IQ3_S = 21,
    IQ2_S = 22,
    IQ4_XS = 23,
    BF16 = 30,
    MXFP4 = 39,
};

// A matrix in the mapped file. Nothing is aligned, and the mapping may end with the last row: no
// byte behind it may be read.
struct Weight {
    const uint8_t* data;
    const float* added;   // [rows], to each row's products; or null
    const uint8_t* grid;  // runs of weights that codes name, see blocks_tables.h; or null
    int64_t rows, columns, row_bytes;
    Type type;

    const uint8_t* row(int64_t n) const { return data + n * row_bytes; }
};

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

// The same of types that need a grid.
template <Type kType>
void decode_block(const uint8_t* block, const uint8_t*, float* out) {
    decode_block<kType>(block, out);
}

// `count` weights of a row from column `at` on, whole blocks. Once in the code for each type.
template <Type kType>
[[gnu::noinline]] void decode_columns(const Weight& w, int64_t row, int64_t at, int64_t count,
                                      float* out) {
    using Block = BlockOf<kType>;
    const uint8_t* block = block_at<kType>(w, row, at);
    for (; count > 0; count -= Block::kColumns, block += Block::kBytes, out += Block::kColumns)
        decode_block<kType>(block, w.grid, out);
}

template <typename T>
inline T read(const uint8_t* from) {
    T value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

// Into the second cache: the first is for what is read now. Never a call, which GCC would leave out
// as one without an effect.
[[gnu::always_inline]] inline void prefetch_line(const void* at) {
    constexpr int kToRead = 0, kSecondCache = 2;
    __builtin_prefetch(at, kToRead, kSecondCache);
}

inline float read_half(const uint8_t* from) { return half_to_float(read<uint16_t>(from)); }

}  // namespace ember
