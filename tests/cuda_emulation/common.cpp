// What both engines share: the checks of a launch, shared memory, and the functions that Python calls.
#include "common.h"

#include <cstring>

#include "../../ddf/csrc/cuda/launch.h"
#include "../../ddf/csrc/cuda/tiling.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes)
#endif

namespace ddf::cuda {
alignas(1024) unsigned char shared_memory[emulation::kSharedBytes];
}

namespace emulation {

namespace {
std::string message;
cudaError_t last_error = cudaSuccess;
int64_t launches = 0;
}  // namespace

void check_alignment(const void* address, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) {
    throw Fault("misaligned access of " + std::to_string(bytes) + " bytes");
  }
}

const void* launched = nullptr;

cudaError_t run(const cudaLaunchConfig_t& config, const void* address, const std::function<void()>& kernel) {
  const dim3 grid = config.gridDim, block = config.blockDim;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  const bool valid = grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.x < 1u << 31 && grid.y < 1u << 16 &&
                     grid.z < 1u << 16 && threads > 0 && threads <= 1024 && config.dynamicSmemBytes <= kSharedBytes;
  if (!valid) {
    message = "invalid configuration argument";
    return last_error = cudaErrorInvalidConfiguration;
  }
  ++launches;
  launched = address;
  blockDim = block, gridDim = grid;
  ASAN_POISON_MEMORY_REGION(ddf::cuda::shared_memory, kSharedBytes);
  ASAN_UNPOISON_MEMORY_REGION(ddf::cuda::shared_memory, config.dynamicSmemBytes);
  try {
    run_grid(grid, block, config.dynamicSmemBytes, kernel);
  } catch (const Fault& fault) {
    message = fault.what();
    last_error = cudaErrorEmulated;
  }
  ASAN_UNPOISON_MEMORY_REGION(ddf::cuda::shared_memory, kSharedBytes);
  return last_error;
}

void fill_shared_memory(size_t bytes) { std::memset(ddf::cuda::shared_memory, 0xff, bytes); }  // NaN in every dtype

}  // namespace emulation

cudaError_t cudaGetLastError() {
  const cudaError_t error = emulation::last_error;
  emulation::last_error = cudaSuccess;
  return error;
}

const char* cudaGetErrorString(cudaError_t) { return emulation::message.c_str(); }

#pragma GCC visibility push(default)
extern "C" {
const char* ddf_forward(const ddf::Call* call) { return ddf::cuda::forward(*call, nullptr); }
const char* ddf_input_gradient(const ddf::Call* call) { return ddf::cuda::input_gradient(*call, nullptr); }
int64_t ddf_filter_gradients_workspace(const ddf::Call* call) { return ddf::cuda::filter_gradients_workspace(*call); }
const char* ddf_filter_gradients(const ddf::Call* call, void* workspace) {
  return ddf::cuda::filter_gradients(*call, workspace, nullptr);
}
void ddf_set_limits(int64_t blocks, int64_t offset, int64_t grid) { ddf::cuda::limits = {blocks, offset, grid}; }
int64_t ddf_launches() { return emulation::launches; }
}
#pragma GCC visibility pop
