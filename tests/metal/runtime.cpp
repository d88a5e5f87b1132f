// Runs a Metal kernel on a CPU: one fiber per thread, one threadgroup after the other, simdgroups
// of 32. Never instrumented by a sanitizer itself.
//
// A fiber runs until it waits or ends. When all that it waits for have come to the same place they
// go on; if they never will, that is the bug to be reported: a barrier that some threads miss.
#ifdef __linux__
#include <sys/prctl.h>
#endif

#include <sys/mman.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "runtime.h"

#if THREAD_SANITIZER
extern "C" {
void* __tsan_create_fiber(unsigned);
void __tsan_destroy_fiber(void*);
void* __tsan_get_current_fiber();
void __tsan_switch_to_fiber(void*, unsigned);
void __tsan_acquire(void*);
void __tsan_release(void*);
void __tsan_java_init(unsigned long, unsigned long);
void __tsan_java_alloc(unsigned long, unsigned long);
}
#endif

extern "C" char __start_metal_threadgroup[] __attribute__((weak));
extern "C" char __stop_metal_threadgroup[] __attribute__((weak));

// ---- switching stacks ----

extern "C" void metal_switch(void** save, void* to);
asm(R"(.text
.globl metal_switch
metal_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

// What the compiler calls to round to bfloat16 where the processor cannot; to nearest, ties to even.
extern "C" __attribute__((weak)) bfloat __truncsfbf2(float x) {
  const uint bits = __builtin_bit_cast(uint, x);
  const ushort rounded = ushort((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
  return __builtin_bit_cast(bfloat, x == x ? rounded : ushort(0x7fc0));
}

namespace {

enum class State { Ready, AtSimdgroup, AtThreadgroup, Done };
const char* const kStateNames[] = {"running", "in a simdgroup operation",
                                   "at a threadgroup barrier", "finished"};
enum Order { Forward, Backward, Random };

struct Fiber {
  void* stack_pointer;
  State state;
  int line, column;  // of what it waits at
  unsigned exchanges;
  MetalThread self;
  void* sanitizer;
  std::map<void*, unsigned> loads;  // how often it has loaded, by the place in the kernel
};

// Values that a simdgroup exchanges; two slots, as a lane may be one exchange ahead of the rest.
struct Exchange {
  char slots[2][32][16];
};

typedef void (*Entry)(const MetalThread*, void**);

constexpr int kMostThreads = 1024;
constexpr size_t kMostShared = 32768;
constexpr size_t kStack = THREAD_SANITIZER ? 256 << 10 : 64 << 10;

std::vector<Fiber> fibers;
std::vector<Exchange> exchanges;
Fiber* current;
void* scheduler;
Entry entry;
void** buffers;
char* stacks;
uint64_t random_state;
std::string failure;

uint32_t random_number() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state >> 16;
}

// ---- ThreadSanitizer: what orders memory and what does not ----

#if THREAD_SANITIZER
void* scheduler_sanitizer;
int group_number;
char end_of_launch;
char sync_points[1 << 22];  // one for each threadgroup and scope: groups are never ordered

char* sync_point(int scope) { return sync_points + ((group_number * 33u + scope) & 0x3fffff); }
void enter(Fiber& fiber) { __tsan_switch_to_fiber(fiber.sanitizer, 1); }
void leave() { __tsan_switch_to_fiber(scheduler_sanitizer, 1); }
void release(int scope) { __tsan_release(sync_point(scope)); }
void acquire(int scope) { __tsan_acquire(sync_point(scope)); }
void release_end() { __tsan_release(&end_of_launch); }
void acquire_end() { __tsan_acquire(&end_of_launch); }
#else
void enter(Fiber&) {}
void leave() {}
void release(int) {}
void acquire(int) {}
void release_end() {}
void acquire_end() {}
#endif

void give_way() {
  leave();
  metal_switch(&current->stack_pointer, scheduler);
}

void start_fiber() {
  entry(&current->self, buffers);
  current->state = State::Done;
  release_end();
  give_way();
  abort();
}

char* map_stacks() {
  void* memory = mmap(nullptr, kStack * kMostThreads, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return static_cast<char*>(memory);
}

// A stack that `metal_switch` enters start_fiber with: six registers, then the return address.
void* fresh_stack(int index) {
  void** top = reinterpret_cast<void**>(stacks + kStack * (index + 1)) - 1;
  *--top = reinterpret_cast<void*>(start_fiber);
  for (int i = 0; i < 6; i++) *--top = nullptr;
  return top;
}

// ---- counting loads, where the kernel was built to ----

constexpr size_t kLine = 128;

// Of each buffer: where it is, the bytes that threads loaded, and the lines that simdgroups did.
std::vector<std::pair<char*, size_t>> counted;
std::vector<uint64_t> loaded, lines;
// What the lanes of a simdgroup touch together: the n-th time that each comes to one place in the
// kernel, the lines as buffer and number.
std::map<std::tuple<uint, void*, unsigned>, std::set<std::pair<size_t, size_t>>> touched;

void count_load(const void* address, int size, void* place) {
  const char* at = static_cast<const char*>(address);
  for (size_t i = 0; i < counted.size(); i++) {
    if (at < counted[i].first || at >= counted[i].first + counted[i].second) continue;
    loaded[i] += size;
    const size_t line = (at - counted[i].first) / kLine;
    const uint simdgroup = current->self.simdgroup_index_in_threadgroup;
    touched[{simdgroup, place, current->loads[place]++}].insert({i, line});
  }
}

// Before the next threadgroup, whose lanes come to the same places.
void count_lines() {
  for (const auto& [load, all] : touched) {
    for (const auto& [buffer, line] : all) lines[buffer]++;
  }
  touched.clear();
}

// ---- one threadgroup ----

std::string where(const Fiber& fiber) {
  char text[160];
  snprintf(text, sizeof text, "thread %u (simdgroup %u, lane %u) %s at line %d:%d",
           fiber.self.thread_index_in_threadgroup, fiber.self.simdgroup_index_in_threadgroup,
           fiber.self.thread_index_in_simdgroup, kStateNames[static_cast<int>(fiber.state)],
           fiber.line, fiber.column);
  return text;
}

bool fail(const char* what, const Fiber& a, const Fiber& b) {
  const uint3 group = a.self.threadgroup_position_in_grid;
  char text[96];
  snprintf(text, sizeof text, "%s in threadgroup (%u, %u, %u): ", what, group.x, group.y, group.z);
  failure = text + where(a) + "; " + where(b);
  return false;
}

bool same_place(const Fiber& a, const Fiber& b) {
  return a.state == b.state && a.line == b.line && a.column == b.column;
}

// Let go on those of [begin, end) that wait in `state`, if all do so at one place.
bool let_go(int begin, int end, State state, const char* divergence, bool& progress) {
  const Fiber* waiting = nullptr;
  for (int i = begin; i < end; i++) {
    if (fibers[i].state == State::Ready) return true;
    if (fibers[i].state == state) waiting = &fibers[i];
  }
  if (!waiting) return true;
  for (int i = begin; i < end; i++) {
    if (!same_place(fibers[i], *waiting)) return fail(divergence, *waiting, fibers[i]);
  }
  for (int i = begin; i < end; i++) fibers[i].state = State::Ready;
  progress = true;
  return true;
}

bool release_simdgroups(bool& progress) {
  const int count = fibers.size();
  for (int begin = 0; begin < count; begin += 32) {
    const int end = std::min(count, begin + 32);
    for (int i = begin; i < end; i++) {
      if (fibers[i].state == State::AtSimdgroup && end - begin != 32) {
        return fail("operation of a partial simdgroup", fibers[i], fibers[i]);
      }
    }
    bool any = false;
    for (int i = begin; i < end; i++) any |= fibers[i].state == State::AtSimdgroup;
    if (any && !let_go(begin, end, State::AtSimdgroup, "divergent simdgroup", progress)) {
      return false;
    }
  }
  return true;
}

bool release_threadgroup(bool& progress) {
  for (const Fiber& fiber : fibers) {
    if (fiber.state == State::AtSimdgroup) return true;
  }
  return let_go(0, fibers.size(), State::AtThreadgroup, "divergent barrier", progress);
}

void run(Fiber& fiber) {
  current = &fiber;
  enter(fiber);
  metal_switch(&scheduler, fiber.stack_pointer);
}

bool run_threadgroup(Order order) {
  const int count = fibers.size();
  std::vector<int> turns(count);
  for (int i = 0; i < count; i++) turns[i] = order == Backward ? count - 1 - i : i;
  for (;;) {
    std::vector<char> resting((count + 31) / 32, 0);
    if (order == Random) {
      for (int i = count - 1; i > 0; i--) std::swap(turns[i], turns[random_number() % (i + 1)]);
      for (char& rests : resting) rests = random_number() & 1;
    }
    bool progress = false;
    for (int i : turns) {
      if (fibers[i].state != State::Ready) continue;
      progress = true;  // a simdgroup that rests now will run later
      if (!resting[i / 32]) run(fibers[i]);
    }
    const bool done = std::all_of(fibers.begin(), fibers.end(),
                                  [](const Fiber& f) { return f.state == State::Done; });
    if (done) return true;
    if (!release_simdgroups(progress) || !release_threadgroup(progress)) return false;
    if (!progress) return fail("deadlock", fibers.front(), fibers.back());
  }
}

// ---- one launch ----

struct Grid {
  int threads[3], group[3], groups[3];
};

void describe_threads(const Grid& grid, const int at[3]) {
  int size[3];  // a group at the edge of the grid may be smaller
  for (int i = 0; i < 3; i++) {
    size[i] = std::min(grid.group[i], grid.threads[i] - at[i] * grid.group[i]);
  }
  const uint count = size[0] * size[1] * size[2];
  fibers.assign(count, Fiber());
  exchanges.assign((count + 31) / 32, Exchange());
  for (uint i = 0; i < count; i++) {
    MetalThread& self = fibers[i].self;
    self.thread_position_in_threadgroup =
        uint3{i % size[0], i / size[0] % size[1], i / size[0] / size[1]};
    self.threadgroup_position_in_grid = uint3{uint(at[0]), uint(at[1]), uint(at[2])};
    for (int k = 0; k < 3; k++) {
      self.thread_position_in_grid[k] =
          at[k] * grid.group[k] + self.thread_position_in_threadgroup[k];
      self.threadgroups_per_grid[k] = grid.groups[k];
      self.threads_per_threadgroup[k] = size[k];
      self.threads_per_grid[k] = grid.threads[k];
    }
    self.thread_index_in_threadgroup = i;
    self.thread_index_in_simdgroup = i % 32;
    self.simdgroup_index_in_threadgroup = i / 32;
    self.simdgroups_per_threadgroup = (count + 31) / 32;
    fibers[i].stack_pointer = fresh_stack(i);
    fibers[i].state = State::Ready;
  }
}

#if THREAD_SANITIZER
// The next threadgroup's shared memory and stacks are new objects to the sanitizer; device memory
// is not, so that races between threadgroups stay visible.
void renew_memory() {
  static bool known = false;
  const auto begin = reinterpret_cast<unsigned long>(__start_metal_threadgroup) & ~15ul;
  const size_t size = (__stop_metal_threadgroup - __start_metal_threadgroup + 31) & ~15ul;
  if (__stop_metal_threadgroup != __start_metal_threadgroup) {
    if (!known) __tsan_java_init(begin, size);
    known = true;
    __tsan_java_alloc(begin, size);
  }
  munmap(stacks, kStack * kMostThreads);
  stacks = map_stacks();
}

// In a random order: the sanitizer reuses fibers, and lane i of two groups must not be "the same".
void name_fibers() {
  std::vector<int> order(fibers.size());
  for (size_t i = 0; i < order.size(); i++) order[i] = i;
  for (size_t i = order.size() - 1; i > 0; i--) {
    std::swap(order[i], order[random_number() % (i + 1)]);
  }
  for (int i : order) fibers[i].sanitizer = __tsan_create_fiber(0);
}

// Old fibers are kept a while: a race with a destroyed one would not be reported.
void retire_fibers() {
  static std::vector<void*> retired;
  for (Fiber& fiber : fibers) retired.push_back(fiber.sanitizer);
  if (retired.size() <= 4096) return;
  for (int i = 0; i < 2048; i++) __tsan_destroy_fiber(retired[i]);
  retired.erase(retired.begin(), retired.begin() + 2048);
}
#else
void renew_memory() {}
void name_fibers() {}
void retire_fibers() {}
#endif

void fill_shared_with_nan() {
  for (volatile char* c = __start_metal_threadgroup; c < __stop_metal_threadgroup; c++) *c = -1;
}

bool within_limits(const Grid& grid) {
  const int threads = grid.group[0] * grid.group[1] * grid.group[2];
  const size_t shared = __stop_metal_threadgroup - __start_metal_threadgroup;
  if (threads <= kMostThreads && shared <= kMostShared) return true;
  failure = "over Metal's limits: " + std::to_string(threads) + " threads, " +
            std::to_string(shared) + " bytes of threadgroup memory";
  return false;
}

bool launch(const Grid& grid, Order order) {
  if (!within_limits(grid)) return false;
  if (!stacks) stacks = map_stacks();
  const int total = grid.groups[0] * grid.groups[1] * grid.groups[2];
  for (int turn = 0; turn < total; turn++) {
    const int number = order == Backward ? total - 1 - turn : turn;
    const int at[3] = {number % grid.groups[0], number / grid.groups[0] % grid.groups[1],
                       number / grid.groups[0] / grid.groups[1]};
#if THREAD_SANITIZER
    group_number = turn;
    scheduler_sanitizer = __tsan_get_current_fiber();
#endif
    fill_shared_with_nan();
    renew_memory();
    describe_threads(grid, at);
    name_fibers();
    if (!run_threadgroup(order)) return false;
    count_lines();
    retire_fibers();
  }
  acquire_end();
  return true;
}

}  // namespace

// ---- called by the kernel ----

extern "C" const MetalThread* metal_thread() { return &current->self; }

extern "C" uint metal_lane() { return current->self.thread_index_in_simdgroup; }

extern "C" void metal_wait(int whole_threadgroup, int line, int column) {
  Fiber* self = current;
  const int scope = whole_threadgroup ? 0 : 1 + self->self.simdgroup_index_in_threadgroup;
  self->state = whole_threadgroup ? State::AtThreadgroup : State::AtSimdgroup;
  self->line = line;
  self->column = column;
  release(scope);
  give_way();
  acquire(scope);
}

extern "C" void metal_exchange(const void* mine, int size, void* all, int line, int column) {
  Fiber* self = current;
  auto& slot = exchanges[self->self.simdgroup_index_in_threadgroup].slots[self->exchanges++ & 1];
  const char* from = static_cast<const char*>(mine);
  for (int i = 0; i < size; i++) slot[self->self.thread_index_in_simdgroup][i] = from[i];
  self->state = State::AtSimdgroup;
  self->line = line;
  self->column = column;
  give_way();
  char* to = static_cast<char*>(all);
  for (int lane = 0; lane < 32; lane++) {
    for (int i = 0; i < size; i++) to[lane * size + i] = slot[lane][i];
  }
}

// ---- called from outside ----

extern "C" {
void __sanitizer_cov_load1(void* at) { count_load(at, 1, __builtin_return_address(0)); }
void __sanitizer_cov_load2(void* at) { count_load(at, 2, __builtin_return_address(0)); }
void __sanitizer_cov_load4(void* at) { count_load(at, 4, __builtin_return_address(0)); }
void __sanitizer_cov_load8(void* at) { count_load(at, 8, __builtin_return_address(0)); }
void __sanitizer_cov_load16(void* at) { count_load(at, 16, __builtin_return_address(0)); }

void metal_count(void** addresses, const uint64_t* sizes, int count) {
  counted.clear();
  for (int i = 0; i < count; i++) counted.push_back({static_cast<char*>(addresses[i]), sizes[i]});
  loaded.assign(count, 0);
  lines.assign(count, 0);
}

void metal_counted(uint64_t* into) { std::copy(loaded.begin(), loaded.end(), into); }
void metal_counted_lines(uint64_t* into) { std::copy(lines.begin(), lines.end(), into); }

// grid counts threads, as MLX takes it. Returns 0, or 1 and a message.
int metal_launch(Entry kernel_entry, void** kernel_buffers, const int* threads, const int* group,
                 int order, uint64_t seed, char* message, int room) {
  entry = kernel_entry;
  buffers = kernel_buffers;
  random_state = seed * 2654435761u + 88172645463325252ull;
  failure.clear();
  Grid grid;
  for (int i = 0; i < 3; i++) {
    grid.threads[i] = threads[i];
    grid.group[i] = std::min(group[i], threads[i]);
    grid.groups[i] = (threads[i] + grid.group[i] - 1) / grid.group[i];
  }
  if (launch(grid, static_cast<Order>(order))) return 0;
  snprintf(message, room, "%s", failure.c_str());
  return 1;
}
}

#if EXECUTABLE
// program grid*3 group*3 order seed file... : each file is a buffer, written back at the end.
extern "C" void metal_entry(const MetalThread*, void**);

static std::vector<char> read_file(const char* path) {
  FILE* file = fopen(path, "rb");
  fseek(file, 0, SEEK_END);
  std::vector<char> bytes(ftell(file));
  rewind(file);
  if (fread(bytes.data(), 1, bytes.size(), file) != bytes.size()) exit(9);
  fclose(file);
  return bytes;
}

int main(int count, char** words) {
#ifdef __linux__
  prctl(PR_SET_PDEATHSIG, SIGKILL);  // an endless loop outlives no test that is killed
#endif
  int numbers[7];
  for (int i = 0; i < 7; i++) numbers[i] = atoi(words[1 + i]);
  std::vector<void*> blocks;  // each in a heap block of its exact size
  std::vector<size_t> sizes;
  for (int i = 9; i < count; i++) {
    const std::vector<char> bytes = read_file(words[i]);
    blocks.push_back(malloc(bytes.size()));
    sizes.push_back(bytes.size());
    memcpy(blocks.back(), bytes.data(), bytes.size());
  }
  char message[512] = "";
  const int failed = metal_launch(metal_entry, blocks.data(), numbers, numbers + 3, numbers[6],
                                  strtoull(words[8], nullptr, 10), message, sizeof message);
  if (failed) fprintf(stderr, "metal: %s\n", message);
  for (size_t i = 0; i < blocks.size(); i++) {
    FILE* file = fopen(words[9 + i], "wb");
    fwrite(blocks[i], 1, sizes[i], file);
    fclose(file);
  }
  return failed;
}
#endif
