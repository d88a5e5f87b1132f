// A running softmax over tiles of tokens, for some query rows of one KV head (online softmax,
// Milakov & Gimelshein, arXiv 1805.02867).
#pragma once

#include <vector>

#include "dense.h"

namespace ember {

constexpr float kUnseen = -1e30f;   // the maximum of a row that has seen no token
constexpr float kHidden = -3e38f;   // the score of a token that a row does not see

// Tokens of a tile that a row sees: [first, end).
struct Seen {
    int64_t first, end;
};

// Query rows, scaled, and what they have gathered so far.
struct Rows {
    int64_t count, dim;
    const float* queries;  // [count, dim]
    float* tops;           // [count]
    float* totals;         // [count]
    float* values;         // [count, dim]

    void clear() const {
        std::fill(tops, tops + count, kUnseen);
        std::fill(totals, totals + count, 0.0f);
        std::fill(values, values + count * dim, 0.0f);
    }
};

// A tile in floats, as dense.h lays it out.
struct FloatTile {
    static constexpr int kRows = kProductRows;
    const float* keys;
    const float* values;
    int64_t count, dim;

    int64_t lanes() const { return (count + kLanes - 1) / kLanes * kLanes; }

    template <int kCount>
    void score(const float* queries, float* scores) const {
        multiply_rows<kCount>({queries, dim}, {keys, kTile}, dim, lanes(), nullptr,
                              {scores, kTile});
    }

    template <int kCount>
    void gather(const float* weights, const float* corrections, float* out) const {
        multiply_rows<kCount>({weights, kTile}, {values, dim}, count, dim, corrections,
                              {out, dim});
    }
};

// Turn a row's scores [kTile] into weights relative to the new maximum `top`, add them to
// `total`, and return by how much what was gathered before shrinks.
inline float soften(float* scores, int64_t lanes, Seen seen, float& top, float& total) {
    std::fill(scores, scores + seen.first, kHidden);
    std::fill(scores + seen.end, scores + lanes, kHidden);
    Vector highest = splat(top);
    for (int64_t t = 0; t < lanes; t += kLanes) {
        const Vector score = load(scores + t);
        highest = score > highest ? score : highest;
    }
    const float now = max(highest);
    Vector sums = {};
    for (int64_t t = 0; t < lanes; t += kLanes) {
        const Vector weight = exp_below(load(scores + t) - now);
        store(scores + t, weight);
        sums += weight;
    }
    const float correction = exp_below(top - now);
    total = total * correction + sum(sums);
    top = now;
    return correction;
}

// Add a tile to all rows; seen(r) says what row r sees of it.
template <typename Tile, typename See>
inline void attend_tile(const Tile& tile, const Rows& rows, const See& seen) {
    for (int64_t first = 0; first < rows.count; first += Tile::kRows)
        with_constant<Tile::kRows>(rows.count - first, [&](auto count) {
            alignas(64) float scores[count * kTile];
            float corrections[count];
            Seen shown[count];
            bool any = false;
            for (int r = 0; r < count; ++r) {
                shown[r] = seen(first + r);
                any |= shown[r].first < shown[r].end;
            }
            if (!any) return;
            tile.template score<count>(rows.queries + first * rows.dim, scores);
            for (int r = 0; r < count; ++r)
                corrections[r] = soften(scores + r * kTile, tile.lanes(), shown[r],
                                        rows.tops[first + r], rows.totals[first + r]);
            tile.template gather<count>(scores, corrections, rows.values + first * rows.dim);
        });
}

}  // namespace ember
