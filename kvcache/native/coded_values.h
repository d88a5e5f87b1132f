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

    void gather(const float* weights, int rows, const float* corrections,
                float* out) const override;

  private:
    static constexpr int kVectors = 4;  // sixteens of channels that share the loads of weights

    // Weights of one group of channels, times the scales of tokens.
    template <int kRows>
    struct Weights {
        alignas(64) int16_t whole[kRows][kTile];
        FourRows unit;
        FourRows relative;  // what codes are relative to: added to every sum
        FourRows plain;     // sum of the weights
        FourRows zeros;     // sum of weight * zero of the token

        Weights(const CodedValues& of, const float* weights, int64_t group) {
            const BlockForm& form = of.form_;
            const int64_t groups = form.groups(), at = of.first_ * groups, count = of.count_;
            const uint16_t* scales = form.halves(of.record_, form.token_scales);
            Vector scaled[kRows][kTile / kLanes], top[kRows] = {}, totals[kRows] = {};
            for (int64_t t = 0; t < count; t += kLanes) {
                const Vector scale = halves_of_tokens(scales ? scales + at + t * groups : nullptr,
                                                      groups, group, 1);
#pragma GCC unroll 4
                for (int r = 0; r < kRows; ++r) {
                    const Vector y = load(weights + r * kTile + t) * scale;
                    scaled[r][t / kLanes] = y;
                    top[r] = larger(magnitude(y), top[r]);
                    totals[r] += y;
                }
            }
            // 16 bits to each, and the sum of all products with levels stays below 2^31.
            const Vector most = tops_of_rows(top).lanes, total = sums_of_rows(totals).lanes;
            const Vector each = of.whole_scale(most, total);
            const FourRows inverse{most > 1e-30f ? each : Vector{}};
            unit.lanes = most > 1e-30f ? 1 / each : Vector{};
            Vector lost[kRows] = {};
#pragma GCC unroll 4
            for (int r = 0; r < kRows; ++r) {
                const Vector factor = inverse[r];
                for (int64_t t = 0; t < count; t += kLanes)
                    lost[r] += round_row(scaled[r][t / kLanes] * factor, whole[r] + t);
            }
            if (form.levels) {
                relative.lanes = zeros.lanes = plain.lanes = Vector{};
                return;
            }
            // What rounding lost meets, to begin with, the middle of all codes.
            relative.lanes = sums_of_rows(lost).lanes * unit.lanes * (of.levels_.most / 2) -
                             total * form.centre;
            add_zeros(of, weights, group);
        }

      private:
        void add_zeros(const CodedValues& of, const float* weights, int64_t group) {
            const BlockForm& form = of.form_;
            const int64_t groups = form.groups(), at = of.first_ * groups;
            const uint16_t* halves = form.halves(of.record_, form.token_zeros);
            Vector sums[kRows] = {}, products[kRows] = {};
            for (int64_t t = 0; t < of.count_; t += kLanes) {
                const Vector zero = halves_of_tokens(halves ? halves + at + t * groups : nullptr,
                                                     groups, group, 0);
                for (int r = 0; r < kRows; ++r) {
                    const Vector x = load(weights + r * kTile + t);
                    sums[r] += x;
                    products[r] += x * zero;
                }
            }
            plain = sums_of_rows(sums);
            zeros = sums_of_rows(products);
        }
    };

    Vector whole_scale(Vector most, Vector total) const {
        const Vector each = 32767.0f / most;
        // Only levels of a table are so large; their scales are lengths, never negative.
        return form_.levels ? smaller(each, 2.1e9f / levels_.most / total) : each;
    }

    // Returns what is lost.
    static Vector round_row(Vector x, int16_t* to) {
        const __m512i whole = _mm512_cvtps_epi32(reinterpret_cast<__m512>(x));
        _mm256_store_si256((__m256i*)to, _mm512_cvtepi32_epi16(whole));
        return x - reinterpret_cast<Vector>(_mm512_cvtepi32_ps(whole));
    }

    template <int kBits, int kRows>
    void gather_rows(const float* weights, const float* corrections, float* out) const {
        for (int64_t group = 0; group < form_.groups(); ++group) {
            const Weights<kRows> weighed(*this, weights, group);
            const int64_t end = (group + 1) * form_.group;
            int64_t c = group * form_.group;
            for (; c + kVectors * kLanes <= end; c += kVectors * kLanes)
                add_codes<kBits, kRows, kVectors>(weighed, c, corrections, out + c);
            for (; c < end; c += kLanes)
                add_codes<kBits, kRows, 1>(weighed, c, corrections, out + c);
        }
    }

    // Of kVectors * 16 channels from `channel` on.
    template <int kBits, int kRows, int kVectors>
    [[gnu::noinline]] void add_codes(const Weights<kRows>& weighed, int64_t channel,
                                     const float* corrections, float* out) const {
        const uint16_t* scales = form_.halves(record_, form_.channel_scales);
        const uint16_t* zeros = form_.halves(record_, form_.channel_zeros);
        __m512i sums[kRows][kVectors];
        sum_codes<kBits, kRows, kVectors>(weighed, channel, sums);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
            const int64_t c = v * kLanes;
            const Vector scale = scales ? load_halves(scales + channel + c) : splat(1);
            const Vector zero = zeros ? load_halves(zeros + channel + c) : Vector{};
#pragma GCC unroll 4
            for (int r = 0; r < kRows; ++r) {
                float* at = out + r * form_.dim + c;
                const Vector whole = reinterpret_cast<Vector>(_mm512_cvtepi32_ps(sums[r][v]));
                const Vector sum =
                    (whole * (weighed.unit[r] * levels_.unit) + weighed.relative[r]) * scale;
                const Vector base = zero * weighed.plain[r] + weighed.zeros[r];
                store(at, load(at) * corrections[r] + (sum + base));
            }
        }
    }

    // sums[r][v] = sum over tokens of weight * level, of 16 channels.
    template <int kBits, int kRows, int kVectors>
    [[gnu::always_inline]] void sum_codes(const Weights<kRows>& weights, int64_t channel,
                                          __m512i (&sums)[kRows][kVectors]) const {
        const __m512i table = _mm512_load_si512(levels_.whole);
        constexpr Run kRun = run_of(kBits);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) sums[r][v] = _mm512_setzero_si512();
        for (int64_t t = 0; t < count_; t += kRun.tokens()) {
            const int64_t at = values_at(kBits, form_.dim, first_ + t, channel);
            const int16_t* now[kRows];
            for (int r = 0; r < kRows; ++r) {
                now[r] = weights.whole[r] + t;
                // GCC would keep them for the row in whose place they will be needed next.
                asm("" : "+r"(now[r]));
            }
            each_value_pair<kBits, kVectors>(
                record_ + at, [&](int token, const Words(&codes)[kVectors])
                                  __attribute__((always_inline)) {
                    if (token % (2 * kRun.fit) == 0 && token / (2 * kRun.fit) < kRun.words)
                        prefetch(next_ + at + token / (2 * kRun.fit) * kVectors * 64,
                                 kVectors * 64);
                    __m512i pairs[kVectors];
#pragma GCC unroll 4
                    for (int v = 0; v < kVectors; ++v)
                        pairs[v] = levels_of<kBits>(reinterpret_cast<__m512i>(codes[v]), table);
#pragma GCC unroll 4
                    for (int r = 0; r < kRows; ++r) {
                        const __m512i both = pair(now[r] + token);
#pragma GCC unroll 4
                        for (int v = 0; v < kVectors; ++v)
                            add_pairs(sums[r][v], pairs[v], both);
                    }
                });
        }
    }

    static __m512i pair(const int16_t* weights) {
        return _mm512_broadcastd_epi32(_mm_loadu_si32(weights));
    }

    const BlockForm& form_;
    const LevelTable& levels_;
    const uint8_t *record_, *next_;
    int64_t first_, count_;
};

#endif

}  // namespace ember
