// What is computed with weights of each type, by functions of its own.
//
// They are compiled in files of some types each (types_*.cpp), side by side: all in one would keep
// a new user waiting.
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
    void (*panel)(const Weight&, const Activation*, int64_t rows, int64_t first, Panelful&);
    void (*decode)(const Weight&, int64_t row, int64_t at, int64_t count, float* out);
    bool (*are_finite)(const uint8_t* blocks, int64_t count);
};

// In one of the files.
template <Type kType>
Kind kind();

}  // namespace ember
