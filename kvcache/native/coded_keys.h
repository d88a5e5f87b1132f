// Scores of a few query rows with encoded keys, straight from their codes, in the
// codec's basis. Needs 8-bit vector products; without them tiles are decoded first.
#pragma once

#include "byte_products.h"
#include "coding.h"
#include "few_unencoded.h"
#include "token_scales.h"

#ifdef EMBER_BYTES

namespace ember {

constexpr int64_t kMostChannels = 256;  // of a group of a coded query

// Keys coded by a table of levels are decoded: products of bytes take codes alone.
inline bool scored_by_codes(const BlockForm& form) {
    return form.family != Family::kUnencoded && !form.levels && form.group <= kMostChannels &&
           form.bits <= kMostCodeBits;
}

// Query rows times the channel scales, for one group of channels, in two int8 parts:
// x = scale * (256 * high + low), 16 bits.
template <int kRows>
struct CodedQueries {
    static constexpr float kMostCode = 127 * 256 + 127;
    alignas(64) int8_t high[kRows][kMostChannels], low[kRows][kMostChannels];
    FourRows scale;
    FourRows relative;  // what codes are relative to: added to every dot product
    bool by_tokens;     // whether tokens have scales or zeros; if not, the offset is in `relative`
    FourRows sum;       // of the query itself, for the zeros of tokens
    FourRows offset;    // the share of the channels' zeros

    CodedQueries(const BlockForm& form, const uint8_t* record, const float* queries,
                 int64_t group) {
        by_tokens = form.token_scales >= 0 || form.token_zeros >= 0;
        const int64_t from = group * form.group, lots = form.group / kNativeLanes;
        const uint16_t* scales = form.halves(record, form.channel_scales);
        const uint16_t* zeros = form.halves(record, form.channel_zeros);
        // What rounding loses meets, to begin with, the middle of all codes.
        const float middle = float((1 << form.bits) - 1) / 2;
        const float centre = middle - form.centre;
        Native scaled[kRows][kMostChannels / kNativeLanes], top[kRows] = {}, offsets[kRows] = {};
        for (int64_t v = 0; v < lots; ++v) {
            const int64_t c = from + v * kNativeLanes;
            const Native factor = scales ? load_native_halves(scales + c) : Native{} + 1.0f;
            const Native zero = zeros && !by_tokens ? load_native_halves(zeros + c) : Native{};
            const Native base = zero + factor * centre;
#pragma GCC unroll 4
            for (int r = 0; r < kRows; ++r) {
                const Native x = load_native(queries + r * form.dim + c), y = x * factor;
                scaled[r][v] = y;
                top[r] = larger(magnitude(y), top[r]);
                offsets[r] += x * base;
            }
        }
        const FourRows most = tops_of_rows(top);
        scale.lanes = most.lanes / kMostCode;
        const FourRows inverse{most.lanes > 1e-30f ? kMostCode / most.lanes
                                                   : decltype(most.lanes){}};
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
            const Native sums = round_row(scaled[r], inverse[r], lots, high[r], low[r]);
            offsets[r] -= sums * (scale[r] * middle);
        }
        relative = sums_of_rows(offsets);
        if (by_tokens) add_plain(form, zeros ? zeros + from : nullptr, queries + from);
    }

  private:
    void add_plain(const BlockForm& form, const uint16_t* zeros, const float* queries) {
        Native plain[kRows] = {}, offsets[kRows] = {};
        for (int64_t c = 0; c < form.group; c += kNativeLanes) {
            const Native zero = zeros ? load_native_halves(zeros + c) : Native{};
            for (int r = 0; r < kRows; ++r) {
                const Native x = load_native(queries + r * form.dim + c);
                plain[r] += x;
                offsets[r] += x * zero;
            }
        }
        sum = sums_of_rows(plain);
        offset = sums_of_rows(offsets);
    }

    // The parts of x * unit. Returns the sums of both, lane by lane.
    static Native round_row(const Native* x, Native unit, int64_t lots, int8_t* high,
                            int8_t* low) {
        Lot sums = {};
        for (int64_t v = 0; v < lots; v += kLotsParted) {
            Lot whole[kLotsParted];
#pragma GCC unroll 8
            for (int i = 0; i < kLotsParted; ++i) {
                whole[i] = v + i < lots ? to_whole(x[v + i] * unit) : Lot{};
                sums += whole[i];
            }
            part(whole, high + v * kNativeLanes, low + v * kNativeLanes);
        }
        return to_native(sums);
    }
};

class CodedKeys : public TileKeys {
  public:
    // next: the record that will be read after this one.
    CodedKeys(const BlockForm& form, const uint8_t* record, int64_t first, int64_t count,
              const uint8_t* next)
        : form_(form), record_(record), next_(next), first_(first), count_(count) {}

    void score(const float* queries, int rows, float* scores) const override {
        form_.coding->score(*this, queries, rows, scores);
    }

    // See Coding.
    template <int kBits>
    static void score(const TileKeys& keys, const float* queries, int rows, float* scores) {
        const auto& coded = static_cast<const CodedKeys&>(keys);
        with_constant<kFewQueries>(
            rows, [&](auto count) { coded.score_rows<kBits, count>(queries, scores); });
    }

  private:
    // Registers of tokens that share the loads of a query: as many as there is room for the sums.
    // With few of them, quads share what is done with sums.
#if defined(EMBER_VNNI)
    static constexpr int sets_of(int rows) { return rows < kFewQueries ? 4 : 2; }
    static constexpr int kQuadsAtOnce = 1;
#else
    static constexpr int sets_of(int) { return 1; }
    static constexpr int kQuadsAtOnce = kQuad;
#endif

    template <int kBits, int kRows>
    void score_rows(const float* queries, float* scores) const {
        for (int64_t group = 0; group < form_.groups(); ++group) {
            const CodedQueries<kRows> coded(form_, record_, queries, group);
            alignas(64) float dots[kRows * kTile];
            float* to = coded.by_tokens ? dots : scores;
            constexpr int kSets = sets_of(kRows);
            int64_t t = 0;
            for (; t + kSets * kNativeLanes <= count_; t += kSets * kNativeLanes)
                multiply_tokens<kBits, kRows, kSets>(coded, group, t, to);
            for (; t < count_; t += kNativeLanes)
                multiply_tokens<kBits, kRows, 1>(coded, group, t, to);
            if (coded.by_tokens) add_tokens(coded, group, dots, scores);
        }
    }

    template <int kRows, int kSets>
    struct Sums {
        ByteSums high[kRows][kSets], low[kRows][kSets];
    };

    // Where registers of tokens lie: in the codes of which 16, and from which of these on.
    template <int kSets>
    struct Lots {
        const uint8_t* codes[kSets];
        int64_t first;

        Lots(const uint8_t* record, int bits, int64_t dim, int64_t from) : first(from % kLanes) {
            const int64_t step = keys_at(bits, dim, kLanes);
#pragma GCC unroll 4
            for (int s = 0; s < kSets; ++s)
                codes[s] = record + (from + s * kNativeLanes) / kLanes * step;
        }

        [[gnu::always_inline]] int64_t token(int s) const {
            return kNativeLanes == kLanes ? 0 : (first + s * kNativeLanes) % kLanes;
        }
    };

    template <int kBits, int kRows, int kSets>
    [[gnu::noinline]] void multiply_tokens(const CodedQueries<kRows>& coded, int64_t group,
                                           int64_t t, float* out) const {
        Sums<kRows, kSets> sums;
        Lots<kSets> lots(record_, kBits, form_.dim, first_ + t);
        const uint8_t* later = next_ + keys_at(kBits, form_.dim, first_ + t);
        constexpr int64_t kAhead = kSets * kNativeLanes * kQuad * kQuad * kBits / 8;
        const int64_t first = group * form_.group / kQuad, quads = form_.group / kQuad;
        for (int64_t i = 0; i < quads; i += kQuad) {
            // A few at a time: many at once would hold up the loads of this record.
            prefetch(later + (first + i) / kQuad * kAhead, kAhead);
            if constexpr (kQuadsAtOnce == kQuad) {
                add_quads<kBits, 0, 1, 2, 3>(coded, lots, first + i, i, sums);
            } else {
                add_quads<kBits, 0>(coded, lots, first + i, i, sums);
                add_quads<kBits, 1>(coded, lots, first + i, i, sums);
                add_quads<kBits, 2>(coded, lots, first + i, i, sums);
                add_quads<kBits, 3>(coded, lots, first + i, i, sums);
            }
        }
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
            for (int s = 0; s < kSets; ++s) {
                const Native dot = to_native((sums.high[r][s].all() << 8) + sums.low[r][s].all());
                store(out + r * kTile + t + s * kNativeLanes,
                      dot * coded.scale[r] + coded.relative[r]);
            }
    }

    template <int kBits, int... kIndex, int kRows, int kSets>
    [[gnu::always_inline]] void add_quads(const CodedQueries<kRows>& coded,
                                          const Lots<kSets>& lots, int64_t first, int64_t i,
                                          Sums<kRows, kSets>& sums) const {
        LotWords quads[kSets][sizeof...(kIndex)];
#pragma GCC unroll 4
        for (int s = 0; s < kSets; ++s) {
            LotWords* quad = quads[s];
            ((*quad++ = key_quad<LotWords, kBits, kIndex>(lots.codes[s], form_.dim, first,
                                                          lots.token(s))),
             ...);
        }
        const auto add = [&](ByteSums(&of)[kSets], const int8_t* sixteen)
                             __attribute__((always_inline)) {
#pragma GCC unroll 4
            for (int s = 0; s < kSets; ++s) of[s].template add<kIndex...>(quads[s], sixteen);
        };
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
            add(sums.high[r], coded.high[r] + i * kQuad);
            add(sums.low[r], coded.low[r] + i * kQuad);
        }
    }

    // What tokens' scales and zeros make of the dot products of a group of channels.
    template <int kRows>
    [[gnu::noinline]] void add_tokens(const CodedQueries<kRows>& q, int64_t group,
                                      const float* dots, float* scores) const {
        const int64_t groups = form_.groups();
        const uint16_t* scales = form_.halves(record_, form_.token_scales);
        const uint16_t* zeros = form_.halves(record_, form_.token_zeros);
        for (int64_t t = 0; t < count_; t += kNativeLanes) {
            const int64_t at = (first_ + t) * groups;
            const Native scale =
                native_halves_of_tokens(scales ? scales + at : nullptr, groups, group, 1);
            const Native zero =
                native_halves_of_tokens(zeros ? zeros + at : nullptr, groups, group, 0);
            for (int r = 0; r < kRows; ++r) {
                const Native score =
                    load_native(dots + r * kTile + t) * scale + q.sum[r] * zero + q.offset[r];
                float* to = scores + r * kTile + t;
                store(to, group ? load_native(to) + score : score);
            }
        }
    }

    const BlockForm& form_;
    const uint8_t *record_, *next_;
    int64_t first_, count_;
};

}  // namespace ember

#endif
