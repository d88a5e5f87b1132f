// A tile of encoded tokens met by a few query rows, straight from its codes (see record.h), in
// the codec's basis. Needs 8-bit vector products; without them tiles are decoded first.
#pragma once

#include "few_dense.h"
#include "record.h"

#ifdef EMBER_VNNI

namespace ember {

constexpr int64_t kMostChannels = 256;  // of a group of a coded query

// Keys coded by a table of levels are decoded: products of bytes take codes alone.
inline bool scored_by_codes(const BlockForm& form) {
    return form.family != Family::kPlain && !form.levels && form.group <= kMostChannels;
}

// f(constant of a code's width)
template <typename F>
inline void with_bits(int bits, const F& f) {
    switch (bits) {
        case 2:
            return f(std::integral_constant<int, 2>());
        case 3:
            return f(std::integral_constant<int, 3>());
        case 4:
            return f(std::integral_constant<int, 4>());
        case 5:
            return f(std::integral_constant<int, 5>());
        case 6:
            return f(std::integral_constant<int, 6>());
        default:
            return f(std::integral_constant<int, 8>());
    }
}

// The part of a record that falls to steps [at, at + step) of `all`.
inline void prefetch_part(const uint8_t* record, int64_t bytes, int64_t at, int64_t step,
                          int64_t all) {
    const int64_t from = bytes * at / all;
    prefetch(record + from, bytes * (at + step) / all - from);
}

// Halves [t * groups + group] for 16 tokens t.
inline Vector halves_of_tokens(const uint16_t* halves, int64_t groups, int64_t group) {
    if (groups == 1) return load_halves(halves);
    uint16_t apart[kLanes];
    for (int64_t t = 0; t < kLanes; ++t) apart[t] = halves[t * groups + group];
    return load_halves(apart);
}

// A query row times the channel scales, for one group of channels, in two int8 parts:
// x = scale * (128 * high + low), 15 bits.
struct CodedQuery {
    static constexpr float kMostCode = 127 * 128 + 63;
    alignas(64) int8_t high[kMostChannels], low[kMostChannels];
    float scale;
    float sum;     // of the query itself, for zeros of tokens
    float offset;  // what does not depend on the token's codes and scale
    float centre;  // the share of what codes are relative to, taken off every dot product

    void assign(const BlockForm& form, const uint8_t* record, const float* q, int64_t from,
                int64_t count) {
        const uint16_t* scales = form.halves(record, form.channel_scales);
        const uint16_t* zeros = form.halves(record, form.channel_zeros);
        Vector scaled[kMostChannels / kLanes];
        Vector top = {}, sums = {}, total = {}, offsets = {}, lost = {};
        for (int64_t c = 0; c < count; c += kLanes) {
            const Vector x = load(q + from + c);
            const Vector y = scales ? x * load_halves(scales + from + c) : x;
            const Vector size = y < 0 ? -y : y;
            scaled[c / kLanes] = y;
            top = size > top ? size : top;
            sums += x;
            total += y;
            if (zeros) offsets += x * load_halves(zeros + from + c);
        }
        const float most = max(top), inverse = most > 1e-30f ? kMostCode / most : 0.0f;
        for (int64_t c = 0; c < count; c += kLanes) {
            const __m512i whole =
                _mm512_cvtps_epi32(reinterpret_cast<__m512>(scaled[c / kLanes] * inverse));
            const __m512i upper = _mm512_srai_epi32(_mm512_add_epi32(whole, _mm512_set1_epi32(64)), 7);
            const __m512i lower = _mm512_sub_epi32(whole, _mm512_slli_epi32(upper, 7));
            lost += scaled[c / kLanes] * inverse - reinterpret_cast<Vector>(_mm512_cvtepi32_ps(whole));
            _mm_store_si128((__m128i*)(high + c), _mm512_cvtepi32_epi8(upper));
            _mm_store_si128((__m128i*)(low + c), _mm512_cvtepi32_epi8(lower));
        }
        scale = most / kMostCode;
        sum = form.token_zeros < 0 ? 0.0f : ember::sum(sums);
        offset = zeros ? ember::sum(offsets) : 0.0f;
        // What rounding lost meets, to begin with, the middle of all codes.
        const float middle = float((1 << form.bits) - 1) / 2;
        centre = -middle * scale * ember::sum(lost);
        if (form.centre != 0) centre += form.centre * ember::sum(total);
    }
};

// Quad `quad` of 16 tokens, one byte a code.
template <int kWidth>
inline __m512i plane_quad(const uint8_t* plane, int64_t quad) {
    constexpr int64_t kShared = 8 / kWidth;
    const __m512i raw = _mm512_loadu_si512(plane + quad / kShared * 64);
    if constexpr (kWidth == 8) return raw;
    const __m512i shifted = _mm512_srli_epi16(raw, unsigned(quad % kShared * kWidth));
    return _mm512_and_si512(shifted, _mm512_set1_epi8((1 << kWidth) - 1));
}

template <int kBits>
inline __m512i coded_quad(const uint8_t* codes, int64_t dim, int64_t quad) {
    constexpr Planes kPlanes = planes_of(kBits);
    const __m512i low = plane_quad<kPlanes.low>(codes, quad);
    const uint8_t* upper = codes + plane_bytes(kPlanes.low, dim);
    if constexpr (kPlanes.high == 1) {
        uint64_t mask;
        std::memcpy(&mask, upper + quad * 8, sizeof mask);
        return _mm512_mask_add_epi8(low, mask, low, _mm512_set1_epi8(1 << kPlanes.low));
    } else if constexpr (kPlanes.high == 2) {
        return _mm512_or_si512(low, _mm512_slli_epi16(plane_quad<2>(upper, quad), kPlanes.low));
    } else {
        return low;
    }
}

class CodedKeys : public TileKeys {
  public:
    CodedKeys(const BlockForm& form, const uint8_t* record, int64_t first, int64_t count,
              const uint8_t* next)
        : form_(form), record_(record), next_(next), first_(first), count_(count) {}

    void score(const float* queries, int rows, float* scores) const override {
        with_bits(form_.bits, [&](auto bits) {
            with_constant<kFewQueries>(
                rows, [&](auto count) { score_rows<bits, count>(queries, scores); });
        });
    }

  private:
    template <int kBits, int kRows>
    void score_rows(const float* queries, float* scores) const {
        CodedQuery coded[kRows];
        for (int64_t group = 0; group < form_.groups(); ++group) {
            for (int r = 0; r < kRows; ++r)
                coded[r].assign(form_, record_, queries + r * form_.dim, group * form_.group,
                                form_.group);
            int64_t t = 0;
            for (; t + 2 * kLanes <= count_; t += 2 * kLanes)
                score_tokens<kBits, kRows, 2>(coded, group, t, scores + t);
            if (t < count_) score_tokens<kBits, kRows, 1>(coded, group, t, scores + t);
        }
    }

    // 16 * kSets tokens, so that each load of a query serves several sums.
    template <int kBits, int kRows, int kSets>
    void score_tokens(const CodedQuery* coded, int64_t group, int64_t t, float* scores) const {
        __m512i high[kRows][kSets] = {}, low[kRows][kSets] = {};
        const uint8_t* codes = record_ + keys_at(kBits, form_.dim, first_ + t);
        prefetch_part(next_, form_.record_bytes, t, kSets * kLanes, count_);
        const int64_t step = keys_at(kBits, form_.dim, kLanes);
        const int64_t first = group * form_.group / kQuad, quads = form_.group / kQuad;
        for (int64_t i = 0; i < quads; i += kQuad) {
#pragma GCC unroll 4
            for (int64_t j = 0; j < kQuad; ++j) {
                __m512i quad[kSets];
                for (int s = 0; s < kSets; ++s)
                    quad[s] = coded_quad<kBits>(codes + s * step, form_.dim, first + i + j);
                for (int r = 0; r < kRows; ++r) {
                    const __m512i upper = part(coded[r].high, i + j);
                    const __m512i lower = part(coded[r].low, i + j);
                    for (int s = 0; s < kSets; ++s) {
                        high[r][s] = _mm512_dpbusd_epi32(high[r][s], quad[s], upper);
                        low[r][s] = _mm512_dpbusd_epi32(low[r][s], quad[s], lower);
                    }
                }
            }
        }
        for (int r = 0; r < kRows; ++r)
            for (int s = 0; s < kSets; ++s) {
                const __m512i whole =
                    _mm512_add_epi32(_mm512_slli_epi32(high[r][s], 7), low[r][s]);
                const Vector dot = reinterpret_cast<Vector>(_mm512_cvtepi32_ps(whole));
                float* at = scores + r * kTile + s * kLanes;
                const Vector score = scored(coded[r], dot, group, t + s * kLanes);
                store(at, group ? load(at) + score : score);
            }
    }

    static __m512i part(const int8_t* codes, int64_t quad) {
        int32_t four;
        std::memcpy(&four, codes + quad * kQuad, sizeof four);
        return _mm512_set1_epi32(four);
    }

    Vector scored(const CodedQuery& q, Vector dot, int64_t group, int64_t t) const {
        const int64_t at = (first_ + t) * form_.groups();
        Vector score = dot * q.scale - q.centre;
        if (form_.token_scales >= 0)
            score *= halves_of_tokens(form_.halves(record_, form_.token_scales) + at,
                                      form_.groups(), group);
        if (form_.token_zeros >= 0)
            score += q.sum * halves_of_tokens(form_.halves(record_, form_.token_zeros) + at,
                                              form_.groups(), group);
        return score + q.offset;
    }

    const BlockForm& form_;
    const uint8_t *record_, *next_;
    int64_t first_, count_;
};

// Levels of codes that are the low bits of each lane: of up to 5 bits by look-up.
template <int kBits>
class Levels {
  public:
    explicit Levels(const BlockForm& form) {
        alignas(64) float table[32];
        for (int i = 0; i < 32; ++i)
            table[i] = form.levels ? form.table[i % kMostLevels] : float(i & ((1 << kBits) - 1));
        first_ = _mm512_load_ps(table);
        second_ = _mm512_load_ps(table + kLanes);
    }

    // Bits above the code do not matter.
    Vector operator()(__m512i codes) const {
        if constexpr (kBits <= 4)
            return reinterpret_cast<Vector>(_mm512_permutexvar_ps(codes, first_));
        else if constexpr (kBits == 5)
            return reinterpret_cast<Vector>(_mm512_permutex2var_ps(first_, codes, second_));
        else
            return reinterpret_cast<Vector>(_mm512_cvtepi32_ps(
                _mm512_and_si512(codes, _mm512_set1_epi32((1 << kBits) - 1))));
    }

  private:
    __m512 first_, second_;
};

class CodedValues : public TileValues {
  public:
    CodedValues(const BlockForm& form, const uint8_t* record, int64_t first, int64_t count,
              const uint8_t* next)
        : form_(form), record_(record), next_(next), first_(first), count_(count) {}

    void gather(const float* weights, int rows, const float* corrections,
                float* out) const override {
        with_bits(form_.bits, [&](auto bits) {
            with_constant<kFewQueries>(rows, [&](auto count) {
                gather_rows<bits, count>(weights, corrections, out);
            });
        });
    }

  private:
    // Weights of one group of channels, times the scales of tokens, and their sums.
    template <int kRows>
    struct Weights {
        alignas(64) float scaled[kRows][kTile];
        float plain[kRows];   // sum of the weights
        float codes[kRows];   // sum of the scaled weights
        float zeros[kRows];   // sum of weight * zero of the token
    };

    template <int kRows>
    Weights<kRows> weigh(const float* weights, int64_t group) const {
        const int64_t groups = form_.groups(), at = first_ * groups;
        const uint16_t* scales = form_.halves(record_, form_.token_scales);
        const uint16_t* zeros = form_.halves(record_, form_.token_zeros);
        Vector plain[kRows] = {}, coded[kRows] = {}, zero[kRows] = {};
        Weights<kRows> out;
        for (int64_t t = 0; t < count_; t += kLanes) {
            const Vector scale =
                scales ? halves_of_tokens(scales + at + t * groups, groups, group) : splat(1);
            const Vector base =
                zeros ? halves_of_tokens(zeros + at + t * groups, groups, group) : Vector{};
            for (int r = 0; r < kRows; ++r) {
                const Vector weight = load(weights + r * kTile + t);
                store(out.scaled[r] + t, weight * scale);
                plain[r] += weight;
                coded[r] += weight * scale;
                zero[r] += weight * base;
            }
        }
        for (int r = 0; r < kRows; ++r) {
            out.plain[r] = form_.channel_zeros < 0 ? 0.0f : sum(plain[r]);
            out.codes[r] = form_.centre == 0 ? 0.0f : sum(coded[r]);
            out.zeros[r] = zeros ? sum(zero[r]) : 0.0f;
        }
        return out;
    }

    template <int kBits, int kRows>
    void gather_rows(const float* weights, const float* corrections, float* out) const {
        const Levels<kBits> levels(form_);
        const uint16_t* scales = form_.halves(record_, form_.channel_scales);
        const uint16_t* zeros = form_.halves(record_, form_.channel_zeros);
        for (int64_t group = 0; group < form_.groups(); ++group) {
            const Weights<kRows> weighed = weigh<kRows>(weights, group);
            for (int64_t c = group * form_.group; c < (group + 1) * form_.group; c += kLanes) {
                Vector sums[kRows];
                sum_codes<kBits, kRows>(levels, weighed.scaled, c, sums);
                for (int r = 0; r < kRows; ++r) {
                    float* at = out + r * form_.dim + c;
                    Vector sum = sums[r] - form_.centre * weighed.codes[r];
                    if (scales) sum *= load_halves(scales + c);
                    if (zeros) sum += load_halves(zeros + c) * weighed.plain[r];
                    store(at, load(at) * corrections[r] + (sum + weighed.zeros[r]));
                }
            }
        }
    }

    // sums[r] = sum over tokens of weights[r][t] * level, of 16 channels.
    template <int kBits, int kRows>
    void sum_codes(const Levels<kBits>& levels, const float (*weights)[kTile], int64_t channel,
                   Vector* sums) const {
        Vector even[kRows] = {}, odd[kRows] = {};
        for (int64_t t = 0; t < count_; t += kRun) {
            const int64_t run = std::min(kRun, form_.tokens - first_ - t);
            prefetch_part(next_, form_.record_bytes, channel, kLanes, form_.dim);
            const uint8_t* words =
                record_ + values_at(kBits, form_.dim, first_ + t, run, channel);
            const auto add = [&](__m512i codes, int64_t token) {
                const Vector level = levels(codes);
                for (int r = 0; r < kRows; ++r)
                    (token % 2 ? odd : even)[r] += level * weights[r][t + token];
            };
            add_run<kBits>(words, run, add);
        }
        for (int r = 0; r < kRows; ++r) sums[r] = even[r] + odd[r];
    }

    template <int kBits, typename Add>
    static void add_run(const uint8_t* words, int64_t run, const Add& add) {
        constexpr int kFit = codes_per_word(kBits);
        __m512i spare = _mm512_setzero_si512();
        for (int64_t w = 0; w < run * kBits / 32; ++w) {
            const __m512i word = _mm512_loadu_si512(words + w * 64);
#pragma GCC unroll 16
            for (int i = 0; i < kFit; ++i)
                add(_mm512_srli_epi32(word, unsigned(i * kBits)), w * kFit + i);
            if constexpr (!fills_words(kBits))
                spare = _mm512_or_si512(
                    spare, _mm512_slli_epi32(_mm512_srli_epi32(word, 30), unsigned(2 * w)));
        }
        if constexpr (!fills_words(kBits)) {
            add(spare, kFit * kBits);
            add(_mm512_srli_epi32(spare, kBits), kFit * kBits + 1);
        }
    }

    const BlockForm& form_;
    const uint8_t *record_, *next_;
    int64_t first_, count_;
};

}  // namespace ember

#endif
