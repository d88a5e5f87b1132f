// How the codes of a block's values lie.
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
#pragma once

#include "unencoded.h"

namespace ember {


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

// f(token, words) for each second token of a run of kVectors * 16 channels; the codes of `token`
// and the next one are the lowest bits of each word's halves. What lies above them is other
// tokens'.
template <int kBits, int kVectors, typename F>
[[gnu::always_inline]] inline void each_value_pair(const uint8_t* words, const F& f) {
    constexpr Run kRun = run_of(kBits);
    Words spare[kVectors] = {}, word[kVectors], codes[kVectors];
#pragma GCC unroll 5
    for (int w = 0; w < kRun.words; ++w) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v)
            word[v] = load_words(words + (v * kRun.words + w) * 64);
#pragma GCC unroll 8
        for (int i = 0; i < kRun.fit; ++i) {
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) codes[v] = word[v] >> uint32_t(i * kBits);
            f(2 * (w * kRun.fit + i), codes);
        }
        if constexpr (kRun.spare_codes > 0)
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v)
                spare[v] |= (word[v] >> uint32_t(16 - kRun.spare_bits) &
                             (0x00010001u * ((1u << kRun.spare_bits) - 1)))
                            << uint32_t(kRun.spare_bits * w);
    }
#pragma GCC unroll 2
    for (int i = 0; i < kRun.spare_codes; ++i) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) codes[v] = spare[v] >> uint32_t(i * kBits);
        f(2 * (kRun.words * kRun.fit + i), codes);
    }
}

// The same of 16 channels: f(token, words).
template <int kBits, typename F>
inline void each_value_pair(const uint8_t* words, const F& f) {
    each_value_pair<kBits, 1>(words,
                              [&](int token, const Words(&codes)[1]) { f(token, codes[0]); });
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

[[gnu::noinline]] inline void scatter_pairs(Words pairs, uint32_t mask, uint8_t* to,
                                            int64_t stride) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
        to[lane] = uint8_t(pairs[lane] & mask);
        to[lane + stride] = uint8_t(pairs[lane] >> 16 & mask);
    }
}

template <int kBits>
inline void unpack_values(const uint8_t* record, int64_t tokens, int64_t dim, uint8_t* codes) {
    constexpr uint32_t kMask = (1u << kBits) - 1;
    for (int64_t t = 0; t < tokens; t += run_of(kBits).tokens())
        for (int64_t c = 0; c < dim; c += kLanes)
            each_value_pair<kBits>(record + values_at(kBits, dim, t, c),
                                   [&](int token, Words pairs) {
                                       uint8_t* to = codes + (t + token) * dim + c;
                                       scatter_pairs(pairs, kMask, to, dim);
                                   });
}

}  // namespace ember
