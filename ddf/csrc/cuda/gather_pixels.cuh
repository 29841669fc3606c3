// Gathers channels_last maps.
//
// A block owns a tile of pixels and the channels of `channel_lanes` vectors of one head. Both filters lie in shared
// memory: the weights of the tile's pixels as factors, those of the channels as vectors. A thread owns VEC adjacent
// channels (16 bytes) and, one after another, quads of four adjacent pixels in a row: a row of channel taps, read once,
// serves all four. With WINDOW (stride and dilation 1) the four also share the row's source vectors, 3 + k in place of
// 4 k; without, stride, dilation and the gradient's phases are any.
//
// Must move the bytes that gather_planes.cuh names. Moves from memory the same; from L2, per output, (rows + k - 1) *
// (columns + k - 1) / (rows * columns) of the source, k*k/channels-of-the-block of spatial and k*k/pixels-of-the-tile of
// channel filter. All accesses of the maps are of 16 bytes.
#pragma once

#include "gather.cuh"

namespace ddf::cuda {

// Elements between the channel taps of two taps: a vector more than there are, against bank conflicts.
__host__ __device__ constexpr int channel_taps_pitch(int lanes, int vector) { return (lanes + 1) * vector; }

template <typename T, int K>
__device__ inline void share_pixel_factors(const Gather& g, const SpatialTaps<T>& spatial, int top, int left,
                                           int thread, Factor<Accumulator<T>>* factors) {
  using A = Accumulator<T>;
  const int pixels = g.tile_rows * kTileColumns;
  const int dilation = static_cast<int>(g.dilation), stride = static_cast<int>(g.stride);
  const int height = static_cast<int>(g.source_height), width = static_cast<int>(g.source_width);
  for (int index = thread; index < pixels * K * K; index += kPixelThreads) {
    const int pixel = index % pixels, tap = index / pixels;
    const int y = top + pixel / kTileColumns, x = left + pixel % kTileColumns;
    A weight = 0;
    if (y < g.height && x < g.width) {
      const int row = g.gradient ? source_index(y, (tap / K - K / 2) * dilation, stride, height, true) : y;
      const int column = g.gradient ? source_index(x, (tap % K - K / 2) * dilation, stride, width, true) : x;
      if (row >= 0 && column >= 0) {
        const int of_filter = g.gradient ? K * K - 1 - tap : tap;
        weight = g.normalize && g.gradient ? spatial.normalised(of_filter, row, column)
                                           : spatial.raw(of_filter, row, column);
      }
    }
    factors[tap * pixels + pixel] = factor_of(weight, g.add);
  }
}

// Forward: a thread normalises the taps of a pixel in place.
template <typename A, int K>
__device__ inline void normalise_pixel_factors(const Gather& g, int thread, Factor<A>* factors) {
  const int pixels = g.tile_rows * kTileColumns;
  for (int pixel = thread; pixel < pixels; pixel += kPixelThreads) {
    const auto tap_at = [&](int tap) {
      const Factor<A> factor = factors[tap * pixels + pixel];
      return g.add ? factor.summand : factor.factor;
    };
    const auto at = moments_of<A>(K * K, static_cast<A>(g.gain), tap_at);
    for (int tap = 0; tap < K * K; ++tap) {
      factors[tap * pixels + pixel] = factor_of((tap_at(tap) - at.mean) * at.scale, g.add);
    }
  }
}

template <typename T, int K, int VEC>
__device__ inline void share_channel_taps(const Gather& g, int64_t image, int64_t first, int count, int thread,
                                          Accumulator<T>* taps) {
  const int pitch = channel_taps_pitch(g.channel_lanes, VEC);
  const T* filter =
      static_cast<const T*>(g.channel_filter.data) + image * g.channel_filter.batch + first * g.channel_filter.channel;
  for (int index = thread; index < g.channel_lanes * VEC * K * K; index += kPixelThreads) {
    const int channel = index / (K * K), tap = g.gradient ? K * K - 1 - index % (K * K) : index % (K * K);
    Accumulator<T> value = 0;
    if (channel < count) {
      value = widen(__ldg(filter + channel * g.channel_filter.channel + tap / K * g.channel_filter.row +
                          tap % K * g.channel_filter.column));
    }
    taps[index % (K * K) * pitch + channel] = value;
  }
}

// Adds the products of one row of taps to the sums of a quad.
template <typename T, int K, int VEC, bool WINDOW>
__device__ inline void add_pixel_row(const Gather& g, const T* source_row, int x, const Accumulator<T>* taps,
                                     const Factor<Accumulator<T>>* factors, int pitch, int pixels,
                                     Accumulator<T> (&sums)[kPixelsPerThread][VEC]) {
  using A = Accumulator<T>;
  const int width = static_cast<int>(g.source_width);
  const auto add_product = [&](int p, int j, const Pack<T, VEC>& values, const A (&tap)[VEC]) {
    const Factor<A> factor = factors[j * pixels + p];
#pragma unroll
    for (int v = 0; v < VEC; ++v) {
      sums[p][v] += (tap[v] * factor.factor + factor.summand) * widen(values.values[v]);
    }
  };
  A channel[K][VEC];
#pragma unroll
  for (int j = 0; j < K; ++j) {
#pragma unroll
    for (int v = 0; v < VEC; ++v) channel[j][v] = taps[j * pitch + v];
  }
  if constexpr (WINDOW) {
#pragma unroll
    for (int q = 0; q < kPixelsPerThread + K - 1; ++q) {
      const int column = x + q - K / 2;
      const auto values = load_if<VEC>(column >= 0 && column < width, source_row + column * g.source.column);
#pragma unroll
      for (int p = 0; p < kPixelsPerThread; ++p) {
        if (q - p >= 0 && q - p < K) add_product(p, q - p, values, channel[q - p]);
      }
    }
  } else {
    const int dilation = static_cast<int>(g.dilation), stride = static_cast<int>(g.stride);
#pragma unroll
    for (int j = 0; j < K; ++j) {
#pragma unroll
      for (int p = 0; p < kPixelsPerThread; ++p) {
        const int column = source_index(x + p, (j - K / 2) * dilation, stride, width, g.gradient);
        add_product(p, j, load_if<VEC>(column >= 0, source_row + column * g.source.column), channel[j]);
      }
    }
  }
}

template <typename T, int K, int VEC, bool WINDOW>
__global__ void __launch_bounds__(kPixelThreads, pixel_blocks(K, sizeof(Accumulator<T>))) gather_pixels(const Gather g) {
  using A = Accumulator<T>;
  const int lanes = g.channel_lanes, pixels = g.tile_rows * kTileColumns;
  const int groups = static_cast<int>(g.heads) * g.groups_per_head;
  const int group = blockIdx.x % groups, tile = blockIdx.x / groups % g.tiles;
  const int64_t image = blockIdx.x / groups / g.tiles;
  const int head = group / g.groups_per_head, within = group % g.groups_per_head * lanes * VEC;
  const int count = min(lanes * VEC, static_cast<int>(g.head_channels) - within);
  const int64_t first = head * g.head_channels + within;
  const int top = tile / g.tile_columns * g.tile_rows, left = tile % g.tile_columns * kTileColumns;
  const int thread = threadIdx.x;

  auto* factors = reinterpret_cast<Factor<A>*>(shared_memory);
  A* taps = reinterpret_cast<A*>(factors + pixels * K * K);
  const int pitch = channel_taps_pitch(lanes, VEC);
  SpatialTaps<T> spatial(g, image, head);
  if (g.moments > 0) {
    spatial.share_moments(g, reinterpret_cast<Moments<A>*>(taps + K * K * pitch), top,
                          min(top + g.tile_rows, static_cast<int>(g.height)) - 1, left,
                          min(left + kTileColumns, static_cast<int>(g.width)) - 1, thread, kPixelThreads);
    __syncthreads();
  }
  share_pixel_factors<T, K>(g, spatial, top, left, thread, factors);
  share_channel_taps<T, K, VEC>(g, image, first, count, thread, taps);
  __syncthreads();
  if (g.normalize && !g.gradient) {
    normalise_pixel_factors<A, K>(g, thread, factors);
    __syncthreads();
  }
  const int channel = thread % lanes * VEC;
  if (channel >= count) return;

  const T* source = static_cast<const T*>(g.source.data) + image * g.source.batch + first + channel;
  T* output = static_cast<T*>(g.output.data) + image * g.output.batch + first + channel;
  constexpr int kQuads = kTileColumns / kPixelsPerThread;  // of a row
#pragma unroll 1
  for (int quad = thread / lanes; quad < g.tile_rows * kQuads; quad += kPixelThreads / lanes) {
    const int tile_row = quad / kQuads, tile_column = quad % kQuads * kPixelsPerThread;
    const int y = top + tile_row, x = left + tile_column;
    if (y >= g.height || x >= g.width) continue;
    A sums[kPixelsPerThread][VEC] = {};
#pragma unroll 1
    for (int i = 0; i < K; ++i) {
      const int row = source_index(y, (i - K / 2) * static_cast<int>(g.dilation), static_cast<int>(g.stride),
                                   static_cast<int>(g.source_height), g.gradient);
      if (row < 0) continue;
      add_pixel_row<T, K, VEC, WINDOW>(g, source + static_cast<int64_t>(row) * g.source.row, x,
                                       taps + i * K * pitch + channel,
                                       factors + i * K * pixels + tile_row * kTileColumns + tile_column, pitch, pixels,
                                       sums);
    }
#pragma unroll
    for (int p = 0; p < kPixelsPerThread; ++p) {
      if (x + p < g.width) store<VEC>(output + y * g.output.row + (x + p) * g.output.column, sums[p]);
    }
  }
}

}  // namespace ddf::cuda
