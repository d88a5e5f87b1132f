// The tiers of one layer in memory, and what a call over them is told; no code, so that a network
// can be compiled without the kernels that it calls.
#pragma once

#include "unencoded.h"

namespace ember {

struct BlockForm;

// Unencoded keys and values in a ring: token number u lies at u mod capacity.
struct Ring {
    Strided keys, values;
    int64_t capacity;
};

// The memory of one layer. Cold blocks are tokens in the ring `unencoded`, or, where its capacity
// is 0, records [batch, kv_heads], whose addresses repeat after `slots`.
struct TierMemory {
    Ring pinned, hot, unencoded;
    const BlockForm* key_form;
    const BlockForm* value_form;
    uint8_t* const* keys;
    uint8_t* const* values;
};

// The last `queries` of the tokens held and of `length` new ones behind them, alike in all layers.
// finite: refuse new keys and values that are not. Query i of row b meets pinned tokens turned back
// by gone[i] positions, pair p by gone[i] / periods[p], where pairs lie side by side or, if apart,
// `pairs` from each other; it sees unpinned ones from lowest[b * lowest_stride + i] up to itself.
// Where the tokens are, before and after the new ones: see ledger.py; the token of number 0 stands
// at `start`.
struct TierStep {
    int64_t batch, queries, length, heads, kv_heads, dim;
    float scale;
    int32_t finite;
    const double* periods;
    int64_t pairs;
    int32_t apart;
    const int64_t *gone, *lowest;
    int64_t lowest_stride;
    int64_t pinned, start, block, slots;
    int64_t total, first, end;
    int64_t next_first, next_end;

    // Tokens, the new ones among them.
    int64_t held() const {
        return (total < pinned ? total : pinned + total - start - first * block) + length;
    }
    int64_t position() const { return total + length - queries; }  // of the first query
    int64_t query_size() const { return batch * heads * queries * dim; }
    int64_t key_size() const { return batch * kv_heads * length * dim; }
};

// The tiers of `count` caches of one layer, each with a step of its own, alike but for lowest, gone
// and where tokens are. q [count, batch, heads, length, dim] attends to them and to the new k and v
// [count, batch, kv_heads, length, dim], which are then appended. 0, with nothing changed, where a
// key or value is refused.
using AttendTiers = int32_t(const TierStep* steps, const TierMemory* const* memories,
                            int64_t count, const float* q, const float* k, const float* v,
                            float* out);

}  // namespace ember
