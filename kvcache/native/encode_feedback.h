// Per-channel affine codes in the metric of the queries, step for step as
// kvcache/codecs/affine.py has them: channel by channel, tokens as lanes.
#pragma once

#include "draft.h"

namespace ember {

namespace feedback {

// Tokens that are moved at a time: their sums stay in registers.
constexpr int64_t kTokens = 4 * kLanes;

// Take from kVectors vectors of a channel its share of the errors [count, tokens] before it;
// shares lie `stride` apart.
template <int kVectors>
inline void take_errors(const float* shares, int64_t stride, const float* errors, int64_t count,
                        int64_t tokens, float* y) {
    Vector moved[kVectors];
    for (int v = 0; v < kVectors; ++v) moved[v] = load(y + v * kLanes);
    for (int64_t d = 0; d < count; ++d)
        for (int v = 0; v < kVectors; ++v)
            moved[v] -= load(errors + d * tokens + v * kLanes) * shares[d * stride];
    for (int v = 0; v < kVectors; ++v) store(y + v * kLanes, moved[v]);
}

// What a channel's codes stand for: scale * code + zero, the scale not yet halved.
struct Fit {
    float scale, mean, code_mean;
};

// Code a channel y [tokens], which becomes what its codes leave of it; codes as floats.
inline Fit code_channel(float* y, int64_t tokens, float top, float span, float* codes) {
    Vector low = load(y), high = low, sums = {}, code_sums = {};
    for (int64_t t = 0; t < tokens; t += kLanes) {
        low = smaller(load(y + t), low);
        high = larger(load(y + t), high);
        sums += load(y + t);
    }
    const float lowest = -max(-low), width = max(high) - lowest;
    const float step = nonzero(width * (span / top)), middle = lowest + width / 2;
    for (int64_t t = 0; t < tokens; t += kLanes) {
        const Vector code = clamp(round((load(y + t) - middle) / step + top / 2), top);
        store(codes + t, code);
        code_sums += code;
    }
    const float mean = sum(sums) / float(tokens), code_mean = sum(code_sums) / float(tokens);
    Vector along = {}, length = {};
    for (int64_t t = 0; t < tokens; t += kLanes) {
        const Vector centred = load(y + t) - mean;
        along += (load(codes + t) - code_mean) * centred;
        length += centred * centred;
    }
    const float shared = sum(along), scale = shared > 0 ? sum(length) / shared : 0.0f;
    for (int64_t t = 0; t < tokens; t += kLanes)
        store(y + t, (load(y + t) - mean) - (load(codes + t) - code_mean) * scale);
    return {scale, mean, code_mean};
}

}  // namespace feedback

inline void encode_with_feedback(const Draft& draft) {
    using namespace feedback;
    const BlockForm& form = draft.form;
    const int64_t dim = draft.dim(), tokens = draft.tokens();
    const int32_t* order = form.order + draft.head * dim;
    const float* spread = form.spread + draft.head * dim * dim;
    uint16_t* scales = form.halves(draft.record, form.channel_scales);
    uint16_t* zeros = form.halves(draft.record, form.channel_zeros);
    // Of each channel in this order: its tokens, and once it is coded, their errors.
    std::vector<float> y(static_cast<size_t>(dim * tokens)), codes(static_cast<size_t>(tokens));
    for (int64_t t = 0; t < tokens; ++t)
        for (int64_t d = 0; d < dim; ++d) y[d * tokens + t] = draft.row(t)[order[d]];
    for (int64_t d = 0; d < dim; ++d) {
        float* channel = &y[d * tokens];
        for (int64_t t = 0; t < tokens; t += kTokens)
            with_constant<4>((tokens - t) / kLanes, [&](auto vectors) {
                take_errors<vectors>(spread + d, dim, &y[t], d, tokens, channel + t);
            });
        const Fit fit = code_channel(channel, tokens, draft.top(), form.span, codes.data());
        const int64_t c = order[d];
        for (int64_t t = 0; t < tokens; ++t) draft.codes_of(t)[c] = uint8_t(codes[t]);
        scales[c] = to_half(fit.scale);
        zeros[c] = to_half(fit.mean - half_to_float(scales[c]) * fit.code_mean);
    }
}

}  // namespace ember
