// What the kernels of the filters' gradients share.
//
// For every tap, P = grad_output * the input that the tap read. The gradient of the channel filter sums P * spatial tap
// over the pixels ('add': P), that of the spatial filter P * channel tap over the channels of a head. One pass over
// grad_output and input serves both: each block sums a tile of pixels by a group of channels, both ways, and writes its
// two partial sums to the workspace; the kernels of finish_filter_gradients.cuh add those in a fixed order. No floats
// are added atomically, so results do not depend on the order of execution.
//
// A block is one warp for each row of taps. They read the same pixels of grad_output, and rows of the input that
// overlap, through L1; each keeps the sums of its own k taps alone, so that even 7 by 7 taps fit in registers.
#pragma once

#include "gather.cuh"

namespace ddf::cuda {

struct FilterGradients {
  Gather at;  // its source is the input, its output grad_output, as forward has them; and the filters
  Array grad_channel, grad_spatial;
  int64_t channel_batch, spatial_batch;
  void* channel_sums;  // accumulators (image, tile, channel, tap)
  void* spatial_sums;  // accumulators (group of a head, image, head, tap, pixel)
  int64_t tile_pixels;
};

// Partial sums that differ from lane to lane wait in rows of shared memory, a row for each value; when the rows are
// full, each lane adds up one of them: one store and one load in place of a shuffle and an addition for every halving.
constexpr int kPitch = kWarp + 1;  // of a row: against bank conflicts

__host__ __device__ constexpr int buffered_rows(int kernel_size, int accumulator_bytes) {
  return (accumulator_bytes == 8 ? kWarp / 2 : kWarp) / kernel_size * kernel_size;
}

template <typename A, int N>
__device__ inline void store_sums(A* address, const A (&sums)[N]) {
  constexpr int kPart = N * sizeof(A) > kVectorBytes ? kVectorBytes / sizeof(A) : N;
#pragma unroll
  for (int n = 0; n < N; n += kPart) store<kPart, A>(address + n, sums + n);
}

}  // namespace ddf::cuda
