// From a record to a float tile (see unencoded.h), in the codec's basis.
#pragma once

#include "coding.h"

namespace ember {

// Tokens [first, first + count) of a block of keys to [dim][kTile]; first and count multiples of
// 16.
inline void decode_keys(const BlockForm& form, const uint8_t* record, int64_t first, int64_t count,
                        float* tile) {
    if (form.family == Family::kUnencoded)
        return load_transposed({record, form.dim, Element::kHalf}, first, count, form.dim, tile);
    form.coding->decode_keys(form, record, first, count, tile);
}

// Tokens [first, first + count) of a block of values to [count][dim]; first and count multiples
// of a run.
inline void decode_values(const BlockForm& form, const uint8_t* record, int64_t first,
                          int64_t count, float* tile) {
    if (form.family == Family::kUnencoded)
        return load_tokens({record, form.dim, Element::kHalf}, first, count, form.dim, tile);
    form.coding->decode_values(form, record, first, count, tile);
}

// A whole block in rows of channels, rotation undone: out [tokens, dim]. scratch holds
// dim * kTile + tokens * dim floats.
inline void decode_block(const BlockForm& form, const uint8_t* record, int64_t head,
                         float* scratch, float* out) {
    const int64_t dim = form.dim, tokens = form.tokens;
    float* rows = scratch + dim * kTile;
    if (form.role == Role::kValues) {
        decode_values(form, record, 0, tokens, rows);
    } else {
        for (int64_t first = 0; first < tokens; first += kTile) {
            const int64_t count = std::min(kTile, tokens - first);
            decode_keys(form, record, first, count, scratch);
            for (int64_t t = 0; t < count; ++t)
                for (int64_t d = 0; d < dim; ++d)
                    rows[(first + t) * dim + d] = scratch[d * kTile + t];
        }
    }
    if (!form.signs) {
        std::copy(rows, rows + tokens * dim, out);
        return;
    }
    multiply({rows, dim}, tokens, {form.inverse, dim}, dim, dim, {out, dim});
    for (int64_t t = 0; t < tokens; ++t)
        for (int64_t d = 0; d < dim; d += kLanes)
            store(out + t * dim + d, load(out + t * dim + d) * load(form.signs + head * dim + d));
}

}  // namespace ember
