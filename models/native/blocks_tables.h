// Blocks whose codes name runs of weights in a grid: IQ2 and IQ3.
//
// A grid is [runs][4 or 8 magnitudes] bytes, `Weight::grid`. Signs are bits of their own, of which
// some types store seven of every eight: the eighth makes the number of negative weights even.
#pragma once

#include "blocks_k.h"

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

// How a block of 256 names its weights: the magnitudes of every 8; the signs of every 64; the scales
// of every 16.
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

#ifdef EMBER_VNNI

// What the lookups of a block's magnitudes need beside Grid: 32 runs at a time as numbers (a block
// has 32 or 64), of kRuns in all.
template <Type>
struct Runs;

template <>
struct Runs<Type::IQ2_XXS> {
    static constexpr int kRuns = 256;

    static __m512i numbers(const uint8_t* block, int) {
        const __m512i words = _mm512_loadu_si512(block + 2);
        const __m512i even = _mm512_permutexvar_epi32(
            _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 0, 0, 0, 0, 0, 0, 0, 0), words);
        return _mm512_cvtepu8_epi16(_mm512_castsi512_si256(even));
    }
};

template <>
struct Runs<Type::IQ2_XS> {
    static constexpr int kRuns = 512;

    static __m512i numbers(const uint8_t* block, int) {
        return _mm512_and_si512(_mm512_loadu_si512(block + 2), _mm512_set1_epi16(511));
    }
};

template <>
struct Runs<Type::IQ2_S> {
    static constexpr int kRuns = 1024;

    static __m512i numbers(const uint8_t* block, int) {
        // Bytes of high bits, each beside itself 4 times, shifted to their place.
        const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(block + 66));
        const __m512i spread = _mm512_mullo_epi16(
            _mm512_cvtepu8_epi16(_mm256_shuffle_epi8(
                _mm256_broadcastsi128_si256(eight),
                _mm256_setr_epi8(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5,
                                 5, 5, 6, 6, 6, 6, 7, 7, 7, 7))),
            _mm512_set1_epi64(0x0004001000400100));
        return _mm512_or_si512(_mm512_cvtepu8_epi16(load_32(block + 2)),
                               _mm512_and_si512(spread, _mm512_set1_epi16(0x300)));
    }
};

template <>
struct Runs<Type::IQ3_XXS> {
    static constexpr int kRuns = 256;

    static __m512i numbers(const uint8_t* block, int i) {
        return _mm512_cvtepu8_epi16(load_32(block + 2 + 32 * i));
    }
};

template <>
struct Runs<Type::IQ3_S> {
    static constexpr int kRuns = 512;

    static __m512i numbers(const uint8_t* block, int i) {
        const __m512i low = _mm512_cvtepu8_epi16(load_32(block + 2 + 32 * i));
        return _mm512_mask_add_epi16(low, read<uint32_t>(block + 66 + 4 * i), low,
                                     _mm512_set1_epi16(256));
    }
};

// 32 of kRuns words by their numbers.
template <int kRuns>
[[gnu::always_inline]] inline __m512i look_up(const uint8_t* words, __m512i numbers) {
    constexpr int kParts = kRuns / 64;
    __m512i parts[kParts];
    for (int i = 0; i < kParts; ++i)
        parts[i] = _mm512_permutex2var_epi16(_mm512_loadu_si512(words + 128 * i), numbers,
                                             _mm512_loadu_si512(words + 128 * i + 64));
    for (int left = kParts, bit = 64; left > 1; left /= 2, bit *= 2) {
        const __mmask32 odd = _mm512_test_epi16_mask(numbers, _mm512_set1_epi16(int16_t(bit)));
        for (int i = 0; i < left / 2; ++i)
            parts[i] = _mm512_mask_blend_epi16(odd, parts[2 * i], parts[2 * i + 1]);
    }
    return parts[0];
}

// Codes are weights without their scale, moved up by the largest magnitude.
template <Type kType>
struct GridReader : NarrowGroups {
    static constexpr Form kForm = Form::InOrder;
    static constexpr const auto& kLevels = Grid<kType>::kLevels;
    static constexpr int kMost = kLevels[std::size(kLevels) - 1];
    static constexpr int kRun = std::size(kLevels) == 3 ? 8 : 4, kBits = 16 / kRun;

    static Factors factors(const uint8_t* block) {
        const __m512 scales = reinterpret_cast<__m512>(Grid<kType>::scales(block));
        return {scales, _mm512_mul_ps(scales, _mm512_set1_ps(kMost))};
    }

    template <int kVector>
    static __m512i lanes() {
        return group_lanes<4 * kVector, 4 * kVector + 2>();
    }

    template <int kVector>
    static __m512i codes(const uint8_t* block, const uint8_t* grid) {
        // The compiler sees that vectors share what is looked up.
        constexpr int kWords = 64 / kRun, kFirst = kVector * kWords;
        const __m512i numbers = Runs<kType>::numbers(block, kFirst / 32);
        const __m512i words =
            look_up<Runs<kType>::kRuns>(grid + Runs<kType>::kRuns * kRun, numbers);
        const __m512i magnitudes = unpacked<kFirst % 32>(words);
        const __m512i most = _mm512_set1_epi8(kMost);
        return _mm512_mask_sub_epi8(_mm512_add_epi8(most, magnitudes),
                                    Grid<kType>::signs(block, kVector), most, magnitudes);
    }

  private:
    // The magnitudes of the runs of 64 weights, from word kFirst on.
    template <int kFirst>
    static __m512i unpacked(__m512i words) {
        struct Tables {
            uint8_t from[64], shifts[64], levels[64];
        };
        alignas(64) static constexpr Tables kTables = [] {
            Tables tables{};
            for (int i = 0; i < 64; ++i) {
                tables.from[i] = uint8_t(2 * kFirst + (kRun == 8 ? i / 8 * 2 : i / 8 * 4) + i % (16 / kRun));
                tables.shifts[i] = uint8_t(i % 8 / kRun * 16 + i % kRun * kBits);
                tables.levels[i] = kLevels[std::min<int>(i % (1 << kBits), std::size(kLevels) - 1)];
            }
            return tables;
        }();
        const __m512i spread = _mm512_permutexvar_epi8(_mm512_load_si512(kTables.from), words);
        return _mm512_permutexvar_epi8(
            _mm512_multishift_epi64_epi8(_mm512_load_si512(kTables.shifts), spread),
            _mm512_load_si512(kTables.levels));
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
