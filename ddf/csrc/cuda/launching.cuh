// What the launches of all operators share: starting a kernel, choosing among its templates, judging layouts.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <type_traits>

#include "../call.h"
#include "scalar.cuh"
#include "tiling.h"

namespace ddf::cuda {

// nullptr, or what the runtime says. Nothing is waited for and nothing allocated, so a graph may capture it.
template <typename... Parameters>
const char* launch(void (*kernel)(Parameters...), int64_t blocks, dim3 threads, int64_t shared_bytes, void* stream,
                   const Parameters&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = threads;
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream);
  cudaLaunchKernelEx(&config, kernel, arguments...);
  const cudaError_t status = cudaGetLastError();
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

template <int N>
using Constant = std::integral_constant<int, N>;

// Calls run(Constant<k>) for the sizes of kernel that are compiled; false for others.
template <typename Run>
bool with_kernel_size(int64_t kernel_size, const Run& run) {
  switch (kernel_size) {
    case 1:
      run(Constant<1>());
      return true;
    case 3:
      run(Constant<3>());
      return true;
    case 5:
      run(Constant<5>());
      return true;
    case 7:
      run(Constant<7>());
      return true;
    default:
      return false;
  }
}

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Dilation and stride beyond the map read what those of the map's size do: nothing but the centre.
inline int64_t within_map(const Call& call, int64_t distance) {
  return std::min(distance, std::max({call.height, call.width, int64_t{1}}));
}

// Whether every vector of `bytes` that begins at a multiple of it, counted in elements, does so in memory, too.
inline bool is_aligned(const Array& array, int64_t bytes, int64_t element, std::initializer_list<int64_t> strides) {
  if (reinterpret_cast<uintptr_t>(array.data) % bytes != 0) return false;
  return std::all_of(strides.begin(), strides.end(), [&](int64_t stride) { return stride * element % bytes == 0; });
}

inline bool has_vector_rows(const Array& map, int64_t width, int vector, int64_t element) {
  return map.column == 1 && width % vector == 0 &&
         is_aligned(map, vector * element, element, {map.batch, map.channel, map.row});
}

inline bool has_vector_pixels(const Array& map, int vector, int64_t element) {
  return map.channel == 1 && is_aligned(map, vector * element, element, {map.batch, map.row, map.column});
}

// Whether distances within a plane of an array (and a margin for taps outside of it) fit in 32-bit indices.
inline bool has_small_planes(const Array& map, int64_t height, int64_t width) {
  const auto reach = [](int64_t stride, int64_t size) { return (stride < 0 ? -stride : stride) * size; };
  return reach(map.row, height) + reach(map.column, width) <= limits.offset && 16 * (height + width) <= limits.offset &&
         height * width <= limits.offset;
}

// Channels of a block: at most `largest`, and fewer, down to `smallest`, until `blocks_of(groups of a head)` suffice.
template <typename BlocksOf>
int64_t choose_group(int64_t head_channels, int64_t smallest, int64_t largest, int64_t blocks, const BlocksOf& blocks_of) {
  int64_t groups = divide_up(head_channels, largest);
  const int64_t most = std::max(groups, divide_up(head_channels, smallest));
  while (groups < most && blocks_of(groups) < blocks) groups = std::min(groups * 2, most);
  return divide_up(head_channels, groups);
}

}  // namespace ddf::cuda
