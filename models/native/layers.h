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

// New tokens from position `offset` on, behind those of `count` caches with as many rows each.
struct Steps {
    const TierStep* each;
    int64_t count, offset;
};

// x [batch, length, hidden] through one layer, in place. False, with nothing changed, where the
// caches refuse a key or value.
inline bool run_layer(const Steps& steps, const Rope& rope, const LayerWeights& w,
                      const TierMemory* const* memories, float* x) {
    static std::vector<float> q, k, v, seen, merged;
    const TierStep& step = *steps.each;
    const int64_t batch = steps.count * step.batch, rows = batch * step.length;
    q.resize(size_t(steps.count * step.query_size()));
    k.resize(size_t(steps.count * step.key_size()));
    v.resize(k.size());
    seen.resize(q.size());
    merged.resize(q.size());
    attention_inputs(x, batch, step.length, w.attention_norm, w.attention_eps, *w.q, *w.k, *w.v,
                     step.dim, rope.periods, rope.pairs, steps.offset, q.data(), k.data(),
                     v.data());
    if (!attend_tiers(steps.each, memories, steps.count, q.data(), k.data(), v.data(),
                      seen.data()))
        return false;
    merge_heads(seen.data(), batch, step.length, step.heads, step.dim, merged.data());
    linear_add(merged.data(), rows, *w.output, x, x);
    feed_forward(x, rows, w.mlp_norm, w.mlp_eps, *w.gate, *w.up, *w.down, x);
    return true;
}

}  // namespace ember
