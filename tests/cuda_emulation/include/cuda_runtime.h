// The part of CUDA that ddf/csrc/cuda uses, executed on the CPU: found in the place of the toolkit's own header.
//
// Blocks run in turn. The threads of a block are fibers of one system thread (fibers.cpp), or system threads
// (threads.cpp) for ThreadSanitizer. Shared memory is dynamic alone, and holds NaN when a block begins.
#pragma once

#include <cmath>
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <tuple>

#define __global__
#define __device__
#define __host__
#define __noinline__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes)
#define __shared__

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidConfiguration, cudaErrorEmulated };
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

namespace emulation {

struct Thread {
  dim3 index, block;
  unsigned linear;  // within the block
};

constexpr size_t kSharedBytes = 48 << 10;

// What a kernel did wrong. Thrown where it did; the launch stops there.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

Thread& current();
void synchronise_block();
void synchronise_warp(unsigned mask);
void check_alignment(const void* address, size_t bytes);
// `address` is that of the kernel's code, which tells its templates apart.
cudaError_t run(const cudaLaunchConfig_t& config, const void* address, const std::function<void()>& kernel);

}  // namespace emulation

// Words of several registers: storing one checks its address, which these types themselves do not bind.
struct uint2 {
  unsigned x, y;
  uint2() = default;
  uint2(const uint2&) = default;
  uint2& operator=(const uint2& other) {
    emulation::check_alignment(this, sizeof *this);
    std::memcpy(&x, &other.x, sizeof *this);
    return *this;
  }
};
struct uint4 {
  unsigned x, y, z, w;
  uint4() = default;
  uint4(const uint4&) = default;
  uint4& operator=(const uint4& other) {
    emulation::check_alignment(this, sizeof *this);
    std::memcpy(&x, &other.x, sizeof *this);
    return *this;
  }
};

#define threadIdx (emulation::current().index)
#define blockIdx (emulation::current().block)
inline dim3 blockDim, gridDim;

inline void __syncthreads() { emulation::synchronise_block(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { emulation::synchronise_warp(mask); }

template <typename T>
T __ldg(const T* address) {
  emulation::check_alignment(address, sizeof(T));
  return *address;
}
using std::sqrt;
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a < b ? b : a; }

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  const std::tuple<Parameters...> copies(arguments...);
  return emulation::run(*config, reinterpret_cast<const void*>(kernel), [&] { std::apply(kernel, copies); });
}
cudaError_t cudaGetLastError();  // and forgets it
const char* cudaGetErrorString(cudaError_t error);
