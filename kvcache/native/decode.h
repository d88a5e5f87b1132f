// From a record to a float tile (see unencoded.h), in the codec's basis.
#pragma once

#include "decode_trellis.h"

namespace ember {

inline Vector level_of(const BlockForm& form, Words codes) {
    return form.levels ? lookup(form.table, codes) : to_float(codes) - form.centre;
}

// Halves [t * groups + group] for a register of tokens t, or `absent`.
inline Native native_halves_of_tokens(const uint16_t* halves, int64_t groups, int64_t group,
                                      float absent) {
    if (!halves) return Native{} + absent;
    if (groups == 1) return load_native_halves(halves);
    uint16_t apart[kNativeLanes];
    for (int64_t t = 0; t < kNativeLanes; ++t) apart[t] = halves[t * groups + group];
    return load_native_halves(apart);
}

// The same for 16 tokens.
inline Vector halves_of_tokens(const uint16_t* halves, int64_t groups, int64_t group,
                               float absent) {
    alignas(64) float wide[kLanes];
    for (int64_t t = 0; t < kLanes; t += kNativeLanes)
        store(wide + t, native_halves_of_tokens(halves ? halves + t * groups : nullptr, groups,
                                                group, absent));
    return load(wide);
}

template <int kBits>
inline void decode_keys(const BlockForm& form, const uint8_t* record, int64_t first, int64_t count,
                        float* tile) {
    const uint16_t* scales = form.halves(record, form.channel_scales);
    const uint16_t* zeros = form.halves(record, form.channel_zeros);
    const uint16_t* token_scales = form.halves(record, form.token_scales);
    const uint16_t* token_zeros = form.halves(record, form.token_zeros);
    const int64_t groups = form.groups(), quads = form.group / kQuad;
    for (int64_t t = first; t < first + count; t += kLanes)
        for (int64_t group = 0; group < groups; ++group) {
            const Vector scale = halves_of_tokens(
                token_scales ? token_scales + t * groups : nullptr, groups, group, 1);
            const Vector zero = halves_of_tokens(
                token_zeros ? token_zeros + t * groups : nullptr, groups, group, 0);
            for (int64_t quad = group * quads; quad < (group + 1) * quads; quad += kQuad)
                each_key_quad<kBits>(
                    record + keys_at(kBits, form.dim, t), form.dim, quad, [&](int j, Words four) {
                        for (int i = 0; i < kQuad; ++i) {
                            const int64_t c = (quad + j) * kQuad + i;
                            Vector x = level_of(form, four >> uint32_t(8 * i) & 255);
                            const float factor = scales ? half_to_float(scales[c]) : 1;
                            const float base = zeros ? half_to_float(zeros[c]) : 0;
                            x = x * (scale * factor) + (zero + base);
                            store(tile + c * kTile + t - first, x);
                        }
                    });
        }
}

// Tokens [first, first + count) of a block of keys to [dim][kTile]; first and count multiples of
// 16.
inline void decode_keys(const BlockForm& form, const uint8_t* record, int64_t first, int64_t count,
                        float* tile) {
    if (form.family == Family::kUnencoded)
        return load_transposed({record, form.dim, Element::kHalf}, first, count, form.dim, tile);
    if (form.family == Family::kTrellis)
        return decode_trellis_keys(form, record, first, count, tile);
    with_bits(form.bits, [&](auto bits) { decode_keys<bits>(form, record, first, count, tile); });
}

template <int kBits>
inline void decode_values(const BlockForm& form, const uint8_t* record, int64_t first,
                          int64_t count, float* tile) {
    const int64_t dim = form.dim, groups = form.groups();
    const uint16_t* scales = form.halves(record, form.channel_scales);
    const uint16_t* zeros = form.halves(record, form.channel_zeros);
    const uint16_t* token_scales = form.halves(record, form.token_scales);
    const uint16_t* token_zeros = form.halves(record, form.token_zeros);
    for (int64_t c = 0; c < dim; c += kLanes) {
        const Vector scale = scales ? load_halves(scales + c) : splat(1);
        const Vector zero = zeros ? load_halves(zeros + c) : Vector{};
        const auto put = [&](int64_t t, Words codes) {
            const int64_t group = t * groups + c / form.group;
            const float factor = token_scales ? half_to_float(token_scales[group]) : 1;
            const float base = token_zeros ? half_to_float(token_zeros[group]) : 0;
            const Vector x = level_of(form, codes & ((1u << kBits) - 1));
            store(tile + (t - first) * dim + c, x * (scale * factor) + (zero + base));
        };
        for (int64_t t = first; t < first + count; t += run_of(kBits).tokens())
            each_value_pair<kBits>(record + values_at(kBits, dim, t, c),
                                   [&](int token, Words pairs) {
                                       put(t + token, pairs);
                                       put(t + token + 1, pairs >> 16u);
                                   });
    }
}

// Tokens [first, first + count) of a block of values to [count][dim]; first and count multiples
// of a run.
inline void decode_values(const BlockForm& form, const uint8_t* record, int64_t first,
                          int64_t count, float* tile) {
    if (form.family == Family::kUnencoded)
        return load_tokens({record, form.dim, Element::kHalf}, first, count, form.dim, tile);
    if (form.family == Family::kTrellis)
        return decode_trellis_values(form, record, first, count, tile);
    with_bits(form.bits, [&](auto bits) { decode_values<bits>(form, record, first, count, tile); });
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
