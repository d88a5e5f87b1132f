// Weighted sums of encoded values for a few query rows, straight from their codes,
// in the codec's basis. Codes become levels of 16 bits by look-up, softmax weights integers of as
// many. On AVX-512 VNNI a product of pairs sums two tokens at a time; elsewhere see nibble_sums.h.
#pragma once

#include "coded_keys.h"
#include "nibble_sums.h"

namespace ember {

// Levels as integers, for codes of up to 5 bits.
struct LevelTable {
    static constexpr int kSize = 32;
    alignas(64) int16_t whole[kSize];
    float unit, most;

    explicit LevelTable(const BlockForm& form) {
        const float codes = float((1 << form.bits) - 1);
        most = form.levels ? kMostLevel : codes;
        unit = form.levels ? form.table[form.levels - 1] / kMostLevel : 1.0f / (1 << kCodeShift);
        for (int i = 0; i < kSize; ++i)
            whole[i] = int16_t(form.levels ? std::lrint(form.table[i % kMostLevels] / unit)
                                           : i % (1 << form.bits) << kCodeShift);
    }
};

#ifdef EMBER_BYTES

#if defined(EMBER_VNNI)
template <int kBits>
constexpr bool kSummedByCodes = true;
#else
template <int kBits>
constexpr bool kSummedByCodes = kBits == 4;
#endif

class CodedValues : public TileValues {
  public:
    // next: the record that will be read after this one.
    CodedValues(const BlockForm& form, const LevelTable& levels, const uint8_t* record,
                int64_t first, int64_t count, const uint8_t* next)
        : form_(form), levels_(levels), record_(record), next_(next), first_(first),
          count_(count) {}

    void gather(const float* weights, int rows, const float* corrections,
                float* out) const override {
        form_.coding->gather(*this, weights, rows, corrections, out);
    }

    // See Coding.
    template <int kBits>
    static void gather(const TileValues& values, const float* weights, int rows,
                       const float* corrections, float* out) {
        const auto& coded = static_cast<const CodedValues&>(values);
        with_constant<kFewQueries>(rows, [&](auto count) {
            coded.gather_rows<kBits, count>(weights, corrections, out);
        });
    }

  private:
    // Registers of channels that share the loads of weights.
#if defined(EMBER_VNNI)
    static constexpr int kLots = 4;
#else
    static constexpr int kLots = 1;
#endif

    // Weights of one group of channels, times the scales of tokens.
    template <int kRows>
    struct Weights {
        WholeWeights whole[kRows];
        FourRows unit;
        FourRows relative;  // what codes are relative to: added to every sum
        FourRows plain;     // sum of the weights
        FourRows zeros;     // sum of weight * zero of the token

        Weights(const CodedValues& of, const float* weights, int64_t group) {
            const BlockForm& form = of.form_;
            const int64_t groups = form.groups(), at = of.first_ * groups, count = of.count_;
            const uint16_t* scales = form.halves(of.record_, form.token_scales);
            Native scaled[kRows][kTile / kNativeLanes], top[kRows] = {}, totals[kRows] = {};
            for (int64_t t = 0; t < count; t += kNativeLanes) {
                const Native scale = native_halves_of_tokens(
                    scales ? scales + at + t * groups : nullptr, groups, group, 1);
#pragma GCC unroll 4
                for (int r = 0; r < kRows; ++r) {
                    const Native y = load_native(weights + r * kTile + t) * scale;
                    scaled[r][t / kNativeLanes] = y;
                    top[r] = larger(magnitude(y), top[r]);
                    totals[r] += y;
                }
            }
            // 16 bits to each, and the sum of all products with levels stays below 2^31.
            const auto most = tops_of_rows(top).lanes, total = sums_of_rows(totals).lanes;
            const auto each = of.whole_scale(most, total);
            const FourRows inverse{most > 1e-30f ? each : decltype(most){}};
            unit.lanes = most > 1e-30f ? 1 / each : decltype(most){};
            Native lost[kRows] = {};
#pragma GCC unroll 4
            for (int r = 0; r < kRows; ++r)
                lost[r] = whole[r].round(scaled[r], inverse[r], count);
            if (form.levels) {
                relative.lanes = zeros.lanes = plain.lanes = decltype(most){};
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
            Native sums[kRows] = {}, products[kRows] = {};
            for (int64_t t = 0; t < of.count_; t += kNativeLanes) {
                const Native zero = native_halves_of_tokens(
                    halves ? halves + at + t * groups : nullptr, groups, group, 0);
                for (int r = 0; r < kRows; ++r) {
                    const Native x = load_native(weights + r * kTile + t);
                    sums[r] += x;
                    products[r] += x * zero;
                }
            }
            plain = sums_of_rows(sums);
            zeros = sums_of_rows(products);
        }
    };

    template <typename V>
    V whole_scale(V most, V total) const {
        const V each = kMostWeight / most;
        // Only levels of a table are so large; their scales are lengths, never negative.
        return form_.levels ? smaller(each, kMostSum / levels_.most / total) : each;
    }

    template <int kBits, int kRows>
    void gather_rows(const float* weights, const float* corrections, float* out) const {
        for (int64_t group = 0; group < form_.groups(); ++group) {
            const Weights<kRows> weighed(*this, weights, group);
            const int64_t end = (group + 1) * form_.group;
            int64_t c = group * form_.group;
            for (; c + kLots * kNativeLanes <= end; c += kLots * kNativeLanes)
                add_codes<kBits, kRows, kLots>(weighed, c, corrections, out + c);
            for (; c < end; c += kNativeLanes)
                add_codes<kBits, kRows, 1>(weighed, c, corrections, out + c);
        }
    }

    // Of kLots registers of channels from `channel` on.
    template <int kBits, int kRows, int kLots>
    [[gnu::noinline]] void add_codes(const Weights<kRows>& weighed, int64_t channel,
                                     const float* corrections, float* out) const {
        const uint16_t* scales = form_.halves(record_, form_.channel_scales);
        const uint16_t* zeros = form_.halves(record_, form_.channel_zeros);
        Native sums[kRows][kLots];
        sum_codes<kBits, kRows, kLots>(weighed, channel, sums);
#pragma GCC unroll 4
        for (int v = 0; v < kLots; ++v) {
            const int64_t c = v * kNativeLanes;
            const Native scale =
                scales ? load_native_halves(scales + channel + c) : Native{} + 1.0f;
            const Native zero = zeros ? load_native_halves(zeros + channel + c) : Native{};
#pragma GCC unroll 4
            for (int r = 0; r < kRows; ++r) {
                float* at = out + r * form_.dim + c;
                const Native sum =
                    (sums[r][v] * (weighed.unit[r] * levels_.unit) + weighed.relative[r]) * scale;
                const Native base = zero * weighed.plain[r] + weighed.zeros[r];
                store(at, load_native(at) * corrections[r] + (sum + base));
            }
        }
    }

#if defined(EMBER_VNNI)

    // The levels of codes in the low bits of 16-bit lanes; what lies above them does not matter.
    template <int kBits>
    static __m512i levels_of(__m512i codes, __m512i table) {
        if constexpr (kBits <= 5) return _mm512_permutexvar_epi16(codes, table);
        return _mm512_and_si512(codes, _mm512_set1_epi16((1 << kBits) - 1));
    }

    // all[r][v] = sum over tokens of weight * level, of a register of channels.
    template <int kBits, int kRows, int kLots>
    [[gnu::always_inline]] void sum_codes(const Weights<kRows>& weights, int64_t channel,
                                          Native (&all)[kRows][kLots]) const {
        const __m512i table = _mm512_load_si512(levels_.whole);
        constexpr Run kRun = run_of(kBits);
        __m512i sums[kRows][kLots];
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < kLots; ++v) sums[r][v] = _mm512_setzero_si512();
        for (int64_t t = 0; t < count_; t += kRun.tokens()) {
            const int64_t at = values_at(kBits, form_.dim, first_ + t, channel);
            const int16_t* now[kRows];
            for (int r = 0; r < kRows; ++r) {
                now[r] = weights.whole[r].numbers + t;
                // GCC would keep them for the row in whose place they will be needed next.
                asm("" : "+r"(now[r]));
            }
            each_value_pair<kBits, kLots>(
                record_ + at, [&](int token, const Words(&codes)[kLots])
                                  __attribute__((always_inline)) {
                    if (token % (2 * kRun.fit) == 0 && token / (2 * kRun.fit) < kRun.words)
                        prefetch(next_ + at + token / (2 * kRun.fit) * kLots * 64, kLots * 64);
                    __m512i pairs[kLots];
#pragma GCC unroll 4
                    for (int v = 0; v < kLots; ++v)
                        pairs[v] = levels_of<kBits>(reinterpret_cast<__m512i>(codes[v]), table);
#pragma GCC unroll 4
                    for (int r = 0; r < kRows; ++r) {
                        const __m512i both = pair(now[r] + token);
#pragma GCC unroll 4
                        for (int v = 0; v < kLots; ++v)
                            add_pairs(sums[r][v], pairs[v], both);
                    }
                });
        }
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < kLots; ++v)
                all[r][v] = to_native(reinterpret_cast<Lot>(sums[r][v]));
    }

    static __m512i pair(const int16_t* weights) {
        return _mm512_broadcastd_epi32(_mm_loadu_si32(weights));
    }

#else

    template <int kBits, int kRows, int kLots>
    [[gnu::always_inline]] void sum_codes(const Weights<kRows>& weights, int64_t channel,
                                          Native (&all)[kRows][kLots]) const {
        static_assert(kBits == 4 && kLots == 1);
        // A register's share of the vector of 16 channels.
        const int64_t at = values_at(4, form_.dim, first_, channel / kLanes * kLanes) +
                           channel % kLanes * 4;
        NibbleSums<kRows> sums(levels_.whole);
        for (int64_t t = 0; t < count_; t += kNibbleRun) {
            const int64_t run = at + t * form_.dim / 2;
            if (channel % kLanes == 0) prefetch(next_ + run, 64);
            sums.add(record_ + run, weights.whole, t);
        }
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) all[r][0] = sums.all(r);
    }

#endif

    const BlockForm& form_;
    const LevelTable& levels_;
    const uint8_t *record_, *next_;
    int64_t first_, count_;
};

#endif

}  // namespace ember
