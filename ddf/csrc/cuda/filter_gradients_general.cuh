// Partial sums of both filters' gradients where the fast kernels do not serve: kernels above 7, maps beyond 32-bit
// indices, odd channels_last maps. One pass over grad_output and input, in 64-bit indices.
//
// A warp takes one tap, a group of channels of one image and a tile of pixels, 32 pixels at once: the product that a
// lane reads for its pixel and a channel goes into both sums. That over the channels stays in the lane's register;
// those over the pixels go from lane to lane through shared memory (filter_gradients.cuh), to be added by the lane that
// owns the channel to what it wrote for the pixels before. The warps of a block take different taps, and neighbouring
// blocks the further taps of the same tile, so that what they read again lies in the caches. Warps share nothing.
#pragma once

#include "filter_gradients.cuh"

namespace ddf::cuda {

constexpr int kGeneralRows = kWarp / 2;  // of a warp's shared memory: channels whose sums wait in it

// Blocks that share a tile's taps, and the warps of each.
__host__ __device__ constexpr int64_t general_parts(int64_t taps) {
  constexpr int kWarps = kGeneralThreads / kWarp;
  return (taps + kWarps - 1) / kWarps;
}
__host__ __device__ constexpr int64_t general_warps(int64_t taps) {
  return (taps + general_parts(taps) - 1) / general_parts(taps);
}

// What a warp adds up: `count` channels since `first` of an image, and a run of pixels, for one tap.
struct GeneralTile {
  int64_t image, head, tile, first, count, begin, end, tap;
  int64_t group;  // within the head
};

// 1 for 'add', 0 where there is no pixel.
template <typename T>
__device__ inline Accumulator<T> weight_at(const Gather& g, const SpatialTaps<T>& spatial, int64_t tap, bool inside,
                                           int64_t y, int64_t x) {
  if (!inside) return 0;
  if (g.add) return 1;
  const int at = static_cast<int>(tap);
  return g.normalize ? spatial.normalised(at, y, x) : spatial.raw(at, y, x);
}

template <typename T>
__device__ inline void sum_tile(const FilterGradients& f, const GeneralTile& at, Accumulator<T>* buffer) {
  using A = Accumulator<T>;
  const Gather& g = f.at;
  const int64_t k = g.kernel_size, taps = k * k, plane = g.height * g.width, i = at.tap / k, j = at.tap % k;
  const int lane = threadIdx.x;
  const SpatialTaps<T> spatial(g, at.image, at.head);
  const T* source = static_cast<const T*>(g.source.data) + at.image * g.source.batch + at.first * g.source.channel;
  const T* grad = static_cast<const T*>(g.output.data) + at.image * g.output.batch + at.first * g.output.channel;
  const T* filter = static_cast<const T*>(g.channel_filter.data) + at.image * g.channel_filter.batch +
                    at.first * g.channel_filter.channel + i * g.channel_filter.row + j * g.channel_filter.column;
  A* channel_sums = static_cast<A*>(f.channel_sums) +
                    ((at.image * g.tiles + at.tile) * g.channels + at.first) * taps + at.tap;
  A* spatial_sums = static_cast<A*>(f.spatial_sums) +
                    (((at.group * g.batch + at.image) * g.heads + at.head) * taps + at.tap) * plane;
#pragma unroll 1
  for (int64_t base = at.begin; base < at.end; base += kWarp) {
    const int64_t pixel = base + lane, y = pixel / g.width, x = pixel % g.width;
    const bool inside = pixel < at.end;
    const int64_t row = source_index(y, (i - k / 2) * g.dilation, g.stride, g.source_height, false);
    const int64_t column = source_index(x, (j - k / 2) * g.dilation, g.stride, g.source_width, false);
    const bool reads = inside && row >= 0 && column >= 0;
    const A weight = weight_at(g, spatial, at.tap, inside, y, x);
    const T* value = source + (reads ? row * g.source.row + column * g.source.column : 0);
    const T* gradient = grad + y * g.output.row + x * g.output.column;
    A sum = 0;
#pragma unroll 1
    for (int64_t begin = 0; begin < at.count; begin += kGeneralRows) {
      const int rows = static_cast<int>(min(int64_t{kGeneralRows}, at.count - begin));
      A part = 0;
#pragma unroll 4
      for (int r = 0; r < rows; ++r) {
        const int64_t channel = begin + r;
        const A product = widen(load_if<1>(reads, gradient + channel * g.output.channel).values[0]) *
                          widen(load_if<1>(reads, value + channel * g.source.channel).values[0]);
        part += g.add ? product : widen(__ldg(filter + channel * g.channel_filter.channel)) * product;
        buffer[r * kPitch + lane] = weight * product;
      }
      sum += part;
      __syncwarp();
      if (lane < rows) {
        A total = 0;
        for (int n = 0; n < kWarp; ++n) total += buffer[lane * kPitch + n];
        A& of_channel = channel_sums[(begin + lane) * taps];
        of_channel = base == at.begin ? total : of_channel + total;
      }
      __syncwarp();
    }
    if (inside) spatial_sums[pixel] = sum;
  }
}

template <typename T>
__global__ void __launch_bounds__(kGeneralThreads, kGeneralBlocks) filter_gradients_general(const FilterGradients f) {
  const Gather& g = f.at;
  const int64_t taps = g.kernel_size * g.kernel_size, parts = general_parts(taps), plane = g.height * g.width;
  const int64_t groups = g.heads * g.groups_per_head, total = g.batch * g.tiles * groups * parts;
  Accumulator<T>* buffer = reinterpret_cast<Accumulator<T>*>(shared_memory) + threadIdx.y * kGeneralRows * kPitch;
  for (int64_t index = blockIdx.x; index < total; index += gridDim.x) {
    GeneralTile at;
    at.tap = index % parts * general_warps(taps) + threadIdx.y;
    if (at.tap >= taps) continue;
    const int64_t group = index / parts % groups;
    at.head = group / g.groups_per_head, at.group = group % g.groups_per_head;
    at.tile = index / parts / groups % g.tiles, at.image = index / parts / groups / g.tiles;
    at.first = at.head * g.head_channels + at.group * g.group;
    at.count = min(int64_t{g.group}, g.head_channels - at.group * g.group);
    at.begin = at.tile * f.tile_pixels, at.end = min(at.begin + f.tile_pixels, plane);
    sum_tile<T>(f, at, buffer);
  }
}

}  // namespace ddf::cuda
