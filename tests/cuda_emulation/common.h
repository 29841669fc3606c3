// What an engine provides and uses.
#pragma once

#include <cuda_runtime.h>

namespace emulation {

extern const void* launched;  // the address of the kernel that runs
void run_grid(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel);
void fill_shared_memory(size_t bytes);

template <typename Body>
void for_each_block(dim3 grid, const Body& body) {
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) body(dim3(x, y, z));
    }
  }
}

inline Thread thread_of(unsigned linear, dim3 size, dim3 block) {
  return {dim3(linear % size.x, linear / size.x % size.y, linear / (size.x * size.y)), block, linear};
}

}  // namespace emulation
