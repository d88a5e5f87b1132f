// Blocks whose codes name runs of weights in a grid: IQ2 and IQ3; and MXFP4, whose codes name
// single values.
//
// A grid is [runs][4 or 8 magnitudes] bytes, `Weight::grid`. Signs are bits of their own, of which
// some types store seven of every eight: the eighth makes the number of negative weights even.
#pragma once

#include "blocks_k.h"

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

// How a block of 256 names its weights: the magnitudes of every 8; the signs of every 64; the scales
// of every 16.
template <Type>
struct Grid;

inline uint64_t eight_of(const uint8_t* grid, int run) { return read<uint64_t>(grid + 8 * run); }

inline uint64_t eight_of(const uint8_t* grid, int first, int second) {
    return read<uint32_t>(grid + 4 * first) | uint64_t(read<uint32_t>(grid + 4 * second)) << 32;
}

// 16 nibbles, low ones first.
inline Vector nibbles_of(uint64_t bytes) {
    using Bytes = uint8_t __attribute__((vector_size(8)));
    const Bytes both = reinterpret_cast<Bytes>(bytes), low = both & 15, high = both >> 4;
    return __builtin_convertvector(
        __builtin_shufflevector(low, high, 0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15),
        Vector);
}

template <>
struct Grid<Type::IQ2_XXS> {
    static constexpr int kMost = 43;

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
    static constexpr int kMost = 43;

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
    static constexpr int kMost = 43;

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
    static constexpr int kMost = 62;

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
    static constexpr int kMost = 15;

    static uint64_t eight(const uint8_t* block, const uint8_t* grid, int i) {
        const int high = block[66 + i / 4] >> i % 4 * 2;
        return eight_of(grid, block[2 + 2 * i] | (high & 1) << 8,
                        block[3 + 2 * i] | (high & 2) << 7);
    }
    static uint64_t signs(const uint8_t* block, int i) {
        return read<uint64_t>(block + 74 + 8 * i);
    }
    static Vector scales(const uint8_t* block) {
        using Bytes = uint8_t __attribute__((vector_size(4)));
        const Bytes both = read<Bytes>(block + 106), low = both & 15, high = both >> 4;
        const auto eight = __builtin_shufflevector(low, high, 0, 0, 4, 4, 1, 1, 5, 5, 2, 2, 6, 6,
                                                   3, 3, 7, 7);
        return (__builtin_convertvector(eight, Vector) * 2 + 1) * read_half(block);
    }
};

template <Type kType>
inline void decode_by_grid(const uint8_t* block, const uint8_t* grid, float* out) {
    using Bytes = int8_t __attribute__((vector_size(16)));
    using Pair = uint64_t __attribute__((vector_size(16)));
    constexpr uint64_t kEach = 0x0101010101010101, kBits = 0x8040201008040201;
    const Vector scales = Grid<kType>::scales(block);
    for (int i = 0; i < 16; ++i) {
        const Pair stored = {Grid<kType>::eight(block, grid, 2 * i),
                             Grid<kType>::eight(block, grid, 2 * i + 1)};
        const Bytes magnitudes = reinterpret_cast<Bytes>(stored);
        const uint64_t signs = Grid<kType>::signs(block, i / 4) >> i % 4 * 16;
        const Pair bits = {(signs & 255) * kEach & kBits, (signs >> 8 & 255) * kEach & kBits};
        const Bytes negative = reinterpret_cast<Bytes>(bits) != 0;
        store(out + 16 * i, __builtin_convertvector((magnitudes ^ negative) - negative, Vector) *
                                scales[i]);
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

template <>
inline void decode_block<Type::MXFP4>(const uint8_t* block, float* out) {
    const float scale = half_power(block[0]);
    for (int i = 0; i < 16; ++i) {
        out[i] = scale * float(kFP4Values[block[1 + i] & 15]);
        out[16 + i] = scale * float(kFP4Values[block[1 + i] >> 4]);
    }
}

#ifdef EMBER_VNNI

// Codes are weights without their scale, moved up by the largest magnitude.
template <Type kType>
struct GridReader : NarrowGroups {
    static constexpr Form kForm = Form::InOrder;

    static Factors factors(const uint8_t* block) {
        const __m512 scales = reinterpret_cast<__m512>(Grid<kType>::scales(block));
        return {scales, _mm512_mul_ps(scales, _mm512_set1_ps(Grid<kType>::kMost))};
    }

    template <int kVector>
    static __m512i lanes() {
        return group_lanes<4 * kVector, 4 * kVector + 2>();
    }

    template <int kVector>
    static __m512i codes(const uint8_t* block, const uint8_t* grid) {
        const auto eight = [&](int i) {
            return int64_t(Grid<kType>::eight(block, grid, 8 * kVector + i));
        };
        const __m512i magnitudes = _mm512_setr_epi64(eight(0), eight(1), eight(2), eight(3),
                                                     eight(4), eight(5), eight(6), eight(7));
        const __m512i most = _mm512_set1_epi8(Grid<kType>::kMost);
        return _mm512_mask_sub_epi8(_mm512_add_epi8(most, magnitudes),
                                    Grid<kType>::signs(block, kVector), most, magnitudes);
    }
};

template <>
struct Reader<Type::IQ2_XXS> : GridReader<Type::IQ2_XXS> {};
template <>
struct FewRows<Type::IQ2_XXS> : KRows<Type::IQ2_XXS> {};
template <>
struct Reader<Type::IQ2_XS> : GridReader<Type::IQ2_XS> {};
template <>
struct FewRows<Type::IQ2_XS> : KRows<Type::IQ2_XS> {};
template <>
struct Reader<Type::IQ2_S> : GridReader<Type::IQ2_S> {};
template <>
struct FewRows<Type::IQ2_S> : KRows<Type::IQ2_S> {};
template <>
struct Reader<Type::IQ3_XXS> : GridReader<Type::IQ3_XXS> {};
template <>
struct FewRows<Type::IQ3_XXS> : KRows<Type::IQ3_XXS> {};
template <>
struct Reader<Type::IQ3_S> : GridReader<Type::IQ3_S> {};
template <>
struct FewRows<Type::IQ3_S> : KRows<Type::IQ3_S> {};

#endif

}  // namespace ember
