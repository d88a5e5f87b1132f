// Whether a tensor's weights are finite, at the speed of memory.
#pragma once

#include "products.h"

namespace ember {

// Of `bytes` of whole blocks
inline bool are_finite(const uint8_t* data, int64_t bytes, Type type) {
    const Kind& of = kind_of(type);
    const int64_t each = of.block_bytes, blocks = bytes / each, share = (1 << 18) / each;
    std::atomic<bool> all{true};
    pool->run((blocks + share - 1) / share, [&](int64_t task) {
        const int64_t first = task * share;
        if (!of.are_finite(data + first * each, std::min(share, blocks - first))) all.store(false);
    });
    return all.load();
}

}  // namespace ember
