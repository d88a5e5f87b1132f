// Weights that are floats: blocks of one.
#pragma once

#include "few_rows.h"
#include "panels.h"

namespace ember {

template <>
struct BlockOf<Type::F32> {
    static constexpr int64_t kColumns = 1, kBytes = 4;
};

template <>
struct BlockOf<Type::F16> {
    static constexpr int64_t kColumns = 1, kBytes = 2;
};

template <>
struct BlockOf<Type::BF16> {
    static constexpr int64_t kColumns = 1, kBytes = 2;
};

template <>
inline void decode_block<Type::F32>(const uint8_t* block, float* out) {
    *out = read<float>(block);
}

template <>
inline void decode_block<Type::F16>(const uint8_t* block, float* out) {
    *out = read_half(block);
}

template <>
inline void decode_block<Type::BF16>(const uint8_t* block, float* out) {
    *out = bfloat_to_float(read<uint16_t>(block));
}

// A register of weights.
template <Type kType>
Native load_floats(const uint8_t* from);

template <>
inline Native load_floats<Type::F32>(const uint8_t* from) {
    return read<Native>(from);
}

template <>
inline Native load_floats<Type::F16>(const uint8_t* from) {
#if defined(__AVX512F__)
    return reinterpret_cast<Native>(_mm512_cvtph_ps(read<__m256i>(from)));
#elif defined(__F16C__)
    return reinterpret_cast<Native>(_mm256_cvtph_ps(read<__m128i>(from)));
#elif defined(__aarch64__)
    return vcvt_f32_f16(read<float16x4_t>(from));
#else
    Native floats;
    for (int i = 0; i < kNativeLanes; ++i) floats[i] = read_half(from + 2 * i);
    return floats;
#endif
}

template <>
inline Native load_floats<Type::BF16>(const uint8_t* from) {
    using Shorts = uint16_t __attribute__((vector_size(sizeof(Native) / 2)));
    using Wide = uint32_t __attribute__((vector_size(sizeof(Native))));
    return reinterpret_cast<Native>(__builtin_convertvector(read<Shorts>(from), Wide) << 16);
}

template <Type kType>
inline void decode_floats(const uint8_t* from, int64_t count, float* out) {
    constexpr int64_t kBytes = BlockOf<kType>::kBytes;
    const int64_t whole = count / kNativeLanes * kNativeLanes;
    for (int64_t i = 0; i < whole; i += kNativeLanes)
        store(out + i, load_floats<kType>(from + i * kBytes));
    for (int64_t i = whole; i < count; ++i) decode_block<kType>(from + i * kBytes, out + i);
}

template <>
inline void decode_columns<Type::F32>(const Weight& w, int64_t row, int64_t at, int64_t count,
                                      float* out) {
    decode_floats<Type::F32>(w.row(row) + at * 4, count, out);
}

template <>
inline void decode_columns<Type::F16>(const Weight& w, int64_t row, int64_t at, int64_t count,
                                      float* out) {
    decode_floats<Type::F16>(w.row(row) + at * 2, count, out);
}

template <>
inline void decode_columns<Type::BF16>(const Weight& w, int64_t row, int64_t at, int64_t count,
                                       float* out) {
    decode_floats<Type::BF16>(w.row(row) + at * 2, count, out);
}

// Products with the activations' own numbers.
template <Type kType>
struct FloatRows : RowByRow<FloatRows<kType>> {
    static constexpr Form kForm = Form::Floats;

    // As many sums as registers hold.
    static constexpr int at_once(int m) {
#if defined(__AVX__) && !defined(__AVX512F__)
        return m <= 1 ? 4 : m <= 2 ? 2 : 1;
#else
        return m <= 2 ? 4 : 2;
#endif
    }

    template <int M, int R>
    static void dot(const Weight& w, int64_t row, const Activation* x, float* out) {
        constexpr int64_t kBytes = BlockOf<kType>::kBytes;
        const uint8_t* from = w.row(row);
        const int64_t whole = w.columns / kNativeLanes * kNativeLanes;
        std::fill_n(out, M * R, 0.0f);
        Ahead ahead(w, row, R);
        add_dots<M, R, 2>(
            [&](int r, int64_t i) {
                ahead.prefetch<kNativeLanes * kBytes>();
                return load_floats<kType>(from + r * w.row_bytes + i * kBytes);
            },
            x, 0, whole, out);
        for (int64_t i = whole; i < w.columns; ++i)
            for (int r = 0; r < R; ++r) {
                float weight;
                decode_block<kType>(from + r * w.row_bytes + i * kBytes, &weight);
                // Rounded once, however compilers see the loop.
                for (int m = 0; m < M; ++m)
                    out[m * R + r] = std::fma(weight, x[m].numbers[i], out[m * R + r]);
            }
    }
};

template <>
struct FewRows<Type::F32> : FloatRows<Type::F32> {};

template <>
struct FewRows<Type::F16> : FloatRows<Type::F16> {};

template <>
struct FewRows<Type::BF16> : FloatRows<Type::BF16> {};

}  // namespace ember
