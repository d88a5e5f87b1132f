// Products of many activation rows: a panel of weight rows is unpacked once and meets all
// activation rows, kTileRows at a time.
#pragma once

#include <vector>

#include "activations.h"
#include "blocks.h"

namespace ember {

constexpr int64_t kPanel = 32;  // weight rows of a panel
constexpr int kTileRows = 4;    // activation rows that share a panel's registers

// Weights as floats: [columns][kPanel], so that a vector holds a column of some rows.
struct FloatPanel {
    static constexpr Form kForm = Form::Floats;
    static constexpr int64_t kVectors = kPanel / kNativeLanes;

    std::vector<float> numbers;
    int64_t columns;

    template <Type kType>
    void load(const Weight& w, int64_t first) {
        columns = w.columns;
        numbers.assign(size_t(columns * kPanel), 0);
        const int64_t rows = std::min(kPanel, w.rows - first);
        for (int64_t r = 0; r < rows; ++r) {
            const uint8_t* blocks = w.row(first + r);
            for (int64_t at = 0; at < columns; at += kMostBlock) {
                alignas(64) float some[kMostBlock];
                const int64_t count = std::min(kMostBlock, columns - at);
                decode_blocks<kType>(blocks, count, some);
                blocks += count / BlockOf<kType>::kColumns * BlockOf<kType>::kBytes;
                for (int64_t i = 0; i < count; ++i) numbers[(at + i) * kPanel + r] = some[i];
            }
        }
    }

    // out[m] = all rows of the panel times activation row m.
    template <int M>
    void multiply(const Activation* x, float (*out)[kPanel]) const {
        Native total[M][kVectors] = {};
        for (int64_t at = 0; at < columns; ++at)
            for (int v = 0; v < kVectors; ++v) {
                const Native some = load_native(&numbers[at * kPanel + v * kNativeLanes]);
                for (int m = 0; m < M; ++m) total[m][v] += some * x[m].numbers[at];
            }
        std::memcpy(out, total, sizeof total);
    }
};

// Which panel a type's weights are unpacked into. Types with panels of their own specialise this.
template <Type kType>
struct PanelOf {
    using Panel = FloatPanel;
};

}  // namespace ember
