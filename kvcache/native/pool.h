// Threads that stay alive between calls. A decode step makes hundreds of short parallel
// regions, so workers spin for a moment before they sleep.
//
// A process has one pool; libraries that did not make it are given its address.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace ember {

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

class Pool {
  public:
    ~Pool() { stop(); }

    // `threads` counts the calling thread. There are fewer where the system gives no more.
    void start(int threads) {
        stop();
        try {
            for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
        } catch (const std::system_error&) {
        }
    }

    // End the workers: until the next start the caller does all by itself.
    void stop() {
        ending_.store(true);
        announce(0);
        for (auto& worker : workers_) worker.join();
        workers_.clear();
        ending_.store(false);
    }

    // Held during a call, as its working memory is the process's: other callers wait. Calls nest.
    [[nodiscard]] std::unique_lock<std::recursive_mutex> turn() { return std::unique_lock(turn_); }

    int threads() const { return static_cast<int>(workers_.size()) + 1; }

    // Call body(i) for every i in [0, tasks), fewer than 2^20, each once, on any thread; returns
    // when all are done. One caller at a time (see `turn`). A worker that the system does not
    // schedule delays nothing: the caller takes its tasks. A task's own tasks are done by its thread.
    template <typename Body>
    void run(int64_t tasks, const Body& body) {
        if (tasks <= 1 || workers_.empty()) {
            for (int64_t i = 0; i < tasks; ++i) body(i);
            return;
        }
        share(tasks, [](const void* body, int64_t i) { (*static_cast<const Body*>(body))(i); },
              &body);
    }

  private:
    using Call = void (*)(const void*, int64_t);

    // Virtual, so that it is the code of the library that made the pool: waiting threads and
    // whoever wakes them must agree on how.
    virtual void share(int64_t tasks, Call call, const void* body) {
        if (in_task_) {
            for (int64_t i = 0; i < tasks; ++i) call(body, i);
            return;
        }
        call_ = call;
        body_ = body;
        done_.store(0, std::memory_order_relaxed);
        announce(uint64_t(tasks));
        drain();
        while (done_.load(std::memory_order_acquire) < tasks) relax();
    }

    static constexpr int kSpins = 1 << 12;

    // A ticket is round << 40 | tasks << 20 | next free task. It is published after all else
    // about its round, and a task is taken only out of the very ticket that was read.
    static constexpr int kField = 20;
    static constexpr uint64_t kMask = (uint64_t(1) << kField) - 1;

    static uint64_t round_of(uint64_t ticket) { return ticket >> (2 * kField); }

    void announce(uint64_t tasks) {
        const uint64_t round = round_of(ticket_.load(std::memory_order_relaxed)) + 1;
        ticket_.store(round << (2 * kField) | tasks << kField);
        if (sleepers_.load() > 0) ticket_.notify_all();
    }

    // Take tasks until none is free. The round of a taken task cannot end before the task is
    // done, so call_ and body_ are that round's.
    void drain() {
        in_task_ = true;
        uint64_t ticket = ticket_.load(std::memory_order_acquire);
        while ((ticket & kMask) < (ticket >> kField & kMask)) {
            if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel))
                continue;
            call_(body_, int64_t(ticket & kMask));
            done_.fetch_add(1, std::memory_order_release);
            ticket = ticket_.load(std::memory_order_acquire);
        }
        in_task_ = false;
    }

    void work() {
        uint64_t seen = 0;
        for (;;) {
            uint64_t ticket;
            for (int spins = 0;
                 round_of(ticket = ticket_.load(std::memory_order_acquire)) == seen; ++spins) {
                if (spins < kSpins) {
                    relax();
                    continue;
                }
                sleepers_.fetch_add(1);
                ticket_.wait(ticket);
                sleepers_.fetch_sub(1);
            }
            seen = round_of(ticket);
            if (ending_.load()) return;
            drain();
        }
    }

    static inline thread_local bool in_task_ = false;

    std::recursive_mutex turn_;
    std::vector<std::thread> workers_;
    std::atomic<uint64_t> ticket_{0};
    std::atomic<int64_t> done_{0};
    std::atomic<int> sleepers_{0};
    std::atomic<bool> ending_{false};
    Call call_ = nullptr;
    const void* body_ = nullptr;
};

}  // namespace ember
