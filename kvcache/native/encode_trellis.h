// Viterbi's search for the codes of trellis-coded blocks, as kvcache/codecs/trellis.py makes it:
// 16 tokens at a time, as lanes, so that a step of the search is the same for all.
#pragma once

#include "draft.h"

namespace ember {

namespace trellis {

constexpr int64_t kStates = 32, kSeam = 32;
constexpr int kSubsets = 4;
constexpr float kClips[] = {1.0f, 0.9f, 0.8f, 0.7f, 0.55f};

// Bits 1 and 0 of the level's index, for the state before a channel and the bit chosen there.
constexpr int subset_of(int state, int bit) {
    const int reg = state << 1 | bit;
    return ((reg ^ reg >> 2 ^ reg >> 5) & 1) << 1 | (reg >> 3 & 1);
}

inline Vector least(Vector a, Vector b) {
#if defined(__AVX512F__)
    return reinterpret_cast<Vector>(
        _mm512_min_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#else
    return smaller(a, b);
#endif
}

// Of 16 tokens: the squared distance of a channel to each subset of levels.
template <int kBits>
inline void distances(const float* levels, Vector x, Vector* out) {
    for (int k = 0; k < kSubsets; ++k) {
        Vector nearest = splat(1e30f);
        for (int rest = 0; rest < 1 << (kBits - 1); ++rest) {
            const Vector off = x - levels[rest * kSubsets + k];
            nearest = least(off * off, nearest);
        }
        out[k] = nearest;
    }
}

// One channel further: costs of states before and after it. With `came`, bit s of it says which
// of two states led to s.
template <bool kTraced>
inline void step(const Vector* before, const Vector* costs, Vector* after, Words* came) {
    Words bits = {};
#pragma GCC unroll 16
    for (int i = 0; i < kStates / 2; ++i)
#pragma GCC unroll 2
        for (int bit = 0; bit < 2; ++bit) {
            const int subset = subset_of(i, bit), other = subset_of(i + int(kStates) / 2, bit);
            const Vector low = before[i] + costs[subset];
            const Vector high = before[i + kStates / 2] + costs[other];
            after[2 * i + bit] = least(high, low);
            if constexpr (kTraced)
                bits |= reinterpret_cast<Words>(high < low) & (1u << (2 * i + bit));
        }
    if constexpr (kTraced) *came = bits;
}

// 16 tokens on their way: x [dim][16].
template <int kBits>
class Search {
  public:
    Search(const float* levels, int64_t dim)
        : levels_(levels), dim_(dim), x_(size_t(dim)), came_(size_t(std::max(dim, 2 * kSeam))) {}

    Vector* x() { return x_.data(); }

    // The squared error of the nearest path, whatever it ends in.
    Vector cost(Vector scale) {
        begin(Vector{});
        walk<false>(scale, 0, dim_);
        return top().cost;
    }

    // f(channel, subset, x / scale) of the path that is found, from the last channel to the first.
    template <typename F>
    void find(Vector scale, const F& f) {
        begin(Vector{});
        walk<true>(scale, -kSeam, kSeam);
        const Words state = trace(top().state, kSeam, 2 * kSeam, [](int64_t, Words) {});
        begin(splat(INFINITY));
        for (int64_t s = 0; s < kStates; ++s)
            costs_[s] = reinterpret_cast<Integers>(state) == int32_t(s) ? Vector{} : costs_[s];
        walk<true>(scale, 0, dim_);
        trace(state, 0, dim_, [&](int64_t d, Words subset) { f(d, subset, x_[d] / scale); });
    }

  private:
    struct Top {
        Vector cost;
        Words state;
    };

    void begin(Vector cost) { std::fill(costs_, costs_ + kStates, cost); }

    template <bool kTraced>
    void walk(Vector scale, int64_t first, int64_t end) {
        Vector after[kStates], near[kSubsets];
        for (int64_t i = 0; i < end - first; ++i) {
            distances<kBits>(levels_, x_[((first + i) % dim_ + dim_) % dim_] / scale, near);
            step<kTraced>(costs_, near, after, &came_[i]);
            std::copy(after, after + kStates, costs_);
        }
    }

    Top top() const {
        Top top = {costs_[0], {}};
        for (int64_t s = 1; s < kStates; ++s) {
            const auto less = costs_[s] < top.cost;
            top.state = less ? Words{} + uint32_t(s) : top.state;
            top.cost = less ? costs_[s] : top.cost;
        }
        return top;
    }

    // From `state`, after step end - 1, back to before step `first`, which is returned.
    template <typename F>
    Words trace(Words state, int64_t first, int64_t end, const F& f) const {
        for (int64_t i = end; i-- > first;) {
            const Words reg = (came_[i] >> state & 1) << 5 | state;
            f(i, ((reg ^ reg >> 2 ^ reg >> 5) & 1) << 1 | (reg >> 3 & 1));
            state = reg >> 1;
        }
        return state;
    }

    const float* levels_;
    const int64_t dim_;
    std::vector<Vector> x_;
    std::vector<Words> came_;
    Vector costs_[kStates];
};

template <int kBits>
inline void encode(const Draft& draft) {
    alignas(64) float table[kTrellisLevels] = {};
    all_levels(kBits, draft.form.table, table);
    const int64_t dim = draft.dim();
    uint16_t* scales = draft.form.halves(draft.record, draft.form.token_scales);
    Search<kBits> search(table, dim);
    for (int64_t t = 0; t < draft.tokens(); t += kLanes) {
        Vector *x = search.x(), largest = {}, length = {}, along = {};
        for (int64_t c = 0; c < dim; c += kLanes) {
            for (int64_t i = 0; i < kLanes; ++i) x[c + i] = load(draft.row(t + i) + c);
            transpose(x + c);
        }
        for (int64_t c = 0; c < dim; ++c) {
            largest = larger(magnitude(x[c]), largest);
            length += x[c] * x[c];
        }
        largest /= table[(2 << kBits) - 1];
        Vector scale = largest, cost = splat(INFINITY);
        for (const float clip : kClips) {
            const Vector found = search.cost(nonzero(largest * clip)) * (clip * clip);
            scale = found < cost ? largest * clip : scale;
            cost = smaller(found, cost);
        }
        search.find(nonzero(scale), [&](int64_t c, Words subset, Vector near) {
            Words rest = {};
            for (uint32_t i = 1; i < 1u << (kBits - 1); ++i) {
                const Words above = subset + kSubsets * i;
                const Vector middle =
                    (lookup_32(table, above) + lookup_32(table, above - kSubsets)) / 2;
                rest -= reinterpret_cast<Words>(near > middle);
            }
            along += x[c] * lookup_32(table, rest << 2 | subset);
            const Words codes = rest << 1 | (subset & 1);
            for (int64_t i = 0; i < kLanes; ++i) draft.codes_of(t + i)[c] = uint8_t(codes[i]);
        });
        store_halves(scales + t, unbiased(along, length));
    }
}

}  // namespace trellis

inline void encode_trellis(const Draft& draft) {
    with_trellis_bits(draft.form.bits, [&](auto bits) { trellis::encode<bits>(draft); });
}

}  // namespace ember
