// Blocks whose codes name runs of weights in a grid: IQ2 and IQ3.
//
// A grid is [runs][4 or 8 magnitudes] bytes, `Weight::grid`. Signs are bits of their own, of which
// some types store seven of every eight: the eighth makes the number of negative weights even.
#pragma once

#include "blocks.h"

namespace ember {

// half scale; for each 32 weights: 4 runs of 8 in bytes, then 4 times 7 signs and 4 bits of group
// scale in 32 bits. Groups of 32: scale * (group scale + 1/2) / 4 * magnitude.
template <>
struct BlockOf<Type::IQ2_XXS> {
    static constexpr int64_t kColumns = 256, kBytes = 66;
};

// half scale; 32 runs of 8 in 9 bits, 7 signs above each; scales[8], nibbles. Groups of 16: as
// IQ2_XXS.
template <>
struct BlockOf<Type::IQ2_XS> {
    static constexpr int64_t kColumns = 256, kBytes = 74;
};

// half scale; low bytes[32] of runs of 8; signs[32]; high bits[8] of the runs, 2 each; scales[8],
// nibbles. Groups of 16: as IQ2_XXS.
template <>
struct BlockOf<Type::IQ2_S> {
    static constexpr int64_t kColumns = 256, kBytes = 82;
};

// half scale; runs[64] of 4; for each 32 weights 4 times 7 signs and 4 bits of group scale in 32
// bits. Groups of 32: scale * (group scale + 1/2) / 2 * magnitude.
template <>
struct BlockOf<Type::IQ3_XXS> {
    static constexpr int64_t kColumns = 256, kBytes = 98;
};

// half scale; low bytes[64] of runs of 4; high bits[8] of the runs; signs[32]; scales[4], nibbles.
// Groups of 32: scale * (2 * group scale + 1) * magnitude.
template <>
struct BlockOf<Type::IQ3_S> {
    static constexpr int64_t kColumns = 256, kBytes = 110;
};

// The eighth sign of each of 8 bytes, of which seven are there.
inline uint64_t with_eighth(uint64_t sevens) {
    uint64_t parity = sevens ^ sevens >> 4;
    parity ^= parity >> 2;
    parity ^= parity >> 1;
    return sevens | (parity & 0x0101010101010101) << 7;
}

// The 4 times 7 low bits of each, a byte for 7 of them.
inline uint64_t sevens_of(uint32_t low, uint32_t high) {
    const uint64_t bits = low | uint64_t(high) << 32;
    return (bits & 0x0000007f0000007f) | (bits & 0x00003f8000003f80) << 1 |
           (bits & 0x001fc000001fc000) << 2 | (bits & 0x0fe000000fe00000) << 3;
}

// How a block of 256 names its weights: the magnitudes of every 8; the signs of every 64; the
// scales of every 16.
template <Type>
struct Grid;

inline uint64_t eight_of(const uint8_t* grid, int run) { return read<uint64_t>(grid + 8 * run); }

inline uint64_t eight_of(const uint8_t* grid, int first, int second) {
    return read<uint32_t>(grid + 4 * first) | uint64_t(read<uint32_t>(grid + 4 * second)) << 32;
}

using Codes = int8_t __attribute__((vector_size(16)));

inline Codes codes_of(uint64_t first, uint64_t second) {
    using Pair = uint64_t __attribute__((vector_size(16)));
    return reinterpret_cast<Codes>(Pair{first, second});
}

// Compilers make one number at a time of bytes that become floats at once.
inline Vector to_float(Codes codes) {
    return __builtin_convertvector(__builtin_convertvector(codes, Integers), Vector);
}

// 16 nibbles, low ones first.
inline Vector nibbles_of(uint64_t bytes) {
    constexpr uint64_t kLow = 0x0f0f0f0f0f0f0f0f;
    const Codes halves = codes_of(bytes & kLow, bytes >> 4 & kLow);
    return to_float(__builtin_shufflevector(halves, halves, 0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13,
                                            6, 14, 7, 15));
}

template <>
struct Grid<Type::IQ2_XXS> {
    static constexpr uint8_t kLevels[] = {8, 25, 43};

    static uint64_t eight(const uint8_t* block, const uint8_t* grid, int i) {
        return eight_of(grid, block[2 + i / 4 * 8 + i % 4]);
    }
    static uint64_t signs(const uint8_t* block, int i) {
        const uint8_t* from = block + 2 + 16 * i;
        return with_eighth(sevens_of(read<uint32_t>(from + 4), read<uint32_t>(from + 12)));
    }
    static Vector scales(const uint8_t* block) {
        const Words words = read<Words>(block + 2) >> 28;
        return (to_float(__builtin_shufflevector(words, words, 1, 1, 3, 3, 5, 5, 7, 7, 9, 9, 11, 11,
                                                 13, 13, 15, 15)) + 0.5f) *
               (read_half(block) / 4);
    }
};

template <>
struct Grid<Type::IQ2_XS> {
    static constexpr uint8_t kLevels[] = {8, 25, 43};

    static uint64_t eight(const uint8_t* block, const uint8_t* grid, int i) {
        return eight_of(grid, read<uint16_t>(block + 2 + 2 * i) & 511);
    }
    static uint64_t signs(const uint8_t* block, int i) {
        using Shorts = uint16_t __attribute__((vector_size(16)));
        using Bytes = uint8_t __attribute__((vector_size(8)));
        const Shorts stored = read<Shorts>(block + 2 + 16 * i) >> 9;
        return with_eighth(reinterpret_cast<uint64_t>(__builtin_convertvector(stored, Bytes)));
    }
    static Vector scales(const uint8_t* block) {
        return (nibbles_of(read<uint64_t>(block + 66)) + 0.5f) * (read_half(block) / 4);
    }
};

template <>
struct Grid<Type::IQ2_S> {
    static constexpr uint8_t kLevels[] = {8, 25, 43};

    static uint64_t eight(const uint8_t* block, const uint8_t* grid, int i) {
        const int high = block[66 + i / 4] >> i % 4 * 2 & 3;
        return eight_of(grid, block[2 + i] | high << 8);
    }
    static uint64_t signs(const uint8_t* block, int i) {
        return read<uint64_t>(block + 34 + 8 * i);
    }
    static Vector scales(const uint8_t* block) {
        return (nibbles_of(read<uint64_t>(block + 74)) + 0.5f) * (read_half(block) / 4);
    }
};

template <>
struct Grid<Type::IQ3_XXS> {
    static constexpr uint8_t kLevels[] = {4, 12, 20, 28, 36, 44, 52, 62};

    static uint64_t eight(const uint8_t* block, const uint8_t* grid, int i) {
        return eight_of(grid, block[2 + 2 * i], block[3 + 2 * i]);
    }
    static uint64_t signs(const uint8_t* block, int i) {
        const uint8_t* from = block + 66 + 8 * i;
        return with_eighth(sevens_of(read<uint32_t>(from), read<uint32_t>(from + 4)));
    }
    static Vector scales(const uint8_t* block) {
        using Eight = uint32_t __attribute__((vector_size(32)));
        const Eight words = read<Eight>(block + 66) >> 28;
        return (to_float(__builtin_shufflevector(words, words, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5,
                                                 6, 6, 7, 7)) + 0.5f) *
               (read_half(block) / 2);
    }
};

template <>
struct Grid<Type::IQ3_S> {
    static constexpr uint8_t kLevels[] = {1, 3, 5, 7, 9, 11, 13, 15};

    static uint64_t eight(const uint8_t* block, const uint8_t* grid, int i) {
        const int high = block[66 + i / 4] >> i % 4 * 2;
        return eight_of(grid, block[2 + 2 * i] | (high & 1) << 8,
                        block[3 + 2 * i] | (high & 2) << 7);
    }
    static uint64_t signs(const uint8_t* block, int i) {
        return read<uint64_t>(block + 74 + 8 * i);
    }
    static Vector scales(const uint8_t* block) {
        const uint32_t bytes = read<uint32_t>(block + 106);
        const Codes halves = codes_of(bytes & 0x0f0f0f0f, bytes >> 4 & 0x0f0f0f0f);
        const Codes each = __builtin_shufflevector(halves, halves, 0, 0, 8, 8, 1, 1, 9, 9, 2, 2,
                                                   10, 10, 3, 3, 11, 11);
        return (to_float(each) * 2 + 1) * read_half(block);
    }
};

template <Type kType>
inline void decode_by_grid(const uint8_t* block, const uint8_t* grid, float* out) {
    constexpr uint64_t kEach = 0x0101010101010101, kBits = 0x8040201008040201;
    const Vector scales = Grid<kType>::scales(block);
    for (int vector = 0; vector < 4; ++vector) {
        uint64_t signs = Grid<kType>::signs(block, vector);
        for (int i = 4 * vector; i < 4 * vector + 4; ++i, signs >>= 16) {
            const Codes magnitudes = codes_of(Grid<kType>::eight(block, grid, 2 * i),
                                              Grid<kType>::eight(block, grid, 2 * i + 1));
            const Codes negative = codes_of((signs & 255) * kEach & kBits,
                                            (signs >> 8 & 255) * kEach & kBits) != 0;
            store(out + 16 * i, to_float((magnitudes ^ negative) - negative) * scales[i]);
        }
    }
}

template <>
inline void decode_block<Type::IQ2_XXS>(const uint8_t* block, const uint8_t* grid, float* out) {
    decode_by_grid<Type::IQ2_XXS>(block, grid, out);
}

template <>
inline void decode_block<Type::IQ2_XS>(const uint8_t* block, const uint8_t* grid, float* out) {
    decode_by_grid<Type::IQ2_XS>(block, grid, out);
}

template <>
inline void decode_block<Type::IQ2_S>(const uint8_t* block, const uint8_t* grid, float* out) {
    decode_by_grid<Type::IQ2_S>(block, grid, out);
}

template <>
inline void decode_block<Type::IQ3_XXS>(const uint8_t* block, const uint8_t* grid, float* out) {
    decode_by_grid<Type::IQ3_XXS>(block, grid, out);
}

template <>
inline void decode_block<Type::IQ3_S>(const uint8_t* block, const uint8_t* grid, float* out) {
    decode_by_grid<Type::IQ3_S>(block, grid, out);
}

}  // namespace ember
