// Products of many activation rows: a panel of weight rows is unpacked once and meets all of them.
#pragma once

#include "activations.h"
#include "blocks.h"

namespace ember {

constexpr int64_t kPanel = 32;  // weight rows of a panel

#ifdef EMBER_VNNI

// How a row of a panel is read, a block: 32 columns at a time as integers, which are multiplied by
// the block's float scale and less minimums, of which it has kMinimums (0, 8 or 16).
template <Type>
struct PanelRow;

// Weights as integers, kMostBlock columns at a time, which stay in the nearest cache: pairs of
// columns side by side, of 16 rows in a vector.
template <int kMinimums>
struct CodePanel {
    static constexpr Form kForm = Form::Codes;
    static constexpr int kVectors = kPanel / 16, kGroups = kMostBlock / kXGroup;
    static constexpr int kTile = 4;  // activation rows that meet in registers

    alignas(64) int16_t codes[kMostBlock / 2][kPanel][2];
    alignas(64) float scales[kPanel];
    alignas(64) float minimums[kMinimums + 1][kPanel];

    // out[m] = kPanel weight rows from `first` on times activation row m.
    template <Type kType>
    void multiply(const Weight& w, int64_t first, const Activation* x, int64_t rows,
                  float (*out)[kPanel]) {
        std::memset(out, 0, size_t(rows) * sizeof *out);
        for (int64_t at = 0; at < w.columns; at += kMostBlock) {
            const int groups = int(std::min(kMostBlock, w.columns - at)) / kXGroup;
            load<kType>(w, first, at, groups);
            int64_t m = 0;
            for (; m + kTile <= rows; m += kTile) add<kTile>(x + m, at, groups, out + m);
            for (; m < rows; ++m) add<1>(x + m, at, groups, out + m);
        }
    }

  private:
    template <Type kType>
    void load(const Weight& w, int64_t first, int64_t at, int groups) {
        for (int half = 0; half < kPanel; half += 16) {
            Vector pairs[kGroups][16];
            for (int r = 0; r < 16; ++r) {
                // Instead of rows that are not there the last one again.
                const int64_t n = std::min(first + half + r, w.rows - 1);
                const PanelRow<kType> row(block_at<kType>(w, n, at));
                for (int g = 0; g < groups; ++g)
                    pairs[g][r] = reinterpret_cast<Vector>(row.codes(g));
                scales[half + r] = row.scale();
                for (int i = 0; i < groups * kMinimums / kGroups; ++i)
                    minimums[i][half + r] = row.minimum(i);
            }
            for (int g = 0; g < groups; ++g) {
                transpose(pairs[g]);
                for (int i = 0; i < 16; ++i)
                    std::memcpy(codes[16 * g + i][half], &pairs[g][i], sizeof(Vector));
            }
        }
    }

    // out[m] += the columns at hand of all rows times activation row m.
    template <int M>
    void add(const Activation* x, int64_t at, int groups, float (*out)[kPanel]) const {
        __m512 total[M][kVectors];  // but for the weights' scales
        for (auto& row : total)
            for (auto& each : row) each = _mm512_setzero_ps();
        for (int g = 0; g < groups; ++g) {
            __m512i sums[M][kVectors];
            for (auto& row : sums)
                for (auto& sum : row) sum = _mm512_setzero_si512();
            // Or each sum is moved to another register and back.
#pragma GCC unroll 4
            for (int i = 16 * g; i < 16 * g + 16; ++i)
                for (int m = 0; m < M; ++m) {
                    int32_t pair;
                    std::memcpy(&pair, x[m].codes + at + 2 * i, sizeof pair);
                    for (int v = 0; v < kVectors; ++v)
                        sums[m][v] =
                            _mm512_dpwssd_epi32(sums[m][v], _mm512_load_si512(codes[i][16 * v]),
                                                _mm512_set1_epi32(pair));
                }
            for (int m = 0; m < M; ++m) {
                const __m512 x_scale = _mm512_set1_ps(x[m].scales[at / kXGroup + g]);
                for (int v = 0; v < kVectors; ++v)
                    total[m][v] =
                        _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[m][v]), x_scale, total[m][v]);
            }
        }
        for (int m = 0; m < M; ++m)
            for (int v = 0; v < kVectors; ++v)
                total[m][v] = _mm512_fmadd_ps(total[m][v], vector(scales, v),
                                              _mm512_loadu_ps(out[m] + 16 * v));
        constexpr int kEach = kMinimums / kGroups;  // minimums of 32 columns
        for (int i = 0; i < groups * kEach; ++i)
            for (int m = 0; m < M; ++m) {
                const float* x_sums = kEach == 1 ? x[m].sums : x[m].halves;
                const __m512 sum = _mm512_set1_ps(x_sums[at / kXGroup * kEach + i]);
                for (int v = 0; v < kVectors; ++v)
                    total[m][v] = _mm512_fnmadd_ps(vector(minimums[i], v), sum, total[m][v]);
            }
        for (int m = 0; m < M; ++m)
            for (int v = 0; v < kVectors; ++v) _mm512_storeu_ps(out[m] + 16 * v, total[m][v]);
    }

    static __m512 vector(const float* of, int v) { return _mm512_load_ps(of + 16 * v); }
};

#endif

// A thread's own.
template <typename Panel>
Panel& own_panel() {
    thread_local Panel panel;
    return panel;
}

// Which panel a type's weights are unpacked into; void: one of floats (float_panel.h). Types with
// panels of their own specialise this.
template <Type kType>
struct PanelOf {
    using Panel = void;
};

}  // namespace ember
