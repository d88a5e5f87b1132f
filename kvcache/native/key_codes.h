// How the codes of a block's keys lie.
//
// Keys: for each 16 tokens one to two planes, high bits last (8 = 8, 6 = 4 + 2, 5 = 4 + 1, 4 = 4,
// 3 = 2 + 1, 2 = 2). Four neighbouring channels are a quad; byte i of 32-bit lane t is channel i
// of the quad in token t, so that a product of bytes summed by fours is a step of 16 dot products.
//
//     8-bit plane   64 bytes a quad
//     4-bit plane   64 bytes for quads 2j and 2j + 1:     byte = q(2j) | q(2j+1) << 4
//     2-bit plane   64 bytes for quads 4j to 4j + 3:      byte = q(4j) | q(4j+1) << 2 | ...
//     1-bit plane    8 bytes a quad: bit 4t + i
#pragma once

#include "unencoded.h"

namespace ember {

constexpr int64_t kQuad = 4;  // channels of a lane


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

// Quad `first` + kIndex of the tokens from `token` on of 16, as many as V has lanes, from one plane,
// a byte a code; `first` is a multiple of 4.
template <typename V, int kWidth, int kIndex>
inline V plane_quad(const uint8_t* plane, int64_t first, int64_t token) {
    constexpr int kShared = 8 / kWidth;  // quads to a vector
    V words;
    std::memcpy(&words, plane + first * 8 * kWidth + kIndex / kShared * 64 + token * kQuad,
                sizeof words);
    if constexpr (kWidth == 8) return words;
    return words >> uint32_t(kIndex % kShared * kWidth) & (0x01010101u * ((1u << kWidth) - 1));
}

// Lanes of bytes below `bit`, plus `bit` in byte i of lane t where bit 4t + i of the mask is set.
template <int kBit, typename V>
inline V add_mask(V lanes, const uint8_t* mask, [[maybe_unused]] int64_t token) {
#if defined(__AVX512BW__)
    static_assert(sizeof(V) == 64);
    uint64_t bits;
    std::memcpy(&bits, mask, sizeof bits);
    const __m512i bytes = reinterpret_cast<__m512i>(lanes);
    return reinterpret_cast<V>(_mm512_mask_add_epi8(bytes, bits, bytes, _mm512_set1_epi8(kBit)));
#else
    V shifts;
    for (int t = 0; t < int(sizeof(V) / 4); ++t) shifts[t] = uint32_t(4 * (t % 8));
    uint32_t halves[2];
    std::memcpy(halves, mask, sizeof halves);
    V spread = V{} + (halves[token / 8] >> uint32_t(4 * (token % 8)));
    if constexpr (sizeof(V) == 64)
        for (int t = 8; t < kLanes; ++t) spread[t] = halves[1];
    return lanes | ((spread >> shifts & 15) * 0x00204081u & 0x01010101u) * uint32_t(kBit);
#endif
}

template <typename V, int kBits, int kIndex>
inline V key_quad(const uint8_t* codes, int64_t dim, int64_t first, int64_t token = 0) {
    constexpr Planes kPlanes = planes_of(kBits);
    const V low = plane_quad<V, kPlanes.low, kIndex>(codes, first, token);
    const uint8_t* upper = codes + plane_bytes(kPlanes.low, dim);
    if constexpr (kPlanes.high == 1)
        return add_mask<1 << kPlanes.low>(low, upper + (first + kIndex) * 8, token);
    if constexpr (kPlanes.high == 2)
        return low | plane_quad<V, 2, kIndex>(upper, first, token) << uint32_t(kPlanes.low);
    return low;
}

// f(i, quad first + i) for four quads of the 16 tokens whose codes begin at `codes`.
template <int kBits, typename F>
inline void each_key_quad(const uint8_t* codes, int64_t dim, int64_t first, const F& f) {
    f(0, key_quad<Words, kBits, 0>(codes, dim, first));
    f(1, key_quad<Words, kBits, 1>(codes, dim, first));
    f(2, key_quad<Words, kBits, 2>(codes, dim, first));
    f(3, key_quad<Words, kBits, 3>(codes, dim, first));
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

// Rarely used, and long where it is repeated for every width.
[[gnu::noinline]] inline void scatter_quads(Words lanes, uint8_t* to, int64_t stride) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
        const uint32_t four = lanes[lane];
        std::memcpy(to + lane * stride, &four, kQuad);
    }
}

template <int kBits>
inline void unpack_keys(const uint8_t* record, int64_t tokens, int64_t dim, uint8_t* codes) {
    for (int64_t t = 0; t < tokens; t += kLanes)
        for (int64_t quad = 0; quad < dim / kQuad; quad += kQuad)
            each_key_quad<kBits>(record + keys_at(kBits, dim, t), dim, quad,
                                 [&](int i, Words lanes) {
                                     uint8_t* to = codes + t * dim + (quad + i) * kQuad;
                                     scatter_quads(lanes, to, dim);
                                 });
}

}  // namespace ember
