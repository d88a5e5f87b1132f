// What happens where the bytes of a file that is mapped to be read cannot be had.
//
// A page whose bytes the system cannot give, as the file was cut or its disk fails, raises SIGBUS
// in the thread that reads it. The handler puts zeros in the place of that page and of all behind
// it, and marks the mapping: the thread goes on, what it computes is worth nothing, and whoever
// called it looks at the mark. All other faults go to whom they went before.
//
// The handler runs in any thread, at any instruction, and so calls nothing but mmap, sysconf,
// sigaction and pthread_kill, all without locks or memory of their own, and reads a list to which
// mappings are added but never taken off.
#pragma once

#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>

namespace ember {

// A mapped file. `damaged` is set for ever; `end` is 0 before it is unmapped.
struct Mapping {
    std::atomic<uintptr_t> start, end;
    std::atomic<int32_t> damaged;
    Mapping* next;
};

inline std::atomic<Mapping*> mappings{nullptr};
static_assert(std::atomic<Mapping*>::is_always_lock_free &&
              std::atomic<uintptr_t>::is_always_lock_free);

// Whom other faults go to.
inline struct sigaction fault_handler_before;

// Whether somebody sent the signal, which then has no address.
inline bool was_sent(const siginfo_t& info) {
    return info.si_code <= 0 || info.si_code == SI_USER || info.si_code == SI_QUEUE;
}

// Give a fault that is none of ours to the handler before us, and a second one to the system: the
// instruction runs again, or the signal that somebody sent comes again.
inline void hand_over(int number, const siginfo_t& info) {
    const struct sigaction before = fault_handler_before;
    fault_handler_before = {};
    fault_handler_before.sa_handler = SIG_DFL;
    sigaction(number, &before, nullptr);
    if (was_sent(info)) pthread_kill(pthread_self(), number);
}

// Whether zeros are now in the place of the page at `address` and of those behind it.
inline bool put_zeros(uintptr_t address) {
    for (Mapping* each = mappings.load(); each; each = each->next) {
        const uintptr_t end = each->end.load();
        if (address < each->start.load() || address >= end) continue;
        const uintptr_t page = address & ~uintptr_t(sysconf(_SC_PAGESIZE) - 1);
        const void* made = mmap(reinterpret_cast<void*>(page), end - page, PROT_READ,
                                MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (made == MAP_FAILED) return false;
        each->damaged.store(1);
        return true;
    }
    return false;
}

inline void on_fault(int number, siginfo_t* info, void*) {
    const int error = errno;
    if (was_sent(*info) || !put_zeros(reinterpret_cast<uintptr_t>(info->si_addr)))
        hand_over(number, *info);
    errno = error;
}

// Handle faults from now on, also where somebody else has begun to.
inline void handle_faults() {
    struct sigaction ours = {}, before;
    ours.sa_sigaction = on_fault;
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGBUS, &ours, &before);
    if (before.sa_sigaction != on_fault) fault_handler_before = before;
}

// Guard `size` bytes at `start` from now on; what is returned stays.
inline Mapping* guard(uintptr_t start, int64_t size) {
    handle_faults();
    Mapping* mapping = new Mapping{};
    mapping->start.store(start);
    mapping->end.store(start + uintptr_t(size));
    mapping->next = mappings.load();
    while (!mappings.compare_exchange_weak(mapping->next, mapping)) {
    }
    return mapping;
}

}  // namespace ember
