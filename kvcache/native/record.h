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
// Values: a 32-bit lane is a channel, its halves are two successive tokens, and each half holds
// codes of every second token, lowest first, so that a product of pairs summed by twos is a step
// of 16 sums over tokens. A run of tokens has one to five vectors of words for each 16 channels:
//
//     bits          2    3    4    5    6    8
//     words         1    3    1    5    3    1
//     codes a half  8    5    4    3    2    2
//     bits left     0    1    0    1    4    0    of each half, highest
//     tokens       16   32    8   32   16    4
//
// The bits left of a run's words, first word lowest, are one more code a half (3 and 5 bits) or
// two (6 bits):
//
//     3 bits    bit  0   3   6   9   12   15          16  19  22  25  28   31
//     word 0         t0  t2  t4  t6  t8   t30 bit 0   t1  t3  t5  t7  t9   t31 bit 0
//     word 1         t10 t12 t14 t16 t18  t30 bit 1   t11 t13 t15 t17 t19  t31 bit 1
//     word 2         t20 t22 t24 t26 t28  t30 bit 2   t21 t23 t25 t27 t29  t31 bit 2
//
// Codes of 16 bits are float16 [M, D], in either role.
#pragma once

#include "dense.h"

namespace ember {

enum class Role : int32_t { kKeys = 0, kValues = 1 };

enum class Family : int32_t { kPlain = 0, kTokenAffine, kChannelAffine, kTurbo, kFittedTurbo, kVarn };

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

// f(constant of a code's width)
template <typename F>
inline void with_bits(int bits, const F& f) {
    switch (bits) {
        case 2:
            return f(std::integral_constant<int, 2>());
        case 3:
            return f(std::integral_constant<int, 3>());
        case 4:
            return f(std::integral_constant<int, 4>());
        case 5:
            return f(std::integral_constant<int, 5>());
        case 6:
            return f(std::integral_constant<int, 6>());
        default:
            return f(std::integral_constant<int, 8>());
    }
}

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

// Quad `first` + kIndex of 16 tokens from one plane, a byte a code; `first` is a multiple of 4.
template <int kWidth, int kIndex>
inline Words plane_quad(const uint8_t* plane, int64_t first) {
    constexpr int kShared = 8 / kWidth;  // quads to a vector
    const Words words = load_words(plane + first * 8 * kWidth + kIndex / kShared * 64);
    if constexpr (kWidth == 8) return words;
    return words >> uint32_t(kIndex % kShared * kWidth) & (0x01010101u * ((1u << kWidth) - 1));
}

// Byte i of lane t is `bit` where bit 4t + i of the mask is set, else 0.
template <int kBit>
inline Words spread_mask(const uint8_t* mask) {
#if defined(__AVX512BW__)
    uint64_t bits;
    std::memcpy(&bits, mask, sizeof bits);
    return reinterpret_cast<Words>(_mm512_maskz_set1_epi8(bits, kBit));
#else
    constexpr Words kShifts = {0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28};
    uint32_t halves[2];
    std::memcpy(halves, mask, sizeof halves);
    Words lanes;
    for (int t = 0; t < kLanes; ++t) lanes[t] = halves[t / 8];
    return ((lanes >> kShifts & 15) * 0x00204081u & 0x01010101u) * uint32_t(kBit);
#endif
}

template <int kBits, int kIndex>
inline Words key_quad(const uint8_t* codes, int64_t dim, int64_t first) {
    constexpr Planes kPlanes = planes_of(kBits);
    const Words low = plane_quad<kPlanes.low, kIndex>(codes, first);
    const uint8_t* upper = codes + plane_bytes(kPlanes.low, dim);
    if constexpr (kPlanes.high == 1)
        return low | spread_mask<1 << kPlanes.low>(upper + (first + kIndex) * 8);
    if constexpr (kPlanes.high == 2)
        return low | plane_quad<2, kIndex>(upper, first) << uint32_t(kPlanes.low);
    return low;
}

// f(i, quad first + i) for four quads of the 16 tokens whose codes begin at `codes`.
template <int kBits, typename F>
inline void each_key_quad(const uint8_t* codes, int64_t dim, int64_t first, const F& f) {
    f(0, key_quad<kBits, 0>(codes, dim, first));
    f(1, key_quad<kBits, 1>(codes, dim, first));
    f(2, key_quad<kBits, 2>(codes, dim, first));
    f(3, key_quad<kBits, 3>(codes, dim, first));
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

// How the codes of values fill words, see the table above.
struct Run {
    int words, fit, spare_bits, spare_codes;  // fit: codes of a half-word

    constexpr int tokens() const { return 2 * (words * fit + spare_codes); }
};

constexpr Run run_of(int bits) {
    const int fit = 16 / bits, left = 16 - bits * fit;
    const int words = bits == 3 || bits == 5 ? bits : bits == 6 ? 3 : 1;
    return {words, fit, left, words * left / bits};
}

// The words of 16 channels from channel `channel` on, in the run that token `first` begins.
inline int64_t values_at(int bits, int64_t dim, int64_t first, int64_t channel) {
    return first * dim * bits / 8 + channel * run_of(bits).words * 4;
}

// f(token, words) for each second token of a run; the codes of `token` and the next one are the
// lowest bits of each word's halves. What lies above them is other tokens'.
template <int kBits, typename F>
inline void each_value_pair(const uint8_t* words, const F& f) {
    constexpr Run kRun = run_of(kBits);
    Words spare = {};
#pragma GCC unroll 5
    for (int w = 0; w < kRun.words; ++w) {
        const Words word = load_words(words + w * 64);
#pragma GCC unroll 8
        for (int i = 0; i < kRun.fit; ++i)
            f(2 * (w * kRun.fit + i), word >> uint32_t(i * kBits));
        if constexpr (kRun.spare_codes > 0)
            spare |= (word >> uint32_t(16 - kRun.spare_bits) &
                      (0x00010001u * ((1u << kRun.spare_bits) - 1)))
                     << uint32_t(kRun.spare_bits * w);
    }
#pragma GCC unroll 2
    for (int i = 0; i < kRun.spare_codes; ++i)
        f(2 * (kRun.words * kRun.fit + i), spare >> uint32_t(i * kBits));
}

inline void put_value_codes(Words codes, int bits, int t, uint8_t* words) {
    const auto join = [&](int word, Words more) {
        const Words joined = load_words(words + word * 64) | more;
        std::memcpy(words + word * 64, &joined, sizeof joined);
    };
    const Run run = run_of(bits);
    const uint32_t half = t % 2 * 16;
    const int pair = t / 2, whole = run.words * run.fit;
    if (pair < whole) return join(pair / run.fit, codes << (half + bits * (pair % run.fit)));
    const int per = run.spare_bits;
    for (int b = 0; b < bits; ++b) {
        const int spare = bits * (pair - whole) + b;
        join(spare / per, (codes >> uint32_t(b) & 1) << (half + 16 - per + spare % per));
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
    const int run = run_of(bits).tokens();
    for (int64_t t = 0; t < tokens; ++t)
        for (int64_t channel = 0; channel < dim; channel += kLanes)
            put_value_codes(widen(codes + t * dim + channel), bits, int(t % run),
                            out + values_at(bits, dim, t - t % run, channel));
}

// -- either --

inline void pack_codes(const BlockForm& form, const uint8_t* codes, uint8_t* record) {
    const auto pack = form.role == Role::kKeys ? pack_keys : pack_values;
    pack(codes, form.bits, form.tokens, form.dim, record);
}

template <int kBits>
inline void unpack_keys(const BlockForm& form, const uint8_t* record, uint8_t* codes) {
    for (int64_t t = 0; t < form.tokens; t += kLanes)
        for (int64_t quad = 0; quad < form.dim / kQuad; quad += kQuad)
            each_key_quad<kBits>(
                record + keys_at(kBits, form.dim, t), form.dim, quad, [&](int i, Words lanes) {
                    for (int64_t lane = 0; lane < kLanes; ++lane) {
                        const uint32_t four = lanes[lane];
                        std::memcpy(codes + (t + lane) * form.dim + (quad + i) * kQuad, &four,
                                    kQuad);
                    }
                });
}

template <int kBits>
inline void unpack_values(const BlockForm& form, const uint8_t* record, uint8_t* codes) {
    constexpr uint32_t kMask = (1u << kBits) - 1;
    for (int64_t t = 0; t < form.tokens; t += run_of(kBits).tokens())
        for (int64_t c = 0; c < form.dim; c += kLanes)
            each_value_pair<kBits>(
                record + values_at(kBits, form.dim, t, c), [&](int token, Words pairs) {
                    for (int64_t lane = 0; lane < kLanes; ++lane) {
                        uint8_t* at = codes + (t + token) * form.dim + c + lane;
                        at[0] = pairs[lane] & kMask;
                        at[form.dim] = pairs[lane] >> 16 & kMask;
                    }
                });
}

// codes [tokens, dim], one byte each.
inline void unpack_codes(const BlockForm& form, const uint8_t* record, uint8_t* codes) {
    with_bits(form.bits, [&](auto bits) {
        if (form.role == Role::kKeys)
            unpack_keys<bits>(form, record, codes);
        else
            unpack_values<bits>(form, record, codes);
    });
}

}  // namespace ember
