// The operations of a network on the CPU, as Python calls them.
//
// Every function takes float32 activations [rows, columns] in C order and writes float32. One
// caller at a time, others wait; the work is spread over the pool of the library of the caches.

#include <time.h>

#include "checks.h"
#include "layers.h"
#include "mapping.h"

using namespace ember;

// Seconds of a clock that nobody sets. (<chrono> takes longer to compile than what is here.)
static double now() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return double(time.tv_sec) + 1e-9 * double(time.tv_nsec);
}

extern "C" {

void network_start(Pool* lent_pool, AttendTiers* lent_attention,
                   MultiplyRows* const* lent_products) {
    pool = lent_pool;
    attend_tiers = lent_attention;
    multiply_rows_of = lent_products;
}

// What is computed with weights of a type, before the first of them.
void network_take(Type type, const Kind* kind) { kinds[int(type)] = kind; }

// A file that is mapped from now on, until its end is set to 0; see mapping.h
Mapping* network_guard(const void* start, int64_t size) {
    return guard(reinterpret_cast<uintptr_t>(start), size);
}

void network_forget(Mapping* mapping) { mapping->end.store(0); }

// Whether bytes of the file could not be had
int32_t network_is_damaged(const Mapping* mapping) {
    handle_faults();
    return mapping->damaged.load();
}

// Whether all weights in `bytes` of whole blocks are finite
int32_t network_are_finite(const uint8_t* data, int64_t bytes, Type type) {
    const auto turn = pool->turn();
    return are_finite(data, bytes, type);
}

// out = x W^T
void network_linear(const float* x, int64_t batch, int64_t length, const Weight* w, float* out) {
    const auto turn = pool->turn();
    activations.assign(x, batch * length, w->columns);
    multiply({{w, out}}, activations, {batch, length});
}

// The rows `ids` of a weight times a factor, as float32 [count, columns]
void network_embed(const Weight* w, const int64_t* ids, int64_t count, float factor, float* out) {
    const auto turn = pool->turn();
    const Kind& of = kind_of(w->type);
    pool->run(count, [&](int64_t i) {
        float* row = out + i * w->columns;
        of.decode(*w, ids[i], 0, w->columns, row);
        for (int64_t n = 0; n < w->columns; ++n) row[n] *= factor;
    });
}

// The parts of a layer, see steps.h; tokens of each sequence from position starts[batch] on.
void network_attention_inputs(const float* x, int64_t batch, int64_t length, const int64_t* starts,
                              const Inputs* w, float* q, float* k, float* v) {
    const auto turn = pool->turn();
    Turns turns({batch, length}, starts);
    attention_inputs(x, *w, turns, q, k, v);
}

void network_normalize(const float* x, int64_t rows, int64_t columns, const Norm* w, float* out) {
    for (int64_t m = 0; m < rows; ++m)
        normalize_row(x + m * columns, *w, columns, out + m * columns);
}

void network_add(const float* x, int64_t batch, int64_t length, const Addition* w,
                 const float* residual, float* out) {
    const auto turn = pool->turn();
    add(x, {batch, length}, *w, residual, out);
}

void network_feed_forward(const float* x, int64_t batch, int64_t length, const FeedForward* w,
                          float* out) {
    const auto turn = pool->turn();
    feed_forward(x, {batch, length}, *w, out);
}

// x [batch, length, hidden] through layers *done to `count`, in place, from positions starts[batch]
// on, until all have run or, after one of them, `seconds` have gone by; *done tells how far it came.
// Layer i has a step and a memory for each of its `caches` caches, from steps[i] and
// memories[i * caches] on; see layers.h. 0 where the caches of layer *done refused its keys or
// values.
int32_t network_layers(const TierStep* const* steps, int64_t caches, const int64_t* starts,
                       const LayerWeights* const* weights, const TierMemory* const* memories,
                       int64_t count, double seconds, int64_t* done, float* x) {
    const auto turn = pool->turn();
    const double until = now() + seconds;
    Turns turns({caches * steps[0]->batch, steps[0]->length}, starts);
    do {
        const int64_t i = *done;
        if (!run_layer({steps[i], caches}, *weights[i], memories + i * caches, turns, x)) return 0;
    } while (++*done < count && now() < until);
    return 1;
}

}  // extern "C"
