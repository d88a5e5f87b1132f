// Scores with coded keys, for every width of codes and number of rows.

#include "coded_keys.h"

#ifdef EMBER_BYTES

namespace ember {

void CodedKeys::score(const float* queries, int rows, float* scores) const {
    with_bits(form_.bits, [&](auto bits) {
        if constexpr (bits <= kMostCodeBits)
            with_constant<kFewQueries>(
                rows, [&](auto count) { score_rows<bits, count>(queries, scores); });
    });
}

}  // namespace ember

#endif
