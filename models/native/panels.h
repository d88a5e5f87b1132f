// Products of many activation rows: a panel of weight rows is unpacked some columns at a time, and
// those meet all activation rows, some at a time, while they lie in the nearest cache.
#pragma once

#include "activations.h"
#include "blocks.h"
#include "product.h"

namespace ember {

constexpr int64_t kPanel = 32;          // weight rows of a panel
constexpr int64_t kPanelColumns = 256;  // its columns, fewer at the end of a row

// Weights as floats, so that a vector holds a column of some rows.
struct FloatPanel {
    static constexpr Form kForm = Form::Floats;
    static constexpr int kTileRows = kProductRows;

    alignas(64) float numbers[kPanelColumns][kPanel];

    // `rows` and `columns` of the weight from a place on; further rows are zero.
    template <Type kType>
    void load(const Weight& w, int64_t row, int64_t rows, int64_t at, int64_t columns) {
        alignas(64) float some[kLanes][kPanelColumns];
        for (int64_t first = 0; first < kPanel; first += kLanes) {
            for (int64_t r = 0; r < kLanes; ++r)
                if (first + r < rows)
                    decode_columns<kType>(w, row + first + r, at, columns, some[r]);
                else
                    std::fill_n(some[r], columns, 0.0f);
            for (int64_t i = 0; i < columns; ++i)
                for (int64_t r = 0; r < kLanes; ++r) numbers[i][first + r] = some[r][i];
        }
    }

    // out[m] += all rows of the panel times activation row m.
    template <int M>
    void multiply(const Activation* x, int64_t at, int64_t columns, float (*out)[kPanel]) const {
        static constexpr float kOnce[] = {1, 1, 1, 1, 1, 1};
        static_assert(M <= int(std::size(kOnce)));
        const int64_t stride = M > 1 ? x[1].numbers - x[0].numbers : 0;
        multiply_rows<M>({x->numbers + at, stride}, {numbers[0], kPanel}, columns, kPanel, kOnce,
                         {out[0], kPanel});
    }
};

#ifdef EMBER_VNNI

// How a row of a panel is read, from the block of its first column on: 32 columns at a time as
// integers, which are multiplied by float scales and less minimums, of which the kPanelColumns have
// kScales (1 or 8) and kMinimums (0, 8 or 16).
template <Type>
struct PanelRow;

// Weights as integers: pairs of columns side by side, of 16 rows in a vector.
template <int kScales, int kMinimums>
struct CodePanel {
    static constexpr Form kForm = Form::Codes;
    static constexpr int kTileRows = 4;
    static constexpr int kVectors = kPanel / 16, kGroups = kPanelColumns / kXGroup;

    alignas(64) int16_t codes[kPanelColumns / 2][kPanel][2];
    alignas(64) float scales[kScales][kPanel];
    alignas(64) float minimums[kMinimums + 1][kPanel];

    template <Type kType>
    void load(const Weight& w, int64_t row, int64_t rows, int64_t at, int64_t columns) {
        const int groups = int(columns / kXGroup);
        for (int first = 0; first < kPanel; first += 16) {
            Vector pairs[kGroups][16];
            for (int r = 0; r < 16; ++r) {
                // Instead of rows that are not there the last one again.
                const int64_t n = row + std::min<int64_t>(first + r, rows - 1);
                const PanelRow<kType> each(block_at<kType>(w, n, at));
                for (int g = 0; g < groups; ++g)
                    pairs[g][r] = reinterpret_cast<Vector>(each.codes(g));
                for (int i = 0; i < kScales && i < groups; ++i)
                    scales[i][first + r] = each.scale(i);
                for (int i = 0; i < kMinimums && i < groups * kMinimums / kGroups; ++i)
                    minimums[i][first + r] = each.minimum(i);
            }
            for (int g = 0; g < groups; ++g) {
                transpose(pairs[g]);
                for (int i = 0; i < 16; ++i)
                    std::memcpy(codes[16 * g + i][first], &pairs[g][i], sizeof(Vector));
            }
        }
    }

    // out[m] += all rows of the panel times activation row m.
    template <int M>
    void multiply(const Activation* x, int64_t at, int64_t columns, float (*out)[kPanel]) const {
        __m512 total[M][kVectors], scaled[M][kVectors];
        for (int m = 0; m < M; ++m)
            for (int v = 0; v < kVectors; ++v) {
                total[m][v] = _mm512_loadu_ps(out[m] + 16 * v);
                scaled[m][v] = _mm512_setzero_ps();
            }
        for (int g = 0; g < columns / kXGroup; ++g) {
            __m512i sums[M][kVectors];
            for (auto& row : sums)
                for (auto& sum : row) sum = _mm512_setzero_si512();
            for (int i = 16 * g; i < 16 * g + 16; ++i)
                for (int m = 0; m < M; ++m) {
                    int32_t pair;
                    std::memcpy(&pair, x[m].codes + at + 2 * i, sizeof pair);
                    for (int v = 0; v < kVectors; ++v)
                        sums[m][v] =
                            _mm512_dpwssd_epi32(sums[m][v], _mm512_load_si512(codes[i][16 * v]),
                                                _mm512_set1_epi32(pair));
                }
            for (int m = 0; m < M; ++m)
                add_group(x[m], g, at / kXGroup + g, sums[m], scaled[m], total[m]);
        }
        for (int m = 0; m < M; ++m)
            for (int v = 0; v < kVectors; ++v) {
                if constexpr (kScales == 1)
                    total[m][v] = _mm512_fmadd_ps(scaled[m][v], vector(scales[0], v), total[m][v]);
                _mm512_storeu_ps(out[m] + 16 * v, total[m][v]);
            }
    }

  private:
    static __m512 vector(const float* of, int v) { return _mm512_load_ps(of + 16 * v); }

    // Group g of the panel, which is group x_group of the activations.
    [[gnu::always_inline]] void add_group(const Activation& x, int g, int64_t x_group,
                                          const __m512i* sums, __m512* scaled,
                                          __m512* total) const {
        constexpr int kEach = kMinimums / kGroups;  // minimums of a group
        const float* x_sums = kEach == 1 ? x.sums : x.halves;
        const __m512 x_scale = _mm512_set1_ps(x.scales[x_group]);
        for (int v = 0; v < kVectors; ++v) {
            const __m512 sum = _mm512_cvtepi32_ps(sums[v]);
            if constexpr (kScales == 1) {
                scaled[v] = _mm512_fmadd_ps(sum, x_scale, scaled[v]);
            } else {
                const __m512 scale = _mm512_mul_ps(vector(scales[g], v), x_scale);
                total[v] = _mm512_fmadd_ps(sum, scale, total[v]);
            }
            for (int i = 0; i < kEach; ++i)
                total[v] = _mm512_fnmadd_ps(vector(minimums[kEach * g + i], v),
                                            _mm512_set1_ps(x_sums[kEach * x_group + i]), total[v]);
        }
    }
};

#endif

// Which panel a type's weights are unpacked into, and how many activation rows (kTileRows) share its
// registers. Types with panels of their own specialise this.
template <Type kType>
struct PanelOf {
    using Panel = FloatPanel;
};

}  // namespace ember
