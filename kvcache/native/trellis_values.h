// Weighted sums of trellis-coded values for a few query rows, in the codec's basis: levels of
// eight bits by look-up, softmax weights of 16 bits in two parts, products of bytes summed by
// fours, which are four tokens of a channel.
#pragma once

#include "coding.h"
#include "few_unencoded.h"

#ifdef EMBER_VNNI

namespace ember {

// Where the positive level of each index lies among those, and which levels are negative.
template <int kBits>
struct LevelPlaces {
    alignas(64) uint8_t place[64];
    uint64_t negative = 0;

    constexpr LevelPlaces() : place() {
        constexpr int kHalf = 1 << kBits;
        for (int i = 0; i < 64; ++i) {
            const int level = ascending(kBits, i);
            place[i] = uint8_t(level < kHalf ? kHalf - 1 - level : level - kHalf);
            if (level < kHalf) negative |= uint64_t(1) << i;
        }
    }
};

// The levels of all indices, and noise above, as bytes.
template <int kBits>
inline __m512i level_bytes(const float* positive) {
    static constexpr LevelPlaces<kBits> kPlaces;
    const Vector units = load(positive) / kTrellisUnit;
    const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(reinterpret_cast<__m512>(units)));
    const __m512i all = _mm512_permutexvar_epi8(_mm512_load_si512(kPlaces.place),
                                                _mm512_castsi128_si512(bytes));
    return _mm512_mask_sub_epi8(all, kPlaces.negative, __m512i{}, all);
}

class TrellisValues : public TileValues {
  public:
    // next: the record that will be read after this one.
    TrellisValues(const BlockForm& form, const uint8_t* record, int64_t first, int64_t count,
                  const uint8_t* next)
        : form_(form), record_(record), next_(next), first_(first), count_(count) {}

    void gather(const float* weights, int rows, const float* corrections,
                float* out) const override {
        form_.coding->gather(*this, weights, rows, corrections, out);
    }

    // See Coding.
    template <int kBits>
    static void gather(const TileValues& values, const float* weights, int rows,
                       const float* corrections, float* out) {
        const auto& coded = static_cast<const TrellisValues&>(values);
        with_constant<kFewQueries>(rows, [&](auto count) {
            coded.gather_rows<kBits, count>(weights, corrections, out);
        });
    }

  private:
    // weight * scale of the token = unit * (256 * high + low)
    template <int kRows>
    struct Weights {
        alignas(64) uint8_t high[kRows][kTile], low[kRows][kTile];
        float unit[kRows];
    };

    template <int kRows>
    void weigh(const float* weights, Weights<kRows>& out) const {
        const uint16_t* scales = form_.halves(record_, form_.token_scales) + first_;
        for (int r = 0; r < kRows; ++r) {
            Vector scaled[kTile / kLanes], top = {};
            for (int64_t t = 0; t < count_; t += kLanes) {
                const Vector x = load(weights + r * kTile + t) * load_halves(scales + t);
                scaled[t / kLanes] = x;
                top = larger(x, top);
            }
            const float most = max(top), inverse = most > 1e-30f ? 65535.0f / most : 0.0f;
            out.unit[r] = most / 65535.0f * kTrellisUnit;
            for (int64_t t = 0; t < count_; t += kLanes) {
                const __m512i whole =
                    _mm512_cvtps_epi32(reinterpret_cast<__m512>(scaled[t / kLanes] * inverse));
                _mm_store_si128((__m128i*)(out.low[r] + t), _mm512_cvtepi32_epi8(whole));
                _mm_store_si128((__m128i*)(out.high[r] + t),
                                _mm512_cvtepi32_epi8(_mm512_srli_epi32(whole, 8)));
            }
        }
    }

    template <int kBits, int kRows>
    void gather_rows(const float* weights, const float* corrections, float* out) const {
        Weights<kRows> weighed;
        weigh<kRows>(weights, weighed);
        const __m512i table = level_bytes<kBits>(form_.table);
        for (int64_t c = 0; c < form_.dim; c += kLanes) {
            __m512i sums[kRows];
            sum_levels<kBits, kRows>(weighed, table, c, sums);
            for (int r = 0; r < kRows; ++r) {
                float* at = out + r * form_.dim + c;
                const Vector whole = reinterpret_cast<Vector>(_mm512_cvtepi32_ps(sums[r]));
                store(at, load(at) * corrections[r] + whole * weighed.unit[r]);
            }
        }
    }

    // sums[r] = sum over tokens of (256 * high + low) * level, of 16 channels.
    template <int kBits, int kRows>
    void sum_levels(const Weights<kRows>& weights, __m512i table, int64_t channel,
                    __m512i* sums) const {
        __m512i high[kRows] = {}, low[kRows] = {};
        for (int64_t t = 0; t < count_; t += trellis_run(kBits)) {
            const TrellisRun run(record_, kBits, form_.dim, first_ + t, channel);
            prefetch(next_ + (run.here - record_), trellis_vectors(kBits) * 64);
            each_trellis_set<kBits>(run, [&](int set, Words indices) {
                const __m512i levels =
                    _mm512_permutexvar_epi8(reinterpret_cast<__m512i>(indices), table);
                for (int r = 0; r < kRows; ++r) {
                    const int64_t at = t + set * kSet;
                    high[r] = _mm512_dpbusd_epi32(high[r], four(weights.high[r] + at), levels);
                    low[r] = _mm512_dpbusd_epi32(low[r], four(weights.low[r] + at), levels);
                }
            });
        }
        for (int r = 0; r < kRows; ++r)
            sums[r] = _mm512_add_epi32(_mm512_slli_epi32(high[r], 8), low[r]);
    }

    static __m512i four(const uint8_t* weights) {
        int32_t all;
        std::memcpy(&all, weights, sizeof all);
        return _mm512_set1_epi32(all);
    }

    const BlockForm& form_;
    const uint8_t *record_, *next_;
    int64_t first_, count_;
};

}  // namespace ember

#endif
