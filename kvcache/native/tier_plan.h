// What one call of attention is given, and how its tokens are cut into tiles.
#pragma once

#include "record.h"
#include "softmax.h"

namespace ember {

// Unencoded tokens of consecutive positions, the first at `position`. Pinned ones are seen by
// every query, through its second form.
struct Piece {
    Strided keys, values;
    int64_t count, position;
    int32_t pinned;
};

// Encoded blocks, oldest first; records of block n are [batch, Hkv, record_bytes].
struct Blocks {
    const BlockForm* key_form;
    const BlockForm* value_form;
    const uint8_t* const* keys;
    const uint8_t* const* values;
    int64_t count, position;
};

// Query i stands at `position` + i and sees from lowest[b * lowest_stride + i] up to itself.
struct AttentionShape {
    int64_t batch, heads, kv_heads, queries, dim, position;
    float scale;
    const int64_t* lowest;
    int64_t lowest_stride;
};

// Tokens [first, first + count) of a piece or block, the first at `position`.
struct TileRef {
    int64_t source, first, count, position;
};

struct Plan {
    std::vector<TileRef> unencoded, cold;
};

inline void cut(int64_t source, int64_t count, int64_t position, std::vector<TileRef>& into) {
    for (int64_t at = 0; at < count; at += kTile)
        into.push_back({source, at, std::min(kTile, count - at), position + at});
}

inline Plan plan_tiles(const Piece* pieces, int64_t count, const Blocks& blocks) {
    Plan plan;
    for (int64_t i = 0; i < count; ++i) cut(i, pieces[i].count, pieces[i].position, plan.unencoded);
    for (int64_t i = 0; i < blocks.count; ++i) {
        const int64_t tokens = blocks.key_form->tokens;
        cut(i, tokens, blocks.position + i * tokens, plan.cold);
    }
    return plan;
}

inline Seen seen_in(const TileRef& tile, int64_t lowest, int64_t position) {
    const int64_t first = std::clamp<int64_t>(lowest - tile.position, 0, tile.count);
    const int64_t end = std::clamp<int64_t>(position + 1 - tile.position, 0, tile.count);
    return first < end ? Seen{first, end} : Seen{0, 0};
}

}  // namespace ember
