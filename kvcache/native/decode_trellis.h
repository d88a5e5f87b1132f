// From a trellis-coded record to a float tile (see unencoded.h), in the codec's basis.
#pragma once

#include "record.h"

namespace ember {

// f(channel, token, 16 channels of it) for tokens [first, first + count).
template <int kBits, typename F>
inline void each_trellis_value(const BlockForm& form, const uint8_t* record, int64_t first,
                               int64_t count, const F& f) {
    const uint16_t* scales = form.halves(record, form.token_scales);
    float all[kTrellisLevels];
    alignas(64) float levels[kTrellisLevels];
    all_levels(kBits, form.table, all);
    for (int i = 0; i < 2 << kBits; ++i) levels[i] = all[ascending(kBits, i)];
    for (int64_t c = 0; c < form.dim; c += kLanes)
        for (int64_t t = first; t < first + count; t += trellis_run(kBits))
            each_trellis_token<kBits>({record, kBits, form.dim, t, c}, levels,
                                      [&](int64_t token, Vector level) {
                                          f(c, t + token,
                                            level * half_to_float(scales[t + token]));
                                      });
}

// To [count][dim]; first and count are multiples of a run.
template <int kBits>
inline void decode_trellis_values(const BlockForm& form, const uint8_t* record, int64_t first,
                                  int64_t count, float* tile) {
    each_trellis_value<kBits>(form, record, first, count, [&](int64_t c, int64_t t, Vector x) {
        store(tile + (t - first) * form.dim + c, x);
    });
}

// To [dim][kTile].
template <int kBits>
inline void decode_trellis_keys(const BlockForm& form, const uint8_t* record, int64_t first,
                                int64_t count, float* tile) {
    Vector rows[kLanes];
    each_trellis_value<kBits>(form, record, first, count, [&](int64_t c, int64_t t, Vector x) {
        rows[t % kLanes] = x;
        if ((t + 1) % kLanes) return;
        transpose(rows);
        for (int64_t i = 0; i < kLanes; ++i)
            store(tile + (c + i) * kTile + t + 1 - kLanes - first, rows[i]);
    });
}

}  // namespace ember
