// Runs the threads of a block as fibers of one system thread. A fiber goes on until it waits or ends, so what lies
// between two barriers runs thread by thread: without the barrier a reader finds NaN, or what was there before.
//
// Faults: a barrier that some threads of the block never reach, because they ended or wait at another kind; warp
// barriers whose masks differ or name threads that are not there; whatever a kernel's accesses throw.
#include <sys/mman.h>

#include <exception>
#include <utility>
#include <vector>

#include "common.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulation {

namespace {

constexpr size_t kStackBytes = 128 << 10;
constexpr unsigned kWarpSize = 32;
enum class State { ready, at_block_barrier, at_warp_barrier, ended };

#if defined(__x86_64__)
// Keeps the registers that a called function must preserve on the stack that is left.
extern "C" void emulation_switch(void** from, void* to);
asm(R"(
.text
.globl emulation_switch
.type emulation_switch, @function
emulation_switch:
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
.size emulation_switch, .-emulation_switch
)");

struct Context {
  void* stack_pointer = nullptr;
  void prepare(char* stack, void (*entry)()) {
    void** top = reinterpret_cast<void**>(stack + kStackBytes);
    *--top = nullptr;  // where the entry would return to: aligns the stack as after a call
    *--top = reinterpret_cast<void*>(entry);
    for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
    stack_pointer = top;
  }
  static void change(Context& from, Context& to) { emulation_switch(&from.stack_pointer, to.stack_pointer); }
};
#else
struct Context {
  ucontext_t context;
  void prepare(char* stack, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = kStackBytes;
    makecontext(&context, entry, 0);
  }
  static void change(Context& from, Context& to) { swapcontext(&from.context, &to.context); }
};
#endif

struct Fiber {
  Thread thread;
  State state = State::ready;
  unsigned mask = 0;
  char* stack = nullptr;
  Context context;
};

struct Engine {
  std::vector<Fiber> fibers;
  std::vector<char*> stacks;  // not in use
  Fiber* fiber = nullptr;     // that runs
  Context scheduler;
  const std::function<void()>* kernel = nullptr;
  std::exception_ptr fault;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
} engine;

void leave([[maybe_unused]] bool ending) {
  Fiber& fiber = *engine.fiber;
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(ending ? nullptr : &fake, engine.scheduler_stack, engine.scheduler_stack_bytes);
#endif
  Context::change(fiber.context, engine.scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, &engine.scheduler_stack, &engine.scheduler_stack_bytes);
#endif
}

void entry() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &engine.scheduler_stack, &engine.scheduler_stack_bytes);
#endif
  try {
    (*engine.kernel)();
  } catch (...) {
    engine.fault = std::current_exception();
  }
  engine.fiber->state = State::ended;
  leave(true);
}

void enter(Fiber& fiber) {
  if (fiber.stack == nullptr) {
    if (engine.stacks.empty()) {
      engine.stacks.push_back(static_cast<char*>(
          mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)));
    }
    fiber.stack = engine.stacks.back();
    engine.stacks.pop_back();
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(fiber.stack, kStackBytes);
#endif
    fiber.context.prepare(fiber.stack, entry);
  }
  engine.fiber = &fiber;
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, fiber.stack, kStackBytes);
#endif
  Context::change(engine.scheduler, fiber.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  if (fiber.state == State::ended) {
    engine.stacks.push_back(fiber.stack);
    fiber.stack = nullptr;
  }
}

void abandon_fibers() {
  for (Fiber& fiber : engine.fibers) {
    if (fiber.stack != nullptr) engine.stacks.push_back(fiber.stack);
  }
  engine.fibers.clear();
}

// Whether all that a waiting fiber's mask names wait with the same mask; then they go on.
bool release_warp(Fiber& fiber) {
  const unsigned base = fiber.thread.linear / kWarpSize * kWarpSize;
  for (unsigned pass = 0; pass < 2; ++pass) {
    for (unsigned lane = 0; lane < kWarpSize; ++lane) {
      if (!(fiber.mask >> lane & 1)) continue;
      if (base + lane >= engine.fibers.size()) throw Fault("a warp's mask names a thread beyond the block");
      Fiber& other = engine.fibers[base + lane];
      if (pass == 1) {
        other.state = State::ready;
      } else if (other.state != State::at_warp_barrier || other.mask != fiber.mask) {
        return false;
      }
    }
  }
  return true;
}

bool release_waiting() {
  bool progress = false;
  size_t waiting = 0, ended = 0;
  for (Fiber& fiber : engine.fibers) {
    if (fiber.state == State::at_warp_barrier) progress |= release_warp(fiber);
    waiting += fiber.state == State::at_block_barrier;
    ended += fiber.state == State::ended;
  }
  if (waiting > 0 && waiting == engine.fibers.size()) {
    for (Fiber& fiber : engine.fibers) fiber.state = State::ready;
    return true;
  }
  if (!progress && ended < engine.fibers.size()) {
    throw Fault("divergent barrier: " + std::to_string(waiting) + " threads of a block of " +
                std::to_string(engine.fibers.size()) + " wait, " + std::to_string(ended) + " have ended");
  }
  return progress;
}

void run_block(dim3 block, dim3 size) {
  engine.fibers.assign(size.x * size.y * size.z, Fiber());
  for (unsigned linear = 0; linear < engine.fibers.size(); ++linear) {
    engine.fibers[linear].thread = thread_of(linear, size, block);
  }
  bool progress = true;
  while (progress) {
    for (Fiber& fiber : engine.fibers) {
      if (fiber.state != State::ready) continue;
      enter(fiber);
      if (engine.fault) std::rethrow_exception(std::exchange(engine.fault, nullptr));
    }
    progress = release_waiting();
  }
}

}  // namespace

Thread& current() { return engine.fiber->thread; }

void synchronise_block() {
  engine.fiber->state = State::at_block_barrier;
  leave(false);
}

void synchronise_warp(unsigned mask) {
  if (!(mask >> (engine.fiber->thread.linear % kWarpSize) & 1)) throw Fault("a thread is not in its own warp's mask");
  engine.fiber->state = State::at_warp_barrier;
  engine.fiber->mask = mask;
  leave(false);
}

void run_grid(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel) {
  engine.kernel = &kernel;
  try {
    for_each_block(grid, [&](dim3 index) {
      fill_shared_memory(shared_bytes);
      run_block(index, block);
    });
  } catch (...) {
    abandon_fibers();
    throw;
  }
}

}  // namespace emulation
