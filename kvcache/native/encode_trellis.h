// Viterbi's search for the codes of trellis-coded blocks, as kvcache/codecs/trellis.py makes it:
// as many tokens at a time as a register has lanes, so that a step of the search is the same for
// all.
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

// As many tokens as a register holds, and numbers below 2^32 of them.
using Bits = uint32_t __attribute__((vector_size(sizeof(Native))));

inline Native same(float x) { return Native{} + x; }

inline Native least(Native a, Native b) {
#if defined(__AVX512F__)
    return reinterpret_cast<Native>(
        _mm512_min_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#elif defined(__AVX__)
    return reinterpret_cast<Native>(
        _mm256_min_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)));
#else
    return a < b ? a : b;
#endif
}

// The squared distance of a channel to each subset of levels.
template <int kBits>
inline void distances(const float* levels, Native x, Native* out) {
    for (int k = 0; k < kSubsets; ++k) {
        Native nearest = same(1e30f);
        for (int rest = 0; rest < 1 << (kBits - 1); ++rest) {
            const Native off = x - levels[rest * kSubsets + k];
            nearest = least(off * off, nearest);
        }
        out[k] = nearest;
    }
}

// One channel further: costs of states before and after it. With `came`, bit s of it says which
// of two states led to s.
template <bool kTraced>
inline void step(const Native* before, const Native* costs, Native* after, Bits* came) {
    Bits bits = {};
#pragma GCC unroll 16
    for (int i = 0; i < kStates / 2; ++i)
#pragma GCC unroll 2
        for (int bit = 0; bit < 2; ++bit) {
            const int subset = subset_of(i, bit), other = subset_of(i + int(kStates) / 2, bit);
            const Native low = before[i] + costs[subset];
            const Native high = before[i + kStates / 2] + costs[other];
            after[2 * i + bit] = least(high, low);
            if constexpr (kTraced)
                bits |= reinterpret_cast<Bits>(high < low) & (1u << (2 * i + bit));
        }
    if constexpr (kTraced) *came = bits;
}

// A register of tokens on their way: x [dim].
template <int kBits>
class Search {
  public:
    Search(const float* levels, int64_t dim)
        : levels_(levels), dim_(dim), x_(size_t(dim)), came_(size_t(std::max(dim, 2 * kSeam))) {}

    Native* x() { return x_.data(); }

    // The squared error of the nearest path, whatever it ends in.
    Native cost(Native scale) {
        begin(Native{});
        walk<false>(scale, 0, dim_);
        return top().cost;
    }

    // f(channel, subset, x / scale) of the path that is found, from the last channel to the first.
    template <typename F>
    void find(Native scale, const F& f) {
        begin(Native{});
        walk<true>(scale, -kSeam, kSeam);
        const Bits state = trace(top().state, kSeam, 2 * kSeam, [](int64_t, Bits) {});
        begin(same(INFINITY));
        for (int64_t s = 0; s < kStates; ++s)
            costs_[s] = state == uint32_t(s) ? Native{} : costs_[s];
        walk<true>(scale, 0, dim_);
        trace(state, 0, dim_, [&](int64_t d, Bits subset) { f(d, subset, x_[d] / scale); });
    }

  private:
    struct Top {
        Native cost;
        Bits state;
    };

    void begin(Native cost) { std::fill(costs_, costs_ + kStates, cost); }

    template <bool kTraced>
    void walk(Native scale, int64_t first, int64_t end) {
        Native after[kStates], near[kSubsets];
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
            top.state = less ? Bits{} + uint32_t(s) : top.state;
            top.cost = less ? costs_[s] : top.cost;
        }
        return top;
    }

    // From `state`, after step end - 1, back to before step `first`, which is returned.
    template <typename F>
    Bits trace(Bits state, int64_t first, int64_t end, const F& f) const {
        for (int64_t i = end; i-- > first;) {
            const Bits reg = (came_[i] >> state & 1) << 5 | state;
            f(i, ((reg ^ reg >> 2 ^ reg >> 5) & 1) << 1 | (reg >> 3 & 1));
            state = reg >> 1;
        }
        return state;
    }

    const float* levels_;
    const int64_t dim_;
    std::vector<Native> x_;
    std::vector<Bits> came_;
    Native costs_[kStates];
};

// table[i] for each i < 32
inline Native levels_at(const float* table, Bits i) {
#if defined(__AVX512F__)
    return lookup_32(table, i);
#else
    Native found;
    for (int lane = 0; lane < kNativeLanes; ++lane) found[lane] = table[i[lane]];
    return found;
#endif
}

template <int kBits>
inline void encode(const Draft& draft) {
    alignas(64) float table[kTrellisLevels] = {};
    all_levels(kBits, draft.form.table, table);
    const int64_t dim = draft.dim();
    uint16_t* scales = draft.form.halves(draft.record, draft.form.token_scales);
    Search<kBits> search(table, dim);
    for (int64_t t = 0; t < draft.tokens(); t += kNativeLanes) {
        Native *x = search.x(), largest = {}, length = {}, along = {};
        for (int64_t c = 0; c < dim; ++c) {
            for (int64_t i = 0; i < kNativeLanes; ++i) x[c][i] = draft.row(t + i)[c];
            const Native size = x[c] < 0 ? -x[c] : x[c];
            largest = size > largest ? size : largest;
            length += x[c] * x[c];
        }
        largest /= table[(2 << kBits) - 1];
        const auto safe = [](Native scale) { return scale == 0 ? same(1) : scale; };
        Native scale = largest, cost = same(INFINITY);
        for (const float clip : kClips) {
            const Native found = search.cost(safe(largest * clip)) * (clip * clip);
            scale = found < cost ? largest * clip : scale;
            cost = found < cost ? found : cost;
        }
        search.find(safe(scale), [&](int64_t c, Bits subset, Native near) {
            Bits rest = {};
            for (uint32_t i = 1; i < 1u << (kBits - 1); ++i) {
                const Bits above = subset + kSubsets * i;
                const Native middle =
                    (levels_at(table, above) + levels_at(table, above - kSubsets)) / 2;
                rest -= reinterpret_cast<Bits>(near > middle);
            }
            along += x[c] * levels_at(table, rest << 2 | subset);
            const Bits codes = rest << 1 | (subset & 1);
            for (int64_t i = 0; i < kNativeLanes; ++i)
                draft.codes_of(t + i)[c] = uint8_t(codes[i]);
        });
        for (int64_t i = 0; i < kNativeLanes; ++i)
            scales[t + i] = to_half(unbiased(along[i], length[i]));
    }
}

}  // namespace trellis

}  // namespace ember
