// Softmax attention over unencoded keys and values, for float32 queries.
//
// Each task owns some query rows of one KV head and a span of tokens, converts a tile of keys
// and values to float32 once for all its rows, and keeps a running maximum, sum and weighted
// value per row (online softmax, Milakov & Gimelshein, arXiv 1805.02867). Spans of the same rows
// are merged at the end (flash-decoding).
#pragma once

#include <limits>
#include <vector>

#include "pool.h"
#include "simd.h"

namespace ember {

enum class Element : int32_t { kHalf = 0, kBfloat = 1, kFloat = 2 };

// Keys or values of a layer: [batch, heads, capacity, dim] of which `held` tokens count.
struct Tokens {
    const void* data;
    int64_t head_stride;  // elements from one head to the next
    Element element;
};

struct AttentionShape {
    int64_t batch, heads, kv_heads, queries, dim, held;
    float scale;
    const int32_t* padding;  // [batch] leading tokens that are padding, or null
};

namespace attention {

constexpr int64_t kTile = 64;      // tokens converted together
constexpr int64_t kRows = 16;      // query rows of a task at most
constexpr int64_t kMinSpan = 128;  // tokens of a task at least
constexpr int64_t kFewPartials = 256;
constexpr float kLowest = std::numeric_limits<float>::lowest();

// `count` elements, a multiple of 16.
inline void to_float(const Tokens& tokens, int64_t at, int64_t count, float* out) {
    switch (tokens.element) {
        case Element::kHalf: {
            const auto* from = static_cast<const uint16_t*>(tokens.data) + at;
            for (int64_t i = 0; i < count; i += kLanes) halves_to_float(from + i, out + i);
            return;
        }
        case Element::kBfloat: {
            const auto* from = static_cast<const uint16_t*>(tokens.data) + at;
            for (int64_t i = 0; i < count; ++i) out[i] = bfloat_to_float(from[i]);
            return;
        }
        case Element::kFloat:
            std::memcpy(out, static_cast<const float*>(tokens.data) + at, size_t(count) * 4);
    }
}

// The running softmax of one query row: `value` is [dim].
struct Partial {
    float top, total;
    float* value;
};

// Tokens that query `query` of row `batch` sees: [first, end).
struct Range {
    int64_t first, end;
};

inline Range visible(const AttentionShape& shape, int64_t batch, int64_t query) {
    const int64_t position = shape.held - shape.queries + query;
    const int64_t padding = shape.padding ? shape.padding[batch] : 0;
    return {position < padding ? 0 : padding, position + 1};
}

// Add tokens [at, at + count) of a converted tile to one row.
inline void add_tile(const float* q, const float* keys, const float* values, int64_t dim,
                     int64_t count, float scale, Partial& row) {
    float scores[kTile];
    float top = row.top;
    for (int64_t t = 0; t < count; ++t) {
        Vector dot = load(q) * load(keys + t * dim);
        for (int64_t d = kLanes; d < dim; d += kLanes) dot += load(q + d) * load(keys + t * dim + d);
        scores[t] = sum(dot) * scale;
        top = std::max(top, scores[t]);
    }
    for (int64_t t = count; t < kTile; ++t) scores[t] = kLowest;
    Vector total = {};
    for (int64_t t = 0; t < kTile; t += kLanes) {
        const Vector weight = exp_below(load(scores + t) - top);
        store(scores + t, weight);
        total += weight;
    }
    const float correction = exp_below(row.top - top);
    row.total = row.total * correction + sum(total);
    row.top = top;
    for (int64_t d = 0; d < dim; d += kLanes) {
        Vector value = load(row.value + d) * correction;
        for (int64_t t = 0; t < count; ++t) value += scores[t] * load(values + t * dim + d);
        store(row.value + d, value);
    }
}

}  // namespace attention

// out and q: [batch, heads, queries, dim]; dim a multiple of 16. Query i is token
// held - queries + i and sees itself and what came before, padding left out.
inline void attend(Pool& pool, const AttentionShape& shape, const float* q, const Tokens& keys,
                   const Tokens& values, float* out) {
    using namespace attention;
    const int64_t dim = shape.dim, groups = shape.heads / shape.kv_heads;
    const int64_t rows = groups * shape.queries;  // of one KV head
    const int64_t row_tasks = (rows + kRows - 1) / kRows;
    const int64_t heads = shape.batch * shape.kv_heads;
    const int64_t wanted = (4 * pool.threads() + heads * row_tasks - 1) / (heads * row_tasks);
    const int64_t spans = std::clamp<int64_t>(shape.held / kMinSpan, 1, wanted);
    static std::vector<float> scratch;
    scratch.resize(size_t(spans * heads * rows * (dim + 2)));
    const auto partial = [&](int64_t span, int64_t head, int64_t row) {
        return scratch.data() + ((span * heads + head) * rows + row) * (dim + 2);
    };

    pool.run(spans * heads * row_tasks, [&](int64_t task) {
        const int64_t row_task = task % row_tasks, head = task / row_tasks % heads;
        const int64_t span = task / row_tasks / heads, batch = head / shape.kv_heads;
        const int64_t first_row = row_task * kRows, end_row = std::min(rows, first_row + kRows);
        const int64_t from = shape.held * span / spans, to = shape.held * (span + 1) / spans;
        thread_local std::vector<float> key_tile, value_tile;
        key_tile.resize(size_t(kTile * dim));
        value_tile.resize(size_t(kTile * dim));
        // Row r is query r % queries of head r / queries of the group.
        const float* queries = q + head * rows * dim;
        for (int64_t r = first_row; r < end_row; ++r) {
            float* into = partial(span, head, r);
            into[0] = kLowest;
            std::fill(into + 1, into + dim + 2, 0.0f);
        }
        for (int64_t at = from; at < to; at += kTile) {
            const int64_t count = std::min(kTile, to - at);
            bool converted = false;
            for (int64_t r = first_row; r < end_row; ++r) {
                const Range range = visible(shape, batch, r % shape.queries);
                const int64_t first = std::max(at, range.first);
                const int64_t seen = std::min(at + count, range.end) - first;
                if (seen <= 0) continue;
                if (!converted) {
                    to_float(keys, head * keys.head_stride + at * dim, count * dim, key_tile.data());
                    to_float(values, head * values.head_stride + at * dim, count * dim,
                             value_tile.data());
                    converted = true;
                }
                float* into = partial(span, head, r);
                Partial row{into[0], into[1], into + 2};
                const int64_t skip = (first - at) * dim;
                add_tile(queries + r * dim, key_tile.data() + skip, value_tile.data() + skip, dim,
                         seen, shape.scale, row);
                into[0] = row.top;
                into[1] = row.total;
            }
        }
    });

    const auto merge = [&](int64_t head) {
        for (int64_t r = 0; r < rows; ++r) {
            float top = kLowest, total = 0;
            for (int64_t s = 0; s < spans; ++s) top = std::max(top, partial(s, head, r)[0]);
            float* to = out + (head * rows + r) * dim;
            std::fill(to, to + dim, 0.0f);
            for (int64_t s = 0; s < spans; ++s) {
                const float* from = partial(s, head, r);
                const float weight = from[1] > 0 ? exp_below(from[0] - top) : 0.0f;
                total += weight * from[1];
                for (int64_t d = 0; d < dim; ++d) to[d] += weight * from[2 + d];
            }
            for (int64_t d = 0; d < dim; ++d) to[d] /= total;
        }
    };
    // Waking another thread costs more than merging a few rows.
    if (heads * rows * spans < kFewPartials)
        for (int64_t head = 0; head < heads; ++head) merge(head);
    else
        pool.run(heads, merge);
}

}  // namespace ember
