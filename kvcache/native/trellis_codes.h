// Trellis-coded blocks (kvcache/codecs/trellis.py): how their codes lie, and the levels they
// stand for. Keys and values lie alike.
//
// A 32-bit lane is a channel, its bytes are four successive tokens: a set. Sets share vectors, a
// run of tokens has one or three vectors for each 16 channels:
//
//     bits   tokens   bits of a byte, s: the set
//     2      16       2s, 2s+1: the code
//     3      32       2s, 2s+1: bits 0 and 1 of the code, sets 0-3; the same of sets 4-7;
//                     2s: its bit 2, sets 0-3, and 2s+1: of sets 4-7
//     4      8        4s .. 4s+3: the code
//
// All bits 0 of a vector meet those of the channels beside at once: an exclusive or of it moved by
// one, three and minus two lanes, the first 16 channels beside the last, is bit 1 of the levels'
// indices. Here that bit stands above the code: index = bit << bits | code.
#pragma once

#include "unencoded.h"

namespace ember {

constexpr int kTrellisLevels = 32;        // at most
constexpr float kTrellisUnit = 1.0f / 44;  // of which levels are whole numbers below 128
constexpr int64_t kSet = 4;               // tokens of a lane

constexpr int trellis_vectors(int bits) { return bits == 3 ? 3 : 1; }

constexpr int64_t trellis_run(int bits) { return 16 * trellis_vectors(bits) * 2 / bits; }

// The vectors of 16 channels from channel `channel` on, in the run that token `first` begins.
inline int64_t trellis_at(int bits, int64_t dim, int64_t first, int64_t channel) {
    return first * dim * bits / 8 + channel * trellis_vectors(bits) * 4;
}

// a where `mask` has a bit, else b.
inline Words choose(Words mask, Words a, Words b) {
#if defined(__AVX512F__)
    return reinterpret_cast<Words>(
        _mm512_ternarylogic_epi32(reinterpret_cast<__m512i>(mask), reinterpret_cast<__m512i>(a),
                                  reinterpret_cast<__m512i>(b), 0xca));
#else
    return (mask & a) | (~mask & b);
#endif
}

constexpr Words all_bytes(uint32_t byte) { return Words{} + 0x01010101u * byte; }

// Bit 1 of the indices at the places of the codes' bits 0; what else the words hold is noise.
inline Words beside(Words before, Words here, Words after) {
    return __builtin_shufflevector(before, here, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25,
                                   26, 27, 28, 29) ^
           __builtin_shufflevector(here, after, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15,
                                   16) ^
           __builtin_shufflevector(here, after, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17,
                                   18);
}

// One run of 16 channels and those beside it.
struct TrellisRun {
    const uint8_t *before, *here, *after;

    // codes: of a record. channel: a multiple of 16.
    TrellisRun(const uint8_t* codes, int bits, int64_t dim, int64_t first, int64_t channel)
        : before(codes + trellis_at(bits, dim, first, channel ? channel - kLanes : dim - kLanes)),
          here(codes + trellis_at(bits, dim, first, channel)),
          after(codes +
                trellis_at(bits, dim, first, channel + kLanes < dim ? channel + kLanes : 0)) {}

    Words bit_1(int vector) const {
        return beside(load_words(before + vector * 64), load_words(here + vector * 64),
                      load_words(after + vector * 64));
    }
};

template <int kShift>
inline Words moved_down(Words x) {
    if constexpr (kShift > 0) return x >> uint32_t(kShift);
    if constexpr (kShift < 0) return x << uint32_t(-kShift);
    return x;
}

// f(set, indices) for each set of a run: the lowest bits + 1 bits of each byte, noise above.
template <int kBits, typename F>
inline void each_trellis_set(const TrellisRun& run, const F& f) {
    constexpr int kSets = 8 / (kBits == 4 ? 4 : 2);  // of a vector
    constexpr int kHalves = kBits == 3 ? 2 : 1;
    for (int half = 0; half < kHalves; ++half) {
        const Words low = load_words(run.here + half * 64), bit_1 = run.bit_1(half);
        Words high = bit_1;  // what stands above the low bits of a code, at the place of its bit 0
        if constexpr (kBits == 3)
            high = choose(all_bytes(0x55), load_words(run.here + 128) >> uint32_t(half),
                          bit_1 << 1);
        constexpr int kLow = kBits == 4 ? 4 : 2;
        const auto set = [&](auto s) {
            f(half * kSets + s,
              choose(all_bytes((1u << kLow) - 1), moved_down<s * kLow>(low),
                     moved_down<s * kLow - kLow>(high)));
        };
        set(std::integral_constant<int, 0>());
        set(std::integral_constant<int, 1>());
        if constexpr (kSets == 4) {
            set(std::integral_constant<int, 2>());
            set(std::integral_constant<int, 3>());
        }
    }
}

// Of an index as each_trellis_set gives it, and noise above: that of the level among all,
// ascending.
constexpr int ascending(int bits, int index) {
    const int code = index & ((1 << bits) - 1), bit_1 = index >> bits & 1;
    return (code >> 1) << 2 | bit_1 << 1 | (code & 1);
}

// All 2^(bits + 1) levels, ascending, of which `positive` are half.
inline void all_levels(int bits, const float* positive, float* levels) {
    const int half = 1 << bits;
    for (int i = 0; i < half; ++i) {
        levels[half + i] = positive[i];
        levels[half - 1 - i] = -positive[i];
    }
}

// table[i] for each lane's i < 32
inline Vector lookup_32(const float* table, Words i) {
    return (reinterpret_cast<Integers>(i) & 16) != 0 ? lookup(table + 16, i) : lookup(table, i);
}

// f(token, levels of 16 channels) for each token of a run.
template <int kBits, typename F>
inline void each_trellis_token(const TrellisRun& run, const float* levels, const F& f) {
    each_trellis_set<kBits>(run, [&](int set, Words indices) {
        for (int64_t i = 0; i < kSet; ++i) {
            const Words index = indices >> uint32_t(8 * i) & ((2u << kBits) - 1);
            f(set * kSet + i, kBits == 4 ? lookup_32(levels, index) : lookup(levels, index));
        }
    });
}

// codes [tokens, dim], one byte each.
inline void pack_trellis(const uint8_t* codes, int bits, int64_t tokens, int64_t dim,
                         uint8_t* out) {
    std::memset(out, 0, size_t(tokens * dim * bits / 8));
    const int64_t run = trellis_run(bits), low = bits == 4 ? 4 : 2, sets = 8 / low;
    for (int64_t t = 0; t < tokens; ++t)
        for (int64_t c = 0; c < dim; ++c) {
            const int64_t set = t % run / kSet, byte = c % kLanes * 4 + t % kSet;
            uint8_t* at = out + trellis_at(bits, dim, t - t % run, c - c % kLanes) + byte;
            const unsigned code = codes[t * dim + c], half = unsigned(set / sets);
            const unsigned place = unsigned(set % sets * low);
            at[half * 64] |= uint8_t((code & ((1u << low) - 1)) << place);
            if (bits == 3) at[128] |= uint8_t((code >> 2) << (place + half));
        }
}

template <int kBits>
inline void unpack_trellis(const uint8_t* record, int64_t tokens, int64_t dim, uint8_t* codes) {
    for (int64_t t = 0; t < tokens; t += trellis_run(kBits))
        for (int64_t c = 0; c < dim; c += kLanes)
            each_trellis_set<kBits>({record, kBits, dim, t, c}, [&](int set, Words indices) {
                for (int64_t lane = 0; lane < kLanes; ++lane)
                    for (int64_t i = 0; i < kSet; ++i)
                        codes[(t + set * kSet + i) * dim + c + lane] =
                            uint8_t(indices[lane] >> (8 * i) & ((1u << kBits) - 1));
            });
}

}  // namespace ember
