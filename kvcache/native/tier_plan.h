// Which tokens one call of attention reads, and how they are cut into tiles.
#pragma once

#include "softmax.h"
#include "tier_step.h"

namespace ember {

// Unencoded tokens of consecutive positions, the first at `position`, side by side. Pinned ones
// are seen by every query, through its second form.
struct Piece {
    Strided keys, values;
    int64_t count, position;
    bool pinned;
};

// Tokens [first, first + count) of a piece, or of the block of an address; the first stands at
// `position`.
struct TileRef {
    int64_t source, first, count, position;
};

inline int64_t size_of(Element element) { return element == Element::kFloat ? 4 : 2; }

inline char* token_of(const Strided& all, int64_t batch, int64_t head, int64_t token) {
    const HeadTokens of_head = head_of(all, batch, head);
    return (char*)of_head.data + token * of_head.token_stride * size_of(all.element);
}

// All that the tiers hold, and new tokens.
class Plan {
  public:
    std::vector<Piece> pieces;
    std::vector<TileRef> unencoded, cold;

    Plan(const TierStep& step, const TierMemory& memory, const Strided& keys,
         const Strided& values) {
        const int64_t block = step.block, blocks = step.end - step.first;
        const int64_t cold_start = step.start + step.first * block;
        const int64_t hot_start = cold_start + blocks * block;
        add_ring(memory.pinned, 0, std::min(step.total, step.pinned), 0, true);
        if (memory.unencoded.capacity)
            add_ring(memory.unencoded, step.first * block, blocks * block, cold_start, false);
        else {
            cold.reserve(size_t(blocks * ((block + kTile - 1) / kTile)));
            for (int64_t i = 0; i < blocks; ++i)
                cut(step.first % step.slots + i, block, cold_start + i * block, cold);
        }
        add_ring(memory.hot, step.end * block, step.total - hot_start, hot_start, false);
        add({keys, values, step.length, step.total, false});
    }

  private:
    static void cut(int64_t source, int64_t count, int64_t position, std::vector<TileRef>& into) {
        for (int64_t at = 0; at < count; at += kTile)
            into.push_back({source, at, std::min(kTile, count - at), position + at});
    }

    void add(const Piece& piece) {
        cut(int64_t(pieces.size()), piece.count, piece.position, unencoded);
        pieces.push_back(piece);
    }

    void add_ring(const Ring& ring, int64_t number, int64_t count, int64_t position, bool pinned) {
        for (int64_t done = 0, run; done < count; done += run) {
            const int64_t at = (number + done) % ring.capacity;
            run = std::min(count - done, ring.capacity - at);
            Piece piece{ring.keys, ring.values, run, position + done, pinned};
            piece.keys.data = token_of(ring.keys, 0, 0, at);
            piece.values.data = token_of(ring.values, 0, 0, at);
            add(piece);
        }
    }
};

inline Seen seen_in(const TileRef& tile, int64_t lowest, int64_t position) {
    const int64_t first = std::clamp<int64_t>(lowest - tile.position, 0, tile.count);
    const int64_t end = std::clamp<int64_t>(position + 1 - tile.position, 0, tile.count);
    return first < end ? Seen{first, end} : Seen{0, 0};
}

}  // namespace ember
