// Unencoded keys and values with a few query rows, for every element and number of rows.

#include "few_unencoded.h"

namespace ember {

void UnencodedKeys::score(const float* queries, int rows, float* scores) const {
    with_element(from_.element, [&](auto element) {
        with_constant<kFewQueries>(
            rows, [&](auto count) { score_rows<element, count>(queries, scores); });
    });
}

void UnencodedValues::gather(const float* weights, int rows, const float* corrections,
                             float* out) const {
    with_element(from_.element, [&](auto element) {
        with_constant<kFewQueries>(rows, [&](auto count) {
            for (int64_t d = 0; d < dim_; d += kVectorsAtOnce * kLanes)
                with_constant<kVectorsAtOnce>((dim_ - d) / kLanes, [&](auto vectors) {
                    gather_rows<element, count, vectors>(weights, corrections, d, out + d);
                });
        });
    });
}

}  // namespace ember
