// Runs the threads of a block as threads of the system, for ThreadSanitizer. Faults that only fibers.cpp looks for are
// not looked for here.
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "common.h"

namespace emulation {

namespace {

constexpr unsigned kWarpSize = 32;

class Barrier {
 public:
  explicit Barrier(unsigned threads) : threads_(threads) {}

  void wait() {
    std::unique_lock lock(mutex_);
    const unsigned round = round_;
    if (++waiting_ == threads_) {
      open();
    } else {
      opened_.wait(lock, [&] { return round_ != round; });
    }
  }

  void leave() {
    const std::lock_guard lock(mutex_);
    --threads_;
    if (threads_ > 0 && waiting_ == threads_) open();
  }

 private:
  void open() {
    waiting_ = 0;
    ++round_;
    opened_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable opened_;
  unsigned threads_, waiting_ = 0, round_ = 0;
};

struct Block {
  std::unique_ptr<Barrier> all;
  std::vector<std::unique_ptr<Barrier>> warps;
} running;

thread_local Thread this_thread;

}  // namespace

Thread& current() { return this_thread; }

void synchronise_block() { running.all->wait(); }

void synchronise_warp(unsigned mask) {
  if (mask != ~0u) throw Fault("only whole warps synchronise here");
  running.warps[this_thread.linear / kWarpSize]->wait();
}

void run_grid(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel) {
  const unsigned threads = block.x * block.y * block.z;
  for_each_block(grid, [&](dim3 index) {
    fill_shared_memory(shared_bytes);
    running.all = std::make_unique<Barrier>(threads);
    running.warps.clear();
    for (unsigned first = 0; first < threads; first += kWarpSize) {
      running.warps.push_back(std::make_unique<Barrier>(std::min(kWarpSize, threads - first)));
    }
    std::vector<std::thread> all;
    for (unsigned linear = 0; linear < threads; ++linear) {
      all.emplace_back([&, linear] {
        this_thread = thread_of(linear, block, index);
        kernel();
        running.warps[linear / kWarpSize]->leave();
        running.all->leave();
      });
    }
    for (std::thread& thread : all) thread.join();
  });
}

}  // namespace emulation
