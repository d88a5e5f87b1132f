// Panels of K-quants: codes times the scales of their groups, which fit 16 bits, and so do the sums
// of 32 products with activations in 32. Needs 16-bit vector products.
#pragma once

#include "few_rows_k.h"
#include "lanes.h"

#ifdef EMBER_VNNI

namespace ember {

// How a block of 16 rows, a lane each, is read: its factors are multiples of the block's float
// scale, and there are kMinimums minimums (0, 8 or 16) to be taken off. All arguments must be known
// to the compiler.
template <Type>
struct BlocksOf;

// 32-bit words of bytes.
inline __m512i every(int byte) { return _mm512_set1_epi8(char(byte)); }
inline __m512i bits(__m512i bytes, int shift, int mask) {
    return _mm512_and_si512(_mm512_srli_epi32(bytes, shift), every(mask));
}

template <Type kType>
struct SpanOfBlocks {
    using Rows = Span<BlockOf<kType>::kBytes>;
    const Rows& span;

    [[gnu::always_inline]] explicit SpanOfBlocks(const Rows& rows) : span(rows) {}

    // The four bytes from `at` on.
    [[gnu::always_inline]] __m512i word(int at) const { return span.word(at); }
    // Some bits of one byte, as an integer.
    [[gnu::always_inline]] __m512i field(int at, int shift, int mask) const {
        return _mm512_and_si512(_mm512_srli_epi32(word(at / 4 * 4), 8 * (at % 4) + shift),
                                _mm512_set1_epi32(mask));
    }
};

// Q4_K and Q5_K.
template <Type kType>
struct WideBlocks : SpanOfBlocks<kType> {
    using SpanOfBlocks<kType>::SpanOfBlocks;
    static constexpr int kMinimums = 8, kZero = 0;

    [[gnu::always_inline]] __m512 scale() const { return this->span.half(0); }
    [[gnu::always_inline]] __m512i factor(int g, int) const {  // see wide_scale
        return g < 4 ? this->field(4 + g, 0, 63) : joined(this->field(8 + g, 0, 15), g);
    }
    [[gnu::always_inline]] __m512 minimum(int g) const {
        const __m512i code =
            g < 4 ? this->field(8 + g, 0, 63) : joined(this->field(8 + g, 4, 15), g + 4);
        return _mm512_mul_ps(this->span.half(2), _mm512_cvtepi32_ps(code));
    }
    [[gnu::always_inline]] __m512i nibbles(int from, int g, int i) const {
        return bits(this->word(from + g / 2 * 32 + 4 * i), g % 2 * 4, 15);
    }

  private:
    [[gnu::always_inline]] __m512i joined(__m512i low, int byte) const {
        return _mm512_or_si512(low, _mm512_slli_epi32(this->field(byte, 6, 3), 4));
    }
};

template <>
struct BlocksOf<Type::Q4_K> : WideBlocks<Type::Q4_K> {
    using WideBlocks::WideBlocks;
    [[gnu::always_inline]] __m512i codes(int g, int i) const { return nibbles(16, g, i); }
};

template <>
struct BlocksOf<Type::Q5_K> : WideBlocks<Type::Q5_K> {
    using WideBlocks::WideBlocks;
    [[gnu::always_inline]] __m512i codes(int g, int i) const {
        const __m512i fifth = bits(word(16 + 4 * i), g, 1);
        return _mm512_or_si512(nibbles(48, g, i), _mm512_slli_epi32(fifth, 4));
    }
};

template <>
struct BlocksOf<Type::Q6_K> : SpanOfBlocks<Type::Q6_K> {
    using SpanOfBlocks::SpanOfBlocks;
    static constexpr int kMinimums = 0, kZero = 32;

    [[gnu::always_inline]] __m512 scale() const { return span.half(208); }
    [[gnu::always_inline]] __m512 minimum(int) const { return _mm512_setzero_ps(); }
    [[gnu::always_inline]] __m512i factor(int g, int half) const {
        const int up = 24 - 8 * (g % 2 * 2 + half);
        return _mm512_srai_epi32(_mm512_slli_epi32(word(192 + g / 2 * 4), up), 24);
    }
    [[gnu::always_inline]] __m512i codes(int g, int i) const {
        const int half = g / 4, part = g % 4;
        const __m512i low = word(64 * half + part % 2 * 32 + 4 * i);
        const __m512i high = bits(word(128 + 32 * half + 4 * i), 2 * part, 3);
        return _mm512_or_si512(bits(low, part / 2 * 4, 15), _mm512_slli_epi32(high, 4));
    }
};

template <>
struct BlocksOf<Type::Q2_K> : SpanOfBlocks<Type::Q2_K> {
    using SpanOfBlocks::SpanOfBlocks;
    static constexpr int kMinimums = 16, kZero = 0;

    [[gnu::always_inline]] __m512 scale() const { return span.half(80); }
    [[gnu::always_inline]] __m512 minimum(int i) const {
        return _mm512_mul_ps(span.half(82), _mm512_cvtepi32_ps(field(i, 4, 15)));
    }
    [[gnu::always_inline]] __m512i factor(int g, int half) const {
        return field(2 * g + half, 0, 15);
    }
    [[gnu::always_inline]] __m512i codes(int g, int i) const {
        return bits(word(16 + g / 4 * 32 + 4 * i), g % 4 * 2, 3);
    }
};

template <>
struct BlocksOf<Type::Q3_K> : SpanOfBlocks<Type::Q3_K> {
    using SpanOfBlocks::SpanOfBlocks;
    static constexpr int kMinimums = 0, kZero = 4;

    [[gnu::always_inline]] __m512 scale() const { return span.half(108); }
    [[gnu::always_inline]] __m512 minimum(int) const { return _mm512_setzero_ps(); }
    [[gnu::always_inline]] __m512i factor(int g, int half) const {  // see narrow_scale
        const int i = 2 * g + half;
        const __m512i low = field(96 + i % 8, i / 8 * 4, 15);
        const __m512i high = _mm512_slli_epi32(field(104 + i % 4, i / 4 * 2, 3), 4);
        return _mm512_sub_epi32(_mm512_or_si512(low, high), _mm512_set1_epi32(32));
    }
    [[gnu::always_inline]] __m512i codes(int g, int i) const {
        const __m512i third = bits(word(4 * i), g, 1);
        const __m512i low = bits(word(32 + g / 4 * 32 + 4 * i), g % 4 * 2, 3);
        return _mm512_or_si512(low, _mm512_slli_epi32(third, 2));
    }
};

// Weights as integers, kMostBlock columns at a time, which stay in the nearest cache: pairs of
// columns side by side, of 16 rows in a vector.
template <int kMinimums>
struct CodePanel {
    static constexpr Form kForm = Form::Codes;
    static constexpr int kVectors = kPanel / kLaneRows, kGroups = kMostBlock / kXGroup;
    static constexpr int kTile = 4;  // activation rows that meet in registers

    alignas(64) int16_t codes[kMostBlock / 2][kPanel][2];
    alignas(64) float scales[kPanel];
    alignas(64) float minimums[kMinimums + 1][kPanel];

    // out[m] = kPanel weight rows from `first` on times activation row m; rows that are not there
    // are copies of the last.
    template <Type kType>
    void multiply(const Weight& w, int64_t first, const Activation* x, int64_t rows,
                  float (*out)[kPanel]) {
        std::memset(out, 0, size_t(rows) * sizeof *out);
        const int64_t second = std::min(first + kLaneRows, w.rows - 1);
        const LaneRows halves[] = {{w, first, w.rows - first}, {w, second, w.rows - second}};
        Ahead ahead(w, first, kPanel);
        for (int64_t at = 0; at < w.columns; at += kMostBlock) {
            for (int half = 0; half < kVectors; ++half)
                load<kType>(halves[half], ahead, at, half * kLaneRows);
            int64_t m = 0;
            for (; m + kTile <= rows; m += kTile) add<kTile>(x + m, at, out + m);
            for (; m < rows; ++m) add<1>(x + m, at, out + m);
        }
    }

  private:
    template <Type kType>
    [[gnu::noinline]] void load(const LaneRows& rows, Ahead& ahead, int64_t at, int lane) {
        static_assert(BlockOf<kType>::kColumns == kMostBlock);
        constexpr int64_t kBytes = BlockOf<kType>::kBytes;
        const Span<kBytes> span(rows, at / kMostBlock * kBytes);
        const BlocksOf<kType> blocks(span);
        _mm512_store_ps(scales + lane, blocks.scale());
#pragma GCC unroll 16
        for (int i = 0; i < kMinimums; ++i)
            _mm512_store_ps(minimums[i] + lane, blocks.minimum(i));
#pragma GCC unroll 8
        for (int g = 0; g < kGroups; ++g) {
            ahead.prefetch<kGroupBytes<kType>>();
            const __m512i factors[] = {twice(blocks.factor(g, 0)), twice(blocks.factor(g, 1))};
#pragma GCC unroll 8
            for (int i = 0; i < 8; ++i) {
                const __m512i four = blocks.codes(g, i);
                store<BlocksOf<kType>::kZero>(four, kFirstPair, factors[i / 4],
                                              codes[16 * g + 2 * i][lane]);
                store<BlocksOf<kType>::kZero>(four, kSecondPair, factors[i / 4],
                                              codes[16 * g + 2 * i + 1][lane]);
            }
        }
    }

    // Bytes of a word, of four words, that become pairs of 16 bits.
    static constexpr int32_t kFirstPair[] = {int32_t(0x80018000), int32_t(0x80058004),
                                             int32_t(0x80098008), int32_t(0x800d800c)};
    static constexpr int32_t kSecondPair[] = {int32_t(0x80038002), int32_t(0x80078006),
                                              int32_t(0x800b800a), int32_t(0x800f800e)};

    [[gnu::always_inline]] static __m512i twice(__m512i factors) {
        return _mm512_or_si512(_mm512_slli_epi32(factors, 16),
                               _mm512_and_si512(factors, _mm512_set1_epi32(0xffff)));
    }

    template <int kZero>
    [[gnu::always_inline]] static void store(__m512i four, const int32_t (&pair)[4],
                                             __m512i factors, int16_t* out) {
        const __m512i order = _mm512_set4_epi32(pair[3], pair[2], pair[1], pair[0]);
        __m512i two = _mm512_shuffle_epi8(four, order);
        if constexpr (kZero) two = _mm512_sub_epi16(two, _mm512_set1_epi16(kZero));
        _mm512_store_si512(out, _mm512_mullo_epi16(two, factors));
    }

    // out[m] += the columns at hand of all rows times activation row m.
    template <int M>
    void add(const Activation* x, int64_t at, float (*out)[kPanel]) const {
        __m512 total[M][kVectors];  // but for the weights' scales
        for (auto& row : total)
            for (auto& each : row) each = _mm512_setzero_ps();
        for (int g = 0; g < kGroups; ++g) {
            __m512i sums[M][kVectors];
            for (auto& row : sums)
                for (auto& sum : row) sum = _mm512_setzero_si512();
            // Or each sum is moved to another register and back.
#pragma GCC unroll 4
            for (int i = 16 * g; i < 16 * g + 16; ++i)
                for (int m = 0; m < M; ++m) {
                    int32_t pair;
                    std::memcpy(&pair, x[m].codes + at + 2 * i, sizeof pair);
                    for (int v = 0; v < kVectors; ++v)
                        sums[m][v] = _mm512_dpwssd_epi32(
                            sums[m][v], _mm512_load_si512(codes[i][kLaneRows * v]),
                            _mm512_set1_epi32(pair));
                }
            for (int m = 0; m < M; ++m) {
                const __m512 x_scale = _mm512_set1_ps(x[m].scales[at / kXGroup + g]);
                for (int v = 0; v < kVectors; ++v)
                    total[m][v] =
                        _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[m][v]), x_scale, total[m][v]);
            }
        }
        for (int m = 0; m < M; ++m)
            for (int v = 0; v < kVectors; ++v)
                total[m][v] = _mm512_fmadd_ps(total[m][v], vector(scales, v),
                                              _mm512_loadu_ps(out[m] + 16 * v));
        constexpr int kEach = kMinimums / kGroups;  // minimums of 32 columns
        for (int i = 0; i < kMinimums; ++i)
            for (int m = 0; m < M; ++m) {
                const float* x_sums = kEach == 1 ? x[m].sums : x[m].halves;
                const __m512 sum = _mm512_set1_ps(x_sums[at / kXGroup * kEach + i]);
                for (int v = 0; v < kVectors; ++v)
                    total[m][v] = _mm512_fnmadd_ps(vector(minimums[i], v), sum, total[m][v]);
            }
        for (int m = 0; m < M; ++m)
            for (int v = 0; v < kVectors; ++v) _mm512_storeu_ps(out[m] + 16 * v, total[m][v]);
    }

    static __m512 vector(const float* of, int v) { return _mm512_load_ps(of + 16 * v); }
};

template <Type kType>
    requires requires { BlocksOf<kType>::kMinimums; }
struct PanelOf<kType> {
    using Panel = CodePanel<BlocksOf<kType>::kMinimums>;
};

}  // namespace ember

#endif
