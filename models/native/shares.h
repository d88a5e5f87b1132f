// Pieces of work that lie behind each other in memory, for threads.
//
// Each thread begins with a share of its own and takes its pieces in order, so that it reads one
// long run of memory and what it asks for ahead is what it reads next: threads that take turns at
// short pieces get two thirds of the memory's bandwidth. Who has done all takes half of what is
// left to another.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

namespace ember {

class Shares {
  public:
    // Pieces 0 to `pieces`, fewer than 2^32.
    Shares(int64_t pieces, int threads) : shares_(size_t(threads)) {
        for (int i = 0; i < threads; ++i)
            shares_[i].left = range(pieces * i / threads, pieces * (i + 1) / threads);
    }

    // Call body(piece) for pieces of share `own` and then of others, until none is left.
    template <typename Body>
    void work(int own, const Body& body) {
        do {
            for (int64_t piece; take(own, piece);) body(piece);
        } while (steal(own));
    }

  private:
    // The pieces that nobody has taken: the first, and the end above it.
    struct alignas(64) Share {
        std::atomic<uint64_t> left;
    };

    std::vector<Share> shares_;

    static uint64_t range(uint64_t first, uint64_t end) { return end << 32 | first; }
    static uint64_t first_of(uint64_t left) { return left & 0xffffffff; }
    static uint64_t end_of(uint64_t left) { return left >> 32; }

    bool take(int own, int64_t& piece) {
        std::atomic<uint64_t>& share = shares_[own].left;
        uint64_t left = share.load();
        while (first_of(left) < end_of(left))
            if (share.compare_exchange_weak(left, left + 1)) {
                piece = int64_t(first_of(left));
                return true;
            }
        return false;
    }

    // Whether there was something to take from another for the own share, which is empty.
    bool steal(int own) {
        const int threads = int(shares_.size());
        for (int i = 1; i < threads; ++i) {
            std::atomic<uint64_t>& other = shares_[(own + i) % threads].left;
            uint64_t left = other.load();
            while (first_of(left) < end_of(left)) {
                const uint64_t middle = (first_of(left) + end_of(left)) / 2;
                if (!other.compare_exchange_weak(left, range(first_of(left), middle))) continue;
                shares_[own].left.store(range(middle, end_of(left)));
                return true;
            }
        }
        return false;
    }
};

}  // namespace ember
