// Products of weights with a scale (and a bias) for 32 columns: 16 weight rows side by side, one to
// a lane, so that 4 columns of all of them meet 4 columns of an activation row in one instruction.
// The same 32 columns of many rows lie far apart in a file, but each row's in one piece; they are
// gathered 16 bytes a row and turned. Needs 8-bit vector products.
#pragma once

#include "few_rows.h"
#include "panels.h"

#ifdef EMBER_VNNI

namespace ember {

constexpr int kLaneRows = 16;

// `rows` weight rows, or more of which a vector holds the first; if they are fewer, the last one
// again and again.
class LaneRows {
  public:
    LaneRows(const Weight& w, int64_t first, int64_t rows) {
        for (int64_t r = 0; r < kLaneRows; ++r) rows_[r] = w.row(first + std::min(r, rows - 1));
    }

    // The 16 bytes from byte `at` of each row on, as their 4 words of 32 bits, one a vector.
    [[gnu::always_inline]] void load_sixteen(int64_t at, __m512i* words) const {
        const auto four = [&](int r) {
            const __m256i a = two(r, at), b = two(r + 8, at);
            return _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
        };
        turn(four(0), four(1), four(2), four(3), words);
    }

    // The same of 32 bytes.
    [[gnu::always_inline]] void load_thirty_two(int64_t at, __m512i* words) const {
        const auto pair = [&](int r) {
            return _mm512_inserti64x4(_mm512_castsi256_si512(read<__m256i>(rows_[r] + at)),
                                      read<__m256i>(rows_[r + 4] + at), 1);
        };
        __m512i first[4], second[4];  // of 8 rows each, words i and, in odd quarters, i + 4
        turn(pair(0), pair(1), pair(2), pair(3), first);
        turn(pair(8), pair(9), pair(10), pair(11), second);
        for (int i = 0; i < 4; ++i) {
            words[i] = _mm512_shuffle_i64x2(first[i], second[i], 0x88);
            words[i + 4] = _mm512_shuffle_i64x2(first[i], second[i], 0xdd);
        }
    }

  private:
    const uint8_t* rows_[kLaneRows];

    // 16 bytes of rows r and r + 4.
    [[gnu::always_inline]] __m256i two(int r, int64_t at) const {
        return _mm256_inserti128_si256(_mm256_castsi128_si256(read<__m128i>(rows_[r] + at)),
                                       read<__m128i>(rows_[r + 4] + at), 1);
    }

    // Of each quarter, the words i side by side.
    [[gnu::always_inline]] static void turn(__m512i a, __m512i b, __m512i c, __m512i d,
                                            __m512i* words) {
        const __m512i ab = _mm512_unpacklo_epi32(a, b), cd = _mm512_unpacklo_epi32(c, d);
        const __m512i more_ab = _mm512_unpackhi_epi32(a, b), more_cd = _mm512_unpackhi_epi32(c, d);
        words[0] = _mm512_unpacklo_epi64(ab, cd);
        words[1] = _mm512_unpackhi_epi64(ab, cd);
        words[2] = _mm512_unpacklo_epi64(more_ab, more_cd);
        words[3] = _mm512_unpackhi_epi64(more_ab, more_cd);
    }
};

// kBytes of 16 rows, and not a byte more, as words of 32 bits. All places must be known to the
// compiler.
template <int kBytes>
class Span {
  public:
    [[gnu::always_inline]] Span(const LaneRows& rows, int64_t at) {
        if constexpr (kBytes < 32) rows.load_sixteen(at, first_);
        for (int i = 0; i < kBytes / 32; ++i) rows.load_thirty_two(at + 32 * i, first_ + 8 * i);
        if constexpr (kLast == 16) rows.load_sixteen(at + kBytes - 16, last_);
        if constexpr (kLast == 32) rows.load_thirty_two(at + kBytes - 32, last_);
    }

    // The word from a byte on.
    [[gnu::always_inline]] __m512i word(int at) const {
        if (aligned(at)) return aligned_word(at);
        if (aligned(at - 1))
            return _mm512_shrdi_epi32(aligned_word(at - 1), aligned_word(at + 3), 8);
        if (aligned(at - 2))
            return _mm512_shrdi_epi32(aligned_word(at - 2), aligned_word(at + 2), 16);
        return _mm512_shrdi_epi32(aligned_word(at - 3), aligned_word(at + 1), 24);
    }

    // The float16 there.
    [[gnu::always_inline]] __m512 half(int at) const {
        const bool low = aligned(at);
        const __m512i word = aligned_word(low ? at : at - 2);
        return _mm512_cvtph_ps(
            _mm512_cvtepi32_epi16(low ? word : _mm512_srli_epi32(word, 16)));
    }

  private:
    static constexpr int kFirst = kBytes < 32 ? 16 : kBytes / 32 * 32;
    static constexpr int kLeft = kBytes - kFirst;
    // Bytes at the end that are read again, or for the first time.
    static constexpr int kLast = kLeft == 0 ? 0 : kLeft <= 16 ? 16 : 32;
    static constexpr int kLastAt = kBytes - kLast;

    __m512i first_[kFirst / 4], last_[std::max(kLast / 4, 1)];

    static constexpr bool in_first(int at) { return at % 4 == 0 && at + 4 <= kFirst; }

    static constexpr bool aligned(int at) {
        return in_first(at) || (at >= kLastAt && (at - kLastAt) % 4 == 0);
    }

    [[gnu::always_inline]] __m512i aligned_word(int at) const {
        return in_first(at) ? first_[at / 4] : last_[(at - kLastAt) / 4];
    }
};

// 32 columns of 16 rows: the codes of columns 4 * i to 4 * i + 3 in codes[i]; a weight is
// scale * code + bias.
struct Lanes {
    __m512i codes[8];
    __m512 scale, bias;
};

// How a type's blocks become lanes: `lanes(span, i)` makes those of the 32 columns from 32 * i on,
// of a span of kAtOnce blocks or of one.
template <Type>
struct LanesOf;

// Call use(group, lanes) for each 32 of `columns` of the weight from column `at` on.
template <Type kType, typename Use>
[[gnu::always_inline]] inline void each_group(const LaneRows& rows, int64_t at, int64_t columns,
                                              const Use& use) {
    using Of = LanesOf<kType>;
    using Block = BlockOf<kType>;
    int64_t byte = at / Block::kColumns * Block::kBytes, group = 0;
    int64_t left = columns / Block::kColumns;
    const auto load = [&]<int N>() __attribute__((always_inline)) {
        constexpr int kBytes = N * Block::kBytes, kGroups = N * Block::kColumns / kXGroup;
        const Span<kBytes> span(rows, byte);
#pragma GCC unroll 8
        for (int i = 0; i < kGroups; ++i) use(group + i, Of::lanes(span, i));
        byte += kBytes;
        group += kGroups;
        left -= N;
    };
    if constexpr (Of::kAtOnce > 1)
        while (left >= Of::kAtOnce) load.template operator()<Of::kAtOnce>();
    while (left) load.template operator()<1>();
}

// Bytes of 32 columns of kLaneRows rows.
template <Type kType>
constexpr int64_t kGroupBytes =
    kLaneRows * BlockOf<kType>::kBytes * kXGroup / BlockOf<kType>::kColumns;

// totals[m][h] += the product of activation row m with 32 columns of the rows of lanes[h].
template <int M, int H>
[[gnu::always_inline]] inline void add_products(const Lanes* const (&lanes)[H], const Activation* x,
                                                int64_t group, __m512 (&totals)[M][H]) {
    __m512i high[M][H], low[M][H];
    for (int m = 0; m < M; ++m)
        for (int h = 0; h < H; ++h) high[m][h] = low[m][h] = _mm512_setzero_si512();
    const auto add = [&](int i, int m, const int8_t* part, __m512i (&sums)[M][H])
                         __attribute__((always_inline)) {
        int32_t four;
        std::memcpy(&four, part + group * kXGroup + 4 * i, 4);
        for (int h = 0; h < H; ++h)
            sums[m][h] =
                _mm512_dpbusd_epi32(sums[m][h], lanes[h]->codes[i], _mm512_set1_epi32(four));
    };
    // Of more rows the registers do not hold both sums beside the totals: one follows the other.
    constexpr bool kBoth = M * H <= 6;
    for (int i = 0; i < 8; ++i)
        for (int m = 0; m < M; ++m) {
            add(i, m, x[m].high, high);
            if constexpr (kBoth) add(i, m, x[m].low, low);
        }
    for (int m = 0; m < M; ++m)
        for (int h = 0; h < H; ++h)
            low[m][h] = _mm512_add_epi32(low[m][h], _mm512_slli_epi32(high[m][h], 7));
    if constexpr (!kBoth)
        for (int i = 0; i < 8; ++i)
            for (int m = 0; m < M; ++m) add(i, m, x[m].low, low);
    for (int m = 0; m < M; ++m)
        for (int h = 0; h < H; ++h) {
            const __m512 scale = _mm512_mul_ps(lanes[h]->scale, _mm512_set1_ps(x[m].scales[group]));
            __m512& total = totals[m][h];
            total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(low[m][h]), scale, total);
            total = _mm512_fmadd_ps(lanes[h]->bias, _mm512_set1_ps(x[m].sums[group]), total);
        }
}

// The lanes of some columns are written down, for two times 16 rows, and meet all activation rows
// in the nearest cache.
class LanePanel {
  public:
    static constexpr Form kForm = Form::InOrder;

    // out[m] = kPanel weight rows from `first` on times activation row m; rows that are not there
    // are copies of the last.
    template <Type kType>
    void multiply(const Weight& w, int64_t first, const Activation* x, int64_t rows,
                  float (*out)[kPanel]) {
        std::memset(out, 0, size_t(rows) * sizeof out[0]);
        const int64_t second = std::min(first + kLaneRows, w.rows - 1);
        const LaneRows halves[] = {{w, first, w.rows - first}, {w, second, w.rows - second}};
        Ahead ahead(w, first, kPanel);
        const int64_t tiles = (rows + kTile - 1) / kTile;
        for (int64_t at = 0; at < w.columns; at += kMostBlock) {
            const int64_t columns = std::min(kMostBlock, w.columns - at);
            const int64_t bytes = columns / kXGroup * kHalves * kGroupBytes<kType>;
            for (int half = 0; half < kHalves; ++half)
                load<kType>(halves[half], at, columns, lanes_[half]);
            for (int64_t m = 0; m < rows; m += kTile) {
                // Little by little: what is asked for at once is waited for.
                ahead.prefetch((bytes + tiles - 1) / tiles);
                with_constant<kTile>(rows - m, [&](auto count) {
                    add<count>(x + m, at, columns, out + m);
                });
            }
        }
    }

  private:
    static constexpr int kHalves = kPanel / kLaneRows;
    static constexpr int kTile = 3;  // activation rows that meet in registers; four are slower

    Lanes lanes_[kHalves][kMostBlock / kXGroup];

    template <Type kType>
    [[gnu::noinline]] static void load(const LaneRows& rows, int64_t at, int64_t columns,
                                       Lanes* out) {
        each_group<kType>(rows, at, columns,
                          [&](int64_t group, const Lanes& lanes) { out[group] = lanes; });
    }

    template <int M>
    [[gnu::noinline]] void add(const Activation* x, int64_t at, int64_t columns,
                               float (*out)[kPanel]) const {
        __m512 totals[M][kHalves];
        for (int m = 0; m < M; ++m)
            for (int half = 0; half < kHalves; ++half)
                totals[m][half] = _mm512_loadu_ps(out[m] + half * kLaneRows);
        for (int64_t g = 0; g < columns / kXGroup; ++g) {
            const Lanes* const both[] = {&lanes_[0][g], &lanes_[1][g]};
            add_products<M>(both, x, at / kXGroup + g, totals);
        }
        for (int m = 0; m < M; ++m)
            for (int half = 0; half < kHalves; ++half)
                _mm512_storeu_ps(out[m] + half * kLaneRows, totals[m][half]);
    }
};

// Codes of a few activation rows go from the file's bytes into registers and no further.
template <Type kType>
struct LaneFewRows {
    static constexpr Form kForm = Form::InOrder;

    // Rows meet by twos, of an odd number the last one twice: a function for each number takes
    // longer to compile than it saves.
    static void multiply(const Weight& w, const Activation* x, int rows, int64_t first,
                         int64_t count, Strip& out) {
        if (rows == 1) return multiply_strip<1>(w, x, first, count, out);
        Activation even[kFewRows];
        std::fill(std::copy_n(x, rows, even), std::end(even), x[rows - 1]);
        with_constant<kFewRows / 2>((rows + 1) / 2, [&](auto pairs) {
            multiply_strip<2 * pairs>(w, even, first, count, out);
        });
    }

  private:
    template <int M>
    static void multiply_strip(const Weight& w, const Activation* x, int64_t first, int64_t count,
                               Strip& out) {
        for (int64_t n = 0; n < count; n += kLaneRows)
            multiply_rows<M>(w, x, first + n, count - n, out.values, n);
    }

    template <int M>
    [[gnu::noinline]] static void multiply_rows(const Weight& w, const Activation* x, int64_t first,
                                                int64_t count, float (*out)[kStrip], int64_t n) {
        __m512 totals[M][1];
        for (auto& total : totals) total[0] = _mm512_setzero_ps();
        Ahead ahead(w, first, kLaneRows);
        const auto add = [&](int64_t group, const Lanes& lanes) __attribute__((always_inline)) {
            ahead.prefetch<kGroupBytes<kType>>();
            const Lanes* const one[] = {&lanes};
            add_products<M>(one, x, group, totals);
        };
        each_group<kType>(LaneRows(w, first, count), 0, w.columns, add);
        for (int m = 0; m < M; ++m) _mm512_storeu_ps(out[m] + n, totals[m][0]);
    }
};

}  // namespace ember

#endif
