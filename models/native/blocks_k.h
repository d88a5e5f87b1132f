// K-quants: blocks of 256 weights in groups with small scales of their own.
#pragma once

#include <array>

#include "groups.h"
#include "panels.h"

namespace ember {

// Scales and minimums of 8 groups, 6 bits each, in 12 bytes: of groups 0 to 3 the low six bits of
// bytes 0 to 3 and 4 to 7; of group 4 + i the nibbles of byte 8 + i below the two high bits of bytes
// i and 4 + i.
inline int wide_scale(const uint8_t* from, int i) {
    return i < 4 ? from[i] & 63 : (from[4 + i] & 15) | (from[i - 4] >> 6) << 4;
}

inline int wide_minimum(const uint8_t* from, int i) {
    return i < 4 ? from[4 + i] & 63 : from[4 + i] >> 4 | (from[i] >> 6) << 4;
}

// 16 scales of 6 bits, less 32, in 12 bytes: low nibbles of scales i and 8 + i in byte i, above them
// two bits each in bytes 8 to 11, where byte 8 + i holds those of scales i, 4 + i, 8 + i and 12 + i.
inline int narrow_scale(const uint8_t* from, int i) {
    const int low = from[i % 8] >> i / 8 * 4 & 15;
    return (low | (from[8 + i % 4] >> i / 4 * 2 & 3) << 4) - 32;
}

// kSize weights of a block from number `first` on; code(i) is the code of weight i.
template <int kSize, typename Code>
inline Group<kSize> read_group(float scale, float minimum, int first, const Code& code) {
    Group<kSize> group;
    group.scale = scale;
    group.minimum = minimum;
    for (int j = 0; j < kSize; ++j) group.codes[j] = int8_t(code(first + j));
    return group;
}

// scales[16], 4 bits of scale low and of minimum high; codes[64], 2 bits; half scale, minimum.
// Byte j of the codes' first (second) 32 holds weights j, j + 32, j + 64 and j + 96 of the block's
// first (second) half, from the lowest bits up.
// Groups of 16: scale * group scale * code - minimum * group minimum.
template <>
struct BlockOf<Type::Q2_K> {
    static constexpr int64_t kColumns = 256, kBytes = 84;

    static Group<16> group(const uint8_t* block, int i) {
        return read_group<16>(read_half(block + 80) * float(block[i] & 15),
                              -read_half(block + 82) * float(block[i] >> 4), 16 * i,
                              [&](int at) { return two_bits(block + 16, at); });
    }

    static int two_bits(const uint8_t* codes, int at) {
        return codes[at / 128 * 32 + at % 32] >> at % 128 / 32 * 2 & 3;
    }
};

// third bits[32]; low bits[64] of codes, as Q2_K's; scales[12], see narrow_scale; half scale.
// Bit i of byte j of the third bits belongs to weight j + 32 * i.
// Groups of 16: scale * group scale * (code - 4).
template <>
struct BlockOf<Type::Q3_K> {
    static constexpr int64_t kColumns = 256, kBytes = 110;

    static Group<16> group(const uint8_t* block, int i) {
        const auto code = [&](int at) {
            const int third = block[at % 32] >> at / 32 & 1;
            return BlockOf<Type::Q2_K>::two_bits(block + 32, at) + 4 * third - 4;
        };
        const float scale = read_half(block + 108) * float(narrow_scale(block + 96, i));
        return read_group<16>(scale, 0, 16 * i, code);
    }
};

// half scale, minimum; scales[12], see wide_scale; nibbles[128].
// Byte j of each 32 nibbles holds weight j of 64 low, weight j + 32 high.
// Groups of 32: scale * group scale * code - minimum * group minimum.
template <>
struct BlockOf<Type::Q4_K> {
    static constexpr int64_t kColumns = 256, kBytes = 144;

    static Group<> group(const uint8_t* block, int i) {
        return read_group<32>(read_half(block) * float(wide_scale(block + 4, i)),
                              -read_half(block + 2) * float(wide_minimum(block + 4, i)), 32 * i,
                              [&](int at) { return nibble(block + 16, at); });
    }

    static int nibble(const uint8_t* nibbles, int at) {
        return nibbles[at / 64 * 32 + at % 32] >> at % 64 / 32 * 4 & 15;
    }
};

// half scale, minimum; scales[12]; fifth bits[32]; nibbles[128], as Q4_K's.
// Bit i of byte j of the fifth bits belongs to weight j + 32 * i.
// Groups of 32: scale * group scale * code - minimum * group minimum.
template <>
struct BlockOf<Type::Q5_K> {
    static constexpr int64_t kColumns = 256, kBytes = 176;

    static Group<> group(const uint8_t* block, int i) {
        const auto code = [&](int at) {
            const int fifth = block[16 + at % 32] >> at / 32 & 1;
            return BlockOf<Type::Q4_K>::nibble(block + 48, at) | fifth << 4;
        };
        return read_group<32>(read_half(block) * float(wide_scale(block + 4, i)),
                              -read_half(block + 2) * float(wide_minimum(block + 4, i)), 32 * i,
                              code);
    }
};

// low nibbles[128]; high bits[64], as Q2_K's codes; scales[16], signed; half scale.
// Byte j of each 64 nibbles holds weight j of 128 low, weight j + 64 high.
// Groups of 16: scale * group scale * (code - 32).
template <>
struct BlockOf<Type::Q6_K> {
    static constexpr int64_t kColumns = 256, kBytes = 210;

    static Group<16> group(const uint8_t* block, int i) {
        const auto code = [&](int at) {
            const int low = block[at / 128 * 64 + at % 64] >> at % 128 / 64 * 4 & 15;
            return (low | BlockOf<Type::Q2_K>::two_bits(block + 128, at) << 4) - 32;
        };
        const float scale = read_half(block + 208) * float(int8_t(block[192 + i]));
        return read_group<16>(scale, 0, 16 * i, code);
    }
};

template <>
inline void decode_block<Type::Q2_K>(const uint8_t* block, float* out) {
    decode_groups<Type::Q2_K>(block, out);
}

template <>
inline void decode_block<Type::Q3_K>(const uint8_t* block, float* out) {
    decode_groups<Type::Q3_K>(block, out);
}

template <>
inline void decode_block<Type::Q4_K>(const uint8_t* block, float* out) {
    decode_groups<Type::Q4_K>(block, out);
}

template <>
inline void decode_block<Type::Q5_K>(const uint8_t* block, float* out) {
    decode_groups<Type::Q5_K>(block, out);
}

template <>
inline void decode_block<Type::Q6_K>(const uint8_t* block, float* out) {
    decode_groups<Type::Q6_K>(block, out);
}

#ifdef EMBER_VNNI

// How the products of a few rows read a block. Its codes come in 4 vectors of 64, in a form's
// order, and may be multiplied by what `kUnits` of their group divides by: they stay where they
// lie in their bytes. Group g of 16 (or, of two of 32, 8) has its factor in lane g.
template <Type>
struct Reader;

struct Factors {
    __m512 scales, minimums;  // times code, less the minimums
};

inline __m128i load_sixteen(const uint8_t* from) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
}

inline __m512 broadcast_half(const uint8_t* from) { return _mm512_set1_ps(read_half(from)); }

// Bits of the bytes `twice` (32 bytes, and again), brought to the place of others: of the first 32
// up by kFirst, of the second by kSecond; negative ones down.
template <int kFirst, int kSecond>
inline __m512i moved(__m512i twice) {
    alignas(64) static constexpr auto kFrom = [] {
        std::array<uint8_t, 64> from{};
        for (int i = 0; i < 64; ++i)
            from[i] = uint8_t((8 * (i % 8) - (i < 32 ? kFirst : kSecond)) & 63);
        return from;
    }();
    return _mm512_multishift_epi64_epi8(_mm512_load_si512(kFrom.data()), twice);
}

inline __m512i load_twice(const uint8_t* from) {
    return _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

inline __m512i masked(__m512i bytes, int mask) {
    return _mm512_and_si512(bytes, _mm512_set1_epi8(char(mask)));
}

// Bytes of which bits `mask` are of `more`, the others of `bytes`.
inline __m512i with_bits(__m512i bytes, __m512i more, int mask) {
    return _mm512_ternarylogic_epi32(bytes, more, _mm512_set1_epi8(char(mask)), 0xd8);
}

// Q4_K and Q5_K: 8 groups of 32; lanes hold their 8 scales, then their 8 minimums.
struct WideGroups {
    static constexpr Form kForm = Form::Pairs;

    static Factors factors(const uint8_t* block) {
        const __m128i raw = load_sixteen(block);
        // The words of groups 0 to 3 and 4 to 7, of scales and of minimums: see wide_scale.
        const __m128i low = _mm_shuffle_epi8(
            raw, _mm_setr_epi8(4, 5, 6, 7, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15));
        const __m128i high = _mm_shuffle_epi8(
            raw, _mm_setr_epi8(-1, -1, -1, -1, 4, 5, 6, 7, -1, -1, -1, -1, 8, 9, 10, 11));
        const __m128i six = _mm_and_si128(
            _mm_srlv_epi32(low, _mm_setr_epi32(0, 0, 0, 4)),
            _mm_setr_epi32(0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f));
        const __m128i whole = _mm_ternarylogic_epi32(six, _mm_srli_epi32(high, 2),
                                                     _mm_set1_epi32(0x30303030), 0xf8);
        // The block's scale eight times, and its minimum.
        const __m256i own = _mm256_shuffle_epi8(
            _mm256_broadcastsi128_si256(raw),
            _mm256_setr_epi16(0x100, 0x100, 0x100, 0x100, 0x100, 0x100, 0x100, 0x100, 0x302,
                              0x302, 0x302, 0x302, 0x302, 0x302, 0x302, 0x302));
        const __m512 all = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(whole)),
                                         _mm512_cvtph_ps(own));
        return {all, all};
    }

    static __m512 x_scales(const Activation& x, int64_t b) {
        return _mm512_zextps256_ps512(_mm256_loadu_ps(x.scales + 8 * b));
    }

    static __m512 x_sums(const Activation& x, int64_t b) {
        return _mm512_maskz_expand_ps(0xff00, _mm512_zextps256_ps512(_mm256_loadu_ps(x.sums + 8 * b)));
    }

    template <int kVector>
    static __m512i lanes() {
        constexpr int a = kVector / 2 * 4 + kVector % 2, b = a + 2;
        return _mm512_setr_epi32(a, a, a, a, a, a, a, a, b, b, b, b, b, b, b, b);
    }
};

template <>
struct Reader<Type::Q4_K> : WideGroups {
    // High nibbles stay high: 16 times the codes of odd groups.
    static __m512 x_scales(const Activation& x, int64_t b) {
        constexpr float k = 1.0f / 16;
        return _mm512_mul_ps(WideGroups::x_scales(x, b),
                             _mm512_setr_ps(1, k, 1, k, 1, k, 1, k, 0, 0, 0, 0, 0, 0, 0, 0));
    }

    template <int kVector>
    static __m512i codes(const uint8_t* block, const uint8_t*) {
        const __m512i raw = _mm512_loadu_si512(block + 16 + 64 * (kVector / 2));
        return masked(raw, kVector % 2 ? 0xf0 : 0x0f);
    }
};

template <>
struct Reader<Type::Q5_K> : WideGroups {
    template <int kVector>
    static __m512i codes(const uint8_t* block, const uint8_t*) {
        constexpr int kGroup = kVector / 2 * 4 + kVector % 2;
        const __m512i raw = _mm512_loadu_si512(block + 48 + 64 * (kVector / 2));
        const __m512i fifth = moved<4 - kGroup, 2 - kGroup>(load_twice(block + 16));
        const __m512i low = kVector % 2 ? _mm512_srli_epi16(raw, 4) : raw;
        return masked(with_bits(low, fifth, 0x10), 0x1f);
    }
};

// Q2_K, Q3_K and Q6_K: 16 groups of 16, of which a vector holds four, kFirst, kFirst + 1, kSecond
// and kSecond + 1.
template <int kFirst, int kSecond>
inline __m512i group_lanes() {
    constexpr int a = kFirst, b = a + 1, c = kSecond, d = c + 1;
    return _mm512_setr_epi32(a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d);
}

struct NarrowGroups {
    static __m512 x_scales(const Activation& x, int64_t b) {
        const __m512i twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
        return _mm512_permutexvar_ps(
            twice, _mm512_castps256_ps512(_mm256_loadu_ps(x.scales + 8 * b)));
    }

    static __m512 x_sums(const Activation& x, int64_t b) {
        return _mm512_loadu_ps(x.halves + 16 * b);
    }

    // Scales that are signed bytes, and minimums `zero` times as large.
    static Factors factors(__m128i scales, const uint8_t* own, float zero) {
        const __m512 all =
            _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(scales)), broadcast_half(own));
        return {all, _mm512_mul_ps(all, _mm512_set1_ps(zero))};
    }
};

template <>
struct Reader<Type::Q6_K> : NarrowGroups {
    static constexpr Form kForm = Form::InOrder;

    static Factors factors(const uint8_t* block) {
        return NarrowGroups::factors(load_sixteen(block + 192), block + 208, 32);
    }

    template <int kVector>
    static __m512i lanes() {
        return group_lanes<4 * kVector, 4 * kVector + 2>();
    }

    template <int kVector>
    static __m512i codes(const uint8_t* block, const uint8_t*) {
        constexpr int kHalf = kVector / 2, kHigh = kVector % 2;
        const __m512i raw = _mm512_loadu_si512(block + 64 * kHalf);
        const __m512i high =
            moved<4 - 4 * kHigh, 2 - 4 * kHigh>(load_twice(block + 128 + 32 * kHalf));
        const __m512i low = kHigh ? _mm512_srli_epi16(raw, 4) : raw;
        return masked(with_bits(low, high, 0x30), 0x3f);
    }
};

template <>
struct Reader<Type::Q2_K> : NarrowGroups {
    static constexpr Form kForm = Form::Quarters;

    static Factors factors(const uint8_t* block) {
        const __m128i raw = load_sixteen(block), low = _mm_set1_epi8(15);
        const auto wide = [](__m128i bytes) {
            return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes));
        };
        return {_mm512_mul_ps(wide(_mm_and_si128(raw, low)), broadcast_half(block + 80)),
                _mm512_mul_ps(wide(_mm_and_si128(_mm_srli_epi16(raw, 4), low)),
                              broadcast_half(block + 82))};
    }

    static __m512 x_scales(const Activation& x, int64_t b) {
        constexpr float p = 1.0f / 4, q = 1.0f / 16, r = 1.0f / 64;
        return _mm512_mul_ps(NarrowGroups::x_scales(x, b),
                             _mm512_setr_ps(1, 1, p, p, q, q, r, r, 1, 1, p, p, q, q, r, r));
    }

    template <int kVector>
    static __m512i lanes() {
        return group_lanes<2 * kVector, 8 + 2 * kVector>();
    }

    template <int kVector>
    static __m512i codes(const uint8_t* block, const uint8_t*) {
        return masked(_mm512_loadu_si512(block + 16), 3 << 2 * kVector);
    }
};

template <>
struct Reader<Type::Q3_K> : NarrowGroups {
    static constexpr Form kForm = Form::Quarters;

    static Factors factors(const uint8_t* block) {
        // The block ends with 12 bytes of scales and its own; see narrow_scale.
        const __m128i raw = load_sixteen(block + 94);
        const __m128i low = _mm_shuffle_epi8(
            raw, _mm_setr_epi8(2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5, 6, 7, 8, 9));
        const __m128i high = _mm_shuffle_epi8(
            raw, _mm_setr_epi8(10, 11, 12, 13, 10, 11, 12, 13, 10, 11, 12, 13, 10, 11, 12, 13));
        const __m128i four = _mm_and_si128(_mm_srlv_epi32(low, _mm_setr_epi32(0, 0, 4, 4)),
                                           _mm_set1_epi8(15));
        const __m128i whole = _mm_ternarylogic_epi32(
            four, _mm_rorv_epi32(high, _mm_setr_epi32(28, 30, 0, 2)), _mm_set1_epi8(0x30), 0xf8);
        return NarrowGroups::factors(_mm_sub_epi8(whole, _mm_set1_epi8(32)), block + 108, 4);
    }

    static __m512 x_scales(const Activation& x, int64_t b) {
        constexpr float p = 1.0f / 4, q = 1.0f / 16;
        return _mm512_mul_ps(NarrowGroups::x_scales(x, b),
                             _mm512_setr_ps(1, 1, p, p, q, q, q, q, 1, 1, p, p, q, q, q, q));
    }

    template <int kVector>
    static __m512i lanes() {
        return group_lanes<2 * kVector, 8 + 2 * kVector>();
    }

    // The third bit must fit above the others.
    template <int kVector>
    static __m512i codes(const uint8_t* block, const uint8_t*) {
        constexpr int kAt = std::min(2 * kVector, 4), kThird = kAt + 2;
        const __m512i raw = _mm512_loadu_si512(block + 32);
        const __m512i low = kVector == 3 ? _mm512_srli_epi16(raw, 2) : raw;
        const __m512i third = moved<kThird - kVector, kThird - kVector - 4>(load_twice(block));
        return masked(with_bits(low, third, 4 << kAt), 7 << kAt);
    }
};

// Sums of code * x in float, 4 a lane.
inline __m512 dot_codes(__m512i codes, const Activation& x, int64_t at) {
    const __m512i zero = _mm512_setzero_si512();
    __m512i sum = _mm512_dpbusd_epi32(zero, codes, _mm512_loadu_si512(x.high + at));
    sum = _mm512_slli_epi32(sum, 7);
    return _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(sum, codes, _mm512_loadu_si512(x.low + at)));
}

template <Type kType>
struct KRows : RowByRow<KRows<kType>> {
    using Of = Reader<kType>;
    static constexpr Form kForm = Of::kForm;
    static constexpr int at_once(int rows) { return rows <= 2 ? 4 : 2; }
    static constexpr int64_t kBytes = BlockOf<kType>::kBytes;

    template <int M, int R>
    static void dot(const Weight& w, int64_t row, const Activation* x, float* out) {
        const uint8_t* blocks = w.row(row);
        const int64_t bytes = w.row_bytes, ahead = kRowsAhead * bytes;
        __m512 total[M * R];
        for (auto& each : total) each = _mm512_setzero_ps();
        for (int64_t b = 0; b < w.columns / 256; ++b, blocks += kBytes) {
            __m512 x_scales[M], x_sums[M];
            for (int m = 0; m < M; ++m) {
                x_scales[m] = Of::x_scales(x[m], b);
                x_sums[m] = Of::x_sums(x[m], b);
            }
            const auto add_row = [&](int r) __attribute__((always_inline)) {
                const uint8_t* block = blocks + r * bytes;
                for (int64_t line = 0; line < kBytes; line += 64)
                    prefetch_line(block + ahead + line);
                const Factors factors = Of::factors(block);
                __m512 products[M];
                for (int m = 0; m < M; ++m) {
                    products[m] = _mm512_mul_ps(factors.scales, x_scales[m]);
                    total[m * R + r] =
                        _mm512_fnmadd_ps(factors.minimums, x_sums[m], total[m * R + r]);
                }
                const auto add = [&]<int kVector>() {
                    const __m512i codes = Of::template codes<kVector>(block, w.grid);
                    for (int m = 0; m < M; ++m) {
                        const __m512 sums = dot_codes(codes, x[m], 256 * b + 64 * kVector);
                        const __m512 factor =
                            _mm512_permutexvar_ps(Of::template lanes<kVector>(), products[m]);
                        total[m * R + r] = _mm512_fmadd_ps(sums, factor, total[m * R + r]);
                    }
                };
                add.template operator()<0>();
                add.template operator()<1>();
                add.template operator()<2>();
                add.template operator()<3>();
            };
            if constexpr (M == 1) {
                // Reads of several rows wait for memory together.
#pragma GCC unroll 4
                for (int r = 0; r < R; ++r) add_row(r);
            } else {
                for (int r = 0; r < R; ++r) add_row(r);
            }
        }
        for (int i = 0; i < M * R; ++i) out[i] = _mm512_reduce_add_ps(total[i]);
    }
};

template <>
struct FewRows<Type::Q2_K> : KRows<Type::Q2_K> {};
template <>
struct FewRows<Type::Q3_K> : KRows<Type::Q3_K> {};
template <>
struct FewRows<Type::Q4_K> : KRows<Type::Q4_K> {};
template <>
struct FewRows<Type::Q5_K> : KRows<Type::Q5_K> {};
template <>
struct FewRows<Type::Q6_K> : KRows<Type::Q6_K> {};

// Rows of panels: codes times the scales of their groups, which fit 16 bits, and so do the sums of
// 32 products with activations in 32.

inline __m256i load_32(const uint8_t* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}

// Bits of bytes, shifted down.
inline __m256i bits(__m256i bytes, int shift, int mask) {
    return _mm256_and_si256(_mm256_srli_epi16(bytes, shift), _mm256_set1_epi8(char(mask)));
}

// 32 codes times the scales of the two 16.
inline __m512i scaled(__m512i codes, int first, int second) {
    return _mm512_mullo_epi16(codes, _mm512_inserti64x4(_mm512_set1_epi16(int16_t(first)),
                                                        _mm256_set1_epi16(int16_t(second)), 1));
}

struct WideRow {
    const uint8_t* block;

    explicit WideRow(const uint8_t* from) : block(from) {}

    float scale(int) const { return read_half(block); }
    float minimum(int i) const {
        return read_half(block + 2) * float(wide_minimum(block + 4, i));
    }

    __m256i nibbles(const uint8_t* from, int g) const {
        return bits(load_32(from + 32 * (g / 2)), 4 * (g % 2), 15);
    }
    __m512i times_scale(__m256i codes, int g) const {
        return _mm512_mullo_epi16(_mm512_cvtepu8_epi16(codes),
                                  _mm512_set1_epi16(int16_t(wide_scale(block + 4, g))));
    }
};

template <>
struct PanelRow<Type::Q4_K> : WideRow {
    using WideRow::WideRow;
    __m512i codes(int g) const { return times_scale(nibbles(block + 16, g), g); }
};

template <>
struct PanelRow<Type::Q5_K> : WideRow {
    using WideRow::WideRow;
    __m512i codes(int g) const {
        const __m256i fifth = _mm256_slli_epi16(bits(load_32(block + 16), g, 1), 4);
        return times_scale(_mm256_or_si256(nibbles(block + 48, g), fifth), g);
    }
};

template <>
struct PanelRow<Type::Q6_K> {
    const uint8_t* block;

    explicit PanelRow(const uint8_t* from) : block(from) {}

    float scale(int) const { return read_half(block + 208); }
    float minimum(int) const { return 0; }

    __m512i codes(int g) const {
        const int half = g / 4, part = g % 4;
        const __m256i low = load_32(block + 64 * half + 32 * (part % 2));
        const __m256i high = bits(load_32(block + 128 + 32 * half), 2 * part, 3);
        const __m256i whole =
            _mm256_or_si256(bits(low, 4 * (part / 2), 15), _mm256_slli_epi16(high, 4));
        const int8_t* scales = reinterpret_cast<const int8_t*>(block + 192) + 2 * g;
        return scaled(_mm512_sub_epi16(_mm512_cvtepu8_epi16(whole), _mm512_set1_epi16(32)),
                      scales[0], scales[1]);
    }
};

template <>
struct PanelRow<Type::Q2_K> {
    const uint8_t* block;

    explicit PanelRow(const uint8_t* from) : block(from) {}

    float scale(int) const { return read_half(block + 80); }
    float minimum(int i) const { return read_half(block + 82) * float(block[i] >> 4); }

    __m512i codes(int g) const {
        const __m256i low = bits(load_32(block + 16 + 32 * (g / 4)), 2 * (g % 4), 3);
        return scaled(_mm512_cvtepu8_epi16(low), block[2 * g] & 15, block[2 * g + 1] & 15);
    }
};

template <>
struct PanelRow<Type::Q3_K> {
    const uint8_t* block;

    explicit PanelRow(const uint8_t* from) : block(from) {}

    float scale(int) const { return read_half(block + 108); }
    float minimum(int) const { return 0; }

    __m512i codes(int g) const {
        const __m256i low = bits(load_32(block + 32 + 32 * (g / 4)), 2 * (g % 4), 3);
        const __m256i third = _mm256_slli_epi16(bits(load_32(block), g, 1), 2);
        const __m512i whole = _mm512_cvtepu8_epi16(_mm256_or_si256(low, third));
        return scaled(_mm512_sub_epi16(whole, _mm512_set1_epi16(4)), narrow_scale(block + 96, 2 * g),
                      narrow_scale(block + 96, 2 * g + 1));
    }
};

template <>
struct PanelOf<Type::Q2_K> {
    using Panel = CodePanel<1, 16>;
};
template <>
struct PanelOf<Type::Q3_K> {
    using Panel = CodePanel<1, 0>;
};
template <>
struct PanelOf<Type::Q4_K> {
    using Panel = CodePanel<1, 8>;
};
template <>
struct PanelOf<Type::Q5_K> {
    using Panel = CodePanel<1, 8>;
};
template <>
struct PanelOf<Type::Q6_K> {
    using Panel = CodePanel<1, 0>;
};

#endif

}  // namespace ember
