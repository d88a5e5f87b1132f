// Many query rows over a tile of encoded tokens in integers of 16 bits, whose products are summed
// in pairs: twice as many in an instruction as of floats.
//
//     keys     [dim / 2][64 tokens][2 channels]        values    [32][dim][2 tokens]
//
// A tile's numbers are rounded relative to its largest, a query's to the query's: up to 14 and 15
// bits, or as many as keep a sum of products within 32 bits: 11 where 256 channels are all as
// large. Decoded floats of codes have fewer. Values a thousandth as large as another token's
// in their tile lose some of theirs.
#pragma once

#include "record.h"
#include "softmax.h"

#ifdef EMBER_VNNI

namespace ember {

// By Cauchy and Schwarz a sum of products is at most the product of two lengths.
constexpr float kMostLength = 46200, kMostWhole = 32767;

// Whether rounding what codes stand for does not matter: they are coarse, and of rotated channels,
// none of which is far larger than the others.
inline bool fits_whole(const BlockForm& form) {
    return form.family != Family::kUnencoded && form.bits < 8 && form.signs;
}

inline __m512i round_pair(Vector even, Vector odd) {
    const __m512i low = _mm512_cvtps_epi32(reinterpret_cast<__m512>(even));
    const __m512i high = _mm512_cvtps_epi32(reinterpret_cast<__m512>(odd));
    return _mm512_mask_blend_epi16(0xaaaaaaaa, low, _mm512_slli_epi32(high, 16));
}

// Query rows [count, dim]: whole = row / unit.
class WholeQueries {
  public:
    void assign(const float* rows, int64_t count, int64_t dim) {
        whole_.resize(size_t(count * dim));
        units_.resize(size_t(count));
        dim_ = dim;
        for (int64_t r = 0; r < count; ++r) {
            const float* row = rows + r * dim;
            Vector top = {}, squares = {};
            for (int64_t d = 0; d < dim; d += kLanes) {
                const Vector x = load(row + d);
                top = larger(magnitude(x), top);
                squares += x * x;
            }
            const float most = max(top), length = std::sqrt(sum(squares));
            const float factor =
                most > 1e-30f ? std::min(kMostWhole / most, kMostLength / length) : 0.0f;
            units_[r] = factor > 0 ? 1 / factor : 0.0f;
            for (int64_t d = 0; d < dim; d += kLanes) {
                const Vector x = load(row + d) * factor;
                _mm256_storeu_si256(
                    (__m256i*)&whole_[r * dim + d],
                    _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(reinterpret_cast<__m512>(x))));
            }
        }
    }

    const int16_t* row(int64_t r) const { return &whole_[r * dim_]; }
    float unit(int64_t r) const { return units_[r]; }

  private:
    std::vector<int16_t> whole_;
    std::vector<float> units_;
    int64_t dim_ = 0;
};

// sums[r] = sum over i < depth of left[r][i] * right[i], pairs of numbers in each lane; rows of
// `left` lie `stride` numbers apart, of `right` kVectors registers next to each other.
template <int kRows, int kVectors>
[[gnu::always_inline]] inline void multiply_pairs(const int16_t* left, int64_t stride,
                                                  const __m512i* right, int64_t right_stride,
                                                  int64_t depth,
                                                  __m512i (&sums)[kRows][kVectors]) {
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sums[r][v] = _mm512_setzero_si512();
    for (int64_t i = 0; i < depth; ++i) {
        __m512i vectors[kVectors];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) vectors[v] = right[i * right_stride + v];
#pragma GCC unroll 6
        for (int r = 0; r < kRows; ++r) {
            const __m512i both =
                _mm512_broadcastd_epi32(_mm_loadu_si32(left + r * stride + 2 * i));
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v)
                add_pairs(sums[r][v], vectors[v], both);
        }
    }
}

class WholeTile {
  public:
    // From float tiles, see unencoded.h; `count` tokens, a multiple of 16. Behind them keys may
    // be anything, their scores are not used.
    void assign(const float* keys, const float* values, int64_t count, int64_t dim) {
        count_ = count;
        dim_ = dim;
        keys_.resize(size_t(dim / 2 * kSets));
        values_.resize(size_t(kTile / 2 * dim / kLanes));
        assign_keys(keys);
        assign_values(values);
    }

    // Add the tile to all rows. seen: of it, by each row.
    void attend(const WholeQueries& queries, const Rows& rows, const Seen* seen) const {
        for (int64_t first = 0; first < rows.count; first += kProductRows) {
            const int64_t count = std::min<int64_t>(kProductRows, rows.count - first);
            if (any_sees(seen + first, count))
                attend_rows(queries, rows, first, count, seen + first);
        }
    }

  private:
    static constexpr int kSets = kTile / kLanes;
    static constexpr float kMostValue = 16000, kMostSum = 131000;

    void attend_rows(const WholeQueries& queries, const Rows& rows, int64_t first, int64_t count,
                     const Seen* shown) const;

    void assign_keys(const float* keys) {
        Vector top = {}, longest = {};
        for (int64_t t = 0; t < count_; t += kLanes) {
            Vector squares = {};
            for (int64_t d = 0; d < dim_; ++d) {
                const Vector x = load(keys + d * kTile + t);
                top = larger(magnitude(x), top);
                squares += x * x;
            }
            longest = larger(squares, longest);
        }
        const float most = max(top), length = std::sqrt(max(longest));
        const float factor =
            most > 1e-30f ? std::min(kMostWhole / most, kMostLength / length) : 0.0f;
        key_unit_ = factor > 0 ? 1 / factor : 0.0f;
        for (int64_t d = 0; d < dim_; d += 2)
            for (int s = 0; s < kSets; ++s) {
                const float* at = keys + d * kTile + s * kLanes;
                keys_[d / 2 * kSets + s] = {
                    s * kLanes < count_ ? round_pair(load(at) * factor, load(at + kTile) * factor)
                                        : _mm512_setzero_si512()};
            }
    }

    void assign_values(const float* values) {
        Vector top = {};
        for (int64_t i = 0; i < count_ * dim_; i += kLanes)
            top = larger(magnitude(load(values + i)), top);
        const float most = max(top), factor = most > 1e-30f ? kMostValue / most : 0.0f;
        value_unit_ = factor > 0 ? 1 / factor : 0.0f;
        for (int64_t t = 0; t < count_; t += 2)
            for (int64_t d = 0; d < dim_; d += kLanes) {
                const float* at = values + t * dim_ + d;
                values_[(t / 2 * dim_ + d) / kLanes] = {
                    round_pair(load(at) * factor, load(at + dim_) * factor)};
            }
    }

    template <int kRows>
    [[gnu::noinline]] void attend_rows(const WholeQueries& queries, const Rows& rows,
                                       int64_t first, const Seen* shown) const {
        alignas(64) float scores[kRows][kTile];
        alignas(64) int16_t weights[kRows][kTile];
        float corrections[kRows], units[kRows];
        score<kRows>(queries, first, scores);
        for (int r = 0; r < kRows; ++r) hide(scores[r], shown[r]);
        constexpr int kFirst = std::min(kRows, 4);
        const auto weigh_some = [&](auto some, int r) {
            weigh<some>(scores[r], weights[r], &rows.tops[first + r], &rows.totals[first + r],
                        corrections + r, units + r);
        };
        weigh_some(std::integral_constant<int, kFirst>(), 0);
        if constexpr (kRows > kFirst)
            weigh_some(std::integral_constant<int, kRows - kFirst>(), kFirst);
        for (int64_t d = 0; d < dim_; d += kSets * kLanes)
            with_constant<kSets>((dim_ - d) / kLanes, [&](auto vectors) {
                gather<kRows, vectors>(weights, corrections, units, d,
                                       rows.values + first * dim_ + d);
            });
    }

    template <int kRows>
    [[gnu::noinline]] void score(const WholeQueries& queries, int64_t first,
                                 float (&scores)[kRows][kTile]) const {
        __m512i sums[kRows][kSets];
        multiply_pairs(queries.row(first), dim_, &keys_[0].lanes, kSets, dim_ / 2, sums);
#pragma GCC unroll 6
        for (int r = 0; r < kRows; ++r) {
            const float unit = queries.unit(first + r) * key_unit_;
#pragma GCC unroll 4
            for (int s = 0; s < kSets; ++s)
                store(scores[r] + s * kLanes,
                      reinterpret_cast<Vector>(_mm512_cvtepi32_ps(sums[r][s])) * unit);
        }
    }

    // Scores [kRows, kTile] become weights relative to the tile's maximum, as integers, that times
    // `units` are relative to the new maximum of all; what was gathered before shrinks by the
    // corrections.
    template <int kRows>
    [[gnu::always_inline]] void weigh(float* scores, int16_t* weights, float* tops, float* totals,
                                      float* corrections, float* units) const {
        const auto [most, mass] = soften_rows<kRows>(scores);
        // Flat weights are as many as they are small, and need fewer bits.
        const FourRows factor{smaller(splat(kMostWhole), kMostSum / mass.lanes)};
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
            const Vector times = factor[r];
            for (int s = 0; s < kSets; ++s) {
                const Vector x = load(scores + r * kTile + s * kLanes) * times;
                _mm256_store_si256(
                    (__m256i*)(weights + r * kTile + s * kLanes),
                    _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(reinterpret_cast<__m512>(x))));
            }
        }
        const Vector top = FourRows::of<kRows>(tops).lanes, now = larger(most.lanes, top);
        const Vector share = exp2_below(most.lanes - now), shrinks = exp2_below(top - now);
        const Vector total = FourRows::of<kRows>(totals).lanes * shrinks + mass.lanes * share;
        const Vector unit = share / factor.lanes * value_unit_;
        for (int r = 0; r < kRows; ++r) {
            tops[r] = now[r];
            totals[r] = total[r];
            corrections[r] = shrinks[r];
            units[r] = unit[r];
        }
    }

    template <int kRows, int kVectors>
    [[gnu::noinline]] void gather(const int16_t (&weights)[kRows][kTile],
                                  const float (&corrections)[kRows], const float (&units)[kRows],
                                  int64_t channel, float* out) const {
        __m512i sums[kRows][kVectors];
        multiply_pairs(weights[0], kTile, &values_[channel / kLanes].lanes, dim_ / kLanes,
                       count_ / 2, sums);
#pragma GCC unroll 6
        for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) {
                float* at = out + r * dim_ + v * kLanes;
                store(at, load(at) * corrections[r] +
                              reinterpret_cast<Vector>(_mm512_cvtepi32_ps(sums[r][v])) * units[r]);
            }
    }

    // A register, as an element of a vector.
    struct Lanes {
        __m512i lanes;
    };

    std::vector<Lanes> keys_, values_;
    float key_unit_ = 0, value_unit_ = 0;
    int64_t count_ = 0, dim_ = 0;
};

}  // namespace ember

#endif
