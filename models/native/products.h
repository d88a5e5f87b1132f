// Products of activation rows with packed weights, spread over the pool: of few rows straight from
// memory, of many by panels.
#pragma once

#include "gemm.h"
#include "matvec.h"
#include "pool.h"

namespace ember {

constexpr int64_t kBlock = 32;       // weight rows of one task of a product with few rows
constexpr int64_t kBlockRows = 192;  // activation rows that stay in cache beside a panel
constexpr int kPanelRows = 4;        // activation rows that share a panel's registers

// Lent by the library of the caches.
static Pool* pool;

// Activation rows in two int8 parts; grows to the largest product and stays.
class Quantized {
  public:
    void assign(const float* x, int64_t rows, int64_t columns) {
        columns_ = columns;
        const int64_t width = padded(columns), groups = width / kXGroup;
        codes_.resize(size_t(2 * rows * width));
        factors_.resize(size_t(2 * rows * groups));
        rows_.resize(size_t(rows));
        for (int64_t m = 0; m < rows; ++m) {
            int8_t* codes = codes_.data() + 2 * m * width;
            float* factors = factors_.data() + 2 * m * groups;
            rows_[m] = {codes, codes + width, factors, factors + groups};
        }
        pool->run(rows, [&](int64_t m) { quantize_row(x + m * columns, columns, rows_[m]); });
    }

    // In the order of the columns.
    const Activation* rows() const { return rows_.data(); }

    // As `Nibbles` reads them, after `split`.
    const Activation* split_rows() const { return split_rows_.data(); }

    void split() {
        split_codes_.resize(codes_.size());
        split_rows_ = rows_;
        for (size_t m = 0; m < rows_.size(); ++m) {
            int8_t* codes = split_codes_.data() + (rows_[m].high - codes_.data());
            split_rows_[m].high = codes;
            split_rows_[m].low = codes + padded(columns_);
            split_nibbles(rows_[m].high, columns_, split_rows_[m].high);
            split_nibbles(rows_[m].low, columns_, split_rows_[m].low);
        }
    }

  private:
    int64_t columns_ = 0;
    std::vector<int8_t> codes_, split_codes_;
    std::vector<float> factors_;
    std::vector<Activation> rows_, split_rows_;
};

// Products of up to kFewRows activation rows with a block of weight rows.
struct Block {
    alignas(64) float values[kFewRows][kBlock];
};

template <typename Reader>
inline void multiply_block(const Weight& w, const Reader& reader, const Activation* x, int rows,
                    int64_t first, int64_t count, Block& out) {
    int64_t n = 0;
    if (rows == 1)
        for (; n + kRowsAtOnce <= count; n += kRowsAtOnce)
            dot_rows<1, kRowsAtOnce>(w, reader, first + n, x, out.values[0] + n);
    float column[kFewRows];
    for (; n < count; ++n) {
        dot_few(w, reader, first + n, x, rows, column);
        for (int m = 0; m < rows; ++m) out.values[m][n] = column[m];
    }
}

inline void multiply_block(const Weight& w, const Quantized& x, int64_t at, int rows, int64_t first,
                    int64_t count, Block& out) {
#ifdef EMBER_VNNI
    if (w.bits == 4)
        return multiply_block(w, Nibbles(), x.split_rows() + at, rows, first, count, out);
#endif
    multiply_block(w, Chunks(w.bits), x.rows() + at, rows, first, count, out);
}

inline int64_t blocks(const Weight& w) { return (w.rows + kBlock - 1) / kBlock; }

// store(i, m, n, value) for every product of activation row m and row n of weights[i], the
// activation rows being [at, at + rows).
template <typename Store>
inline void multiply_few(const Weight* const* weights, int count, const Quantized& x, int64_t at,
                  int rows, const Store& store) {
    int64_t tasks = 0;
    for (int i = 0; i < count; ++i) tasks += blocks(*weights[i]);
    pool->run(tasks, [&](int64_t task) {
        int i = 0;
        for (; task >= blocks(*weights[i]); ++i) task -= blocks(*weights[i]);
        const int64_t first = task * kBlock, width = std::min(kBlock, weights[i]->rows - first);
        Block block;
        multiply_block(*weights[i], x, at, rows, first, width, block);
        if (const float* added = weights[i]->added)
            for (int m = 0; m < rows; ++m)
                for (int64_t n = 0; n < width; ++n) block.values[m][n] += added[first + n];
        for (int m = 0; m < rows; ++m)
            for (int64_t n = 0; n < width; ++n) store(i, at + m, first + n, block.values[m][n]);
    });
}

#ifdef EMBER_VNNI
template <typename Store>
inline void multiply_many(const Weight& w, const Activation* x, int64_t rows, const Store& store) {
    const Unpacker unpack(w.bits);
    const int64_t groups = w.columns / kXGroup;
    pool->run((w.rows + kPanel - 1) / kPanel, [&](int64_t task) {
        thread_local Panel panel;
        const int64_t first = task * kPanel, count = std::min<int64_t>(kPanel, w.rows - first);
        panel.load(w, unpack, first);
        alignas(64) float out[kPanelRows][kPanel];
        for (int64_t m = 0; m < rows; m += kPanelRows) {
            const int64_t tile = std::min<int64_t>(kPanelRows, rows - m);
            if (tile == kPanelRows) {
                multiply_panel<kPanelRows>(panel, groups, x + m, out);
            } else {
                for (int64_t i = 0; i < tile; ++i)
                    multiply_panel<1>(panel, groups, x + m + i, out + i);
            }
            for (int64_t i = 0; i < tile; ++i)
                for (int64_t n = 0; n < count; ++n) store(m + i, first + n, out[i][n]);
        }
    });
}

#endif

// store(i, m, n, value) for every product of activation row m and row n of weights[i].
template <typename Store>
inline void multiply(const Weight* const* weights, int count, Quantized& x, int64_t rows,
              const Store& store) {
#ifdef EMBER_VNNI
    if (rows > kFewRows) {
        for (int i = 0; i < count; ++i)
            for (int64_t at = 0; at < rows; at += kBlockRows)
                multiply_many(*weights[i], x.rows() + at, std::min(kBlockRows, rows - at),
                              [&](int64_t m, int64_t n, float value) {
                                  store(i, at + m, n, value);
                              });
        return;
    }
    x.split();
#endif
    for (int64_t at = 0; at < rows; at += kFewRows)
        multiply_few(weights, count, x, at, int(std::min<int64_t>(kFewRows, rows - at)), store);
}

// The same for one weight: store(m, n, value).
template <typename Store>
inline void multiply(const Weight& w, Quantized& x, int64_t rows, const Store& store) {
    const Weight* weight = &w;
    multiply(&weight, 1, x, rows,
             [&](int, int64_t m, int64_t n, float value) { store(m, n, value); });
}

}  // namespace ember
