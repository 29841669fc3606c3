// Gradients of both filters from channels_last maps.
//
// The other way round than for planes: a thread owns VEC adjacent channels (16 bytes) and a row of taps, whose channel
// taps and sums of the channel gradient stay in registers while the warp walks over the pixels of a tile; the spatial
// gradient's partial sums go from lane to lane through shared memory. A warp has `channel_lanes` lanes for channels; where a
// head has fewer channels than 32 vectors, the others take further pixels.
//
// Must move, and moves besides, what filter_gradients_planes.cuh names, with k*k/(channel_lanes*VEC) and k*k/tile_pixels
// accumulators per pixel and channel.
#pragma once

#include "filter_gradients.cuh"

namespace ddf::cuda {

// Every thread normalises the taps of a pixel of the tile; (tap, pixel of the tile).
template <typename T, int K>
__device__ inline void share_tile_weights(const FilterGradients& f, const SpatialTaps<T>& spatial, int begin, int count,
                                          Accumulator<T>* weights) {
  using A = Accumulator<T>;
  const Gather& g = f.at;
  const int threads = kWarp * K, thread = threadIdx.y * kWarp + threadIdx.x;
  for (int pixel = thread; pixel < count; pixel += threads) {
    const int64_t y = (begin + pixel) / g.width, x = (begin + pixel) % g.width;
    Moments<A> at{0, 1};
    if (g.normalize && !g.add) at = spatial.moments_at(y, x);
    for (int tap = 0; tap < K * K; ++tap) {
      weights[tap * f.tile_pixels + pixel] = g.add ? A(1) : (spatial.raw(tap, y, x) - at.mean) * at.scale;
    }
  }
}

template <typename T, int K, int VEC>
__global__ void __launch_bounds__(kWarp* K, pixel_sum_blocks(K)) filter_gradients_pixels(const FilterGradients f) {
  using A = Accumulator<T>;
  constexpr int kRows = buffered_rows(K, sizeof(A));
  const Gather& g = f.at;
  const int lanes = g.channel_lanes, pixel_lanes = kWarp / lanes;
  const int heads = static_cast<int>(g.heads), groups = heads * g.groups_per_head;
  const int group = blockIdx.x % groups, tile = blockIdx.x / groups % g.tiles;
  const int64_t image = blockIdx.x / groups / g.tiles;
  const int head = group / g.groups_per_head, within = group % g.groups_per_head * lanes * VEC;
  const int64_t first = head * g.head_channels + within;
  const int lane = threadIdx.x, i = threadIdx.y, channel = lane % lanes * VEC;
  const bool owns = within + channel < g.head_channels;
  const int plane = static_cast<int>(g.height * g.width), begin = tile * static_cast<int>(f.tile_pixels);
  const int count = min(static_cast<int>(f.tile_pixels), plane - begin);

  A* weights = reinterpret_cast<A*>(shared_memory);
  A* buffer = weights + K * K * f.tile_pixels + i * kRows * kPitch;
  const SpatialTaps<T> spatial(g, image, head);
  share_tile_weights<T, K>(f, spatial, begin, count, weights);
  A taps[K][VEC], sums[K][VEC] = {};
  const T* filter = static_cast<const T*>(g.channel_filter.data) + image * g.channel_filter.batch +
                    (first + channel) * g.channel_filter.channel + i * g.channel_filter.row;
#pragma unroll
  for (int j = 0; j < K; ++j) {
#pragma unroll
    for (int v = 0; v < VEC; ++v) {
      taps[j][v] = g.add ? A(1) : A(0);
      if (owns && !g.add) taps[j][v] = widen(__ldg(filter + v * g.channel_filter.channel + j * g.channel_filter.column));
    }
  }
  __syncthreads();

  const T* source = static_cast<const T*>(g.source.data) + image * g.source.batch + first + channel;
  const T* grad = static_cast<const T*>(g.output.data) + image * g.output.batch + first + channel;
  A* spatial_sums = static_cast<A*>(f.spatial_sums) +
                    ((((group % g.groups_per_head) * g.batch + image) * heads + head) * K * K + i * K) * plane + begin;
  const int steps = (count + pixel_lanes - 1) / pixel_lanes;
  int rows = 0;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    const int pixel = step * pixel_lanes + lane / lanes;
    const bool inside = owns && pixel < count;
    const int y = (begin + pixel) / static_cast<int>(g.width), x = (begin + pixel) % static_cast<int>(g.width);
    const int row = source_index(y, (i - K / 2) * static_cast<int>(g.dilation), static_cast<int>(g.stride),
                                 static_cast<int>(g.source_height), false);
    const Pack<T, VEC> gradient = load_if<VEC>(inside, grad + y * g.output.row + x * g.output.column);
#pragma unroll
    for (int j = 0; j < K; ++j) {
      const int column = source_index(x, (j - K / 2) * static_cast<int>(g.dilation), static_cast<int>(g.stride),
                                      static_cast<int>(g.source_width), false);
      const Pack<T, VEC> values =
          load_if<VEC>(inside && row >= 0 && column >= 0, source + row * g.source.row + column * g.source.column);
      const A weight = pixel < count ? weights[(i * K + j) * f.tile_pixels + pixel] : A(0);
      A partial = 0;
#pragma unroll
      for (int v = 0; v < VEC; ++v) {
        const A product = widen(gradient.values[v]) * widen(values.values[v]);
        partial += taps[j][v] * product;
        sums[j][v] += weight * product;
      }
      buffer[(rows + j) * kPitch + lane] = partial;
    }
    rows += K;
    if (rows < kRows && step < steps - 1) continue;
    __syncwarp();
    const int first_step = step + 1 - rows / K;
    for (int index = lane; index < rows * pixel_lanes; index += kWarp) {
      const int r = index / pixel_lanes, part = index % pixel_lanes;
      const int at = (first_step + r / K) * pixel_lanes + part;
      A total = 0;
      for (int n = 0; n < lanes; ++n) total += buffer[r * kPitch + part * lanes + n];
      if (at < count) spatial_sums[static_cast<int64_t>(r % K) * plane + at] = total;
    }
    __syncwarp();
    rows = 0;
  }

  A* channel_sums = static_cast<A*>(f.channel_sums) + ((image * g.tiles + tile) * g.channels + first) * K * K + i * K;
#pragma unroll
  for (int v = 0; v < VEC; ++v) {
#pragma unroll
    for (int j = 0; j < K; ++j) buffer[j * kPitch + lane] = sums[j][v];
    __syncwarp();
    for (int index = lane; index < K * lanes; index += kWarp) {
      const int j = index / lanes, of = index % lanes;
      A total = 0;
      for (int part = 0; part < pixel_lanes; ++part) total += buffer[j * kPitch + part * lanes + of];
      if (within + of * VEC < g.head_channels) channel_sums[(of * VEC + v) * K * K + j] = total;
    }
    __syncwarp();
  }
}

}  // namespace ddf::cuda
