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

// The weights of one layer, and what it does with them.
struct LayerWeights {
    Inputs inputs;
    Addition output;
    FeedForward feed_forward;
};

// New tokens behind those of the `count` caches of a layer, with as many rows each.
struct Steps {
    const TierStep* each;
    int64_t count;
};

// x [batch, length, hidden] through one layer, in place. False, with nothing changed, where the
// caches refuse a key or value.
inline bool run_layer(const Steps& steps, const LayerWeights& w, const TierMemory* const* memories,
                      Turns& turns, float* x) {
    static std::vector<float> q, k, v, seen, merged;
    const TierStep& step = *steps.each;
    const Sequences of = turns.of();
    q.resize(size_t(steps.count * step.query_size()));
    k.resize(size_t(steps.count * step.key_size()));
    v.resize(k.size());
    seen.resize(q.size());
    merged.resize(q.size());
    attention_inputs(x, w.inputs, turns, q.data(), k.data(), v.data());
    if (!attend_tiers(steps.each, memories, steps.count, q.data(), k.data(), v.data(),
                      seen.data()))
        return false;
    merge_heads(seen.data(), of.count, of.length, step.heads, step.dim, merged.data());
    add(merged.data(), of, w.output, x, x);
    feed_forward(x, of, w.feed_forward, x);
    return true;
}

}  // namespace ember
