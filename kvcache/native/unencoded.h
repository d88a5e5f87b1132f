// Unencoded keys and values, read in place and brought into float tiles.
//
// A tile holds up to 64 tokens: keys as [dim][64], tokens as lanes; values as [64][dim].
#pragma once

#include "product.h"

namespace ember {

enum class Element : int32_t { kHalf = 0, kBfloat = 1, kFloat = 2 };

constexpr int64_t kTile = 64;  // tokens that are looked at together

inline int64_t whole_lanes(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

// Keys or values: [batch, heads, tokens, dim] at any distances but for the last axis, which is
// contiguous. Strides in elements.
struct Strided {
    const void* data;
    int64_t batch_stride, head_stride, token_stride;
    Element element;
};

// One head of one batch row.
struct HeadTokens {
    const void* data;
    int64_t token_stride;
    Element element;
};

inline HeadTokens head_of(const Strided& all, int64_t batch, int64_t head) {
    const int64_t size = all.element == Element::kFloat ? 4 : 2;
    const int64_t at = batch * all.batch_stride + head * all.head_stride;
    return {static_cast<const char*>(all.data) + at * size, all.token_stride, all.element};
}

template <Element kElement>
inline Vector load_elements(const void* data, int64_t at) {
    if constexpr (kElement == Element::kHalf)
        return load_halves(static_cast<const uint16_t*>(data) + at);
    else if constexpr (kElement == Element::kBfloat)
        return load_bfloats(static_cast<const uint16_t*>(data) + at);
    else
        return load(static_cast<const float*>(data) + at);
}

// f(constant of the element)
template <typename F>
inline void with_element(Element element, const F& f) {
    switch (element) {
        case Element::kHalf:
            return f(std::integral_constant<Element, Element::kHalf>());
        case Element::kBfloat:
            return f(std::integral_constant<Element, Element::kBfloat>());
        case Element::kFloat:
            return f(std::integral_constant<Element, Element::kFloat>());
    }
}

// Tokens [first, first + count) to rows of floats, `stride` apart.
void load_tokens(const HeadTokens& from, int64_t first, int64_t count, int64_t dim, float* out);

// The same with tokens as lanes, out [dim][kTile]; lanes up to the next multiple of 16 are zero.
void load_transposed(const HeadTokens& from, int64_t first, int64_t count, int64_t dim, float* out);

}  // namespace ember
