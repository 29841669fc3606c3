// What the forward pass and the gradient of the input have in common: both gather. Each output pixel sums, over the
// taps, a weight times a pixel of the source: forward, the input; in the gradient, grad_output, with the taps turned
// round and the weight taken where it was used, at the source's pixel. So one set of kernels serves both: only where a
// tap reads and whose spatial tap it takes differ, and both are settled before the loop over channels. No kernel adds
// into memory, so results do not depend on the order of execution.
#pragma once

#include "../call.h"
#include "normalise.cuh"
#include "tiling.h"

namespace ddf::cuda {

// Sizes below 2^31, but for what is said to be wider. `source`, `output` are the maps of the gathering.
struct Gather {
  Array source, output, channel_filter, spatial_filter;
  int64_t batch;
  int64_t source_height, source_width, height, width;  // of source and output
  int64_t kernel_size, dilation, stride;
  int64_t channels, heads, head_channels;  // in all; of one head
  bool gradient, add, normalize;
  double gain;
  // how a launch is cut; each kernel says what it reads
  int group, groups_per_head;  // channels of a block
  int tiles, tile_columns, tile_rows, channel_lanes;
  bool spatial_vectors;        // whether the taps of a vector of pixels may be loaded at once
  int moments;                 // pixels whose moments a block keeps in shared memory; 0: they are computed where needed
};

// Where the tap `offset` pixels away from `at` reads along one dimension; -1 outside of the source.
template <typename I>
__device__ inline I source_index(I at, I offset, I stride, I size, bool gradient) {
  I position = gradient ? at + offset : at * stride + offset;
  if (position < 0) return -1;
  if (gradient && stride > 1) {
    if (position % stride != 0) return -1;
    position /= stride;
  }
  return position < size ? position : -1;
}

// W = tap * factor + summand is tap * filter ('mul') or tap + filter ('add'): one instruction for either.
template <typename A>
struct Factor {
  A factor, summand;
};

template <typename A>
__device__ inline Factor<A> factor_of(A filter, bool add) {
  return add ? Factor<A>{1, filter} : Factor<A>{filter, 0};
}

// The spatial filter of one image and head, and the part of its pixels whose moments lie in shared memory.
template <typename T>
struct SpatialTaps {
  using A = Accumulator<T>;
  const T* data;
  int64_t tap_stride, row_stride, column_stride;
  int taps;
  A gain;
  const Moments<A>* moments = nullptr;
  int first_row = 0, first_column = 0, columns = 0;

  __device__ SpatialTaps(const Gather& g, int64_t image, int64_t head)
      : tap_stride(g.spatial_filter.channel),
        row_stride(g.spatial_filter.row),
        column_stride(g.spatial_filter.column),
        taps(static_cast<int>(g.kernel_size * g.kernel_size)),
        gain(static_cast<A>(g.gain)) {
    data = static_cast<const T*>(g.spatial_filter.data) + image * g.spatial_filter.batch + head * taps * tap_stride;
  }

  __device__ const T* address(int tap, int64_t row, int64_t column) const {
    return data + tap * tap_stride + row * row_stride + column * column_stride;
  }
  __device__ A raw(int tap, int64_t row, int64_t column) const { return widen(__ldg(address(tap, row, column))); }

  __device__ Moments<A> moments_at(int64_t row, int64_t column) const {
    return moments_in_memory(address(0, row, column), tap_stride, taps, gain);
  }

  __device__ A normalised(int tap, int64_t row, int64_t column) const {
    const Moments<A> at = moments != nullptr ? moments[(row - first_row) * columns + column - first_column]
                                             : moments_at(row, column);
    return (raw(tap, row, column) - at.mean) * at.scale;
  }

  // Of the gradient: all threads of the block fill `shared` for the source pixels that output pixels in the given
  // rows and columns touch. A barrier must follow.
  __device__ void share_moments(const Gather& g, Moments<A>* shared, int top, int bottom, int left, int right,
                                int thread, int threads) {
    const int reach = static_cast<int>(g.kernel_size / 2 * g.dilation), stride = static_cast<int>(g.stride);
    const auto first = [&](int at) { return at > reach ? (at - reach + stride - 1) / stride : 0; };
    const auto last = [&](int at, int64_t size) { return min((at + reach) / stride, static_cast<int>(size) - 1); };
    first_row = first(top), first_column = first(left);
    columns = last(right, g.source_width) - first_column + 1;
    const int count = (last(bottom, g.source_height) - first_row + 1) * columns;
    for (int index = thread; index < count; index += threads) {
      shared[index] = moments_at(first_row + index / columns, first_column + index % columns);
    }
    moments = shared;
  }
};

}  // namespace ddf::cuda
