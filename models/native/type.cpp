// All that is computed with weights of EMBER_TYPE, see Kind. EMBER_FAMILY is the header of what is
// its own.

#include EMBER_FAMILY
#include "types.h"

extern "C" const ember::Kind* network_kind() {
    static constexpr ember::Kind kind = ember::kind<ember::Type::EMBER_TYPE>();
    return &kind;
}
