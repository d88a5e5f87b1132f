// Which encoded values are not read, because their weights cannot matter.
//
// Once all scores are known, the tiles of least softmax mass are left out for as long as the mass
// of what a query's rows of one KV head leave out stays below kMass in each of them; what is left
// is normalised again. With values of length at most v an output is then off by less than
// 2 kMass v / (1 - kMass). Which tiles these are depends on the scores alone: not on threads, and
// not on how work is cut.
#pragma once

#include <array>

#include "softmax.h"

namespace ember {

struct Unread {
    static constexpr float kMass = 0.005f;
    static constexpr int64_t kFewest = 32;  // tiles; fewer are all read

    // The rows of one query and one KV head. totals and factors [rows, tiles], rows `stride` floats
    // apart, whole lanes that are 0 behind the last tile: the sum of a tile's weights, and what
    // they count times. sums [rows]: of all weights, other tokens' too. The factors of what is
    // not read become 0.
    static void choose(const float* totals, int64_t stride, int64_t rows, int64_t tiles,
                       const float* sums, float* factors) {
        if (tiles < kFewest) return;
        thread_local std::vector<float> masses;
        masses.assign(size_t(whole_lanes(tiles)), 0.0f);
        for (int64_t r = 0; r < rows; ++r) {
            const float share = 1 / sums[r];
            for (int64_t i = 0; i < tiles; i += kNativeLanes) {
                const int64_t at = r * stride + i;
                const Native mass = load_native(factors + at) * load_native(totals + at) * share;
                store(&masses[i], larger(load_native(&masses[i]), mass));
            }
        }
        const uint32_t least = least_read(masses.data(), tiles);
        for (int64_t i = 0; i < tiles; ++i)
            if (bucket_of(masses[i]) < least)
                for (int64_t r = 0; r < rows; ++r) factors[r * stride + i] = 0;
    }

  private:
    // Masses in order, eight buckets to each power of two, from 2^-64 up.
    static constexpr int kBuckets = 8 * 64;

    static uint32_t bucket_of(float mass) {
        uint32_t bits;
        std::memcpy(&bits, &mass, sizeof bits);
        constexpr uint32_t kLowest = (127 - 64) << 3;
        return std::clamp<uint32_t>(bits >> 20, kLowest, kLowest + kBuckets - 1) - kLowest;
    }

    // The lowest bucket that is read: those below it have together less than kMass.
    static uint32_t least_read(const float* masses, int64_t tiles) {
        alignas(64) std::array<float, kBuckets> together{};
        for (int64_t i = 0; i < tiles; ++i) together[bucket_of(masses[i])] += masses[i];
        float below = 0;
        uint32_t bucket = 0;
        // Most buckets are empty.
        for (; bucket < kBuckets - kLanes; bucket += kLanes) {
            const float more = sum(load(&together[bucket]));
            if (below + more >= kMass) break;
            below += more;
        }
        while (bucket < kBuckets - 1 && (below += together[bucket]) < kMass) ++bucket;
        return bucket;
    }
};

}  // namespace ember
