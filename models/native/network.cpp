// The operations of a network on the CPU, as Python calls them.
//
// Every function takes float32 activations [rows, columns] in C order and writes float32. One
// caller at a time; the work is spread over the pool of the library of the caches.

#include "layers.h"

using namespace ember;

extern "C" {

void network_start(Pool* lent_pool, AttendTiers* lent_attention) {
    pool = lent_pool;
    attend_tiers = lent_attention;
}

// out = x W^T
void network_linear(const float* x, int64_t rows, const Weight* w, float* out) {
    activations.assign(x, rows, w->columns);
    multiply(*w, activations, rows,
             [&](int64_t m, int64_t n, float value) { out[m * w->rows + n] = value; });
}

// The rows `ids` of a weight, as float32 [count, columns]
void network_embed(const Weight* w, const int64_t* ids, int64_t count, float* out) {
    pool->run(count, [&](int64_t i) {
        uint8_t codes[kXGroup];
        const uint8_t* row = w->codes + ids[i] * w->row_bytes();
        for (int64_t at = 0; at < w->columns; at += kXGroup) {
            const int64_t group = ids[i] * w->groups() + at / w->group;
            const float scale = half_to_float(w->scales[group]);
            const float bias = half_to_float(w->biases[group]);
            unpack_group(row, w->bits, at, codes);
            for (int j = 0; j < kXGroup; ++j) out[i * w->columns + at + j] = scale * codes[j] + bias;
        }
    });
}

// The parts of a layer, see steps.h
void network_linear_add(const float* x, int64_t rows, const Weight* w, const float* residual,
                        float* out) {
    linear_add(x, rows, *w, residual, out);
}

void network_attention_inputs(const float* x, int64_t batch, int64_t length, const float* norm,
                              float eps, const Weight* wq, const Weight* wk, const Weight* wv,
                              int64_t dim, const double* periods, int64_t pairs, int64_t offset,
                              float* q, float* k, float* v) {
    attention_inputs(x, batch, length, norm, eps, *wq, *wk, *wv, dim, periods, pairs, offset, q, k,
                     v);
}

void network_feed_forward(const float* x, int64_t rows, const float* norm, float eps,
                          const Weight* gate, const Weight* up, const Weight* down, float* out) {
    feed_forward(x, rows, norm, eps, *gate, *up, *down, out);
}

// x [batch, length, hidden] through `count` layers, in place, each of which has the memory of
// `caches` caches side by side; see layers.h. The layer whose caches refused its keys or values, or
// `count`.
int64_t network_layers(const TierStep* steps, int64_t caches, int64_t offset,
                       const double* periods, int64_t pairs, const LayerWeights* const* weights,
                       const TierMemory* const* memories, int64_t count, float* x) {
    for (int64_t i = 0; i < count; ++i)
        if (!run_layer({steps, caches, offset}, {periods, pairs}, *weights[i],
                       memories + i * caches, x))
            return i;
    return count;
}

}  // extern "C"
