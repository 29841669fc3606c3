// Gathers what the fast kernels do not serve: kernels above 7, maps beyond 32-bit indices, odd channels_last maps.
//
// A thread computes one output at a time, the fastest dimension of the output across neighbouring threads, in 64-bit
// indices; the grid strides over all of them. It reads k*k elements of source and of both filters per output, through
// the caches; normalised taps cost k*k more per output, in the gradient per tap.
#pragma once

#include "gather.cuh"

namespace ddf::cuda {

template <typename T>
__global__ void __launch_bounds__(kGeneralThreads, kGeneralBlocks) gather_general(const Gather g) {
  using A = Accumulator<T>;
  const int64_t total = g.batch * g.channels * g.height * g.width;
  const int64_t k = g.kernel_size;
  const bool channels_first = g.output.column == 1 || g.output.channel != 1;
  for (int64_t index = blockIdx.x * int64_t{kGeneralThreads} + threadIdx.x; index < total;
       index += gridDim.x * int64_t{kGeneralThreads}) {
    const int64_t plane = g.height * g.width;
    const int64_t image = index / (g.channels * plane), within = index % (g.channels * plane);
    const int64_t channel = channels_first ? within / plane : within % g.channels;
    const int64_t pixel = channels_first ? within % plane : within / g.channels;
    const int64_t y = pixel / g.width, x = pixel % g.width;
    const SpatialTaps<T> spatial(g, image, channel / g.head_channels);
    const T* source = static_cast<const T*>(g.source.data) + image * g.source.batch + channel * g.source.channel;
    const T* filter = static_cast<const T*>(g.channel_filter.data) + image * g.channel_filter.batch +
                      channel * g.channel_filter.channel;
    Moments<A> moments{0, 1};
    if (g.normalize && !g.gradient) moments = spatial.moments_at(y, x);
    A sum = 0;
    for (int64_t i = 0; i < k; ++i) {
      const int64_t row = source_index(y, (i - k / 2) * g.dilation, g.stride, g.source_height, g.gradient);
      if (row < 0) continue;
      for (int64_t j = 0; j < k; ++j) {
        const int64_t column = source_index(x, (j - k / 2) * g.dilation, g.stride, g.source_width, g.gradient);
        if (column < 0) continue;
        const int64_t tap_row = g.gradient ? k - 1 - i : i, tap_column = g.gradient ? k - 1 - j : j;
        const int tap = static_cast<int>(tap_row * k + tap_column);
        A weight;
        if (!g.gradient) {
          weight = spatial.raw(tap, y, x);
          if (g.normalize) weight = (weight - moments.mean) * moments.scale;
        } else {
          weight = g.normalize ? spatial.normalised(tap, row, column) : spatial.raw(tap, row, column);
        }
        const A value = widen(__ldg(filter + tap_row * g.channel_filter.row + tap_column * g.channel_filter.column));
        const Factor<A> factor = factor_of(value, g.add);
        sum += (weight * factor.factor + factor.summand) *
               widen(__ldg(source + row * g.source.row + column * g.source.column));
      }
    }
    T* output = static_cast<T*>(g.output.data) + image * g.output.batch + channel * g.output.channel +
                y * g.output.row + x * g.output.column;
    *output = narrow<T>(sum);
  }
}

}  // namespace ddf::cuda
