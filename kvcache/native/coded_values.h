// Weighted sums of encoded values for a few query rows, straight from their codes,
// in the codec's basis. Codes become levels of 16 bits by look-up, softmax weights integers of as
// many, and a product of pairs sums two tokens at a time.
#pragma once

#include "coded_keys.h"

namespace ember {

// Levels as integers, for codes of up to 5 bits.
struct LevelTable {
    static constexpr int kSize = 32;
    static constexpr float kLargest = 8191;  // leaves 18 bits to the sum of weights
    alignas(64) int16_t whole[kSize];
    float unit, most;

    explicit LevelTable(const BlockForm& form) {
        const float codes = float((1 << form.bits) - 1);
        most = form.levels ? kLargest : codes;
        unit = form.levels ? form.table[form.levels - 1] / kLargest : 1.0f;
        for (int i = 0; i < kSize; ++i)
            whole[i] = int16_t(form.levels ? std::lrint(form.table[i % kMostLevels] / unit)
                                           : i % (1 << form.bits));
    }
};

#ifdef EMBER_VNNI

// The levels of codes in the low bits of 16-bit lanes; what lies above them does not matter.
template <int kBits>
inline __m512i levels_of(__m512i codes, __m512i table) {
    if constexpr (kBits <= 5) return _mm512_permutexvar_epi16(codes, table);
    return _mm512_and_si512(codes, _mm512_set1_epi16((1 << kBits) - 1));
}

class CodedValues : public TileValues {
  public:
    // next: the record that will be read after this one.
    CodedValues(const BlockForm& form, const LevelTable& levels, const uint8_t* record,
                int64_t first, int64_t count, const uint8_t* next)
        : form_(form), levels_(levels), record_(record), next_(next), first_(first),
          count_(count) {}

    [[gnu::noinline]] void gather(const float* weights, int rows, const float* corrections,
                                  float* out) const override {
        with_bits(form_.bits, [&](auto bits) {
            with_constant<kFewQueries>(rows, [&](auto count) {
                gather_rows<bits, count>(weights, corrections, out);
            });
        });
    }

  private:
    // Weights of one group of channels, times the scales of tokens.
    template <int kRows>
    struct Weights {
        alignas(64) int16_t whole[kRows][kTile];
        float unit[kRows];
        float relative[kRows];  // what codes are relative to: added to every sum
        float plain[kRows];     // sum of the weights
        float zeros[kRows];     // sum of weight * zero of the token
    };

    template <int kRows>
    void weigh(const float* weights, int64_t group, Weights<kRows>& out) const {
        const int64_t groups = form_.groups(), at = first_ * groups;
        const uint16_t* scales = form_.halves(record_, form_.token_scales);
        const uint16_t* zeros = form_.halves(record_, form_.token_zeros);
        Vector scaled[kRows][kTile / kLanes], top[kRows] = {}, totals[kRows] = {};
        // Sums are taken at once, 4 to a row: lost, plain, of zeros.
        Vector sums[kLanes] = {};
        for (int64_t t = 0; t < count_; t += kLanes) {
            const Vector scale =
                halves_of_tokens(scales ? scales + at + t * groups : nullptr, groups, group, 1);
            const Vector zero =
                halves_of_tokens(zeros ? zeros + at + t * groups : nullptr, groups, group, 0);
            for (int r = 0; r < kRows; ++r) {
                const Vector x = load(weights + r * kTile + t), y = x * scale;
                scaled[r][t / kLanes] = y;
                top[r] = larger(magnitude(y), top[r]);
                totals[r] += y;
                sums[4 * r + 1] += x;
                sums[4 * r + 2] += x * zero;
            }
        }
        float total[kRows];
        for (int r = 0; r < kRows; ++r) {
            const float most = max(top[r]);
            total[r] = sum(totals[r]);
            // 16 bits to each, and the sum of all products with levels stays below 2^31.
            const float inverse = most > 1e-30f ? whole_scale(most, total[r]) : 0.0f;
            out.unit[r] = inverse > 0 ? 1 / inverse : 0.0f;
            for (int64_t t = 0; t < count_; t += kLanes)
                sums[4 * r] += round_row(scaled[r][t / kLanes] * inverse, out.whole[r] + t);
        }
        alignas(64) float found[kLanes] = {};
        if (!form_.levels) store(found, sums_of(sums));
        // What rounding lost meets, to begin with, the middle of all codes.
        const float middle = levels_.most / 2;
        for (int r = 0; r < kRows; ++r) {
            out.relative[r] = middle * out.unit[r] * found[4 * r] - form_.centre * total[r];
            out.plain[r] = found[4 * r + 1];
            out.zeros[r] = found[4 * r + 2];
        }
    }

    float whole_scale(float most, float total) const {
        const float each = 32767.0f / most;
        // Only levels of a table are so large; their scales are lengths, never negative.
        return form_.levels ? std::min(each, 2.1e9f / levels_.most / total) : each;
    }

    // Returns what is lost.
    static Vector round_row(Vector x, int16_t* to) {
        const __m512i whole = _mm512_cvtps_epi32(reinterpret_cast<__m512>(x));
        _mm256_store_si256((__m256i*)to, _mm512_cvtepi32_epi16(whole));
        return x - reinterpret_cast<Vector>(_mm512_cvtepi32_ps(whole));
    }

    template <int kBits, int kRows>
    void gather_rows(const float* weights, const float* corrections, float* out) const {
        const uint16_t* scales = form_.halves(record_, form_.channel_scales);
        const uint16_t* zeros = form_.halves(record_, form_.channel_zeros);
        Weights<kRows> weighed;
        for (int64_t group = 0; group < form_.groups(); ++group) {
            weigh<kRows>(weights, group, weighed);
            for (int64_t c = group * form_.group; c < (group + 1) * form_.group; c += kLanes) {
                __m512i sums[kRows];
                sum_codes<kBits, kRows>(weighed, c, sums);
                for (int r = 0; r < kRows; ++r) {
                    float* at = out + r * form_.dim + c;
                    const Vector whole = reinterpret_cast<Vector>(_mm512_cvtepi32_ps(sums[r]));
                    Vector sum = whole * (weighed.unit[r] * levels_.unit) + weighed.relative[r];
                    if (scales) sum *= load_halves(scales + c);
                    if (zeros) sum += load_halves(zeros + c) * weighed.plain[r];
                    store(at, load(at) * corrections[r] + (sum + weighed.zeros[r]));
                }
            }
        }
    }

    // sums[r] = sum over tokens of weight * level, of 16 channels.
    template <int kBits, int kRows>
    void sum_codes(const Weights<kRows>& weights, int64_t channel, __m512i* sums) const {
        const __m512i table = _mm512_load_si512(levels_.whole);
        constexpr Run kRun = run_of(kBits);
        __m512i even[kRows] = {}, odd[kRows] = {};
        for (int64_t t = 0; t < count_; t += kRun.tokens()) {
            const int64_t at = values_at(kBits, form_.dim, first_ + t, channel);
            prefetch(next_ + at, kRun.words * 64);
            each_value_pair<kBits>(record_ + at, [&](int token, Words codes) {
                const __m512i pairs = levels_of<kBits>(reinterpret_cast<__m512i>(codes), table);
                for (int r = 0; r < kRows; ++r) {
                    __m512i& sum = (token / 2 % 2 ? odd : even)[r];
                    sum = _mm512_dpwssd_epi32(sum, pairs, pair(weights.whole[r] + t + token));
                }
            });
        }
        for (int r = 0; r < kRows; ++r) sums[r] = _mm512_add_epi32(even[r], odd[r]);
    }

    static __m512i pair(const int16_t* weights) {
        int32_t both;
        std::memcpy(&both, weights, sizeof both);
        return _mm512_set1_epi32(both);
    }

    const BlockForm& form_;
    const LevelTable& levels_;
    const uint8_t *record_, *next_;
    int64_t first_, count_;
};

#endif

}  // namespace ember
