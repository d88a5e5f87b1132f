// The operations of a network on the CPU, as Python calls them.
//
// Every function takes float32 activations [rows, columns] in C order and writes float32. One
// caller at a time; the work is spread over the pool.

#include "layers.h"

using namespace ember;

extern "C" {

// Returns how many threads there are, the calling one among them.
int32_t ember_start(int32_t threads) {
    pool = std::make_unique<Pool>(threads);
    return pool->threads();
}

void ember_stop() { pool.reset(); }

// Which form of the products was compiled.
const char* ember_instructions() {
#ifdef EMBER_VNNI
    return "AVX-512 VNNI";
#else
    return "portable vectors";
#endif
}

// Read every cache line of `count` bytes once, by all threads; for measuring memory.
int64_t ember_read(const uint8_t* data, int64_t count) {
    constexpr int64_t kLine = 64, kPart = 1 << 16;
    std::atomic<int64_t> total{0};
    pool->run((count + kPart - 1) / kPart, [&](int64_t part) {
        int64_t sum = 0;
        for (int64_t at = part * kPart; at < std::min(count, (part + 1) * kPart); at += kLine)
            sum += data[at];
        total.fetch_add(sum, std::memory_order_relaxed);
    });
    return total.load();
}

// out = x W^T
void ember_linear(const float* x, int64_t rows, const Weight* w, float* out) {
    activations.assign(x, rows, w->columns);
    multiply(*w, activations, rows,
             [&](int64_t m, int64_t n, float value) { out[m * w->rows + n] = value; });
}

// The rows `ids` of a weight, as float32 [count, columns]
void ember_embed(const Weight* w, const int64_t* ids, int64_t count, float* out) {
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

// out and queries: [batch, heads, queries, dim], dim a multiple of 16; see attention.h
void ember_attend(const AttentionShape* shape, const float* q, const float* q_sink,
                  const Piece* pieces, int64_t count, const Blocks* blocks, float* out) {
    attention::Attention(*pool, *shape, pieces, count, *blocks, q, q_sink, out).run();
}

// Tokens [batch, heads, blocks * form->tokens, dim] to records [blocks, batch, heads]
void ember_encode(const BlockForm* form, const Strided* tokens, int64_t blocks, int64_t batch,
                  int64_t heads, uint8_t* records) {
    pool->run(blocks * batch * heads, [&](int64_t i) {
        const int64_t head = i % heads, row = i / heads % batch, block = i / heads / batch;
        encode_block(*form, head_of(*tokens, row, head), block * form->tokens, head,
                     records + i * form->record_bytes);
    });
}

// Records [blocks, batch, heads] to tokens [batch, heads, blocks * form->tokens, dim]
void ember_decode(const BlockForm* form, const uint8_t* records, int64_t blocks, int64_t batch,
                  int64_t heads, float* out) {
    pool->run(blocks * batch * heads, [&](int64_t i) {
        const int64_t head = i % heads, row = i / heads % batch, block = i / heads / batch;
        const int64_t size = form->tokens * form->dim;
        thread_local std::vector<float> scratch;
        scratch.resize(size_t(form->dim * kTile + size));
        decode_block(*form, records + i * form->record_bytes, head, scratch.data(),
                     out + ((row * heads + head) * blocks + block) * size);
    });
}

// Codes [count, tokens, dim], one byte each, to the first bytes of each record, and back
void ember_pack(const BlockForm* form, const uint8_t* codes, int64_t count, uint8_t* records) {
    pool->run(count, [&](int64_t i) {
        pack_codes(*form, codes + i * form->tokens * form->dim, records + i * form->record_bytes);
    });
}

void ember_unpack(const BlockForm* form, const uint8_t* records, int64_t count, uint8_t* codes) {
    pool->run(count, [&](int64_t i) {
        unpack_codes(*form, records + i * form->record_bytes, codes + i * form->tokens * form->dim);
    });
}

// The parts of a layer, see steps.h
void ember_linear_add(const float* x, int64_t rows, const Weight* w, const float* residual,
                      float* out) {
    linear_add(x, rows, *w, residual, out);
}

void ember_attention_inputs(const float* x, int64_t batch, int64_t length, const float* norm,
                            float eps, const Weight* wq, const Weight* wk, const Weight* wv,
                            int64_t dim, const double* periods, int64_t pairs, int64_t offset,
                            float* q, float* k, float* v) {
    attention_inputs(x, batch, length, norm, eps, *wq, *wk, *wv, dim, periods, pairs, offset, q, k,
                     v);
}

void ember_feed_forward(const float* x, int64_t rows, const float* norm, float eps,
                        const Weight* gate, const Weight* up, const Weight* down, float* out) {
    feed_forward(x, rows, norm, eps, *gate, *up, *down, out);
}

// x [batch, length, hidden] through `count` layers, in place; see layers.h. The layer that was
// refused its keys or values, or `count`.
int64_t ember_layers(const LayersShape* shape, const LayerWeights* const* weights,
                     const TierMemory* const* memories, const TierState* state, int64_t count,
                     int32_t checked, float* x) {
    for (int64_t i = 0; i < count; ++i)
        if (!run_layer(*shape, *weights[i], *memories[i], *state, checked != 0, x)) return i;
    return count;
}

}  // extern "C"
