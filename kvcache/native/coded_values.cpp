// Sums of coded values, for every width of codes and number of rows.

#include "coded_values.h"

#ifdef EMBER_BYTES

namespace ember {

void CodedValues::gather(const float* weights, int rows, const float* corrections,
                         float* out) const {
#ifdef EMBER_VNNI
    with_bits(form_.bits, [&](auto bits) {
        with_constant<kFewQueries>(rows, [&](auto count) {
            gather_rows<bits, count>(weights, corrections, out);
        });
    });
#else
    with_constant<kFewQueries>(
        rows, [&](auto count) { gather_rows<4, count>(weights, corrections, out); });
#endif
}

}  // namespace ember

#endif
