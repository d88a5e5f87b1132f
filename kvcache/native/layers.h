// All layers of a network over the tiers of a cache, in one call.
//
// What Python would do step by step for each layer: attention inputs, attention over the tiers as
// they are and over the new tokens, append, feed-forward. For one token these steps are so short
// that calling them one by one costs as much as they do.
#pragma once

#include "attention.h"
#include "encode.h"
#include "steps.h"

namespace ember {

// Weights of one layer.
struct LayerWeights {
    const float *attention_norm, *mlp_norm;
    float attention_eps, mlp_eps;
    const Weight *q, *k, *v, *output, *gate, *up, *down;
};

// Unencoded keys and values in a ring: token number u lies at u mod capacity.
struct Ring {
    Strided keys, values;
    int64_t capacity;
};

// The memory of one layer. Cold blocks are tokens in the ring `plain`, or, where its capacity is
// 0, records, whose addresses repeat after `slots`.
struct TierMemory {
    Ring pinned, hot, plain;
    const BlockForm* key_form;
    const BlockForm* value_form;
    uint8_t* const* keys;
    uint8_t* const* values;
};

// Where the tokens are, before and after the new ones: see ledger.py. The token of number 0
// stands at `start`.
struct TierState {
    int64_t pinned, start, block, slots;
    int64_t total, first, end;
    int64_t next_first, next_end;
};

// What all layers share. Row i meets pinned tokens turned back by gone[i] positions, and sees
// unpinned ones from lowest[i] on.
struct LayersShape {
    int64_t batch, length, heads, kv_heads, dim;
    float scale;
    const double* periods;
    int64_t pairs;
    const int64_t *lowest, *gone;
};

inline int64_t size_of(Element element) { return element == Element::kFloat ? 4 : 2; }

inline char* token_of(const Strided& all, int64_t batch, int64_t head, int64_t token) {
    const HeadTokens of_head = head_of(all, batch, head);
    return (char*)of_head.data + token * of_head.token_stride * size_of(all.element);
}

// Whether every number is finite and within what the element holds.
inline bool fits(const std::vector<float>& x, Element element) {
    const float most = element == Element::kHalf     ? kLargestHalf
                       : element == Element::kBfloat ? 3.3895314e38f
                                                     : std::numeric_limits<float>::max();
    // A comparison with NaN is false.
    for (float value : x)
        if (!(std::abs(value) <= most)) return false;
    return true;
}

// Tokens [batch, kv_heads, length, dim] of keys and values, side by side.
class NewTokens {
  public:
    void resize(const LayersShape& shape, int64_t length, Element element) {
        const int64_t head = length * shape.dim;
        for (int i = 0; i < 2; ++i) {
            auto& memory = memory_[i];
            memory.resize(size_t(shape.batch * shape.kv_heads * head * size_of(element)));
            (i ? values : keys) = {memory.data(), shape.kv_heads * head, head, shape.dim, element};
        }
    }

    // From floats in the same order.
    void assign(const LayersShape& shape, Element element, const std::vector<float>& k,
                const std::vector<float>& v) {
        resize(shape, shape.length, element);
        narrow(k, element, memory_[0].data());
        narrow(v, element, memory_[1].data());
    }

    Strided keys, values;

  private:
    static void narrow(const std::vector<float>& from, Element element, void* to) {
        if (element == Element::kFloat) {
            std::memcpy(to, from.data(), from.size() * sizeof(float));
            return;
        }
        auto* out = static_cast<uint16_t*>(to);
        for (size_t i = 0; i < from.size(); ++i)
            out[i] = element == Element::kHalf ? float_to_half(from[i]) : float_to_bfloat(from[i]);
    }

    std::vector<uint8_t> memory_[2];
};

// One layer's tiers, as one call of attention and the append after it see them.
class Tiers {
  public:
    Tiers(const TierMemory& memory, const TierState& state, const LayersShape& shape)
        : memory_(memory), state_(state), shape_(shape) {}

    Element element() const { return memory_.hot.keys.element; }

    std::vector<Piece> pieces(const NewTokens& fresh) const {
        std::vector<Piece> pieces;
        const int64_t block = state_.block, cold = state_.end - state_.first;
        add_ring(memory_.pinned, 0, std::min(state_.total, state_.pinned), 0, true, pieces);
        if (memory_.plain.capacity)
            add_ring(memory_.plain, state_.first * block, cold * block,
                     state_.start + state_.first * block, false, pieces);
        const int64_t hot_start = state_.start + state_.end * block;
        add_ring(memory_.hot, state_.end * block, state_.total - hot_start, hot_start, false,
                 pieces);
        pieces.push_back({fresh.keys, fresh.values, shape_.length, state_.total, false});
        return pieces;
    }

    Blocks blocks() const {
        if (memory_.plain.capacity || state_.first == state_.end) return {};
        const int64_t at = state_.first % state_.slots;
        return {memory_.key_form, memory_.value_form, memory_.keys + at, memory_.values + at,
                state_.end - state_.first, state_.start + state_.first * state_.block};
    }

    // Write the new tokens, and encode the blocks that leave the hot ring.
    void append(const NewTokens& fresh) const {
        const int64_t sinks = std::clamp<int64_t>(state_.pinned - state_.total, 0, shape_.length);
        put(memory_.pinned, state_.total, fresh, 0, sinks);
        const int64_t number = std::max<int64_t>(0, state_.total - state_.start);
        for (int64_t b = std::max(state_.end, state_.next_first); b < state_.next_end; ++b)
            migrate(b, fresh, sinks, number);
        const int64_t stays = std::max(number, state_.next_end * state_.block);
        const int64_t first = sinks + stays - number;
        if (first < shape_.length) put(memory_.hot, stays, fresh, first, shape_.length - first);
    }

  private:
    static void add_ring(const Ring& ring, int64_t number, int64_t count, int64_t position,
                         bool pinned, std::vector<Piece>& pieces) {
        for (int64_t done = 0, run; done < count; done += run) {
            const int64_t at = (number + done) % ring.capacity;
            run = std::min(count - done, ring.capacity - at);
            Piece piece{ring.keys, ring.values, run, position + done, pinned};
            piece.keys.data = token_of(ring.keys, 0, 0, at);
            piece.values.data = token_of(ring.values, 0, 0, at);
            pieces.push_back(piece);
        }
    }

    template <typename F>
    void each_head(const F& f) const {
        for (int64_t b = 0; b < shape_.batch; ++b)
            for (int64_t h = 0; h < shape_.kv_heads; ++h) f(b, h);
    }

    void copy(const Strided& to, int64_t at, const Strided& from, int64_t first) const {
        const size_t bytes = size_t(shape_.dim * size_of(to.element));
        each_head([&](int64_t b, int64_t h) {
            std::memcpy(token_of(to, b, h, at), token_of(from, b, h, first), bytes);
        });
    }

    // Tokens [first, first + count) of a run to the numbers from `number` of a ring.
    void put(const Ring& ring, int64_t number, const NewTokens& from, int64_t first,
             int64_t count) const {
        for (int64_t i = 0; i < count; ++i) {
            const int64_t at = (number + i) % ring.capacity;
            copy(ring.keys, at, from.keys, first + i);
            copy(ring.values, at, from.values, first + i);
        }
    }

    // Block `b`, of hot tokens and, from `number` on, of new ones, to the cold ring.
    void migrate(int64_t b, const NewTokens& fresh, int64_t sinks, int64_t number) const {
        static NewTokens leaving;
        leaving.resize(shape_, state_.block, element());
        for (int64_t i = 0; i < state_.block; ++i) {
            const int64_t u = b * state_.block + i, at = u % std::max<int64_t>(1, memory_.hot.capacity);
            const bool is_new = u >= number;
            copy(leaving.keys, i, is_new ? fresh.keys : memory_.hot.keys,
                 is_new ? sinks + u - number : at);
            copy(leaving.values, i, is_new ? fresh.values : memory_.hot.values,
                 is_new ? sinks + u - number : at);
        }
        if (memory_.plain.capacity)
            return put(memory_.plain, b * state_.block, leaving, 0, state_.block);
        const int64_t slot = b % state_.slots, heads = shape_.batch * shape_.kv_heads;
        pool->run(2 * heads, [&](int64_t task) {
            const int64_t batch = task / 2 / shape_.kv_heads, head = task / 2 % shape_.kv_heads;
            const bool keys = task % 2 == 0;
            const BlockForm& form = keys ? *memory_.key_form : *memory_.value_form;
            uint8_t* records = (keys ? memory_.keys : memory_.values)[slot];
            encode_block(form, head_of(keys ? leaving.keys : leaving.values, batch, head), 0, head,
                         records + task / 2 * form.record_bytes);
        });
    }

    const TierMemory& memory_;
    const TierState& state_;
    const LayersShape& shape_;
};

// q [batch, heads, length, dim] turned back by gone[i] positions in row i.
inline void turn_back(const LayersShape& shape, const std::vector<float>& q,
                      std::vector<float>& out) {
    out = q;
    for (int64_t i = 0; i < shape.length; ++i) {
        if (!shape.gone[i]) continue;
        for (int64_t p = 0; p < shape.pairs; ++p) {
            const double angle = -double(shape.gone[i]) / shape.periods[p];
            const float c = float(std::cos(angle)), s = float(std::sin(angle));
            for (int64_t h = 0; h < shape.batch * shape.heads; ++h) {
                const size_t at = size_t((h * shape.length + i) * shape.dim + 2 * p);
                out[at] = q[at] * c - q[at + 1] * s;
                out[at + 1] = q[at] * s + q[at + 1] * c;
            }
        }
    }
}

// x [batch, length, hidden] through one layer, in place. False, with nothing changed, where a key
// or value is not finite in the tiers' element.
inline bool run_layer(const LayersShape& shape, const LayerWeights& w, const TierMemory& memory,
                      const TierState& state, bool checked, float* x) {
    static std::vector<float> q, k, v, sinks, seen, merged;
    static NewTokens fresh;
    const int64_t rows = shape.batch * shape.length, size = rows * shape.dim;
    q.resize(size_t(size * shape.heads));
    k.resize(size_t(size * shape.kv_heads));
    v.resize(k.size());
    seen.resize(q.size());
    merged.resize(q.size());
    attention_inputs(x, shape.batch, shape.length, w.attention_norm, w.attention_eps, *w.q, *w.k,
                     *w.v, shape.dim, shape.periods, shape.pairs, state.total, q.data(), k.data(),
                     v.data());
    const Tiers tiers(memory, state, shape);
    if (checked && !(fits(k, tiers.element()) && fits(v, tiers.element()))) return false;
    fresh.assign(shape, tiers.element(), k, v);
    turn_back(shape, q, sinks);
    const std::vector<Piece> pieces = tiers.pieces(fresh);
    const Blocks blocks = tiers.blocks();
    const AttentionShape attended{shape.batch, shape.heads, shape.kv_heads, shape.length,
                                  shape.dim,   state.total, shape.scale,    shape.lowest, 0};
    attention::Attention(*pool, attended, pieces.data(), int64_t(pieces.size()), blocks, q.data(),
                         sinks.data(), seen.data())
        .run();
    tiers.append(fresh);
    merge_heads(seen.data(), shape.batch, shape.length, shape.heads, shape.dim, merged.data());
    linear_add(merged.data(), rows, *w.output, x, x);
    feed_forward(x, rows, w.mlp_norm, w.mlp_eps, *w.gate, *w.up, *w.down, x);
    return true;
}

}  // namespace ember
