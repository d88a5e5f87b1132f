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

// 16 bytes of each of 16 rows: vector i holds their words i of 32 bits.
struct Quad {
    __m512i words[4];

    __m512i operator[](int i) const { return words[i]; }
};

// Weight rows of which all after the last are the last again.
class LaneRows {
  public:
    LaneRows(const Weight& w, int64_t first) {
        for (int64_t r = 0; r < kLaneRows; ++r) rows_[r] = w.row(std::min(first + r, w.rows - 1));
    }

    // The 16 bytes from byte `at` of each row on.
    [[gnu::always_inline]] Quad quad(int64_t at) const {
        const __m512i a = side_by_side(0, at), b = side_by_side(1, at), c = side_by_side(2, at),
                      d = side_by_side(3, at);
        const __m512i ab = _mm512_unpacklo_epi32(a, b), cd = _mm512_unpacklo_epi32(c, d);
        const __m512i ab2 = _mm512_unpackhi_epi32(a, b), cd2 = _mm512_unpackhi_epi32(c, d);
        return {{_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd),
                 _mm512_unpacklo_epi64(ab2, cd2), _mm512_unpackhi_epi64(ab2, cd2)}};
    }

  private:
    const uint8_t* rows_[kLaneRows];

    // 16 bytes of every fourth row from row `r` on.
    [[gnu::always_inline]] __m512i side_by_side(int r, int64_t at) const {
        const auto load = [&](int quarter) {
            return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows_[r + 4 * quarter] + at));
        };
        __m512i all = _mm512_castsi128_si512(load(0));
        all = _mm512_mask_broadcast_i32x4(all, 0x00f0, load(1));
        all = _mm512_mask_broadcast_i32x4(all, 0x0f00, load(2));
        return _mm512_mask_broadcast_i32x4(all, 0xf000, load(3));
    }
};

// 32 columns of 16 rows: the codes of columns 4 * i to 4 * i + 3 in codes[i]; a weight is
// scale * code + bias.
struct Lanes {
    __m512i codes[8];
    __m512 scale, bias;
};

// The low or the high half of each word, a float16.
[[gnu::always_inline]] inline __m512 low_halves(__m512i words) {
    return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(words));
}

[[gnu::always_inline]] inline __m512 high_halves(__m512i words) {
    return low_halves(_mm512_srli_epi32(words, 16));
}

// How a type's blocks become lanes. `load<N>` calls use(group, lanes) for each 32 columns of N
// blocks from byte `at` of the rows on, N being kAtOnce or 1.
template <Type>
struct LanesOf;

// Call use(group, lanes) for all columns.
template <Type kType, typename Use>
[[gnu::always_inline]] inline void each_group(const Weight& w, int64_t first, const Use& use) {
    using Of = LanesOf<kType>;
    using Block = BlockOf<kType>;
    constexpr int64_t kGroups = Block::kColumns / kXGroup;
    const LaneRows rows(w, first);
    // In a file the rows of a product follow each other.
    const uint8_t* ahead = w.row(first) + kRowsAhead * w.row_bytes;
    const int64_t blocks = w.columns / Block::kColumns;
    int64_t b = 0;
    const auto load = [&]<int N>() {
        for (int64_t line = 0; line < kLaneRows * N * Block::kBytes; line += 64)
            prefetch_line(ahead + line);
        ahead += kLaneRows * N * Block::kBytes;
        Of::template load<N>(rows, b * Block::kBytes, [&](int64_t group, const Lanes& lanes) {
            use(b * kGroups + group, lanes);
        });
    };
    if constexpr (Of::kAtOnce > 1)
        for (; b + Of::kAtOnce <= blocks; b += Of::kAtOnce) load.template operator()<Of::kAtOnce>();
    for (; b < blocks; ++b) load.template operator()<1>();
}

// totals[m][h] += the product of activation row m with 32 columns of the rows of lanes[h].
template <int M, int H>
[[gnu::always_inline]] inline void add_products(const Lanes* const (&lanes)[H], const Activation* x,
                                                int64_t group, __m512 (&totals)[M][H]) {
    __m512i high[M][H], low[M][H];
    for (int m = 0; m < M; ++m)
        for (int h = 0; h < H; ++h) high[m][h] = low[m][h] = _mm512_setzero_si512();
    for (int i = 0; i < 8; ++i)
        for (int m = 0; m < M; ++m) {
            const int64_t at = group * kXGroup + 4 * i;
            int32_t upper, lower;
            std::memcpy(&upper, x[m].high + at, 4);
            std::memcpy(&lower, x[m].low + at, 4);
            for (int h = 0; h < H; ++h) {
                const __m512i codes = lanes[h]->codes[i];
                high[m][h] = _mm512_dpbusd_epi32(high[m][h], codes, _mm512_set1_epi32(upper));
                low[m][h] = _mm512_dpbusd_epi32(low[m][h], codes, _mm512_set1_epi32(lower));
            }
        }
    for (int m = 0; m < M; ++m)
        for (int h = 0; h < H; ++h) {
            const __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(high[m][h], 7), low[m][h]);
            const __m512 scale = _mm512_mul_ps(lanes[h]->scale, _mm512_set1_ps(x[m].scales[group]));
            __m512& total = totals[m][h];
            total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, total);
            total = _mm512_fmadd_ps(lanes[h]->bias, _mm512_set1_ps(x[m].sums[group]), total);
        }
}

// Few activation rows: codes go from the file's bytes into registers and no further.
template <Type kType>
struct LaneFewRows {
    static constexpr Form kForm = Form::InOrder;
    static constexpr int kTogether = 4;  // activation rows whose sums the registers hold

    static void multiply(const Weight& w, const Activation* x, int rows, int64_t first,
                         int64_t count, Block& out) {
        for (int64_t n = 0; n < count; n += kLaneRows) {
            const __mmask16 present = __mmask16((1u << std::min<int64_t>(16, count - n)) - 1);
            // 5 to 8 rows are two parts; the second finds the weights in the cache.
            const int part = rows > kTogether ? (rows + 1) / 2 : rows;
            for (int m = 0; m < rows; m += part)
                some_rows(w, x + m, std::min(part, rows - m), first + n, present,
                          out.values + m, n);
        }
    }

  private:
    static void some_rows(const Weight& w, const Activation* x, int rows, int64_t first,
                          __mmask16 present, float (*out)[kBlock], int64_t n) {
        switch (rows) {
            case 1: return multiply_rows<1>(w, x, first, present, out, n);
            case 2: return multiply_rows<2>(w, x, first, present, out, n);
            case 3: return multiply_rows<3>(w, x, first, present, out, n);
            default: return multiply_rows<4>(w, x, first, present, out, n);
        }
    }

    template <int M>
    static void multiply_rows(const Weight& w, const Activation* x, int64_t first,
                              __mmask16 present, float (*out)[kBlock], int64_t n) {
        __m512 totals[M][1];
        for (auto& total : totals) total[0] = _mm512_setzero_ps();
        each_group<kType>(w, first, [&](int64_t group, const Lanes& lanes) {
            const Lanes* const one[] = {&lanes};
            add_products<M>(one, x, group, totals);
        });
        for (int m = 0; m < M; ++m) _mm512_mask_storeu_ps(out[m] + n, present, totals[m][0]);
    }
};

// Many activation rows: the lanes of all columns are written down once, for two times 16 rows.
class LanePanel {
  public:
    static constexpr Form kForm = Form::InOrder;

    template <Type kType>
    void load(const Weight& w, int64_t first) {
        groups_ = w.columns / kXGroup;
        lanes_.resize(size_t(kHalves * groups_));
        for (int half = 0; half < kHalves; ++half)
            each_group<kType>(w, std::min(first + half * kLaneRows, w.rows - 1),
                              [&](int64_t group, const Lanes& lanes) {
                                  lanes_[size_t(half * groups_ + group)] = lanes;
                              });
    }

    // out[m] = all rows of the panel times activation row m.
    template <int M>
    void multiply(const Activation* x, float (*out)[kPanel]) const {
        __m512 totals[M][kHalves];
        for (auto& total : totals) total[0] = total[1] = _mm512_setzero_ps();
        for (int64_t group = 0; group < groups_; ++group) {
            const Lanes* const both[] = {&lanes_[size_t(group)], &lanes_[size_t(groups_ + group)]};
            add_products<M>(both, x, group, totals);
        }
        for (int m = 0; m < M; ++m)
            for (int half = 0; half < kHalves; ++half)
                _mm512_storeu_ps(out[m] + half * kLaneRows, totals[m][half]);
    }

  private:
    static constexpr int kHalves = kPanel / kLaneRows;

    int64_t groups_ = 0;
    std::vector<Lanes> lanes_;
};

}  // namespace ember

#endif
