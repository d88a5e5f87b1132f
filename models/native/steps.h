// The parts of a network's layer on the CPU, spread over the pool: what attention takes, what it
// adds, and the feed-forward part. A part that a network has not got is a null pointer or a factor
// that changes nothing.
#pragma once

#include "products.h"

namespace ember {

// A root-mean-square norm of every `columns` numbers side by side: of a whole row, or of each of
// its heads. None where weight is null.
struct Norm {
    const float* weight;
    int64_t columns;
    float eps;
};

// How heads turn with their positions: pair p by position / periods[p], where pairs lie side by
// side or, if apart, `pairs` from each other.
struct Rope {
    const double* periods;
    int64_t pairs;
    int32_t apart;
};

// What attention takes of x: heads of dim numbers of norm(x) W^T, of which queries and keys are
// normed and turned. Queries are multiplied by query_factors [dim], alike in a pair, where there
// are any, and at position p by 1 + temperature_scale * log(1 + p / temperature_span), whole spans.
struct Inputs {
    const Weight *q, *k, *v;
    Norm norm, query_norm, key_norm;
    Rope rope;
    int64_t dim;
    const float* query_factors;
    float temperature_scale;
    int64_t temperature_span;
};

// A product that is normed, scaled and added to x.
struct Addition {
    const Weight* weight;
    Norm norm;
    float scale;
};

// What the feed-forward part adds to x: of act(norm(x) G^T) * norm(x) U^T, where act is silu or
// gelu.
struct FeedForward {
    const Weight *gate, *up;
    Norm norm;
    int32_t gelu;
    Addition down;
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

// x * sigmoid(by)
inline Vector gated(Vector x, Vector by) {
    const Vector small = exp_below(by < 0 ? by : -by);
    return x * (by < 0 ? small : small - small + 1.0f) / (small + 1.0f);
}

inline Vector silu(Vector x) { return gated(x, x); }

// x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))
inline Vector gelu(Vector x) {
    return gated(x, (x + x * x * x * 0.044715f) * 1.5957691216f);
}

inline Quantized activations, hidden_activations;
inline std::vector<float> normed, hidden, gates, products;

// What a norm multiplies `columns` numbers by, beside its weights.
inline float norm_factor(const float* x, int64_t columns, float eps) {
    const int64_t whole = columns / kLanes * kLanes;
    Vector squares = {};
    for (int64_t i = 0; i < whole; i += kLanes) squares += load(x + i) * load(x + i);
    float total = sum(squares);
    for (int64_t i = whole; i < columns; ++i) total += x[i] * x[i];
    return 1.0f / std::sqrt(total / float(columns) + eps);
}

// One row of `width` numbers; `out` may be the row itself.
[[gnu::noinline]] inline void normalize_row(const float* x, const Norm& norm, int64_t width,
                                            float* out) {
    for (int64_t at = 0; at < width; at += norm.columns) {
        const float factor = norm_factor(x + at, norm.columns, norm.eps);
        for (int64_t i = 0; i < norm.columns; ++i)
            out[at + i] = x[at + i] * factor * norm.weight[i];
    }
}

// Rows of x as a product takes them: normed, where there is a norm.
inline const float* normalize(const float* x, const Norm& norm, int64_t rows, int64_t columns) {
    if (!norm.weight) return x;
    normed.resize(size_t(rows * columns));
    pool->run(rows, [&](int64_t m) {
        normalize_row(x + m * columns, norm, columns, &normed[m * columns]);
    });
    return normed.data();
}

// The positions of rows, each sequence's from its start on, and their cosines and sines, made once
// for layers that turn alike. What stands before position 0 is padding.
class Turns {
  public:
    struct Table {
        const double* periods;
        int64_t pairs;
        std::vector<float> cosines, sines;  // [rows, pairs]
    };

    // starts: of each sequence.
    Turns(Sequences of, const int64_t* starts) : of_(of), starts_(starts) {}

    Sequences of() const { return of_; }

    int64_t position(int64_t row) const {
        return std::max<int64_t>(0, starts_[row / of_.length] + row % of_.length);
    }

    // Until the next call.
    const Table& table(const Rope& rope) {
        for (const Table& made : tables_)
            if (made.periods == rope.periods && made.pairs == rope.pairs) return made;
        Table table{rope.periods, rope.pairs, {}, {}};
        // In double as far as it goes.
        for (int64_t row = 0; row < of_.rows(); ++row)
            for (int64_t p = 0; p < rope.pairs; ++p) {
                const double angle = double(position(row)) / rope.periods[p];
                table.cosines.push_back(float(std::cos(angle)));
                table.sines.push_back(float(std::sin(angle)));
            }
        tables_.push_back(std::move(table));
        return tables_.back();
    }

  private:
    Sequences of_;
    const int64_t* starts_;
    std::vector<Table> tables_;
};

// A head of dim numbers, its pairs turned; the rest as it is.
[[gnu::noinline]] inline void turn_head(const float* __restrict x, const Rope& rope,
                                        const float* cosines, const float* sines, int64_t dim,
                                        float* __restrict out) {
    const int64_t pairs = rope.pairs;
    if (rope.apart)
        for (int64_t p = 0; p < pairs; ++p) {
            out[p] = x[p] * cosines[p] - x[p + pairs] * sines[p];
            out[p + pairs] = x[p] * sines[p] + x[p + pairs] * cosines[p];
        }
    else
        for (int64_t p = 0; p < pairs; ++p) {
            out[2 * p] = x[2 * p] * cosines[p] - x[2 * p + 1] * sines[p];
            out[2 * p + 1] = x[2 * p] * sines[p] + x[2 * p + 1] * cosines[p];
        }
    std::copy(x + 2 * pairs, x + dim, out + 2 * pairs);
}

// Multiply the queries of a row by what they are multiplied by.
inline void scale_queries(const Inputs& w, int64_t position, float* row) {
    const int64_t width = w.q->rows;
    if (w.query_factors)
        for (int64_t at = 0; at < width; at += w.dim)
            for (int64_t d = 0; d < w.dim; ++d) row[at + d] *= w.query_factors[d];
    if (w.temperature_scale) {
        const double spans = std::log1p(double(position / w.temperature_span));
        const float factor = float(1 + w.temperature_scale * spans);
        for (int64_t n = 0; n < width; ++n) row[n] *= factor;
    }
}

// q, k, v [batch, heads, length, dim] of x [batch, length, hidden], at the positions of `turns`.
inline void attention_inputs(const float* x, const Inputs& w, Turns& turns, float* q, float* k,
                             float* v) {
    const int64_t length = turns.of().length, rows = turns.of().rows();
    const int64_t columns = w.q->columns;
    activations.assign(normalize(x, w.norm, rows, columns), rows, columns);
    const Weight* weights[] = {w.q, w.k, w.v};
    static std::vector<float> projected[3];
    for (int i = 0; i < 3; ++i) projected[i].resize(size_t(rows * weights[i]->rows));
    multiply({{w.q, projected[0].data()}, {w.k, projected[1].data()}, {w.v, projected[2].data()}},
             activations, turns.of());
    const Turns::Table& table = turns.table(w.rope);
    // The heads of a row of a product, each to its place.
    const auto place = [&](int i, int64_t row, const Rope& rope, float* out) {
        const int64_t b = row / length, t = row % length, width = weights[i]->rows;
        const float* from = projected[i].data() + row * width;
        for (int64_t at = 0; at < width; at += w.dim)
            turn_head(from + at, rope, table.cosines.data() + row * rope.pairs,
                      table.sines.data() + row * rope.pairs, w.dim,
                      out + (b * width + at) * length + t * w.dim);
    };
    pool->run(rows, [&](int64_t row) {
        float* queries = projected[0].data() + row * w.q->rows;
        float* keys = projected[1].data() + row * w.k->rows;
        if (w.query_norm.weight) normalize_row(queries, w.query_norm, w.q->rows, queries);
        if (w.key_norm.weight) normalize_row(keys, w.key_norm, w.k->rows, keys);
        scale_queries(w, turns.position(row), queries);
        place(0, row, w.rope, q);
        place(1, row, w.rope, k);
        place(2, row, {}, v);
    });
}

// out = residual + scale * norm(x W^T)
inline void add(Quantized& x, Sequences of, const Addition& w, const float* residual, float* out) {
    const int64_t columns = w.weight->rows;
    if (!w.norm.weight)
        return multiply({{w.weight, out, residual, w.scale}}, x, of);
    products.resize(size_t(of.rows() * columns));
    multiply({{w.weight, products.data()}}, x, of);
    pool->run(of.rows(), [&](int64_t m) {
        float* row = products.data() + m * columns;
        normalize_row(row, w.norm, columns, row);
        for (int64_t n = 0; n < columns; ++n)
            out[m * columns + n] = residual[m * columns + n] + w.scale * row[n];
    });
}

// The same of x that is not quantized.
inline void add(const float* x, Sequences of, const Addition& w, const float* residual, float* out) {
    activations.assign(x, of.rows(), w.weight->columns);
    add(activations, of, w, residual, out);
}

template <Vector (*act)(Vector)>
inline void activate(const float* gate, int64_t count, float* up) {
    const int64_t whole = count / kLanes * kLanes, rest = count - whole;
    for (int64_t i = 0; i < whole; i += kLanes) store(up + i, load(up + i) * act(load(gate + i)));
    // What lies behind a row is another's.
    float last_gate[kLanes] = {}, last_up[kLanes] = {};
    std::copy_n(gate + whole, rest, last_gate);
    std::copy_n(up + whole, rest, last_up);
    store(last_up, load(last_up) * act(load(last_gate)));
    std::copy_n(last_up, rest, up + whole);
}

// x [rows, hidden] and what the feed-forward part adds to it.
inline void feed_forward(const float* x, Sequences of, const FeedForward& w, float* out) {
    const int64_t columns = w.gate->columns, width = w.gate->rows, rows = of.rows();
    activations.assign(normalize(x, w.norm, rows, columns), rows, columns);
    hidden.resize(size_t(rows * width));
    gates.resize(size_t(rows * width));
    multiply({{w.gate, gates.data()}, {w.up, hidden.data()}}, activations, of);
    pool->run(rows, [&](int64_t m) {
        (w.gelu ? activate<gelu> : activate<silu>)(&gates[m * width], width, &hidden[m * width]);
    });
    hidden_activations.assign(hidden.data(), rows, width);
    add(hidden_activations, of, w.down, x, out);
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
