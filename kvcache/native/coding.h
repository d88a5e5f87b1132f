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
    // Of a trellis, its own encoder; null for all others.
    void (*encode)(const Draft& draft);
    // Codes [tokens, dim], one byte each, to the first bytes of a record, and back.
    void (*pack)(const BlockForm& form, const uint8_t* codes, uint8_t* record);
    void (*unpack)(const BlockForm& form, const uint8_t* record, uint8_t* codes);
    // What keys and values of codes (CodedKeys, CodedValues, TrellisValues) give a few query rows;
    // null where there is nothing to compute it with, and tiles are decoded first.
    void (*score)(const TileKeys& keys, const float* queries, int rows, float* scores);
    void (*gather)(const TileValues& values, const float* weights, int rows,
                   const float* corrections, float* out);
};

// What is computed with codes of any width, in a library of its own too (all_codes.cpp).
struct AllCodes {
    // Codes of a draft in the codec's basis, by the codec; of no trellis.
    void (*encode)(const Draft& draft);
    // Many query rows over decoded tiles in integers (whole_tiles.h): the rows of a thread's task, as
    // they stay until the next, and then each tile of them; null where there are no such products.
    void (*assign_whole)(const Rows& rows);
    void (*attend_whole)(const float* keys, const float* values, int64_t count, const Rows& rows,
                         const Seen* seen);
};

// Whether rounding what codes stand for does not matter: they are coarse, and of rotated channels,
// none of which is far larger than the others.
inline bool fits_whole(const BlockForm& form) {
    return form.all_codes && form.all_codes->attend_whole && form.bits < 8 && form.signs;
}

}  // namespace ember
