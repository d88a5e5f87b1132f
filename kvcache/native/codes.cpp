// All that is computed with codes of EMBER_BITS bits, see Coding.

#include "coded_values.h"
#include "decode_codes.h"

namespace ember {

static void unpack(const BlockForm& form, const uint8_t* record, uint8_t* codes) {
    const auto unpack = form.role == Role::kKeys ? unpack_keys<EMBER_BITS>
                                                 : unpack_values<EMBER_BITS>;
    unpack(record, form.tokens, form.dim, codes);
}

static constexpr Coding coding_of() {
    Coding coding{.decode_keys = decode_keys<EMBER_BITS>,
                  .decode_values = decode_values<EMBER_BITS>,
                  .unpack = unpack,
                  .score = nullptr,
                  .gather = nullptr,
                  .encode = nullptr};
#ifdef EMBER_BYTES
    if constexpr (EMBER_BITS <= kMostCodeBits) coding.score = CodedKeys::score<EMBER_BITS>;
    if constexpr (kSummedByCodes<EMBER_BITS>) coding.gather = CodedValues::gather<EMBER_BITS>;
#endif
    return coding;
}

}  // namespace ember

extern "C" const ember::Coding* ember_coding() {
    static constexpr ember::Coding coding = ember::coding_of();
    return &coding;
}
