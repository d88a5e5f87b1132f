// A tile of unencoded tokens met by a few query rows, straight from where it lies: converting
// and transposing it would cost more than the products.
#pragma once

#include "softmax.h"

namespace ember {

constexpr int kFewQueries = 4;  // rows whose sums stay in registers

template <Element kElement>
inline void prefetch_elements(const void* data, int64_t at) {
    __builtin_prefetch(static_cast<const char*>(data) + at * (kElement == Element::kFloat ? 4 : 2));
}

class UnencodedKeys : public TileKeys {
  public:
    UnencodedKeys(const HeadTokens& from, int64_t first, int64_t count, int64_t dim)
        : from_(from), first_(first), count_(count), dim_(dim) {}

    void score(const float* queries, int rows, float* scores) const override;

  private:
    static constexpr int kAtOnce = 4;  // tokens that share the loads of a query

    template <Element kElement, int kRows>
    void score_rows(const float* queries, float* scores) const {
        const int64_t ahead = kTile * from_.token_stride;
        for (int64_t t = 0; t < count_; t += kLanes) {
            Vector sums[kRows][kLanes];
            for (int64_t i = 0; i < kLanes; i += kAtOnce) {
                int64_t at[kAtOnce];
                // Tokens past the end repeat the last one; their scores are hidden.
                for (int64_t j = 0; j < kAtOnce; ++j)
                    at[j] = (first_ + std::min(t + i + j, count_ - 1)) * from_.token_stride;
                Vector dots[kRows][kAtOnce] = {};
                for (int64_t d = 0; d < dim_; d += kLanes)
                    for (int j = 0; j < kAtOnce; ++j) {
                        const Vector key = load_elements<kElement>(from_.data, at[j] + d);
                        prefetch_elements<kElement>(from_.data, at[j] + d + ahead);
                        for (int r = 0; r < kRows; ++r)
                            dots[r][j] += key * load(queries + r * dim_ + d);
                    }
                for (int r = 0; r < kRows; ++r)
                    for (int j = 0; j < kAtOnce; ++j) sums[r][i + j] = dots[r][j];
            }
            for (int r = 0; r < kRows; ++r) store(scores + r * kTile + t, sums_of(sums[r]));
        }
    }

    HeadTokens from_;
    int64_t first_, count_, dim_;
};

class UnencodedValues : public TileValues {
  public:
    UnencodedValues(const HeadTokens& from, int64_t first, int64_t count, int64_t dim)
        : from_(from), first_(first), count_(count), dim_(dim) {}

    void gather(const float* weights, int rows, const float* corrections,
                float* out) const override;

  private:
    static constexpr int kVectorsAtOnce = 4;

    template <Element kElement, int kRows, int kVectors>
    void gather_rows(const float* weights, const float* corrections, int64_t d, float* out) const {
        Vector sums[kRows][kVectors];
        for (int r = 0; r < kRows; ++r)
            for (int v = 0; v < kVectors; ++v)
                sums[r][v] = load(out + r * dim_ + v * kLanes) * corrections[r];
        const int64_t ahead = kTile * from_.token_stride;
        for (int64_t t = 0; t < count_; ++t) {
            const int64_t at = (first_ + t) * from_.token_stride + d;
            for (int v = 0; v < kVectors; ++v) {
                const Vector value = load_elements<kElement>(from_.data, at + v * kLanes);
                prefetch_elements<kElement>(from_.data, at + v * kLanes + ahead);
                for (int r = 0; r < kRows; ++r) sums[r][v] += value * weights[r * kTile + t];
            }
        }
        for (int r = 0; r < kRows; ++r)
            for (int v = 0; v < kVectors; ++v) store(out + r * dim_ + v * kLanes, sums[r][v]);
    }

    HeadTokens from_;
    int64_t first_, count_, dim_;
};

}  // namespace ember
