// The parts of a network's step on the CPU, spread over the pool: norms, quantized activations,
// products of few and many rows, rotation of heads.
#pragma once

#include "gemm.h"
#include "matvec.h"
#include "pool.h"

namespace ember {

constexpr int64_t kBlock = 32;        // weight rows of one task of a product with few rows
constexpr int64_t kBlockRows = 192;   // activation rows that stay in cache beside a panel
constexpr int kPanelRows = 4;              // activation rows that share a panel's registers

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

// exp for x <= 0, relative error below 2e-7: 2^n * p(r), p of degree 6 (Cephes).
inline Vector exp_below(Vector x) {
    const Vector floor = x - x - 87.0f;
    x = x < floor ? floor : x;
    const Vector n = round(x * 1.44269504f);
    const Vector r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Vector p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const Integers exponent = (__builtin_convertvector(n, Integers) + 127) << 23;
    return p * reinterpret_cast<Vector>(exponent);
}

// x * sigmoid(x)
inline Vector silu(Vector x) {
    const Vector small = exp_below(x < 0 ? x : -x);
    return x * (x < 0 ? small : small - small + 1.0f) / (small + 1.0f);
}

inline Quantized activations, hidden_activations;
inline std::vector<float> normed, hidden, gates;

inline void normalize(const float* x, const float* weight, float eps, int64_t rows, int64_t columns,
               float* out) {
    pool->run(rows, [&](int64_t m) {
        const float* from = x + m * columns;
        float* to = out + m * columns;
        Vector squares = {};
        for (int64_t i = 0; i < columns; i += kLanes) squares += load(from + i) * load(from + i);
        const float factor = 1.0f / std::sqrt(sum(squares) / float(columns) + eps);
        for (int64_t i = 0; i < columns; ++i) to[i] = from[i] * factor * weight[i];
    });
}

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

// Bring a projection [batch * length, heads * dim] into [batch, heads, length, dim], turning the
// pairs (2i, 2i+1) of the first 2 * pairs dimensions by the given cosines and sines
// [length, pairs].
inline void split_heads(const float* from, int64_t batch, int64_t length, int64_t heads, int64_t dim,
                 const float* cosines, const float* sines, int64_t pairs, float* to) {
    pool->run(batch * length, [&](int64_t row) {
        const int64_t b = row / length, t = row % length;
        for (int64_t h = 0; h < heads; ++h) {
            const float* x = from + (row * heads + h) * dim;
            float* y = to + ((b * heads + h) * length + t) * dim;
            for (int64_t i = 0; i < pairs; ++i) {
                const float c = cosines[t * pairs + i], s = sines[t * pairs + i];
                y[2 * i] = x[2 * i] * c - x[2 * i + 1] * s;
                y[2 * i + 1] = x[2 * i] * s + x[2 * i + 1] * c;
            }
            std::copy(x + 2 * pairs, x + dim, y + 2 * pairs);
        }
    });
}

// Angles of positions offset .. offset + length, position / period, in double as far as it goes.
inline void turn(int64_t offset, int64_t length, const double* periods, int64_t pairs, float* cosines,
          float* sines) {
    for (int64_t t = 0; t < length; ++t)
        for (int64_t i = 0; i < pairs; ++i) {
            const double angle = double(offset + t) / periods[i];
            cosines[t * pairs + i] = float(std::cos(angle));
            sines[t * pairs + i] = float(std::sin(angle));
        }
}

// out = residual + x W^T
inline void linear_add(const float* x, int64_t rows, const Weight& w, const float* residual,
                       float* out) {
    activations.assign(x, rows, w.columns);
    multiply(w, activations, rows, [&](int64_t m, int64_t n, float value) {
        out[m * w.rows + n] = residual[m * w.rows + n] + value;
    });
}

// q, k, v = heads of norm(x) W^T, q and k turned by their positions: [batch, heads, length, dim]
inline void attention_inputs(const float* x, int64_t batch, int64_t length, const float* norm,
                            float eps, const Weight& wq, const Weight& wk, const Weight& wv,
                            int64_t dim, const double* periods, int64_t pairs, int64_t offset,
                            float* q, float* k, float* v) {
    const int64_t rows = batch * length, columns = wq.columns;
    normed.resize(size_t(rows * columns));
    normalize(x, norm, eps, rows, columns, normed.data());
    activations.assign(normed.data(), rows, columns);
    static std::vector<float> cosines, sines;
    cosines.resize(size_t(length * pairs));
    sines.resize(size_t(length * pairs));
    turn(offset, length, periods, pairs, cosines.data(), sines.data());
    const Weight* weights[] = {&wq, &wk, &wv};
    float* const outs[] = {q, k, v};
    static std::vector<float> projected[3];
    for (int i = 0; i < 3; ++i) projected[i].resize(size_t(rows * weights[i]->rows));
    multiply(weights, 3, activations, rows, [&](int i, int64_t m, int64_t n, float value) {
        projected[i][m * weights[i]->rows + n] = value;
    });
    for (int i = 0; i < 3; ++i)
        split_heads(projected[i].data(), batch, length, weights[i]->rows / dim, dim,
                    cosines.data(), sines.data(), i < 2 ? pairs : 0, outs[i]);
}

// out = x + (silu(norm(x) G^T) * norm(x) U^T) D^T
inline void feed_forward(const float* x, int64_t rows, const float* norm, float eps,
                        const Weight& gate, const Weight& up, const Weight& down, float* out) {
    const int64_t columns = gate.columns, width = gate.rows;
    normed.resize(size_t(rows * columns));
    hidden.resize(size_t(rows * width));
    normalize(x, norm, eps, rows, columns, normed.data());
    activations.assign(normed.data(), rows, columns);
    gates.resize(size_t(rows * width));
    const Weight* weights[] = {&gate, &up};
    float* const outs[] = {gates.data(), hidden.data()};
    multiply(weights, 2, activations, rows, [&](int i, int64_t m, int64_t n, float value) {
        outs[i][m * width + n] = value;
    });
    pool->run(rows, [&](int64_t m) {
        for (int64_t at = m * width; at < (m + 1) * width; at += kLanes)
            store(&hidden[at], load(&hidden[at]) * silu(load(&gates[at])));
    });
    hidden_activations.assign(hidden.data(), rows, width);
    multiply(down, hidden_activations, rows, [&](int64_t m, int64_t n, float value) {
        out[m * columns + n] = x[m * columns + n] + value;
    });
}

// Heads [batch, heads, length, dim] side by side: [batch * length, heads * dim]
inline void merge_heads(const float* from, int64_t batch, int64_t length, int64_t heads,
                        int64_t dim, float* to) {
    for (int64_t b = 0; b < batch; ++b)
        for (int64_t h = 0; h < heads; ++h)
            for (int64_t t = 0; t < length; ++t)
                std::memcpy(to + ((b * length + t) * heads + h) * dim,
                            from + ((b * heads + h) * length + t) * dim,
                            size_t(dim) * sizeof(float));
}

}  // namespace ember
