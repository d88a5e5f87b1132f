// A block on its way to a record, and what all encoders share: scales in float16, rounding, the
// choice of a scale (kvcache/codecs/half.py and fit.py).
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

// A block on its way: y [tokens, dim] of a KV head, and its codes, one byte each.
struct Draft {
    const BlockForm& form;
    int64_t head;
    const float* y;
    uint8_t* codes;
    uint8_t* record;

    int64_t tokens() const { return form.tokens; }
    int64_t dim() const { return form.dim; }
    float top() const { return float((1 << form.bits) - 1); }
    const float* row(int64_t t) const { return y + t * form.dim; }
    uint8_t* codes_of(int64_t t) const { return codes + t * form.dim; }
};

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

}  // namespace ember
