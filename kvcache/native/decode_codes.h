// From a record's codes of one width to a float tile (see unencoded.h), in the codec's basis.
#pragma once

#include "token_scales.h"

namespace ember {

inline Vector level_of(const BlockForm& form, Words codes) {
    return form.levels ? lookup(form.table, codes) : to_float(codes) - form.centre;
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

}  // namespace ember
