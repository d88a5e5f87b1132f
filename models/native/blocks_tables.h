// Blocks whose codes name runs of weights in a grid: IQ2 and IQ3; and MXFP4, whose codes name
// single values.
//
// A grid is [runs][4 or 8 magnitudes] bytes, `Weight::grid`. Signs are bits of their own, of which
// some types store seven of every eight: the eighth makes the number of negative weights even.
#pragma once

#include "few_rows.h"
#include "panels.h"

namespace ember {

// exponent; nibbles[16], byte j weight j low and j + 16 high: 2^(exponent - 128) * kFP4Values[code]
template <>
struct BlockOf<Type::MXFP4> {
    static constexpr int64_t kColumns = 32, kBytes = 17;
};

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

constexpr int8_t kFP4Values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// 2^(exponent - 128); the least two are below what floats hold in full.
inline float half_power(uint8_t exponent) {
    const uint32_t bits =
        exponent < 2 ? 0x00200000u << exponent : uint32_t(exponent - 1) << 23;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

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

// How a block of 256 names its weights: runs of kRun; the signs of every 64 weights; the scales of
// every 16, to be multiplied by the block's.
template <Type>
struct Grid;

// Half steps of a nibble from a half on.
inline float half_steps(int nibble) { return float(nibble) + 0.5f; }

inline int nibble_of(const uint8_t* nibbles, int i) { return nibbles[i / 2] >> i % 2 * 4 & 15; }

template <>
struct Grid<Type::IQ2_XXS> {
    static constexpr int kRun = 8;
    static uint32_t bits(const uint8_t* block, int group) {
        return read<uint32_t>(block + 2 + 8 * group + 4);
    }
    static int run(const uint8_t* block, int i) { return block[2 + i / 4 * 8 + i % 4]; }
    static uint64_t signs(const uint8_t* block, int i) {
        return with_eighth(sevens_of(bits(block, 2 * i), bits(block, 2 * i + 1)));
    }
    static float scale(const uint8_t* block, int i) {
        return half_steps(bits(block, i / 2) >> 28) / 4;
    }
};

template <>
struct Grid<Type::IQ2_XS> {
    static constexpr int kRun = 8;
    static int run(const uint8_t* block, int i) { return read<uint16_t>(block + 2 + 2 * i) & 511; }
    static uint64_t signs(const uint8_t* block, int i) {
        using Shorts = uint16_t __attribute__((vector_size(16)));
        using Bytes = uint8_t __attribute__((vector_size(8)));
        const Shorts stored = read<Shorts>(block + 2 + 16 * i) >> 9;
        return with_eighth(reinterpret_cast<uint64_t>(__builtin_convertvector(stored, Bytes)));
    }
    static float scale(const uint8_t* block, int i) {
        return half_steps(nibble_of(block + 66, i)) / 4;
    }
};

template <>
struct Grid<Type::IQ2_S> {
    static constexpr int kRun = 8;
    static int run(const uint8_t* block, int i) {
        return block[2 + i] | (block[66 + i / 4] >> i % 4 * 2 & 3) << 8;
    }
    static uint64_t signs(const uint8_t* block, int i) { return read<uint64_t>(block + 34 + 8 * i); }
    static float scale(const uint8_t* block, int i) {
        return half_steps(nibble_of(block + 74, i)) / 4;
    }
};

template <>
struct Grid<Type::IQ3_XXS> {
    static constexpr int kRun = 4;
    static uint32_t bits(const uint8_t* block, int group) {
        return read<uint32_t>(block + 66 + 4 * group);
    }
    static int run(const uint8_t* block, int i) { return block[2 + i]; }
    static uint64_t signs(const uint8_t* block, int i) {
        return with_eighth(sevens_of(bits(block, 2 * i), bits(block, 2 * i + 1)));
    }
    static float scale(const uint8_t* block, int i) {
        return half_steps(bits(block, i / 2) >> 28) / 2;
    }
};

template <>
struct Grid<Type::IQ3_S> {
    static constexpr int kRun = 4;
    static int run(const uint8_t* block, int i) {
        return block[2 + i] | (block[66 + i / 8] >> i % 8 & 1) << 8;
    }
    static uint64_t signs(const uint8_t* block, int i) { return read<uint64_t>(block + 74 + 8 * i); }
    static float scale(const uint8_t* block, int i) {
        return float(2 * nibble_of(block + 106, i / 2) + 1);
    }
};

// 16 weights of a block without their scale.
template <Type kType>
inline Vector grid_numbers(const uint8_t* block, const uint8_t* grid, int i) {
    using Bytes = int8_t __attribute__((vector_size(16)));
    constexpr int kRun = Grid<kType>::kRun, kRuns = 16 / kRun;
    Bytes magnitudes;
    for (int j = 0; j < kRuns; ++j)
        std::memcpy(reinterpret_cast<char*>(&magnitudes) + j * kRun,
                    grid + Grid<kType>::run(block, i * kRuns + j) * kRun, kRun);
    const uint64_t signs = Grid<kType>::signs(block, i / 4) >> i % 4 * 16;
    constexpr uint64_t kEach = 0x0101010101010101, kBits = 0x8040201008040201;
    const uint64_t bits[] = {(signs & 255) * kEach & kBits, (signs >> 8 & 255) * kEach & kBits};
    const Bytes negative = read<Bytes>(reinterpret_cast<const uint8_t*>(bits)) != 0;
    return __builtin_convertvector(
        __builtin_convertvector((magnitudes ^ negative) - negative, Integers), Vector);
}

template <Type kType>
inline void decode_by_grid(const uint8_t* block, const uint8_t* grid, float* out) {
    const float scale = read_half(block);
    for (int i = 0; i < 16; ++i)
        store(out + 16 * i,
              grid_numbers<kType>(block, grid, i) * (scale * Grid<kType>::scale(block, i)));
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

template <>
inline void decode_block<Type::MXFP4>(const uint8_t* block, float* out) {
    const float scale = half_power(block[0]);
    for (int i = 0; i < 16; ++i) {
        out[i] = scale * float(kFP4Values[block[1 + i] & 15]);
        out[16 + i] = scale * float(kFP4Values[block[1 + i] >> 4]);
    }
}

}  // namespace ember
