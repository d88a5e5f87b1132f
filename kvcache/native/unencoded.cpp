// What is computed with tokens as numbers: small dense products, and tiles that a few query rows
// read in place or many meet in integers of 16 bits, each for every number of rows.

#include "few_unencoded.h"
#include "whole_tiles.h"

namespace ember {

template void multiply_rows<1>(ConstMatrix, ConstMatrix, int64_t, int64_t, const float*, Matrix);
template void multiply_rows<2>(ConstMatrix, ConstMatrix, int64_t, int64_t, const float*, Matrix);
template void multiply_rows<3>(ConstMatrix, ConstMatrix, int64_t, int64_t, const float*, Matrix);
template void multiply_rows<4>(ConstMatrix, ConstMatrix, int64_t, int64_t, const float*, Matrix);
template void multiply_rows<5>(ConstMatrix, ConstMatrix, int64_t, int64_t, const float*, Matrix);
template void multiply_rows<6>(ConstMatrix, ConstMatrix, int64_t, int64_t, const float*, Matrix);

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

#ifdef EMBER_VNNI

void WholeTile::attend_rows(const WholeQueries& queries, const Rows& rows, int64_t first,
                            int64_t count, const Seen* shown) const {
    with_constant<kProductRows>(
        count, [&](auto some) { attend_rows<some>(queries, rows, first, shown); });
}

#endif

}  // namespace ember
