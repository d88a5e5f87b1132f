// From a record to a float tile (see unencoded.h), in the codec's basis.
#pragma once

#include "record.h"

namespace ember {

// Tokens [first, first + count) of a block of keys to [dim][kTile]; first and count multiples of
// 16.
void decode_keys(const BlockForm& form, const uint8_t* record, int64_t first, int64_t count,
                 float* tile);

// Tokens [first, first + count) of a block of values to [count][dim]; first and count multiples
// of a run.
void decode_values(const BlockForm& form, const uint8_t* record, int64_t first, int64_t count,
                   float* tile);

// A whole block in rows of channels, rotation undone: out [tokens, dim]. scratch holds
// dim * kTile + tokens * dim floats.
void decode_block(const BlockForm& form, const uint8_t* record, int64_t head, float* scratch,
                  float* out);

}  // namespace ember
