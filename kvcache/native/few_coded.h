// A few query rows over the encoded blocks of a layer, in two passes.
//
// The first scores all keys and leaves, tile by tile, the softmax weights relative to the tile's
// own maximum. Once all are known, the second gathers the values: not those of tiles whose weights
// cannot matter (see Unread). A task owns a span of tiles and reads all its KV heads, whose
// records lie side by side.
#pragma once

#include "coded_values.h"
#include "decode.h"
#include "tier_plan.h"
#include "trellis_values.h"
#include "unread.h"

namespace ember {

// f(keys): the keys of a tile, from codes where there are products for them, else decoded to
// `floats`. next: the record that will be read after this one.
template <typename F>
inline void with_coded_keys(const BlockForm& form, const uint8_t* record,
                            [[maybe_unused]] const uint8_t* next, const TileRef& tile,
                            float* floats, const F& f) {
#ifdef EMBER_BYTES
    if (scored_by_codes(form))
        return f(CodedKeys(form, record, tile.first, tile.count, next));
#endif
#ifdef EMBER_VNNI
    if (form.family == Family::kUnencoded)
        return f(UnencodedKeys({record, form.dim, Element::kHalf}, tile.first, tile.count,
                               form.dim));
#endif
    decode_keys(form, record, tile.first, tile.count, floats);
    f(FloatKeys(floats, tile.count, form.dim));
}

template <typename F>
inline void with_coded_values(const BlockForm& form, [[maybe_unused]] const LevelTable& levels,
                              const uint8_t* record, [[maybe_unused]] const uint8_t* next,
                              const TileRef& tile, float* floats, const F& f) {
#ifdef EMBER_VNNI
    if (form.family == Family::kUnencoded)
        return f(UnencodedValues({record, form.dim, Element::kHalf}, tile.first, tile.count,
                                 form.dim));
    if (form.family == Family::kTrellis)
        return f(TrellisValues(form, record, tile.first, tile.count, next));
#endif
#ifdef EMBER_BYTES
    if (form.coding && form.coding->gather)
        return f(CodedValues(form, levels, record, tile.first, tile.count, next));
#endif
    decode_values(form, record, tile.first, tile.count, floats);
    f(FloatValues(floats, tile.count, form.dim));
}

class FewCoded {
  public:
    static constexpr int64_t kMostRows = 24;  // more meet decoded tiles

    // heads: of all batch rows; rows: of one KV head. queries [heads, rows, dim] are in the keys'
    // basis, and scaled.
    FewCoded(const TierStep& step, const TierMemory& memory, const std::vector<TileRef>& tiles,
             int64_t heads, int64_t rows, int64_t spans, const float* queries)
        : step_(step), memory_(memory), tiles_(tiles), heads_(heads), rows_(rows), spans_(spans),
          queries_(queries), levels_(*memory.value_form) {
        thread_local std::vector<float> weights, sums;
        weights.resize(size_t(heads * count() * rows * kTile));
        sums.resize(size_t(2 * heads * rows * lanes()));
        weights_ = weights.data();
        tops_ = sums.data();
        totals_ = tops_ + heads * rows * lanes();
    }

    // Of one row, for each tile: its largest score, and the sum of its weights relative to it.
    // What lies behind the last tile weighs nothing.
    float* tops(int64_t head, int64_t row) const { return tops_ + (head * rows_ + row) * lanes(); }
    float* totals(int64_t head, int64_t row) const {
        return totals_ + (head * rows_ + row) * lanes();
    }

    int64_t count() const { return int64_t(tiles_.size()); }
    int64_t lanes() const { return whole_lanes(count()); }

    // The first pass over a span of tiles.
    void score(int64_t span) const {
        const BlockForm& form = *memory_.key_form;
        each(span, memory_.keys, form, [&](int64_t i, int64_t head, const uint8_t* record,
                                           const uint8_t* next) {
            with_coded_keys(form, record, next, tiles_[i], floats(), [&](const TileKeys& keys) {
                score_tile(keys, i, head);
            });
        });
        if (span + 1 < spans_) return;
        for (int64_t row = 0; row < heads_ * rows_; ++row) {
            std::fill(tops(0, row) + count(), tops(0, row) + lanes(), kUnseen);
            std::fill(totals(0, row) + count(), totals(0, row) + lanes(), 0.0f);
        }
    }

    // Between the passes: choose what is not read. tops and totals [rows] of other tokens become
    // those of all tokens and of the encoded ones. factors [rows, lanes()] of the head: by which
    // weights relative to a tile's maximum count; 0 for what is not read.
    void choose(int64_t head, float* tops, float* totals, float* factors) const {
        thread_local std::vector<float> sums;
        sums.resize(size_t(rows_));
        for (int64_t row = 0; row < rows_; ++row) {
            const float others = tops[row], *of_tiles = this->tops(head, row);
            Native top = Native{} + others;
            for (int64_t i = 0; i < lanes(); i += kNativeLanes)
                top = larger(load_native(of_tiles + i), top);
            tops[row] = max(top);
            for (int64_t i = 0; i < lanes(); i += kNativeLanes)
                store(factors + row * lanes() + i,
                      exp2_below(load_native(of_tiles + i) - tops[row]));
            sums[row] = mass(head, row, factors) + totals[row] * exp2_below(others - tops[row]);
        }
        // By queries, whose rows lie apart.
        const int64_t each = step_.queries, together = rows_ / each;
        for (int64_t query = 0; query < each; ++query) {
            thread_local std::vector<float> of_query;
            of_query.clear();
            for (int64_t r = 0; r < together; ++r) of_query.push_back(sums[r * each + query]);
            Unread::choose(this->totals(head, query), each * lanes(), together, count(),
                           of_query.data(), factors + query * lanes());
        }
        for (int64_t row = 0; row < rows_; ++row) totals[row] = mass(head, row, factors);
    }

    // The second pass: add to values [rows, dim] of each head, partial(head), what a span holds.
    template <typename Partial>
    void gather(int64_t span, const float* factors, const Partial& partial) const {
        const BlockForm& form = *memory_.value_form;
        each(span, memory_.values, form, [&](int64_t i, int64_t head, const uint8_t* record,
                                             const uint8_t* next) {
            const float* of_head = factors + head * rows_ * lanes() + i;
            if (!any(of_head)) return;
            with_coded_values(form, levels_, record, next, tiles_[i], floats(),
                              [&](const TileValues& values) {
                                  gather_tile(values, i, head, of_head, partial(head));
                              });
        });
    }

  private:
    // f(tile, head, record, the next one) over a span.
    template <typename F>
    void each(int64_t span, uint8_t* const* records, const BlockForm& form, const F& f) const {
        const int64_t from = count() * span / spans_, to = count() * (span + 1) / spans_;
        for (int64_t i = from; i < to; ++i) {
            const uint8_t* now = records[tiles_[i].source];
            const uint8_t* later = records[tiles_[std::min(i + 1, to - 1)].source];
            for (int64_t head = 0; head < heads_; ++head) {
                const int64_t at = head * form.record_bytes;
                // Products ask for the codes that come next, as they go on.
                prefetch(later + at + form.code_bytes(), form.record_bytes - form.code_bytes());
                f(i, head, now + at, later + at);
            }
        }
    }

    // Room for a float tile, for each thread.
    float* floats() const {
        thread_local std::vector<float> tile;
        tile.resize(size_t(kTile * step_.dim));
        return tile.data();
    }

    float* weights(int64_t i, int64_t head, int64_t row) const {
        return weights_ + ((i * heads_ + head) * rows_ + row) * kTile;
    }

    // The weights of a row that count.
    float mass(int64_t head, int64_t row, const float* factors) const {
        Native sums = {};
        for (int64_t i = 0; i < lanes(); i += kNativeLanes)
            sums += load_native(factors + row * lanes() + i) * load_native(totals(head, row) + i);
        return sum(sums);
    }

    // Whether all queries see all 64 tokens of a tile, as they mostly do.
    bool seen_whole(const TileRef& tile, const int64_t* lowest) const {
        return tile.count == kTile && tile.position + kTile <= step_.position() + 1 &&
               *std::max_element(lowest, lowest + step_.queries) <= tile.position;
    }

    void score_tile(const TileKeys& keys, int64_t i, int64_t head) const {
        const int64_t* lowest = step_.lowest + head / step_.kv_heads * step_.lowest_stride;
        const bool whole = seen_whole(tiles_[i], lowest);
        int64_t query = 0;  // of the row
        for (int64_t first = 0; first < rows_; first += kFewQueries)
            with_constant<kFewQueries>(rows_ - first, [&](auto some) {
                float* scores = weights(i, head, first);
                keys.score(queries_ + (head * rows_ + first) * step_.dim, some, scores);
                for (int r = 0; r < some && !whole; ++r) {
                    hide(scores + r * kTile,
                         seen_in(tiles_[i], lowest[query], step_.position() + query));
                    query = query + 1 < step_.queries ? query + 1 : 0;
                }
                const Softened found = soften_rows<some>(scores);
                for (int r = 0; r < some; ++r) {
                    tops(head, first + r)[i] = found.tops.lanes[r];
                    totals(head, first + r)[i] = found.totals.lanes[r];
                }
            });
    }

    bool any(const float* factors) const {
        for (int64_t row = 0; row < rows_; ++row)
            if (factors[row * lanes()] > 0) return true;
        return false;
    }

    void gather_tile(const TileValues& values, int64_t i, int64_t head, const float* factors,
                     float* sums) const {
        constexpr float kOnes[kFewQueries] = {1, 1, 1, 1};
        for (int64_t first = 0; first < rows_; first += kFewQueries) {
            const int some = int(std::min<int64_t>(kFewQueries, rows_ - first));
            alignas(64) float weighed[kFewQueries * kTile];
            for (int r = 0; r < some; ++r) {
                const float factor = factors[(first + r) * lanes()];
                const float* from = weights(i, head, first + r);
                for (int64_t t = 0; t < kTile; t += kNativeLanes)
                    store(weighed + r * kTile + t, load_native(from + t) * factor);
            }
            values.gather(weighed, some, kOnes, sums + first * step_.dim);
        }
    }

    const TierStep& step_;
    const TierMemory& memory_;
    const std::vector<TileRef>& tiles_;
    const int64_t heads_, rows_, spans_;
    const float* queries_;
    const LevelTable levels_;
    float *weights_, *tops_, *totals_;
};

}  // namespace ember
