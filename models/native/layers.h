// All layers of a network over the tiers of its caches, in one call.
//
// What Python would do step by step for each layer: attention inputs, attention, feed-forward.
// For one token these steps are so short that calling them one by one costs as much as they do.
#pragma once

#include "steps.h"
#include "tier_step.h"

namespace ember {

// Lent by the library of the caches.
static AttendTiers* attend_tiers;

// Weights of one layer.
struct LayerWeights {
    const float *attention_norm, *mlp_norm;
    float attention_eps, mlp_eps;
    const Weight *q, *k, *v, *output, *gate, *up, *down;
};

// How heads turn with their positions: pair p by position / periods[p].
struct Rope {
    const double* periods;
    int64_t pairs;
};

// x [batch, length, hidden] through one layer, in place. False, with nothing changed, where the
// cache refuses a key or value.
inline bool run_layer(const TierStep& step, const Rope& rope, const LayerWeights& w,
                      const TierMemory& memory, float* x) {
    static std::vector<float> q, k, v, seen, merged;
    const int64_t rows = step.batch * step.length;
    q.resize(size_t(step.query_size()));
    k.resize(size_t(step.key_size()));
    v.resize(k.size());
    seen.resize(q.size());
    merged.resize(q.size());
    attention_inputs(x, step.batch, step.length, w.attention_norm, w.attention_eps, *w.q, *w.k,
                     *w.v, step.dim, rope.periods, rope.pairs, step.total, q.data(), k.data(),
                     v.data());
    if (!attend_tiers(&step, &memory, q.data(), k.data(), v.data(), seen.data())) return false;
    merge_heads(seen.data(), step.batch, step.length, step.heads, step.dim, merged.data());
    linear_add(merged.data(), rows, *w.output, x, x);
    feed_forward(x, rows, w.mlp_norm, w.mlp_eps, *w.gate, *w.up, *w.down, x);
    return true;
}

}  // namespace ember
