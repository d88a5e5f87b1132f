// What is computed with weights of each type, by functions of its own.
//
// They are compiled into a library for each type (type.cpp), once a file has such weights: all of
// them would keep a new user waiting.
#pragma once

#include "few_rows.h"
#include "panels.h"

namespace ember {

constexpr int64_t kPanelRows = 256;  // activation rows of one task of a product with many

// Products of up to kPanelRows activation rows with a panel of weight rows.
struct Panelful {
    alignas(64) float values[kPanelRows][kPanel];
};

struct Kind {
    int64_t block_bytes;
    // What products of few activation rows read, and of many; and what computes them.
    Form few, many;
    void (*strip)(const Weight&, const Activation*, int rows, int64_t first, int64_t count, Strip&);
    void (*panel)(const Weight&, const Activation*, int64_t rows, int64_t first,
                  Panelful&);  // null: FloatPanel
    void (*decode)(const Weight&, int64_t row, int64_t at, int64_t count, float* out);
    bool (*are_finite)(const uint8_t* blocks, int64_t count);
};

// By type; null as long as none was needed. The function that gives one is `network_kind`.
constexpr int kTypes = 64;
static const Kind* kinds[kTypes];

inline const Kind& kind_of(Type type) { return *kinds[int(type)]; }

}  // namespace ember
