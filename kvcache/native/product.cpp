// Small dense products, for every number of rows.

#include "product.h"

namespace ember {

template void multiply_rows<1>(ConstMatrix, ConstMatrix, int64_t, int64_t, const float*, Matrix);
template void multiply_rows<2>(ConstMatrix, ConstMatrix, int64_t, int64_t, const float*, Matrix);
template void multiply_rows<3>(ConstMatrix, ConstMatrix, int64_t, int64_t, const float*, Matrix);
template void multiply_rows<4>(ConstMatrix, ConstMatrix, int64_t, int64_t, const float*, Matrix);
template void multiply_rows<5>(ConstMatrix, ConstMatrix, int64_t, int64_t, const float*, Matrix);
template void multiply_rows<6>(ConstMatrix, ConstMatrix, int64_t, int64_t, const float*, Matrix);

}  // namespace ember
