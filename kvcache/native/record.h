// One encoded block of one KV head, keys or values: M tokens of D channels, as the CPU reads it.
//
//     value[t][c] = token_scale[t][g] * channel_scale[c] * L(code[t][c])
//                   + token_zero[t][g] + channel_zero[c]
//
// g is the group of c; L(code) is a level of a table, or code - centre. Absent scales are 1,
// absent zeros 0. A record is its codes, then those of these float16 arrays that the codec has.
//
// key_codes.h, value_codes.h and trellis_codes.h draw how codes lie. Codes of 16 bits are float16
// [M, D].
#pragma once

#include "key_codes.h"
#include "trellis_codes.h"
#include "value_codes.h"

namespace ember {

enum class Role : int32_t { kKeys = 0, kValues = 1 };

enum class Family : int32_t {
    kUnencoded = 0,
    kTokenAffine,
    kChannelAffine,
    kTurbo,
    kFittedTurbo,
    kVarn,
    kTrellis
};

constexpr int kMostLevels = 16;

struct Coding;

// Where an array lies in a record, in bytes; negative where the codec has none.
struct BlockForm {
    Family family;
    Role role;
    int32_t bits;
    int64_t tokens, dim, group;  // group: channels that share a token's scale
    int64_t token_scales, token_zeros, channel_scales, channel_zeros;
    int64_t record_bytes;
    float centre;
    int32_t levels;  // how many of the table count; 0: L(code) = code - centre
    float table[kMostLevels];  // of a trellis: its positive levels
    const float* signs;    // [Hkv, D], or null: the given basis
    const float* basis;    // [D, D] orthonormal: coded is (x * signs) basis
    const float* inverse;  // its transpose
    // Error feedback (kvcache/codecs/feedback.py), or null: plain rounding.
    const int32_t* order;  // [Hkv, D]
    const float* spread;   // [Hkv, D, D]: its weights
    float span;            // of a channel's own, that its codes span
    const Coding* coding;  // what is computed with its codes; null for kUnencoded

    int64_t groups() const { return dim / group; }
    int64_t code_bytes() const { return tokens * dim * bits / 8; }
    const uint16_t* halves(const uint8_t* record, int64_t offset) const {
        return offset < 0 ? nullptr : reinterpret_cast<const uint16_t*>(record + offset);
    }
    uint16_t* halves(uint8_t* record, int64_t offset) const {
        return offset < 0 ? nullptr : reinterpret_cast<uint16_t*>(record + offset);
    }
};

}  // namespace ember
