// Blocks of 32 codes with one scale, and floats.

#include "blocks_floats.h"
#include "blocks_simple.h"
#include "types.h"

namespace ember {

template Kind kind<Type::F32>();
template Kind kind<Type::F16>();
template Kind kind<Type::BF16>();
template Kind kind<Type::Q4_0>();
template Kind kind<Type::Q4_1>();
template Kind kind<Type::Q5_0>();
template Kind kind<Type::Q5_1>();
template Kind kind<Type::Q8_0>();

}  // namespace ember
