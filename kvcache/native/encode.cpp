// The codecs of kvcache/codecs, step for step, on blocks of [M, D] floats in the codec's basis.

#include "encode.h"

#include "coding.h"
#include "encode_feedback.h"
#include "encode_kvarn.h"

namespace ember {

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

inline void encode_plain(const Draft& draft) {
    auto* values = reinterpret_cast<uint16_t*>(draft.record);
    for (int64_t i = 0; i < draft.tokens() * draft.dim(); ++i) values[i] = to_half(draft.y[i]);
}

void pack_codes(const BlockForm& form, const uint8_t* codes, uint8_t* record) {
    const auto pack = form.family == Family::kTrellis ? pack_trellis
                      : form.role == Role::kKeys      ? pack_keys
                                                      : pack_values;
    pack(codes, form.bits, form.tokens, form.dim, record);
}

// y [tokens, dim], in the codec's basis, to a record; `codes` holds tokens * dim bytes.
inline void encode_draft(const Draft& draft) {
    switch (draft.form.family) {
        case Family::kUnencoded:
            return encode_plain(draft);
        case Family::kTokenAffine:
            encode_token_affine(draft);
            break;
        case Family::kChannelAffine:
            draft.form.spread ? encode_with_feedback(draft) : encode_channel_affine(draft);
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
        case Family::kTrellis:
            draft.form.coding->encode(draft);
            break;
    }
    pack_codes(draft.form, draft.codes, draft.record);
}

// As which larger numbers are encoded (kvcache/codecs/base.py).
constexpr float kLargest = float(1ll << 50);

void encode_block(const BlockForm& form, const HeadTokens& from, int64_t first,
                         int64_t head, uint8_t* record) {
    const int64_t dim = form.dim, size = form.tokens * dim;
    std::vector<float> given(static_cast<size_t>(size)), rotated;
    std::vector<uint8_t> codes(static_cast<size_t>(size));
    load_tokens(from, first, form.tokens, dim, given.data());
    for (float& each : given) each = std::min(std::max(each, -kLargest), kLargest);
    if (form.signs) {
        const float* signs = form.signs + head * dim;
        for (int64_t t = 0; t < form.tokens; ++t)
            for (int64_t c = 0; c < dim; c += kLanes)
                store(&given[t * dim + c], load(&given[t * dim + c]) * load(signs + c));
        rotated.resize(size_t(size));
        multiply({given.data(), dim}, form.tokens, {form.basis, dim}, dim, dim,
                 {rotated.data(), dim});
    }
    encode_draft({form, head, form.signs ? rotated.data() : given.data(), codes.data(), record});
}

}  // namespace ember
