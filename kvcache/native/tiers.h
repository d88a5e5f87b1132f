// A step over the tiers of one layer: new queries attend to all that is held and to the new
// tokens, which are then appended.
//
// What `TwoTierKVCache.attend` does, for a network that runs all its layers in one native call.
#pragma once

#include "attention.h"
#include "draft.h"
#include "encode.h"
#include "tier_step.h"

namespace ember {

// Whether every number is finite and within what the element holds.
inline bool fits(const float* x, int64_t count, Element element) {
    const float most = element == Element::kHalf     ? kLargestHalf
                       : element == Element::kBfloat ? 3.3895314e38f
                                                     : std::numeric_limits<float>::max();
    // A comparison with NaN is false.
    for (int64_t i = 0; i < count; ++i)
        if (!(std::abs(x[i]) <= most)) return false;
    return true;
}

// Tokens [batch, kv_heads, length, dim] of keys and values, side by side.
class NewTokens {
  public:
    void resize(const TierStep& step, int64_t length, Element element) {
        const int64_t head = length * step.dim;
        for (int i = 0; i < 2; ++i) {
            auto& memory = memory_[i];
            memory.resize(size_t(step.batch * step.kv_heads * head * size_of(element)));
            (i ? values : keys) = {memory.data(), step.kv_heads * head, head, step.dim, element};
        }
    }

    // From floats in the same order.
    void assign(const TierStep& step, Element element, const float* k, const float* v) {
        resize(step, step.length, element);
        narrow(k, step.key_size(), element, memory_[0].data());
        narrow(v, step.key_size(), element, memory_[1].data());
    }

    Strided keys, values;

  private:
    static void narrow(const float* from, int64_t count, Element element, void* to) {
        if (element == Element::kFloat) {
            std::memcpy(to, from, size_t(count) * sizeof(float));
            return;
        }
        auto* out = static_cast<uint16_t*>(to);
        for (int64_t i = 0; i < count; ++i)
            out[i] = element == Element::kHalf ? float_to_half(from[i]) : float_to_bfloat(from[i]);
    }

    std::vector<uint8_t> memory_[2];
};

// One layer's tiers, as an append sees them.
class Tiers {
  public:
    Tiers(Pool& pool, const TierStep& step, const TierMemory& memory)
        : pool_(pool), step_(step), memory_(memory) {}

    Element element() const { return memory_.hot.keys.element; }

    // Write the new tokens, and encode the blocks that leave the hot ring.
    void append(const NewTokens& fresh) const {
        const int64_t pinned = std::clamp<int64_t>(step_.pinned - step_.total, 0, step_.length);
        put(memory_.pinned, step_.total, fresh, 0, pinned);
        const int64_t number = std::max<int64_t>(0, step_.total - step_.start);
        for (int64_t b = std::max(step_.end, step_.next_first); b < step_.next_end; ++b)
            migrate(b, fresh, pinned, number);
        const int64_t stays = std::max(number, step_.next_end * step_.block);
        const int64_t first = pinned + stays - number;
        if (first < step_.length) put(memory_.hot, stays, fresh, first, step_.length - first);
    }

  private:
    template <typename F>
    void each_head(const F& f) const {
        for (int64_t b = 0; b < step_.batch; ++b)
            for (int64_t h = 0; h < step_.kv_heads; ++h) f(b, h);
    }

    void copy(const Strided& to, int64_t at, const Strided& from, int64_t first) const {
        const size_t bytes = size_t(step_.dim * size_of(to.element));
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
    void migrate(int64_t b, const NewTokens& fresh, int64_t pinned, int64_t number) const {
        thread_local NewTokens own;
        NewTokens& leaving = own;  // of this thread, also in its tasks
        leaving.resize(step_, step_.block, element());
        for (int64_t i = 0; i < step_.block; ++i) {
            const int64_t u = b * step_.block + i;
            const int64_t at = u % std::max<int64_t>(1, memory_.hot.capacity);
            const bool is_new = u >= number;
            copy(leaving.keys, i, is_new ? fresh.keys : memory_.hot.keys,
                 is_new ? pinned + u - number : at);
            copy(leaving.values, i, is_new ? fresh.values : memory_.hot.values,
                 is_new ? pinned + u - number : at);
        }
        if (memory_.unencoded.capacity)
            return put(memory_.unencoded, b * step_.block, leaving, 0, step_.block);
        const int64_t slot = b % step_.slots, heads = step_.batch * step_.kv_heads;
        pool_.run(2 * heads, [&](int64_t task) {
            const int64_t batch = task / 2 / step_.kv_heads, head = task / 2 % step_.kv_heads;
            const bool keys = task % 2 == 0;
            const BlockForm& form = keys ? *memory_.key_form : *memory_.value_form;
            uint8_t* records = (keys ? memory_.keys : memory_.values)[slot];
            encode_block(form, head_of(keys ? leaving.keys : leaving.values, batch, head), 0, head,
                         records + task / 2 * form.record_bytes);
        });
    }

    Pool& pool_;
    const TierStep& step_;
    const TierMemory& memory_;
};

// q [batch, heads, queries, dim] as it meets pinned tokens: turned back by gone[i] in row i.
inline const float* turned_back(const TierStep& step, const float* q) {
    thread_local std::vector<float> out;
    // What was let go stays so: the last query has most behind it.
    if (!step.pairs || !step.queries || !step.gone[step.queries - 1]) return q;
    out.assign(q, q + step.query_size());
    const int64_t from = step.apart ? 1 : 2, to = step.apart ? step.pairs : 1;
    for (int64_t i = 0; i < step.queries; ++i)
        for (int64_t p = 0; p < step.pairs; ++p) {
            const double angle = -double(step.gone[i]) / step.periods[p];
            const float c = float(std::cos(angle)), s = float(std::sin(angle));
            for (int64_t h = 0; h < step.batch * step.heads; ++h) {
                const size_t at = size_t((h * step.queries + i) * step.dim + from * p);
                const size_t other = at + size_t(to);
                out[at] = q[at] * c - q[other] * s;
                out[other] = q[at] * s + q[other] * c;
            }
        }
    return out.data();
}

// See ember_attend.
inline void attend(Pool& pool, const TierStep& step, const TierMemory& memory, const Strided& keys,
                   const Strided& values, const float* q, float* out) {
    attention::Attention(pool, step, memory, keys, values, q, turned_back(step, q), out).run();
}

// Up to so many new tokens come one by one where none of them makes a block leave the hot ring.
constexpr int64_t kFewTokens = 8;

inline bool come_one_by_one(const TierStep& step) {
    return step.length > 1 && step.length <= kFewTokens && step.queries == step.length &&
           step.next_end == step.end;
}

// Token i of x [heads, length, dim], side by side.
inline const float* token_rows(const float* x, int64_t heads, const TierStep& step, int64_t i,
                               std::vector<float>& into) {
    into.resize(size_t(heads * step.dim));
    for (int64_t h = 0; h < heads; ++h)
        std::copy_n(x + (h * step.length + i) * step.dim, step.dim, &into[size_t(h * step.dim)]);
    return into.data();
}

// Each new token attends and is appended before the next: what they give together is what they
// give alone, to the last bit, so that drafts of an answer can be tried without changing it.
inline void attend_one_by_one(Pool& pool, const TierStep& step, const TierMemory& memory,
                              const float* q, const float* k, const float* v, float* out) {
    thread_local NewTokens fresh;
    thread_local std::vector<float> queries, keys, values, seen;
    const int64_t heads = step.batch * step.heads, kv_heads = step.batch * step.kv_heads;
    seen.resize(size_t(heads * step.dim));
    for (int64_t i = 0; i < step.length; ++i) {
        TierStep one = step;
        one.queries = one.length = 1;
        one.gone += i;
        one.lowest += i;
        one.total += i;
        const Tiers tiers(pool, one, memory);
        fresh.assign(one, tiers.element(), token_rows(k, kv_heads, step, i, keys),
                     token_rows(v, kv_heads, step, i, values));
        attend(pool, one, memory, fresh.keys, fresh.values, token_rows(q, heads, step, i, queries),
               seen.data());
        for (int64_t h = 0; h < heads; ++h)
            std::copy_n(&seen[size_t(h * step.dim)], step.dim,
                        out + (h * step.length + i) * step.dim);
        tiers.append(fresh);
    }
}

// New tokens attend to all that is held, and are appended.
inline void attend_then_append(Pool& pool, const TierStep& step, const TierMemory& memory,
                               const float* q, const float* k, const float* v, float* out) {
    thread_local NewTokens fresh;
    const Tiers tiers(pool, step, memory);
    fresh.assign(step, tiers.element(), k, v);
    attend(pool, step, memory, fresh.keys, fresh.values, q, out);
    tiers.append(fresh);
}

// Call row(i) for each of `count` caches: side by side, a thread each, but for those that hold more
// than a thread's share of all tokens, on which all threads work together.
template <typename F>
inline void each_row(Pool& pool, const TierStep* steps, int64_t count, const F& row) {
    int64_t all = 0;
    for (int64_t i = 0; i < count; ++i) all += steps[i].held();
    std::vector<int64_t> beside;
    for (int64_t i = 0; i < count; ++i)
        if (steps[i].held() * pool.threads() > all)
            row(i);
        else
            beside.push_back(i);
    pool.run(int64_t(beside.size()), [&](int64_t at) { row(beside[size_t(at)]); });
}

// See AttendTiers.
inline bool attend_and_append(Pool& pool, const TierStep* steps, const TierMemory* const* memories,
                              int64_t count, const float* q, const float* k, const float* v,
                              float* out) {
    const int64_t queries = steps->query_size(), keys = steps->key_size();
    for (int64_t i = 0; i < count; ++i) {
        const Element element = memories[i]->hot.keys.element;
        if (steps[i].finite &&
            !(fits(k + i * keys, keys, element) && fits(v + i * keys, keys, element)))
            return false;
    }
    each_row(pool, steps, count, [&](int64_t i) {
        const auto attend = come_one_by_one(steps[i]) ? attend_one_by_one : attend_then_append;
        attend(pool, steps[i], *memories[i], q + i * queries, k + i * keys, v + i * keys,
               out + i * queries);
    });
    return true;
}

}  // namespace ember
