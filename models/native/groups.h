// Types whose blocks are groups of weights with a scale each: how one is read, number by number,
// and products for processors without products of their own. `BlockOf` of such a type has
//     static Group<kSize> group(const uint8_t* block, int i)
#pragma once

#include "few_rows.h"

namespace ember {

// Weights scale * code + minimum, 32 or 16 of them.
template <int kSize = kXGroup>
struct Group {
    static constexpr int kWeights = kSize;

    int8_t codes[kSize];
    float scale, minimum;
};

template <Type kType>
concept Grouped = requires { &BlockOf<kType>::group; };

// All other types have one of their own.
template <Type kType>
inline void decode_block(const uint8_t* block, float* out) {
    for (int i = 0, at = 0; at < BlockOf<kType>::kColumns; ++i) {
        const auto group = BlockOf<kType>::group(block, i);
        for (const int8_t code : group.codes)
            out[at++] = group.scale * float(code) + group.minimum;
    }
}

#ifndef EMBER_VNNI

// A group at a time, in loops that compilers turn into 16-bit products.
template <Type kType>
    requires Grouped<kType>
struct FewRows<kType> : RowByRow<FewRows<kType>> {
    static constexpr Form kForm = Form::Codes;
    static constexpr int at_once(int) { return 1; }

    template <int M, int R>
    static void dot(const Weight& w, int64_t row, const Activation* x, float* out) {
        static_assert(R == 1);
        constexpr int kSize = decltype(BlockOf<kType>::group(nullptr, 0))::kWeights;
        constexpr int kGroups = BlockOf<kType>::kColumns / kSize;
        const uint8_t* block = w.row(row);
        std::fill_n(out, M, 0.0f);
        for (int64_t g = 0; g < w.columns / kSize; ++g) {
            const auto group = BlockOf<kType>::group(block, int(g % kGroups));
            if ((g + 1) % kGroups == 0) block += BlockOf<kType>::kBytes;
            for (int m = 0; m < M; ++m) {
                const int16_t* codes = x[m].codes + g * kSize;
                int sum = 0;
                for (int j = 0; j < kSize; ++j) sum += int16_t(group.codes[j]) * codes[j];
                const float x_scale = x[m].scales[g * kSize / kXGroup];
                const float x_sum = (kSize == kXGroup ? x[m].sums : x[m].halves)[g];
                out[m] += group.scale * x_scale * float(sum) + group.minimum * x_sum;
            }
        }
    }
};

#endif

}  // namespace ember
