// From M tokens of one KV head to a record: the codecs of kvcache/codecs, step for step, on
// blocks of [M, D] floats already in the codec's basis.
#pragma once

#include <vector>

#include "record.h"

namespace ember {

constexpr float kLargestHalf = 65504.0f;

// Saturates, as kvcache/codecs/half.py does.
inline uint16_t to_half(float x) {
    return float_to_half(std::min(std::max(x, -kLargestHalf), kLargestHalf));
}

// A scale that is safe to divide by.
inline float nonzero(float scale) { return scale == 0 ? 1.0f : scale; }

inline Vector nonzero(Vector scale) { return scale == 0 ? splat(1) : scale; }

inline Vector root(Vector x) {
    Vector y;
    for (int i = 0; i < kLanes; ++i) y[i] = std::sqrt(x[i]);
    return y;
}

// What is not a number becomes 0.
inline Vector clamp(Vector x, float top) {
    x = x > 0 ? x : Vector{};
    return x < top ? x : splat(top);
}

inline void store_codes(uint8_t* to, Vector codes) {
    using Bytes = uint8_t __attribute__((vector_size(16)));
    const Bytes bytes = __builtin_convertvector(__builtin_convertvector(codes, Integers), Bytes);
    std::memcpy(to, &bytes, sizeof bytes);
}

// 16 floats to float16; returns what the halves stand for.
inline Vector store_halves(uint16_t* to, Vector x) {
    for (int i = 0; i < kLanes; ++i) to[i] = to_half(x[i]);
    return load_halves(to);
}

// length / along, see kvcache/codecs/fit.py.
inline float unbiased(float along, float length) { return along > 0 ? length / along : 0.0f; }

inline Vector unbiased(Vector along, Vector length) {
    return along > 0 ? length / (along > 0 ? along : splat(1)) : Vector{};
}

// A block on its way: y [tokens, dim] and its codes, one byte each.
struct Draft {
    const BlockForm& form;
    const float* y;
    uint8_t* codes;
    uint8_t* record;

    int64_t tokens() const { return form.tokens; }
    int64_t dim() const { return form.dim; }
    float top() const { return float((1 << form.bits) - 1); }
    const float* row(int64_t t) const { return y + t * form.dim; }
    uint8_t* codes_of(int64_t t) const { return codes + t * form.dim; }
};

inline void encode_token_affine(const Draft& draft) {
    const BlockForm& form = draft.form;
    uint16_t* scales = form.halves(draft.record, form.token_scales);
    uint16_t* zeros = form.halves(draft.record, form.token_zeros);
    for (int64_t t = 0; t < draft.tokens(); ++t)
        for (int64_t group = 0; group < form.groups(); ++group) {
            const float* y = draft.row(t) + group * form.group;
            Vector low = load(y), high = low;
            for (int64_t c = kLanes; c < form.group; c += kLanes) {
                low = smaller(load(y + c), low);
                high = larger(load(y + c), high);
            }
            const int64_t at = t * form.groups() + group;
            zeros[at] = to_half(-max(-low));
            const float base = half_to_float(zeros[at]);
            scales[at] = to_half((max(high) - base) / draft.top());
            const float step = nonzero(half_to_float(scales[at]));
            for (int64_t c = 0; c < form.group; c += kLanes)
                store_codes(draft.codes_of(t) + group * form.group + c,
                            round(clamp((load(y + c) - base) / step, draft.top())));
        }
}

inline void encode_channel_affine(const Draft& draft) {
    const BlockForm& form = draft.form;
    const float count = float(draft.tokens());
    for (int64_t c = 0; c < draft.dim(); c += kLanes) {
        const auto y = [&](int64_t t) { return load(draft.row(t) + c); };
        Vector low = y(0), high = low, sums = {}, code_sums = {};
        for (int64_t t = 0; t < draft.tokens(); ++t) {
            low = smaller(y(t), low);
            high = larger(y(t), high);
            sums += y(t);
        }
        const Vector step = nonzero((high - low) / draft.top());
        const auto code = [&](int64_t t) { return round(clamp((y(t) - low) / step, draft.top())); };
        for (int64_t t = 0; t < draft.tokens(); ++t) {
            const Vector codes = code(t);
            store_codes(draft.codes_of(t) + c, codes);
            code_sums += codes;
        }
        const Vector mean = sums / count, code_mean = code_sums / count;
        Vector along = {}, length = {};
        for (int64_t t = 0; t < draft.tokens(); ++t) {
            const Vector codes = to_float(widen(draft.codes_of(t) + c)), centred = y(t) - mean;
            along += centred * (codes - code_mean);
            length += centred * centred;
        }
        const Vector scales = store_halves(form.halves(draft.record, form.channel_scales) + c,
                                           unbiased(along, length));
        store_halves(form.halves(draft.record, form.channel_zeros) + c,
                     mean - scales * code_mean);
    }
}

// Codes of the levels nearest to x: how many midpoints lie below each.
inline Words nearest(const BlockForm& form, Vector x) {
    Words codes = {};
    for (int i = 1; i < form.levels; ++i) {
        const float middle = (form.table[i - 1] + form.table[i]) / 2;
        codes -= reinterpret_cast<Words>(x > middle);  // true is all ones
    }
    return codes;
}

// Of a token's codes: sums of y * level, y * y, level * level.
struct Fit {
    Vector along = {}, length = {}, levels = {};
};

// Code a token by the levels nearest to y / scale.
inline Fit code_token(const Draft& draft, int64_t t, float scale) {
    Fit fit;
    for (int64_t c = 0; c < draft.dim(); c += kLanes) {
        const Vector y = load(draft.row(t) + c);
        const Words codes = nearest(draft.form, y / scale);
        const Vector level = lookup(draft.form.table, codes);
        store_codes(draft.codes_of(t) + c, to_float(codes));
        fit.along += y * level;
        fit.length += y * y;
        fit.levels += level * level;
    }
    return fit;
}

inline void encode_turbo(const Draft& draft) {
    uint16_t* scales = draft.form.halves(draft.record, draft.form.token_scales);
    for (int64_t t = 0; t < draft.tokens(); ++t) {
        Vector squares = {};
        for (int64_t c = 0; c < draft.dim(); c += kLanes) {
            const Vector y = load(draft.row(t) + c);
            squares += y * y;
        }
        const float norm = std::sqrt(sum(squares));
        const float unit = std::sqrt(float(draft.dim())) / std::max(norm, 1e-30f);
        const Fit fit = code_token(draft, t, 1.0f / unit);
        scales[t] = to_half(norm / std::sqrt(sum(fit.levels)));
    }
}

// Of several clips of `largest`, the scale of least squared error over a row of `dim` entries;
// coded(y, scale) is what a scale makes of 16 entries.
template <typename Coded>
inline float least_error(const float* y, int64_t dim, float largest, const float* clips, int count,
                         const Coded& coded) {
    float best = largest * clips[0], least = 0;
    for (int i = 0; i < count; ++i) {
        const float scale = largest * clips[i];
        Vector squares = {};
        for (int64_t c = 0; c < dim; c += kLanes) {
            const Vector error = coded(load(y + c), scale) - load(y + c);
            squares += error * error;
        }
        const float total = sum(squares);
        if (i == 0 || total < least) {
            best = scale;
            least = total;
        }
    }
    return best;
}

inline float largest_of(const float* y, int64_t dim) {
    Vector top = {};
    for (int64_t c = 0; c < dim; c += kLanes) top = larger(magnitude(load(y + c)), top);
    return max(top);
}

inline void encode_fitted_turbo(const Draft& draft) {
    constexpr float kClips[] = {1.0f, 0.9f, 0.8f, 0.7f, 0.55f};
    const BlockForm& form = draft.form;
    uint16_t* scales = form.halves(draft.record, form.token_scales);
    const auto coded = [&](Vector y, float scale) {
        return lookup(form.table, nearest(form, y / nonzero(scale))) * scale;
    };
    for (int64_t t = 0; t < draft.tokens(); ++t) {
        const float largest = largest_of(draft.row(t), draft.dim()) / form.table[form.levels - 1];
        const float scale = least_error(draft.row(t), draft.dim(), largest, kClips, 5, coded);
        const Fit fit = code_token(draft, t, nonzero(scale));
        scales[t] = to_half(unbiased(sum(fit.along), sum(fit.length)));
    }
}

// -- KVarN, as kvcache/codecs/kvarn.py has it --

namespace kvarn {

constexpr int kRounds = 4;
constexpr float kShortestToken = 0.01f, kSmallestRms = 1e-6f;
constexpr float kSmallestChannel = 1.0f / (1 << 14);

// f(row, channel, 16 entries) over [tokens, dim].
template <typename F>
inline void each(float* y, int64_t tokens, int64_t dim, const F& f) {
    for (int64_t t = 0; t < tokens; ++t)
        for (int64_t c = 0; c < dim; c += kLanes) store(y + t * dim + c, f(t, c, load(y + t * dim + c)));
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
    for (int64_t c = 0; c < dim; c += kLanes) store(&means[c], store_halves(stored + c, load(&means[c])));
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

inline void encode_plain(const Draft& draft) {
    auto* values = reinterpret_cast<uint16_t*>(draft.record);
    for (int64_t i = 0; i < draft.tokens() * draft.dim(); ++i) values[i] = to_half(draft.y[i]);
}

// y [tokens, dim], in the codec's basis, to a record; `codes` holds tokens * dim bytes.
inline void encode_draft(const Draft& draft) {
    switch (draft.form.family) {
        case Family::kPlain:
            return encode_plain(draft);
        case Family::kTokenAffine:
            encode_token_affine(draft);
            break;
        case Family::kChannelAffine:
            encode_channel_affine(draft);
            break;
        case Family::kTurbo:
            encode_turbo(draft);
            break;
        case Family::kFittedTurbo:
            encode_fitted_turbo(draft);
            break;
        case Family::kVarn:
            encode_kvarn(draft);
            break;
    }
    pack_codes(draft.form, draft.codes, draft.record);
}

// Tokens [first, first + form.tokens) of one KV head to a record.
inline void encode_block(const BlockForm& form, const HeadTokens& from, int64_t first,
                         int64_t head, uint8_t* record) {
    const int64_t dim = form.dim, size = form.tokens * dim;
    std::vector<float> given(static_cast<size_t>(size)), turned;
    std::vector<uint8_t> codes(static_cast<size_t>(size));
    load_tokens(from, first, form.tokens, dim, given.data());
    if (form.signs) {
        const float* signs = form.signs + head * dim;
        for (int64_t t = 0; t < form.tokens; ++t)
            for (int64_t c = 0; c < dim; c += kLanes)
                store(&given[t * dim + c], load(&given[t * dim + c]) * load(signs + c));
        turned.resize(size_t(size));
        multiply({given.data(), dim}, form.tokens, {form.basis, dim}, dim, dim,
                 {turned.data(), dim});
    }
    encode_draft({form, form.signs ? turned.data() : given.data(), codes.data(), record});
}

}  // namespace ember
