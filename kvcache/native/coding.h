// What is computed with the codes of one width, or with those of one trellis.
//
// Each is compiled into a library of its own (codes.cpp, trellis.cpp), once a cache has such codes:
// all of them would keep a new user waiting. Such a library calls nothing but what is in its own
// headers; a block's form leads to its functions.
#pragma once

#include "draft.h"
#include "softmax.h"

namespace ember {

struct Coding {
    // Tokens [first, first + count) of a block of keys to [dim][kTile]; first and count multiples
    // of 16. Of values to [count][dim]; first and count multiples of a run.
    using Decode = void(const BlockForm& form, const uint8_t* record, int64_t first, int64_t count,
                        float* tile);
    Decode *decode_keys, *decode_values;
    // Codes [tokens, dim], one byte each.
    void (*unpack)(const BlockForm& form, const uint8_t* record, uint8_t* codes);
    // What keys and values of codes (CodedKeys, CodedValues, TrellisValues) give a few query rows;
    // null where there is nothing to compute it with, and tiles are decoded first.
    void (*score)(const TileKeys& keys, const float* queries, int rows, float* scores);
    void (*gather)(const TileValues& values, const float* weights, int rows,
                   const float* corrections, float* out);
    // A trellis has an encoder of its own; null for all others.
    void (*encode)(const Draft& draft);
};

}  // namespace ember
