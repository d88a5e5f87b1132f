// A cache's operations on the CPU, as Python and other libraries call them.
//
// One caller at a time, others wait; the work is spread over the pool.

#include "decode.h"
#include "tiers.h"
#include "words.h"

using namespace ember;

static Pool pool;

extern "C" {

// Returns how many threads there are, the calling one among them.
int32_t ember_start(int32_t threads) {
    pool.start(threads);
    return pool.threads();
}

void ember_stop() { pool.stop(); }

// For other libraries, whose work it spreads too.
Pool* ember_pool() { return &pool; }

// For networks: multiply_rows<1> to <kProductRows>.
MultiplyRows* const* ember_products() {
    static constexpr MultiplyRows* all[kProductRows] = {
        multiply_rows<1>, multiply_rows<2>, multiply_rows<3>,
        multiply_rows<4>, multiply_rows<5>, multiply_rows<6>,
    };
    return all;
}

// Which instructions the kernels were compiled for.
const char* ember_instructions() {
#ifdef EMBER_VNNI
    return "AVX-512 VNNI";
#else
    return "portable vectors";
#endif
}

// Read every cache line of `count` bytes once, by all threads; for measuring memory.
int64_t ember_read(const uint8_t* data, int64_t count) {
    const auto turn = pool.turn();
    constexpr int64_t kLine = 64, kPart = 1 << 16;
    std::atomic<int64_t> total{0};
    pool.run((count + kPart - 1) / kPart, [&](int64_t part) {
        int64_t sum = 0;
        for (int64_t at = part * kPart; at < std::min(count, (part + 1) * kPart); at += kLine)
            sum += data[at];
        total.fetch_add(sum, std::memory_order_relaxed);
    });
    return total.load();
}

// out and q: [batch, heads, queries, dim], dim a multiple of 16; keys and values: of the new tokens
void ember_attend(const TierStep* step, const TierMemory* memory, const Strided* keys,
                  const Strided* values, const float* q, float* out) {
    const auto turn = pool.turn();
    attend(pool, *step, *memory, *keys, *values, q, out);
}

// Tokens [batch, heads, blocks * form->tokens, dim] to records [blocks, batch, heads]
void ember_encode(const BlockForm* form, const Strided* tokens, int64_t blocks, int64_t batch,
                  int64_t heads, uint8_t* records) {
    const auto turn = pool.turn();
    pool.run(blocks * batch * heads, [&](int64_t i) {
        const int64_t head = i % heads, row = i / heads % batch, block = i / heads / batch;
        encode_block(*form, head_of(*tokens, row, head), block * form->tokens, head,
                     records + i * form->record_bytes);
    });
}

// Records [blocks, batch, heads] to tokens [batch, heads, blocks * form->tokens, dim]
void ember_decode(const BlockForm* form, const uint8_t* records, int64_t blocks, int64_t batch,
                  int64_t heads, float* out) {
    const auto turn = pool.turn();
    pool.run(blocks * batch * heads, [&](int64_t i) {
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
    const auto turn = pool.turn();
    pool.run(count, [&](int64_t i) {
        pack_codes(*form, codes + i * form->tokens * form->dim, records + i * form->record_bytes);
    });
}

void ember_unpack(const BlockForm* form, const uint8_t* records, int64_t count, uint8_t* codes) {
    const auto turn = pool.turn();
    pool.run(count, [&](int64_t i) {
        form->coding->unpack(*form, records + i * form->record_bytes,
                             codes + i * form->tokens * form->dim);
    });
}

// Words [tokens, words] of a saved cache to its codes [tokens, dim], one byte each
void ember_codes(const uint32_t* words, int64_t count, int64_t each, int64_t bits, int64_t dim,
                 uint8_t* codes) {
    const auto turn = pool.turn();
    constexpr int64_t kPart = 1024;
    const auto read = stream_reader(bits);
    pool.run((count + kPart - 1) / kPart, [&](int64_t part) {
        for (int64_t i = part * kPart; i < std::min(count, (part + 1) * kPart); ++i)
            read(reinterpret_cast<const uint8_t*>(words + i * each), dim, codes + i * dim);
    });
}

// See AttendTiers; for networks that call it themselves
int32_t ember_attend_tiers(const TierStep* steps, const TierMemory* const* memories, int64_t count,
                           const float* q, const float* k, const float* v, float* out) {
    const auto turn = pool.turn();
    return attend_and_append(pool, steps, memories, count, q, k, v, out);
}

}  // extern "C"
