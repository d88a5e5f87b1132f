// Tiles in integers of 16 bits, for every number of rows.

#include "whole_tiles.h"

#ifdef EMBER_VNNI

namespace ember {

void WholeTile::attend_rows(const WholeQueries& queries, const Rows& rows, int64_t first,
                            int64_t count, const Seen* shown) const {
    with_constant<kProductRows>(
        count, [&](auto some) { attend_rows<some>(queries, rows, first, shown); });
}

}  // namespace ember

#endif
