// One encoded block of one KV head, keys or values: M tokens of D channels, as the CPU reads it.
//
//     value[t][c] = token_scale[t][g] * channel_scale[c] * L(code[t][c])
//                   + token_zero[t][g] + channel_zero[c]
//
// g is the group of c; L(code) is a level of a table, or code - centre. Absent scales are 1,
// absent zeros 0. A record is its codes, then those of these float16 arrays that the codec has.
//
// Keys: for each 16 tokens one to two planes, high bits last (8 = 8, 6 = 4 + 2, 5 = 4 + 1, 4 = 4,
// 3 = 2 + 1, 2 = 2). Four neighbouring channels are a quad; byte i of 32-bit lane t is channel i
// of the quad in token t, so that a product of bytes summed by fours is a step of 16 dot products.
//
//     8-bit plane   64 bytes a quad
//     4-bit plane   64 bytes for quads 2j and 2j + 1:     byte = q(2j) | q(2j+1) << 4
//     2-bit plane   64 bytes for quads 4j to 4j + 3:      byte = q(4j) | q(4j+1) << 2 | ...
//     1-bit plane    8 bytes a quad: bit 4t + i
//
// Values: lanes are 16 channels, and a 32-bit word of a lane holds codes of successive tokens,
// lowest first. For each run of 32 tokens and each 16 channels there are `bits` vectors of words.
// 2, 4 and 8 bits fill a word (a run may then be 16 tokens). For 3, 5 and 6 bits, with
// n = 32 / bits codes to a word, two bits of each word are left; together they are two more codes:
//
//     3 bits   bit   0   3   6  ...  27   30 31
//     word 0         t0  t1  t2 ...  t9   t30 bits 0-1
//     word 1         t10 t11 t12 ... t19  t30 bit 2, t31 bit 0
//     word 2         t20 t21 t22 ... t29  t31 bits 1-2
//
// Codes of 16 bits are float16 [M, D], in either role.
#pragma once

#include "dense.h"

namespace ember {

enum class Role : int32_t { kKeys = 0, kValues = 1 };

enum class Family : int32_t { kPlain = 0, kTokenAffine, kChannelAffine, kTurbo, kFittedTurbo, kVarn };

constexpr int64_t kRun = 32;   // tokens whose value codes fill whole words at any width
constexpr int64_t kQuad = 4;   // channels of a key lane
constexpr int kMostLevels = 16;

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
    float table[kMostLevels];
    const float* signs;    // [Hkv, D], or null: the given basis
    const float* basis;    // [D, D] orthonormal: coded is (x * signs) basis
    const float* inverse;  // its transpose

    int64_t groups() const { return dim / group; }
    const uint16_t* halves(const uint8_t* record, int64_t offset) const {
        return offset < 0 ? nullptr : reinterpret_cast<const uint16_t*>(record + offset);
    }
    uint16_t* halves(uint8_t* record, int64_t offset) const {
        return offset < 0 ? nullptr : reinterpret_cast<uint16_t*>(record + offset);
    }
};

// -- keys --

// Widths of the planes of `bits`, low bits first; 0 for none.
struct Planes {
    int low, high;
};

constexpr Planes planes_of(int bits) {
    return bits == 3 ? Planes{2, 1} : bits == 5 ? Planes{4, 1} : bits == 6 ? Planes{4, 2}
                                                                         : Planes{bits, 0};
}

inline int64_t plane_bytes(int width, int64_t dim) { return 2 * width * dim; }

// The bytes of 16 tokens from token `first` (a multiple of 16) on.
inline int64_t keys_at(int bits, int64_t dim, int64_t first) { return first * dim * bits / 8; }

// Channel 4 * quad + i of 16 tokens, from one plane.
inline Words plane_codes(const uint8_t* plane, int width, int64_t quad, int i) {
    if (width == 1) {
        constexpr Words kShifts = {0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28};
        uint32_t halves[2];
        std::memcpy(halves, plane + quad * 8, sizeof halves);
        Words both;
        for (int t = 0; t < kLanes; ++t) both[t] = halves[t / 8];
        return both >> (kShifts + uint32_t(i)) & 1;
    }
    const int64_t shared = 8 / width;  // quads to a vector
    const Words words = load_words(plane + quad / shared * 64);
    return words >> uint32_t(8 * i + width * (quad % shared)) & ((1u << width) - 1);
}

// Channel `channel` of the 16 tokens whose codes begin at `codes`.
inline Words key_codes(const uint8_t* codes, int bits, int64_t dim, int64_t channel) {
    const Planes planes = planes_of(bits);
    const int64_t quad = channel / kQuad;
    const int i = int(channel % kQuad);
    const Words low = plane_codes(codes, planes.low, quad, i);
    if (!planes.high) return low;
    const uint8_t* upper = codes + plane_bytes(planes.low, dim);
    return low | plane_codes(upper, planes.high, quad, i) << uint32_t(planes.low);
}

// Bits [from, from + width) of a quad's 16 lanes to its plane, which begins as zeros.
inline void put_plane(Words quads, int from, int width, int64_t quad, uint8_t* plane) {
    const Words bits = quads >> uint32_t(from) & (0x01010101u * ((1u << width) - 1));
    if (width == 1) {
        uint64_t mask = 0;
        for (int t = 0; t < kLanes; ++t) {
            const uint32_t spread = bits[t] | bits[t] >> 7 | bits[t] >> 14 | bits[t] >> 21;
            mask |= uint64_t(spread & 15) << (4 * t);
        }
        std::memcpy(plane + quad * 8, &mask, sizeof mask);
        return;
    }
    const int64_t shared = 8 / width;
    uint8_t* at = plane + quad / shared * 64;
    const Words joined = load_words(at) | bits << uint32_t(width * (quad % shared));
    std::memcpy(at, &joined, sizeof joined);
}

inline void pack_keys(const uint8_t* codes, int bits, int64_t tokens, int64_t dim, uint8_t* out) {
    const Planes planes = planes_of(bits);
    std::memset(out, 0, size_t(keys_at(bits, dim, tokens)));
    for (int64_t t = 0; t < tokens; t += kLanes) {
        uint8_t* low = out + keys_at(bits, dim, t);
        uint8_t* high = low + plane_bytes(planes.low, dim);
        for (int64_t quad = 0; quad < dim / kQuad; ++quad) {
            uint32_t lanes[kLanes];
            for (int64_t i = 0; i < kLanes; ++i)
                std::memcpy(lanes + i, codes + (t + i) * dim + quad * kQuad, kQuad);
            const Words quads = load_words(lanes);
            put_plane(quads, 0, planes.low, quad, low);
            if (planes.high) put_plane(quads, planes.low, planes.high, quad, high);
        }
    }
}

// -- values --

constexpr int codes_per_word(int bits) { return 32 / bits; }
constexpr bool fills_words(int bits) { return 32 % bits == 0; }

// The words of 16 channels from channel `channel` on, in the run of token `first`, a multiple
// of 32; `run` is how many tokens it has.
inline int64_t values_at(int bits, int64_t dim, int64_t first, int64_t run, int64_t channel) {
    return (first * dim + run * channel) * bits / 8;
}

// Codes of token `t` of a run, from the words of 16 channels.
inline Words value_codes(const uint8_t* words, int bits, int t) {
    const int fit = codes_per_word(bits), whole = fills_words(bits) ? int(kRun) : fit * bits;
    const uint32_t mask = (1u << bits) - 1;
    if (t < whole) return load_words(words + t / fit * 64) >> uint32_t(bits * (t % fit)) & mask;
    Words spare = {};
    for (int w = 0; w < bits; ++w)
        spare |= load_words(words + w * 64) >> 30u << uint32_t(2 * w);
    return spare >> uint32_t(bits * (t - whole)) & mask;
}

inline void put_value_codes(Words codes, int bits, int t, uint8_t* words) {
    const auto join = [&](int word, Words more) {
        const Words joined = load_words(words + word * 64) | more;
        std::memcpy(words + word * 64, &joined, sizeof joined);
    };
    const int fit = codes_per_word(bits), whole = fills_words(bits) ? int(kRun) : fit * bits;
    if (t < whole) return join(t / fit, codes << uint32_t(bits * (t % fit)));
    for (int b = 0; b < bits; ++b) {
        const int spare = bits * (t - whole) + b;
        join(spare / 2, (codes >> uint32_t(b) & 1) << uint32_t(30 + spare % 2));
    }
}

inline Words widen(const uint8_t* codes) {
    using Bytes = uint8_t __attribute__((vector_size(16)));
    Bytes bytes;
    std::memcpy(&bytes, codes, sizeof bytes);
    return __builtin_convertvector(bytes, Words);
}

inline void pack_values(const uint8_t* codes, int bits, int64_t tokens, int64_t dim,
                        uint8_t* out) {
    std::memset(out, 0, size_t(tokens * dim * bits / 8));
    for (int64_t first = 0; first < tokens; first += kRun) {
        const int64_t run = std::min(kRun, tokens - first);
        for (int64_t channel = 0; channel < dim; channel += kLanes)
            for (int64_t t = 0; t < run; ++t)
                put_value_codes(widen(codes + (first + t) * dim + channel), bits, int(t),
                                out + values_at(bits, dim, first, run, channel));
    }
}

// -- either --

inline void pack_codes(const BlockForm& form, const uint8_t* codes, uint8_t* record) {
    const auto pack = form.role == Role::kKeys ? pack_keys : pack_values;
    pack(codes, form.bits, form.tokens, form.dim, record);
}

inline void narrow(Words codes, uint8_t* out, int64_t stride) {
    for (int i = 0; i < kLanes; ++i) out[i * stride] = uint8_t(codes[i]);
}

// codes [tokens, dim], one byte each.
inline void unpack_codes(const BlockForm& form, const uint8_t* record, uint8_t* codes) {
    const int64_t dim = form.dim;
    if (form.role == Role::kKeys) {
        for (int64_t t = 0; t < form.tokens; t += kLanes)
            for (int64_t channel = 0; channel < dim; ++channel)
                narrow(key_codes(record + keys_at(form.bits, dim, t), form.bits, dim, channel),
                       codes + t * dim + channel, dim);
        return;
    }
    for (int64_t t = 0; t < form.tokens; ++t) {
        const int64_t first = t / kRun * kRun, run = std::min(kRun, form.tokens - first);
        for (int64_t channel = 0; channel < dim; channel += kLanes)
            narrow(value_codes(record + values_at(form.bits, dim, first, run, channel), form.bits,
                               int(t - first)),
                   codes + t * dim + channel, 1);
    }
}

}  // namespace ember
