// From a record to a float tile (see dense.h), in the codec's basis.
#pragma once

#include "record.h"

namespace ember {

inline Vector level_of(const BlockForm& form, Words codes) {
    return form.levels ? lookup(form.table, codes) : to_float(codes) - form.centre;
}

// Tokens [first, first + count) of a block of keys to [dim][kTile]; first and count multiples of
// 16.
inline void decode_keys(const BlockForm& form, const uint8_t* record, int64_t first, int64_t count,
                        float* tile) {
    const int64_t dim = form.dim;
    if (form.family == Family::kPlain)
        return load_transposed({record, dim, Element::kHalf}, first, count, dim, tile);
    const uint16_t* channel_scales = form.halves(record, form.channel_scales);
    const uint16_t* channel_zeros = form.halves(record, form.channel_zeros);
    const uint16_t* token_scales = form.halves(record, form.token_scales);
    const uint16_t* token_zeros = form.halves(record, form.token_zeros);
    for (int64_t t = first; t < first + count; t += kLanes) {
        const uint8_t* codes = record + keys_at(form.bits, dim, t);
        // Scales of a token lie side by side, so those of one group are `groups` apart.
        const auto of_tokens = [&](const uint16_t* halves, int64_t group) {
            float wide[kLanes];
            for (int64_t i = 0; i < kLanes; ++i)
                wide[i] = half_to_float(halves[(t + i) * form.groups() + group]);
            return load(wide);
        };
        for (int64_t group = 0; group < form.groups(); ++group) {
            const Vector scale = token_scales ? of_tokens(token_scales, group) : splat(1);
            const Vector zero = token_zeros ? of_tokens(token_zeros, group) : Vector{};
            for (int64_t c = group * form.group; c < (group + 1) * form.group; ++c) {
                Vector x = level_of(form, key_codes(codes, form.bits, dim, c)) * scale;
                if (channel_scales) x *= half_to_float(channel_scales[c]);
                x += zero;
                if (channel_zeros) x += half_to_float(channel_zeros[c]);
                store(tile + c * kTile + t - first, x);
            }
        }
    }
}

// Tokens [first, first + count) of a block of values to [count][dim].
inline void decode_values(const BlockForm& form, const uint8_t* record, int64_t first,
                          int64_t count, float* tile) {
    const int64_t dim = form.dim;
    if (form.family == Family::kPlain)
        return load_tokens({record, dim, Element::kHalf}, first, count, dim, tile);
    const uint16_t* channel_scales = form.halves(record, form.channel_scales);
    const uint16_t* channel_zeros = form.halves(record, form.channel_zeros);
    const uint16_t* token_scales = form.halves(record, form.token_scales);
    const uint16_t* token_zeros = form.halves(record, form.token_zeros);
    for (int64_t t = first; t < first + count; ++t) {
        const int64_t in_run = t % run_of(form.bits).tokens();
        for (int64_t c = 0; c < dim; c += kLanes) {
            const uint8_t* words = record + values_at(form.bits, dim, t - in_run, c);
            const int64_t group = t * form.groups() + c / form.group;
            Vector x = level_of(form, value_codes(words, form.bits, int(in_run)));
            if (token_scales) x *= half_to_float(token_scales[group]);
            if (channel_scales) x *= load_halves(channel_scales + c);
            if (token_zeros) x += half_to_float(token_zeros[group]);
            if (channel_zeros) x += load_halves(channel_zeros + c);
            store(tile + (t - first) * dim + c, x);
        }
    }
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
