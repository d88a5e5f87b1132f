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
// x = scale * (256 * high + low), 16 bits. A row has, for each 16 channels, 16 bytes of low parts
// and 16 of high ones.
template <int kRows>
struct CodedQueries {
    static constexpr float kMostCode = 127 * 256 + 127;
    alignas(64) int8_t parts[kRows][2 * kMostChannels];
    FourRows scale;
    FourRows relative;  // what codes are relative to: added to every dot product
    bool by_tokens;     // whether tokens have scales or zeros; if not, the offset is in `relative`
    FourRows sum;       // of the query itself, for the zeros of tokens
    FourRows offset;    // the share of the channels' zeros

    CodedQueries(const BlockForm& form, const uint8_t* record, const float* queries,
                 int64_t group) {
        const int64_t from = group * form.group, vectors = form.group / kLanes;
        const uint16_t* scales = form.halves(record, form.channel_scales);
        const uint16_t* zeros = form.halves(record, form.channel_zeros);
        Vector scaled[kRows][kMostChannels / kLanes], top[kRows] = {}, offsets[kRows] = {};
        for (int64_t v = 0; v < vectors; ++v) {
            const int64_t c = from + v * kLanes;
            const Vector factor = scales ? load_halves(scales + c) : splat(1);
            const Vector zero = zeros ? load_halves(zeros + c) : Vector{};
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
                const Vector x = load(queries + r * form.dim + c), y = x * factor;
                scaled[r][v] = y;
                top[r] = larger(magnitude(y), top[r]);
                offsets[r] += x * zero;
            }
        }
        const Vector most = tops_of_rows(top).lanes;
        scale.lanes = most / kMostCode;
        const FourRows inverse{most > 1e-30f ? kMostCode / most : Vector{}};
        // What rounding lost meets, to begin with, the middle of all codes.
        const float middle = float((1 << form.bits) - 1) / 2;
        Vector lost[kRows] = {};
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
            const Vector unit = inverse[r];
            for (int64_t v = 0; v < vectors; ++v)
                lost[r] += round_row(scaled[r][v] * unit, parts[r] + v * 2 * kLanes);
            lost[r] *= scale[r] * middle;
        }
        by_tokens = form.token_scales >= 0 || form.token_zeros >= 0;
        if (!by_tokens) {
            for (int r = 0; r < kRows; ++r) lost[r] += offsets[r];
            relative = sums_of_rows(lost);
            return;
        }
        Vector totals[kRows] = {}, plain[kRows] = {};
        for (int r = 0; r < kRows; ++r)
            for (int64_t v = 0; v < vectors; ++v) {
                totals[r] += scaled[r][v];
                plain[r] += load(queries + r * form.dim + from + v * kLanes);
            }
        for (int r = 0; r < kRows; ++r) lost[r] -= totals[r] * form.centre;
        relative = sums_of_rows(lost);
        sum = sums_of_rows(plain);
        offset = sums_of_rows(offsets);
    }

    // Four channels of a row's low parts, or of its high ones, to meet a quad of 16 tokens.
    __m512i low(int row, int64_t quad) const { return four(parts[row] + quad / 4 * 32, quad); }
    __m512i high(int row, int64_t quad) const {
        return four(parts[row] + quad / 4 * 32 + 16, quad);
    }

  private:
    static __m512i four(const int8_t* sixteen, int64_t quad) {
        int32_t word;
        std::memcpy(&word, sixteen + quad % 4 * kQuad, sizeof word);
        return _mm512_set1_epi32(word);
    }

    // Returns what is lost.
    static Vector round_row(Vector x, int8_t* to) {
        const __m512i whole = _mm512_cvtps_epi32(reinterpret_cast<__m512>(x));
        // The second byte of x + 128 is the high part, the first one 128 more than the low part.
        const __m512i bytes = _mm512_xor_si512(_mm512_add_epi32(whole, _mm512_set1_epi32(128)),
                                               _mm512_set1_epi32(128));
        const __m512i order = _mm512_zextsi256_si512(_mm256_setr_epi8(
            0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60, 1, 5, 9, 13, 17, 21, 25,
            29, 33, 37, 41, 45, 49, 53, 57, 61));
        _mm256_store_si256((__m256i*)to, _mm512_castsi512_si256(
                                             _mm512_permutexvar_epi8(order, bytes)));
        return x - reinterpret_cast<Vector>(_mm512_cvtepi32_ps(whole));
    }
};

class CodedKeys : public TileKeys {
  public:
    // next: the record that will be read after this one.
    CodedKeys(const BlockForm& form, const uint8_t* record, int64_t first, int64_t count,
              const uint8_t* next)
        : form_(form), record_(record), next_(next), first_(first), count_(count) {}

    void score(const float* queries, int rows, float* scores) const override;

  private:
    // Sixteens of tokens that share the loads of a query: as many as registers hold the sums of.
    static constexpr int sets_of(int rows) { return rows < kFewQueries ? 4 : 2; }

    template <int kBits, int kRows>
    void score_rows(const float* queries, float* scores) const {
        for (int64_t group = 0; group < form_.groups(); ++group) {
            const CodedQueries<kRows> coded(form_, record_, queries, group);
            alignas(64) float dots[kRows * kTile];
            float* to = coded.by_tokens ? dots : scores;
            constexpr int kSets = sets_of(kRows);
            int64_t t = 0;
            for (; t + kSets * kLanes <= count_; t += kSets * kLanes)
                multiply_tokens<kBits, kRows, kSets>(coded, group, t, to);
            for (; t < count_; t += kLanes)
                multiply_tokens<kBits, kRows, 1>(coded, group, t, to);
            if (coded.by_tokens) add_tokens(coded, group, dots, scores);
        }
    }

    template <int kRows, int kSets>
    struct Sums {
        __m512i high[kRows][kSets] = {}, low[kRows][kSets] = {};
    };

    template <int kBits, int kRows, int kSets>
    [[gnu::noinline]] void multiply_tokens(const CodedQueries<kRows>& coded, int64_t group,
                                           int64_t t, float* out) const {
        Sums<kRows, kSets> sums;
        const uint8_t* codes = record_ + keys_at(kBits, form_.dim, first_ + t);
        const uint8_t* later = next_ + (codes - record_);
        constexpr int64_t kAhead = kSets * kLanes * kQuad * kQuad * kBits / 8;
        const int64_t first = group * form_.group / kQuad, quads = form_.group / kQuad;
        for (int64_t i = 0; i < quads; i += kQuad) {
            // A few at a time: many at once would hold up the loads of this record.
            prefetch(later + (first + i) / kQuad * kAhead, kAhead);
            add_quad<kBits, 0>(coded, codes, first + i, i, sums);
            add_quad<kBits, 1>(coded, codes, first + i, i, sums);
            add_quad<kBits, 2>(coded, codes, first + i, i, sums);
            add_quad<kBits, 3>(coded, codes, first + i, i, sums);
        }
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
            for (int s = 0; s < kSets; ++s) {
                const __m512i whole =
                    _mm512_add_epi32(_mm512_slli_epi32(sums.high[r][s], 8), sums.low[r][s]);
                const Vector dot = reinterpret_cast<Vector>(_mm512_cvtepi32_ps(whole));
                store(out + r * kTile + t + s * kLanes,
                      dot * coded.scale[r] + coded.relative[r]);
            }
    }

    template <int kBits, int kIndex, int kRows, int kSets>
    [[gnu::always_inline]] void add_quad(const CodedQueries<kRows>& coded, const uint8_t* codes,
                                         int64_t first, int64_t i,
                                         Sums<kRows, kSets>& sums) const {
        const int64_t step = keys_at(kBits, form_.dim, kLanes);
        __m512i quad[kSets];
#pragma GCC unroll 4
        for (int s = 0; s < kSets; ++s)
            quad[s] = reinterpret_cast<__m512i>(
                key_quad<kBits, kIndex>(codes + s * step, form_.dim, first));
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
            const __m512i high = coded.high(r, i + kIndex);
#pragma GCC unroll 4
            for (int s = 0; s < kSets; ++s)
                add_bytes(sums.high[r][s], quad[s], high);
            const __m512i low = coded.low(r, i + kIndex);
#pragma GCC unroll 4
            for (int s = 0; s < kSets; ++s)
                add_bytes(sums.low[r][s], quad[s], low);
        }
    }

    // What tokens' scales and zeros make of the dot products of a group of channels.
    template <int kRows>
    [[gnu::noinline]] void add_tokens(const CodedQueries<kRows>& q, int64_t group,
                                      const float* dots, float* scores) const {
        const int64_t groups = form_.groups();
        const uint16_t* scales = form_.halves(record_, form_.token_scales);
        const uint16_t* zeros = form_.halves(record_, form_.token_zeros);
        for (int64_t t = 0; t < count_; t += kLanes) {
            const int64_t at = (first_ + t) * groups;
            const Vector scale = halves_of_tokens(scales ? scales + at : nullptr, groups, group, 1);
            const Vector zero = halves_of_tokens(zeros ? zeros + at : nullptr, groups, group, 0);
            for (int r = 0; r < kRows; ++r) {
                const Vector score =
                    load(dots + r * kTile + t) * scale + q.sum[r] * zero + q.offset[r];
                float* to = scores + r * kTile + t;
                store(to, group ? load(to) + score : score);
            }
        }
    }

    const BlockForm& form_;
    const uint8_t *record_, *next_;
    int64_t first_, count_;
};

}  // namespace ember

#endif
