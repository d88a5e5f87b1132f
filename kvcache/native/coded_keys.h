// Scores of a few query rows with encoded keys, straight from their codes, in the
// codec's basis. Needs 8-bit vector products; without them tiles are decoded first.
#pragma once

#include "decode.h"
#include "few_unencoded.h"

#ifdef EMBER_VNNI

namespace ember {

constexpr int64_t kMostChannels = 256;  // of a group of a coded query

// Keys coded by a table of levels are decoded: products of bytes take codes alone.
inline bool scored_by_codes(const BlockForm& form) {
    return form.family != Family::kUnencoded && !form.levels && form.group <= kMostChannels;
}

// Query rows times the channel scales, for one group of channels, in two int8 parts:
// x = scale * (128 * high + low), 15 bits.
struct CodedQueries {
    static constexpr float kMostCode = 127 * 128 + 63;
    alignas(64) int8_t high[kFewQueries][kMostChannels], low[kFewQueries][kMostChannels];
    float scale[kFewQueries];
    float relative[kFewQueries];  // what codes are relative to: added to every dot product
    float sum[kFewQueries];       // of the query itself, for the zeros of tokens
    float offset[kFewQueries];    // the share of the channels' zeros

    template <int kRows>
    void assign(const BlockForm& form, const uint8_t* record, const float* queries,
                int64_t group) {
        const int64_t from = group * form.group, vectors = form.group / kLanes;
        const uint16_t* scales = form.halves(record, form.channel_scales);
        const uint16_t* zeros = form.halves(record, form.channel_zeros);
        Vector scaled[kRows][kMostChannels / kLanes], top[kRows] = {};
        // Sums are taken at once, 4 to a row: lost, total, of the query, of its zeros.
        Vector sums[kLanes] = {};
        for (int64_t v = 0; v < vectors; ++v) {
            const int64_t c = from + v * kLanes;
            const Vector factor = scales ? load_halves(scales + c) : splat(1);
            const Vector zero = zeros ? load_halves(zeros + c) : Vector{};
            for (int r = 0; r < kRows; ++r) {
                const Vector x = load(queries + r * form.dim + c), y = x * factor;
                scaled[r][v] = y;
                top[r] = larger(magnitude(y), top[r]);
                sums[4 * r + 1] += y;
                sums[4 * r + 2] += x;
                sums[4 * r + 3] += x * zero;
            }
        }
        for (int r = 0; r < kRows; ++r) {
            const float most = max(top[r]), inverse = most > 1e-30f ? kMostCode / most : 0.0f;
            scale[r] = most / kMostCode;
            for (int64_t v = 0; v < vectors; ++v)
                sums[4 * r] += round_row(r, v, scaled[r][v] * inverse);
        }
        alignas(64) float found[kLanes];
        store(found, sums_of(sums));
        // What rounding lost meets, to begin with, the middle of all codes.
        const float middle = float((1 << form.bits) - 1) / 2;
        for (int r = 0; r < kRows; ++r) {
            relative[r] = middle * scale[r] * found[4 * r] - form.centre * found[4 * r + 1];
            sum[r] = found[4 * r + 2];
            offset[r] = found[4 * r + 3];
        }
    }

  private:
    // Returns what is lost.
    Vector round_row(int r, int64_t v, Vector x) {
        const __m512i whole = _mm512_cvtps_epi32(reinterpret_cast<__m512>(x));
        const __m512i upper = _mm512_srai_epi32(_mm512_add_epi32(whole, _mm512_set1_epi32(64)), 7);
        const __m512i lower = _mm512_sub_epi32(whole, _mm512_slli_epi32(upper, 7));
        _mm_store_si128((__m128i*)(high[r] + v * kLanes), _mm512_cvtepi32_epi8(upper));
        _mm_store_si128((__m128i*)(low[r] + v * kLanes), _mm512_cvtepi32_epi8(lower));
        return x - reinterpret_cast<Vector>(_mm512_cvtepi32_ps(whole));
    }
};

class CodedKeys : public TileKeys {
  public:
    // next: the record that will be read after this one.
    CodedKeys(const BlockForm& form, const uint8_t* record, int64_t first, int64_t count,
              const uint8_t* next)
        : form_(form), record_(record), next_(next), first_(first), count_(count) {}

    [[gnu::noinline]] void score(const float* queries, int rows, float* scores) const override {
        with_bits(form_.bits, [&](auto bits) {
            with_constant<kFewQueries>(
                rows, [&](auto count) { score_rows<bits, count>(queries, scores); });
        });
    }

  private:
    template <int kBits, int kRows>
    void score_rows(const float* queries, float* scores) const {
        CodedQueries coded;
        for (int64_t group = 0; group < form_.groups(); ++group) {
            coded.assign<kRows>(form_, record_, queries, group);
            int64_t t = 0;
            for (; t + 2 * kLanes <= count_; t += 2 * kLanes)
                score_tokens<kBits, kRows, 2>(coded, 0, group, t, scores);
            if (t < count_)
                for (int r = 0; r < kRows; ++r)
                    score_tokens<kBits, 1, 1>(coded, r, group, t, scores);
        }
    }

    template <int kRows, int kSets>
    struct Sums {
        __m512i high[kRows][kSets] = {}, low[kRows][kSets] = {};
    };

    // Rows from `row` on with 16 * kSets tokens: each load of a query serves several sums.
    template <int kBits, int kRows, int kSets>
    [[gnu::noinline]] void score_tokens(const CodedQueries& coded, int row, int64_t group,
                                        int64_t t, float* scores) const {
        Sums<kRows, kSets> sums;
        const uint8_t* codes = record_ + keys_at(kBits, form_.dim, first_ + t);
        const int64_t bytes = keys_at(kBits, form_.dim, kSets * kLanes);
        prefetch(next_ + (codes - record_), bytes);
        const int64_t first = group * form_.group / kQuad, quads = form_.group / kQuad;
        for (int64_t i = 0; i < quads; i += kQuad) {
            add_quad<kBits, 0>(coded, row, codes, first + i, i, sums);
            add_quad<kBits, 1>(coded, row, codes, first + i, i, sums);
            add_quad<kBits, 2>(coded, row, codes, first + i, i, sums);
            add_quad<kBits, 3>(coded, row, codes, first + i, i, sums);
        }
        for (int r = 0; r < kRows; ++r)
            for (int s = 0; s < kSets; ++s) {
                const __m512i whole =
                    _mm512_add_epi32(_mm512_slli_epi32(sums.high[r][s], 7), sums.low[r][s]);
                const Vector dot = reinterpret_cast<Vector>(_mm512_cvtepi32_ps(whole));
                float* at = scores + (row + r) * kTile + t + s * kLanes;
                const Vector score = scored(coded, row + r, dot, group, t + s * kLanes);
                store(at, group ? load(at) + score : score);
            }
    }

    template <int kBits, int kIndex, int kRows, int kSets>
    void add_quad(const CodedQueries& coded, int row, const uint8_t* codes, int64_t first,
                  int64_t i, Sums<kRows, kSets>& sums) const {
        const int64_t step = keys_at(kBits, form_.dim, kLanes);
        __m512i quad[kSets];
        for (int s = 0; s < kSets; ++s)
            quad[s] = reinterpret_cast<__m512i>(
                key_quad<kBits, kIndex>(codes + s * step, form_.dim, first));
        for (int r = 0; r < kRows; ++r) {
            const __m512i upper = part(coded.high[row + r], i + kIndex);
            const __m512i lower = part(coded.low[row + r], i + kIndex);
            for (int s = 0; s < kSets; ++s) {
                sums.high[r][s] = _mm512_dpbusd_epi32(sums.high[r][s], quad[s], upper);
                sums.low[r][s] = _mm512_dpbusd_epi32(sums.low[r][s], quad[s], lower);
            }
        }
    }

    static __m512i part(const int8_t* codes, int64_t quad) {
        int32_t four;
        std::memcpy(&four, codes + quad * kQuad, sizeof four);
        return _mm512_set1_epi32(four);
    }

    Vector scored(const CodedQueries& q, int r, Vector dot, int64_t group,
                  int64_t t) const {
        const int64_t groups = form_.groups(), at = (first_ + t) * groups;
        Vector score = dot * q.scale[r] + q.relative[r];
        const uint16_t* scales = form_.halves(record_, form_.token_scales);
        const uint16_t* zeros = form_.halves(record_, form_.token_zeros);
        if (scales) score *= halves_of_tokens(scales + at, groups, group, 1);
        if (zeros) score += q.sum[r] * halves_of_tokens(zeros + at, groups, group, 0);
        return score + q.offset[r];
    }

    const BlockForm& form_;
    const uint8_t *record_, *next_;
    int64_t first_, count_;
};

}  // namespace ember

#endif
