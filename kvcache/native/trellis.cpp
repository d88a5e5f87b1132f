// All that is computed with trellis codes of EMBER_BITS bits, see Coding.

#include "decode_trellis.h"
#include "encode_trellis.h"
#include "trellis_values.h"

namespace ember {

static void unpack(const BlockForm& form, const uint8_t* record, uint8_t* codes) {
    unpack_trellis<EMBER_BITS>(record, form.tokens, form.dim, codes);
}

static constexpr Coding coding_of() {
    Coding coding{.decode_keys = decode_trellis_keys<EMBER_BITS>,
                  .decode_values = decode_trellis_values<EMBER_BITS>,
                  .unpack = unpack,
                  .score = nullptr,
                  .gather = nullptr,
                  .encode = trellis::encode<EMBER_BITS>};
#ifdef EMBER_VNNI
    coding.gather = TrellisValues::gather<EMBER_BITS>;
#endif
    return coding;
}

}  // namespace ember

extern "C" const ember::Coding* ember_coding() {
    static constexpr ember::Coding coding = ember::coding_of();
    return &coding;
}
