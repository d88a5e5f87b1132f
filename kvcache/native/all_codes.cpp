// What is computed with codes of any width, see AllCodes.

#include "coding.h"
#include "encoders.h"
#include "whole_tiles.h"

extern "C" const ember::AllCodes* ember_functions() {
#ifdef EMBER_VNNI
    static constexpr ember::AllCodes all{.encode = ember::encode_draft,
                                         .assign_whole = ember::assign_whole,
                                         .attend_whole = ember::attend_whole};
#else
    static constexpr ember::AllCodes all{
        .encode = ember::encode_draft, .assign_whole = nullptr, .attend_whole = nullptr};
#endif
    return &all;
}
