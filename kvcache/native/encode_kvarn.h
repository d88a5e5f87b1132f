// KVarN blocks, step for step as kvcache/codecs/kvarn.py codes them.
#pragma once

#include "draft.h"

namespace ember {

namespace kvarn {

constexpr int kRounds = 4;
constexpr float kShortestToken = 0.01f, kSmallestRms = 1e-6f;
constexpr float kSmallestChannel = 1.0f / (1 << 14);

// f(row, channel, 16 entries) over [tokens, dim].
template <typename F>
inline void each(float* y, int64_t tokens, int64_t dim, const F& f) {
    for (int64_t t = 0; t < tokens; ++t)
        for (int64_t c = 0; c < dim; c += kLanes)
            store(y + t * dim + c, f(t, c, load(y + t * dim + c)));
}

inline float mean_square(const float* y, int64_t dim) {
    Vector squares = {};
    for (int64_t c = 0; c < dim; c += kLanes) squares += load(y + c) * load(y + c);
    return sum(squares) / float(dim);
}

// Channel means, tokens weighted by 1 / length^2; y comes with its largest entry `top`.
inline void channel_means(const float* y, int64_t tokens, int64_t dim, float top, float* means) {
    std::vector<float> weights(static_cast<size_t>(tokens));
    std::vector<float> unit(static_cast<size_t>(dim));
    float mean = 0;
    for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t c = 0; c < dim; c += kLanes) store(&unit[c], load(y + t * dim + c) / top);
        weights[t] = mean_square(unit.data(), dim);
        mean += weights[t];
    }
    float total = 0;
    for (float& weight : weights) {
        weight = 1 / nonzero(std::max(weight, kShortestToken * mean / float(tokens)));
        total += weight;
    }
    for (int64_t c = 0; c < dim; c += kLanes) {
        Vector sums = {};
        for (int64_t t = 0; t < tokens; ++t) sums += load(y + t * dim + c) * weights[t];
        store(means + c, sums / total);
    }
}

// Scales of the channels, the largest 1; overwrites y.
inline void channel_scales(float* y, int64_t tokens, int64_t dim, float* scales) {
    const float top = nonzero(largest_of(y, tokens * dim));
    each(y, tokens, dim, [&](int64_t, int64_t, Vector x) { return x / top; });
    std::fill(scales, scales + dim, 1.0f);
    for (int round = 0; round < kRounds; ++round) {
        for (int64_t c = 0; c < dim; c += kLanes) {
            Vector squares = {};
            for (int64_t t = 0; t < tokens; ++t) {
                const Vector x = load(y + t * dim + c);
                squares += x * x;
            }
            const Vector rms = larger(root(squares / float(tokens)), splat(kSmallestRms));
            store(scales + c, load(scales + c) * rms);
            for (int64_t t = 0; t < tokens; ++t)
                store(y + t * dim + c, load(y + t * dim + c) / rms);
        }
        for (int64_t t = 0; t < tokens; ++t) {
            float* row = y + t * dim;
            const float rms = std::max(std::sqrt(mean_square(row, dim)), kSmallestRms);
            for (int64_t c = 0; c < dim; c += kLanes) store(row + c, load(row + c) / rms);
        }
    }
    const float highest = largest_of(scales, dim);
    for (int64_t c = 0; c < dim; c += kLanes)
        store(scales + c, larger(load(scales + c) / highest, splat(kSmallestChannel)));
}

}  // namespace kvarn

inline void encode_kvarn(const Draft& draft) {
    using namespace kvarn;
    constexpr float kClips[] = {1.0f, 0.95f, 0.9f, 0.85f, 0.8f, 0.75f};
    const BlockForm& form = draft.form;
    const int64_t tokens = draft.tokens(), dim = draft.dim(), size = tokens * dim;
    const float centre = form.centre;
    std::vector<float> means(static_cast<size_t>(dim)), channels(means);
    std::vector<float> centred(draft.y, draft.y + size);
    channel_means(draft.y, tokens, dim, nonzero(largest_of(draft.y, size)), means.data());
    uint16_t* stored = form.halves(draft.record, form.channel_zeros);
    for (int64_t c = 0; c < dim; c += kLanes)
        store(&means[c], store_halves(stored + c, load(&means[c])));
    each(centred.data(), tokens, dim,
         [&](int64_t, int64_t c, Vector x) { return x - load(&means[c]); });
    std::vector<float> even(centred);
    channel_scales(even.data(), tokens, dim, channels.data());
    stored = form.halves(draft.record, form.channel_scales);
    for (int64_t c = 0; c < dim; c += kLanes)
        store(&channels[c], store_halves(stored + c, load(&channels[c])));
    each(even.data(), tokens, dim, [&](int64_t t, int64_t c, Vector) {
        return load(&centred[t * dim + c]) / load(&channels[c]);
    });
    const auto levels = [&](Vector x, float step) {
        return clamp(round(x / nonzero(step) + centre), 2 * centre) - centre;
    };
    uint16_t* scales = form.halves(draft.record, form.token_scales);
    for (int64_t t = 0; t < tokens; ++t) {
        const float* row = &even[t * dim];
        const float step =
            least_error(row, dim, largest_of(row, dim) / centre, kClips, 6,
                        [&](Vector x, float scale) { return levels(x, scale) * scale; });
        Vector along = {}, length = {};
        for (int64_t c = 0; c < dim; c += kLanes) {
            const Vector level = levels(load(row + c), step), y = load(&centred[t * dim + c]);
            store_codes(draft.codes_of(t) + c, level + centre);
            along += y * (level * load(&channels[c]));
            length += y * y;
        }
        scales[t] = to_half(unbiased(sum(along), sum(length)));
    }
}

}  // namespace ember
