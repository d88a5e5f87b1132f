// Products of a few activation rows with weight rows, straight from the packed codes.
#pragma once

#include "affine.h"

namespace ember {

constexpr int kFewRows = 8;  // more go through the blocked product

#ifdef EMBER_VNNI

// Weights stream from memory once per token. A thread asks for what it will most likely read next:
// the same place two blocks of 32 rows on.
constexpr int64_t kRowsAhead = 64;

inline void prefetch(const void* at) { _mm_prefetch(static_cast<const char*>(at), _MM_HINT_T0); }

// Codes of any width, 64 a vector, in the order of the columns.
class Chunks {
  public:
    static constexpr int kCodes = kChunk;
    using Codes = __m512i;
    explicit Chunks(int bits) : unpack_(bits) {}

    int bits() const { return unpack_.bits(); }
    Codes load(const uint8_t* from, int count) const { return unpack_(from, count); }

    // Sums of code * x in float; 8 lanes to each 32 columns.
    static __m512 dot(Codes codes, const Activation& x, int64_t at) {
        const __m512i zero = _mm512_setzero_si512();
        __m512i sum = _mm512_dpbusd_epi32(zero, codes, _mm512_loadu_si512(x.high + at));
        sum = _mm512_slli_epi32(sum, 7);
        return _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(sum, codes, _mm512_loadu_si512(x.low + at)));
    }

  private:
    Unpacker unpack_;
};

// 4-bit codes, 128 a vector; activations come as `split_nibbles` orders them.
class Nibbles {
  public:
    static constexpr int kCodes = kNibbles;
    struct Codes {
        __m512i even, odd;
    };

    int bits() const { return 4; }
    Codes load(const uint8_t* from, int count) const {
        const __m512i raw = _mm512_maskz_loadu_epi8(~uint64_t(0) >> (64 - count / 2), from);
        const __m512i mask = _mm512_set1_epi8(15);
        return {_mm512_and_si512(raw, mask), _mm512_and_si512(_mm512_srli_epi16(raw, 4), mask)};
    }

    // Sums of code * x in float; 4 lanes to each 32 columns.
    static __m512 dot(Codes codes, const Activation& x, int64_t at) {
        const auto part = [&](__m512i sum, const int8_t* values) {
            sum = _mm512_dpbusd_epi32(sum, codes.even, _mm512_loadu_si512(values + at));
            return _mm512_dpbusd_epi32(sum, codes.odd, _mm512_loadu_si512(values + at + kChunk));
        };
        return _mm512_cvtepi32_ps(
            part(_mm512_slli_epi32(part(_mm512_setzero_si512(), x.high), 7), x.low));
    }
};

// Which of 16 scales each lane of a span's first vector takes.
template <typename Reader>
__m512i first_lanes() {
    constexpr int kLanes = 16 * kXGroup / Reader::kCodes;  // of one activation group
    alignas(64) int32_t lanes[16];
    for (int i = 0; i < 16; ++i) lanes[i] = i / kLanes;
    return _mm512_load_si512(lanes);
}

// The scales (or biases) of 16 activation groups from group `at` on, zero past `count`. Never a
// call, around which the sums of all rows would go through memory.
[[gnu::always_inline]] inline __m512 load_groups(const uint16_t* halves, int64_t at, int64_t count,
                                                 int per_scale) {
    if (per_scale == 1) {
        const __mmask16 present = __mmask16((1u << std::min<int64_t>(16, count - at)) - 1);
        return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(present, halves + at));
    }
    const int64_t stored = (count + 1) / 2, from = at / 2;
    const __mmask16 present = __mmask16((1u << std::min<int64_t>(8, stored - from)) - 1);
    const __m512 eight = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(present, halves + from));
    const __m512i twice = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    return _mm512_permutexvar_ps(twice, eight);
}

// out[m * R + r] = weight row `row` + r times activation row m. Several weight rows at once hide
// each other's latencies where there is one activation row only.
template <int M, int R, typename Reader>
void dot_rows(const Weight& w, const Reader& reader, int64_t row, const Activation* x,
              float* out) {
    constexpr int kStep = Reader::kCodes / kXGroup;
    const int per_scale = w.group / kXGroup;
    const int64_t groups = w.columns / kXGroup, bytes = w.row_bytes();
    const uint8_t* codes = w.codes + row * bytes;
    const uint16_t* scales = w.scales + row * w.groups();
    const uint16_t* biases = w.biases + row * w.groups();
    const __m512i step = _mm512_set1_epi32(kStep);
    __m512 total[M * R];
    for (auto& each : total) each = _mm512_setzero_ps();
    for (int64_t group = 0; group < groups; group += 16) {
        const int64_t left = std::min<int64_t>(16, groups - group);
        const __mmask16 present = __mmask16((1u << left) - 1);
        __m512 product[M * R];
        for (int r = 0; r < R; ++r) {
            const uint16_t* row_scales = scales + r * w.groups();
            const uint16_t* row_biases = biases + r * w.groups();
            prefetch(row_scales + kRowsAhead * w.groups() + group);
            prefetch(row_biases + kRowsAhead * w.groups() + group);
            const __m512 scale = load_groups(row_scales, group, groups, per_scale);
            const __m512 bias = load_groups(row_biases, group, groups, per_scale);
            for (int m = 0; m < M; ++m) {
                const __m512 sums = _mm512_maskz_loadu_ps(present, x[m].sums + group);
                const __m512 x_scale = _mm512_maskz_loadu_ps(present, x[m].scales + group);
                total[m * R + r] = _mm512_fmadd_ps(bias, sums, total[m * R + r]);
                product[m * R + r] = _mm512_mul_ps(scale, x_scale);
            }
        }
        __m512i lanes = first_lanes<Reader>();
        const auto add = [&](int64_t done, int count) {
            const int64_t at = (group + done) * kXGroup;
            const uint8_t* from = codes + at * reader.bits() / 8;
            for (int r = 0; r < R; ++r) {
                prefetch(from + (r + kRowsAhead) * bytes);
                const auto loaded = reader.load(from + r * bytes, count);
                for (int m = 0; m < M; ++m) {
                    const int each = m * R + r;
                    const __m512 factor = _mm512_permutexvar_ps(lanes, product[each]);
                    total[each] =
                        _mm512_fmadd_ps(Reader::dot(loaded, x[m], at), factor, total[each]);
                }
            }
            lanes = _mm512_add_epi32(lanes, step);
        };
        int64_t done = 0;
        for (; done + kStep <= left; done += kStep) add(done, Reader::kCodes);
        if (done < left) add(done, int(left - done) * kXGroup);
    }
    for (int i = 0; i < M * R; ++i) out[i] = _mm512_reduce_add_ps(total[i]);
}

constexpr int kRowsAtOnce = 8;

#else

constexpr int kRowsAtOnce = 1;

// Codes of any width, 32 at a time, in loops that compilers turn into 16-bit products.
class Chunks {
  public:
    explicit Chunks(int bits) : bits_(bits) {}
    int bits() const { return bits_; }

  private:
    int bits_;
};

inline int dot_group(const uint8_t* codes, const int8_t* high, const int8_t* low) {
    int sum = 0;
    for (int i = 0; i < kXGroup; ++i) sum += codes[i] * int16_t(kHighUnit * high[i] + low[i]);
    return sum;
}

// out[m] = weight row `row` times activation row m; one weight row (R) at a time.
template <int M, int R, typename Reader>
void dot_rows(const Weight& w, const Reader& reader, int64_t row, const Activation* x,
              float* out) {
    static_assert(R == 1);
    const uint8_t* codes = w.codes + row * w.row_bytes();
    const uint16_t* scales = w.scales + row * w.groups();
    const uint16_t* biases = w.biases + row * w.groups();
    for (int m = 0; m < M; ++m) out[m] = 0;
    for (int64_t at = 0; at < w.columns; at += kXGroup) {
        alignas(64) uint8_t group[kXGroup];
        unpack_group(codes, reader.bits(), at, group);
        const float scale = half_to_float(scales[at / w.group]);
        const float bias = half_to_float(biases[at / w.group]);
        for (int m = 0; m < M; ++m) {
            const int sum = dot_group(group, x[m].high + at, x[m].low + at);
            const int64_t index = at / kXGroup;
            out[m] += scale * x[m].scales[index] * float(sum) + bias * x[m].sums[index];
        }
    }
}

#endif

// The same for a row count that is known only at run time, 1 to kFewRows.
template <typename Reader>
void dot_few(const Weight& w, const Reader& reader, int64_t row, const Activation* x, int count,
             float* out) {
    switch (count) {
        case 1: return dot_rows<1, 1>(w, reader, row, x, out);
        case 2: return dot_rows<2, 1>(w, reader, row, x, out);
        case 3: return dot_rows<3, 1>(w, reader, row, x, out);
        case 4: return dot_rows<4, 1>(w, reader, row, x, out);
        case 5: return dot_rows<5, 1>(w, reader, row, x, out);
        case 6: return dot_rows<6, 1>(w, reader, row, x, out);
        case 7: return dot_rows<7, 1>(w, reader, row, x, out);
        default: return dot_rows<8, 1>(w, reader, row, x, out);
    }
}

}  // namespace ember
