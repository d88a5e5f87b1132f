// Blocks whose codes name values.

#include "blocks_simple.h"
#include "types.h"

namespace ember {

template Kind kind<Type::IQ4_NL>();
template Kind kind<Type::IQ4_XS>();
template Kind kind<Type::MXFP4>();

}  // namespace ember
