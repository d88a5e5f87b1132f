// Products of many activation rows: 16 weight rows are unpacked into a panel once and meet all
// activation rows, 4 at a time. Needs 8-bit vector products; without them few rows at a time are
// as fast.
//
// Panel: codes as [columns / 4][16 rows][4 codes], so that one vector holds 4 columns of 16 rows;
// scales and biases as [group][16 rows] in float32.
#pragma once

#include <vector>

#include "affine.h"

#ifdef EMBER_VNNI

namespace ember {

constexpr int kPanel = 16;  // weight rows of a panel

struct Panel {
    std::vector<uint8_t> codes;
    std::vector<float> scales, biases, added;

    void load(const Weight& w, const Unpacker& unpack, int64_t first) {
        const int64_t groups = w.columns / kXGroup;
        codes.assign(size_t(padded(w.columns) * kPanel), 0);
        scales.assign(size_t(groups * kPanel), 0);
        biases.assign(size_t(groups * kPanel), 0);
        added.assign(size_t(kPanel), 0);
        const int64_t rows = std::min<int64_t>(kPanel, w.rows - first);
        if (w.added) std::copy_n(w.added + first, rows, added.begin());
        for (int64_t r = 0; r < rows; ++r) {
            load_codes(w, unpack, first + r, r);
            for (int64_t g = 0; g < groups; ++g) {
                const int64_t stored = (first + r) * w.groups() + g * kXGroup / w.group;
                scales[g * kPanel + r] = half_to_float(w.scales[stored]);
                biases[g * kPanel + r] = half_to_float(w.biases[stored]);
            }
        }
    }

  private:
    void load_codes(const Weight& w, const Unpacker& unpack, int64_t row, int64_t r) {
        auto* quads = reinterpret_cast<uint32_t*>(codes.data());
        const uint8_t* packed = w.codes + row * w.row_bytes();
        alignas(64) uint32_t chunk[kChunk / 4];
        for (int64_t at = 0; at < w.columns; at += kChunk) {
            const int count = int(std::min<int64_t>(kChunk, w.columns - at));
            _mm512_store_si512(chunk, unpack(packed + at * w.bits / 8, count));
            for (int q = 0; q < kChunk / 4; ++q) quads[(at / 4 + q) * kPanel + r] = chunk[q];
        }
    }
};

// out[m][0..16) = panel times activation rows x[0..M).
template <int M>
void multiply_panel(const Panel& panel, int64_t groups, const Activation* x, float (*out)[kPanel]) {
    __m512 total[M];
    for (int m = 0; m < M; ++m) total[m] = _mm512_loadu_ps(panel.added.data());
    const uint8_t* codes = panel.codes.data();
    for (int64_t g = 0; g < groups; ++g) {
        __m512i high[M], low[M];
        for (int m = 0; m < M; ++m) high[m] = low[m] = _mm512_setzero_si512();
        for (int q = 0; q < kXGroup / 4; ++q) {
            const __m512i quad = _mm512_loadu_si512(codes);
            codes += 4 * kPanel;
            for (int m = 0; m < M; ++m) {
                const int64_t at = g * kXGroup + 4 * q;
                int32_t upper, lower;
                std::memcpy(&upper, x[m].high + at, 4);
                std::memcpy(&lower, x[m].low + at, 4);
                high[m] = _mm512_dpbusd_epi32(high[m], quad, _mm512_set1_epi32(upper));
                low[m] = _mm512_dpbusd_epi32(low[m], quad, _mm512_set1_epi32(lower));
            }
        }
        const __m512 scale = _mm512_loadu_ps(panel.scales.data() + g * kPanel);
        const __m512 bias = _mm512_loadu_ps(panel.biases.data() + g * kPanel);
        for (int m = 0; m < M; ++m) {
            const __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(high[m], 7), low[m]);
            const __m512 product = _mm512_mul_ps(scale, _mm512_set1_ps(x[m].scales[g]));
            total[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), product, total[m]);
            total[m] = _mm512_fmadd_ps(bias, _mm512_set1_ps(x[m].sums[g]), total[m]);
        }
    }
    for (int m = 0; m < M; ++m) _mm512_storeu_ps(out[m], total[m]);
}

}  // namespace ember

#endif
