// Scales and zeros of a record's tokens, as vectors of tokens.
#pragma once

#include "record.h"

namespace ember {

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

}  // namespace ember
