// Preloaded in the place of torch's: cuts even the smallest loop in pieces and runs each on a thread of its own, which
// ThreadSanitizer follows (it knows nothing of OpenMP's threads).
#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

namespace {
constexpr uint32_t kThreads = 4;
thread_local uint32_t thread_index = 0;
}  // namespace

extern "C" int32_t torch_parallel_for(int64_t begin, int64_t end, int64_t /*grain_size*/,
                                      void (*run)(int64_t, int64_t, void*), void* context) {
  const int64_t piece = std::max<int64_t>(1, (end - begin + kThreads - 1) / kThreads);
  std::vector<std::thread> threads;
  for (int64_t first = begin; first < end; first += piece) {
    threads.emplace_back([=, index = static_cast<uint32_t>(threads.size())] {
      thread_index = index;
      run(first, std::min(first + piece, end), context);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return 0;
}

extern "C" int32_t torch_get_num_threads(uint32_t* threads) {
  *threads = kThreads;
  return 0;
}

extern "C" int32_t torch_get_thread_idx(uint32_t* index) {
  *index = thread_index;
  return 0;
}
