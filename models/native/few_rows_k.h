// Products of a few activation rows with blocks of 256, a row of them after the other: codes meet
// activations 64 at a time, and each group its scale. Needs 8-bit vector products.
#pragma once

#include <array>

#include "blocks_k.h"

#ifdef EMBER_VNNI

namespace ember {

// How the products of a few rows read a block. Its codes come in 4 vectors of 64, in a form's
// order, and may be multiplied by what `x_scales` of their group divides by: they stay where they
// lie in their bytes. Group g of 16 (or, of two of 32, 8) has its factor in lane g.
template <Type>
struct Reader;

struct Factors {
    __m512 scales, minimums;  // times code, less the minimums
};

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
    return _mm512_broadcast_i64x4(read<__m256i>(from));
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
        const __m128i raw = read<__m128i>(block);
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
        return _mm512_maskz_expand_ps(0xff00,
                                      _mm512_zextps256_ps512(_mm256_loadu_ps(x.sums + 8 * b)));
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
        return NarrowGroups::factors(read<__m128i>(block + 192), block + 208, 32);
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
        const __m128i raw = read<__m128i>(block), low = _mm_set1_epi8(15);
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
        const __m128i raw = read<__m128i>(block + 94);
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
    // Rows that stream side by side use more of the memory's bandwidth; registers allow so many.
    static constexpr int at_once(int m) { return m == 1 ? 4 : 2; }
    static constexpr int64_t kBytes = BlockOf<kType>::kBytes;

    template <int M, int R>
    static void dot(const Weight& w, int64_t row, const Activation* x, float* out) {
        const uint8_t* blocks = w.row(row);
        Ahead ahead(w, row, R);
        __m512 total[M * R];
        for (auto& each : total) each = _mm512_setzero_ps();
        for (int64_t b = 0; b < w.columns / 256; ++b, blocks += kBytes) {
            __m512 x_scales[M], x_sums[M];
            for (int m = 0; m < M; ++m) {
                x_scales[m] = Of::x_scales(x[m], b);
                x_sums[m] = Of::x_sums(x[m], b);
            }
            for (int r = 0; r < R; ++r) {
                const uint8_t* block = blocks + r * w.row_bytes;
                ahead.prefetch<kBytes>();
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
            }
        }
        for (int i = 0; i < M * R; ++i) out[i] = _mm512_reduce_add_ps(total[i]);
    }
};

template <Type kType>
    requires requires { Reader<kType>::kForm; }
struct FewRows<kType> : KRows<kType> {};

}  // namespace ember

#endif
