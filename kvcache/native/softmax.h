// A running softmax over tiles of tokens, for some query rows of one KV head (online softmax,
// Milakov & Gimelshein, arXiv 1805.02867).
#pragma once

#include <vector>

#include "unencoded.h"

namespace ember {

constexpr float kUnseen = -1e30f;   // the maximum of a row that has seen no token
constexpr float kHidden = -3e38f;   // the score of a token that a row does not see

// Tokens of a tile that a row sees: [first, end).
struct Seen {
    int64_t first, end;
};

// Query rows, scaled so that weights are powers of two, and what they have gathered so far.
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

// The keys of a tile: scores [rows, kTile] of some query rows.
class TileKeys {
  public:
    virtual ~TileKeys() = default;
    virtual void score(const float* queries, int rows, float* scores) const = 0;
};

// The values of a tile: out[r] = corrections[r] * out[r] + sum over t of weights[r][t] * value t.
// Weights [rows, kTile] are zero, or next to it, for tokens past the tile's end.
class TileValues {
  public:
    virtual ~TileValues() = default;
    virtual void gather(const float* weights, int rows, const float* corrections,
                        float* out) const = 0;
};

// A tile in floats, as unencoded.h lays it out.
class FloatKeys : public TileKeys {
  public:
    FloatKeys(const float* keys, int64_t count, int64_t dim)
        : keys_(keys), lanes_(whole_lanes(count)), dim_(dim) {}

    [[gnu::noinline]] void score(const float* queries, int rows, float* scores) const override {
        with_constant<kProductRows>(rows, [&](auto count) {
            multiply_rows<count>({queries, dim_}, {keys_, kTile}, dim_, lanes_, nullptr,
                                 {scores, kTile});
        });
    }

  private:
    const float* keys_;
    int64_t lanes_, dim_;
};

class FloatValues : public TileValues {
  public:
    FloatValues(const float* values, int64_t count, int64_t dim)
        : values_(values), count_(count), dim_(dim) {}

    [[gnu::noinline]] void gather(const float* weights, int rows, const float* corrections,
                                  float* out) const override {
        with_constant<kProductRows>(rows, [&](auto count) {
            multiply_rows<count>({weights, kTile}, {values_, dim_}, count_, dim_, corrections,
                                 {out, dim_});
        });
    }

  private:
    const float* values_;
    int64_t count_, dim_;
};

// Turn a row's scores, kVectors registers, into weights relative to the new maximum `top`, add
// them to `total`, and return by how much what was gathered before shrinks.
template <int kVectors>
inline float soften(float* scores, float& top, float& total) {
    Native weights[kVectors], highest = Native{} + top, sums = {};
    for (int v = 0; v < kVectors; ++v) {
        weights[v] = load_native(scores + v * kNativeLanes);
        highest = weights[v] > highest ? weights[v] : highest;
    }
    const float now = max(highest);
    for (int v = 0; v < kVectors; ++v) {
        weights[v] = exp2_below(weights[v] - now);
        store(scores + v * kNativeLanes, weights[v]);
        sums += weights[v];
    }
    const float correction = exp2_below(top - now);
    total = total * correction + sum(sums);
    top = now;
    return correction;
}

[[gnu::noinline]] inline float soften(float* scores, int64_t lanes, Seen seen, float& top, float& total) {
    if (seen.first > 0) std::fill(scores, scores + seen.first, kHidden);
    if (seen.end < lanes) std::fill(scores + seen.end, scores + lanes, kHidden);
    float correction = 1;
    with_constant<kTile / kNativeLanes>(lanes / kNativeLanes, [&](auto vectors) {
        correction = soften<vectors>(scores, top, total);
    });
    return correction;
}

#if defined(__AVX512F__)

// Up to four rows, one in each four lanes' same lane, of sums or maxima.
struct FourRows {
    Vector lanes;

    template <int kRows>
    static FourRows of(const float* rows) {
        const auto row = [&](int r) { return rows[r < kRows ? r : 0]; };
        const Quarter four = {row(0), row(1), row(2), row(3)};
        return {
            __builtin_shufflevector(four, four, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3)};
    }

    Vector operator[](int row) const {
        switch (row) {
            case 0:
                return repeat_lane<0>(lanes);
            case 1:
                return repeat_lane<1>(lanes);
            case 2:
                return repeat_lane<2>(lanes);
            default:
                return repeat_lane<3>(lanes);
        }
    }
};

template <int kRows, typename Fold>
inline FourRows fold_rows(const Vector (&rows)[kRows], const Fold& fold) {
    const auto row = [&](int r) { return rows[r < kRows ? r : 0]; };
    return {fold_four(row(0), row(1), row(2), row(3), fold)};
}

template <int kRows>
inline FourRows sums_of_rows(const Vector (&rows)[kRows]) {
    return fold_rows(rows, [](Vector a, Vector b) { return a + b; });
}

template <int kRows>
inline FourRows tops_of_rows(const Vector (&rows)[kRows]) {
    return fold_rows(rows, larger<Vector>);
}

#else

// Up to four rows' sums or maxima. Without shuffles of 16 lanes one after the other is faster.
struct FourRows {
    Quarter lanes;

    Native operator[](int row) const { return lanes[row] - Native{}; }
};

template <int kRows>
inline FourRows sums_of_rows(const Native (&rows)[kRows]) {
    FourRows all{};
    for (int r = 0; r < kRows; ++r) all.lanes[r] = sum(rows[r]);
    return all;
}

template <int kRows>
inline FourRows tops_of_rows(const Native (&rows)[kRows]) {
    FourRows all{};
    for (int r = 0; r < kRows; ++r) all.lanes[r] = max(rows[r]);
    return all;
}

#endif

// What some rows' scores came to: the largest of a row, and the sum of its weights.
struct Softened {
    FourRows tops, totals;
};

// Scores [kRows, kTile] that a row does not see count for nothing.
inline void hide(float* scores, Seen seen) {
    if (seen.first > 0) std::fill(scores, scores + seen.first, kHidden);
    if (seen.end < kTile) std::fill(scores + seen.end, scores + kTile, kHidden);
}

// Turn scores [kRows, kTile] into weights relative to each row's largest.
template <int kRows>
[[gnu::always_inline]] inline Softened soften_rows(float* scores) {
    Native highest[kRows], sums[kRows];
    for (int r = 0; r < kRows; ++r) {
        highest[r] = Native{} + kUnseen;
        for (int64_t t = 0; t < kTile; t += kNativeLanes)
            highest[r] = larger(load_native(scores + r * kTile + t), highest[r]);
    }
    const FourRows tops = tops_of_rows(highest);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
        const Native top = tops[r];
        sums[r] = Native{};
        for (int64_t t = 0; t < kTile; t += kNativeLanes) {
            float* at = scores + r * kTile + t;
            const Native weights = exp2_below(load_native(at) - top);
            store(at, weights);
            sums[r] += weights;
        }
    }
    return {tops, sums_of_rows(sums)};
}

// Whether any of some rows sees anything.
inline bool any_sees(const Seen* seen, int64_t count) {
    return std::any_of(seen, seen + count, [](Seen each) { return each.first < each.end; });
}

// Add a tile of `tokens` to all rows, `most` at a time. seen: of it, by each row.
inline void attend_tile(const TileKeys& keys, const TileValues& values, int64_t tokens,
                        const Rows& rows, const Seen* seen, int most = kProductRows) {
    const int64_t lanes = whole_lanes(tokens);
    for (int64_t first = 0; first < rows.count; first += most) {
        const int count = int(std::min<int64_t>(most, rows.count - first));
        alignas(64) float scores[kProductRows * kTile];
        float corrections[kProductRows];
        if (!any_sees(seen + first, count)) continue;
        keys.score(rows.queries + first * rows.dim, count, scores);
        for (int r = 0; r < count; ++r)
            corrections[r] = soften(scores + r * kTile, lanes, seen[first + r],
                                    rows.tops[first + r], rows.totals[first + r]);
        values.gather(scores, count, corrections, rows.values + first * rows.dim);
    }
}

}  // namespace ember
