// K-quants, and blocks whose codes name runs of weights.

#include "few_rows_tables.h"
#include "panels_k.h"
#include "types.h"

namespace ember {

template Kind kind<Type::Q2_K>();
template Kind kind<Type::Q3_K>();
template Kind kind<Type::Q4_K>();
template Kind kind<Type::Q5_K>();
template Kind kind<Type::Q6_K>();
template Kind kind<Type::IQ2_XXS>();
template Kind kind<Type::IQ2_XS>();
template Kind kind<Type::IQ3_XXS>();
template Kind kind<Type::IQ3_S>();
template Kind kind<Type::IQ2_S>();

}  // namespace ember
