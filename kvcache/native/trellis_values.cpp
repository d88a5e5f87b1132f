// Sums of trellis-coded values, for every width of codes and number of rows.

#include "trellis_values.h"

#ifdef EMBER_VNNI

namespace ember {

void TrellisValues::gather(const float* weights, int rows, const float* corrections,
                           float* out) const {
    with_trellis_bits(form_.bits, [&](auto bits) {
        with_constant<kFewQueries>(rows, [&](auto count) {
            gather_rows<bits, count>(weights, corrections, out);
        });
    });
}

}  // namespace ember

#endif
