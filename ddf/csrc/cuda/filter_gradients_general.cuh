// Partial sums of the filters' gradients where the fast kernels do not serve: kernels above 7, maps beyond 32-bit
// indices, odd channels_last maps. Two passes over grad_output and input in 64-bit indices, of one tile and one group.
#pragma once

#include "filter_gradients.cuh"

namespace ddf::cuda {

// grad_output * input as tap (i, j) of output pixel (y, x) read it.
template <typename T>
__device__ inline Accumulator<T> product_at(const Gather& g, int64_t image, int64_t channel, int64_t y, int64_t x,
                                            int64_t i, int64_t j) {
  const int64_t k = g.kernel_size;
  const int64_t row = source_index(y, (i - k / 2) * g.dilation, g.stride, g.source_height, false);
  const int64_t column = source_index(x, (j - k / 2) * g.dilation, g.stride, g.source_width, false);
  if (row < 0 || column < 0) return 0;
  const T* source = static_cast<const T*>(g.source.data) + image * g.source.batch + channel * g.source.channel;
  const T* grad = static_cast<const T*>(g.output.data) + image * g.output.batch + channel * g.output.channel;
  return widen(__ldg(grad + y * g.output.row + x * g.output.column)) *
         widen(__ldg(source + row * g.source.row + column * g.source.column));
}

// A block sums over the pixels for one image, channel and tap after another.
template <typename T>
__global__ void __launch_bounds__(kGeneralThreads, kGeneralBlocks) channel_sums_general(const FilterGradients f) {
  using A = Accumulator<T>;
  const Gather& g = f.at;
  const int64_t k = g.kernel_size, taps = k * k, total = g.batch * g.channels * taps;
  A* sums = reinterpret_cast<A*>(shared_memory);
  for (int64_t index = blockIdx.x; index < total; index += gridDim.x) {
    const int64_t image = index / taps / g.channels, channel = index / taps % g.channels, tap = index % taps;
    const SpatialTaps<T> spatial(g, image, channel / g.head_channels);
    A sum = 0;
    for (int64_t pixel = threadIdx.x; pixel < g.height * g.width; pixel += kGeneralThreads) {
      const int64_t y = pixel / g.width, x = pixel % g.width;
      A weight = 1;
      if (!g.add) {
        const int at = static_cast<int>(tap);
        weight = g.normalize ? spatial.normalised(at, y, x) : spatial.raw(at, y, x);
      }
      sum += weight * product_at<T>(g, image, channel, y, x, tap / k, tap % k);
    }
    sums[threadIdx.x] = sum;
    for (int half = kGeneralThreads / 2; half > 0; half /= 2) {
      __syncthreads();
      if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0) static_cast<A*>(f.channel_sums)[index] = sums[0];
    __syncthreads();
  }
}

// A thread sums over the channels for one image, head, tap and pixel after another.
template <typename T>
__global__ void __launch_bounds__(kGeneralThreads, kGeneralBlocks) spatial_sums_general(const FilterGradients f) {
  using A = Accumulator<T>;
  const Gather& g = f.at;
  const int64_t k = g.kernel_size, plane = g.height * g.width, heads = g.heads;
  const int64_t total = g.batch * heads * k * k * plane;
  for (int64_t index = blockIdx.x * int64_t{kGeneralThreads} + threadIdx.x; index < total;
       index += gridDim.x * int64_t{kGeneralThreads}) {
    const int64_t pixel = index % plane, tap = index / plane % (k * k), head = index / plane / (k * k) % heads;
    const int64_t image = index / plane / (k * k) / heads;
    A sum = 0;
    for (int64_t channel = head * g.head_channels; channel < (head + 1) * g.head_channels; ++channel) {
      A weight = 1;
      if (!g.add) {
        weight = widen(__ldg(static_cast<const T*>(g.channel_filter.data) + image * g.channel_filter.batch +
                             channel * g.channel_filter.channel + tap / k * g.channel_filter.row +
                             tap % k * g.channel_filter.column));
      }
      sum += weight * product_at<T>(g, image, channel, pixel / g.width, pixel % g.width, tap / k, tap % k);
    }
    static_cast<A*>(f.spatial_sums)[index] = sum;
  }
}

}  // namespace ddf::cuda
