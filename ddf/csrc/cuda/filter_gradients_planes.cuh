// Gradients of both filters from contiguous maps (columns adjacent), and with VEC = 1 from maps of any strides.
//
// A thread owns VEC adjacent pixels and a row of taps, whose weights and sums of the spatial gradient stay in registers
// over the loop over the group's channels. The channel gradient's partial sums go from lane to lane through shared
// memory (filter_gradients.cuh).
//
// Must move, per pixel and channel: an element of grad_output and stride^2 of the input; per pixel 2 k*k of the spatial
// filter and its gradient. Moves from memory besides, written and read once: accumulators of k*k per pixel and group
// (k*k/group per pixel and channel) and of k*k per tile and channel (k*k/(32*VEC) per pixel and channel).
#pragma once

#include "filter_gradients.cuh"
#include "gather_planes.cuh"

namespace ddf::cuda {

// The weights of one row of taps; ones for 'add', zeros where there is no pixel.
template <typename T, int K, int VEC>
__device__ inline void load_row_weights(const Gather& g, const SpatialTaps<T>& spatial, int i, bool inside, int y, int x,
                                        Accumulator<T> (&weights)[K][VEC]) {
  using A = Accumulator<T>;
#pragma unroll
  for (int v = 0; v < VEC; ++v) {
    Moments<A> at{0, 1};
    if (inside && g.normalize && !g.add) at = spatial.moments_at(y, x + v);
#pragma unroll
    for (int j = 0; j < K; ++j) {
      A weight = 0;
      if (inside) weight = g.add ? A(1) : (spatial.raw(i * K + j, y, x + v) - at.mean) * at.scale;
      weights[j][v] = weight;
    }
  }
}

// Lane r adds up row r of the buffer and writes it where it belongs among the taps of the channels since `first`.
template <typename A, int K>
__device__ inline void flush_channel_sums(const A* buffer, int rows, int i, A* of_first) {
  __syncwarp();
  const int row = threadIdx.x;
  if (row < rows) {
    A total = 0;
    for (int lane = 0; lane < kWarp; ++lane) total += buffer[row * kPitch + lane];
    of_first[row / K * K * K + i * K + row % K] = total;
  }
  __syncwarp();
}

template <typename T, int K, int VEC, int STRIDE>
__global__ void __launch_bounds__(kWarp* K, sum_blocks(K)) filter_gradients_planes(const FilterGradients f) {
  using A = Accumulator<T>;
  constexpr int kRows = buffered_rows(K, sizeof(A));
  const Gather& g = f.at;
  const int heads = static_cast<int>(g.heads), groups = heads * g.groups_per_head;
  const int group = blockIdx.x % groups, tile = blockIdx.x / groups % g.tiles;
  const int64_t image = blockIdx.x / groups / g.tiles;
  const int head = group / g.groups_per_head, within = group % g.groups_per_head * g.group;
  const int count = min(g.group, static_cast<int>(g.head_channels) - within);
  const int64_t first = head * g.head_channels + within;
  const int lane = threadIdx.x, i = threadIdx.y;

  A* taps = reinterpret_cast<A*>(shared_memory);  // of the group's channels
  A* buffer = taps + g.group * K * K + i * kRows * kPitch;
  const T* filter =
      static_cast<const T*>(g.channel_filter.data) + image * g.channel_filter.batch + first * g.channel_filter.channel;
  for (int index = i * kWarp + lane; index < count * K * K; index += kWarp * K) {
    const int channel = index / (K * K), tap = index % (K * K);
    taps[index] = g.add ? A(1)
                        : widen(__ldg(filter + channel * g.channel_filter.channel + tap / K * g.channel_filter.row +
                                      tap % K * g.channel_filter.column));
  }
  __syncthreads();

  const int vectors = static_cast<int>(g.width) / VEC, pixels = static_cast<int>(g.height) * vectors;
  const int pixel = tile * kWarp + lane;
  const bool inside = pixel < pixels;
  const int y = inside ? pixel / vectors : 0, x = inside ? pixel % vectors * VEC : 0;
  const SpatialTaps<T> spatial(g, image, head);
  A weights[K][VEC], sums[K][VEC] = {};
  load_row_weights<T, K, VEC>(g, spatial, i, inside, y, x, weights);

  const int dilation = static_cast<int>(g.dilation), stride = static_cast<int>(g.stride);
  const int width = static_cast<int>(g.source_width);
  const int row = source_index(y, (i - K / 2) * dilation, stride, static_cast<int>(g.source_height), false);
  const bool reads = inside && row >= 0;
  int columns[K];
  if constexpr (STRIDE == 0) {
#pragma unroll
    for (int j = 0; j < K; ++j) {
      columns[j] = source_index(x, (j - K / 2) * dilation, stride, width, false);
      if (columns[j] > 0) columns[j] *= static_cast<int>(g.source.column);
    }
  }
  const T* source = static_cast<const T*>(g.source.data) + image * g.source.batch + first * g.source.channel +
                    (reads ? row * g.source.row : 0);
  const T* grad = static_cast<const T*>(g.output.data) + image * g.output.batch + first * g.output.channel +
                  y * g.output.row + x * g.output.column;
  A* channel_sums = static_cast<A*>(f.channel_sums) + ((image * g.tiles + tile) * g.channels + first) * K * K;

  int rows = 0;
#pragma unroll 1
  for (int channel = 0; channel < count; ++channel) {
    const Pack<T, VEC> gradient = load_if<VEC>(inside, grad + channel * g.output.channel);
    Window<T, K, VEC, STRIDE> window;
    if constexpr (STRIDE == 0) {
      window.read(reads, source + channel * g.source.channel, columns);
    } else {
      window.read(reads, source + channel * g.source.channel, x * STRIDE, width);
    }
#pragma unroll
    for (int j = 0; j < K; ++j) {
      const A tap = taps[channel * K * K + i * K + j];
      A partial = 0;
#pragma unroll
      for (int v = 0; v < VEC; ++v) {
        const A product = widen(gradient.values[v]) * window(v, j);
        partial += weights[j][v] * product;
        sums[j][v] += tap * product;
      }
      buffer[(rows + j) * kPitch + lane] = partial;
    }
    rows += K;
    if (rows == kRows || channel == count - 1) {
      flush_channel_sums<A, K>(buffer, rows, i, channel_sums + (channel + 1 - rows / K) * K * K);
      rows = 0;
    }
  }
  if (!inside) return;
  A* spatial_sums = static_cast<A*>(f.spatial_sums) +
                    (((group % g.groups_per_head) * g.batch + image) * heads + head) * K * K * g.height * g.width;
#pragma unroll
  for (int j = 0; j < K; ++j) {
    store_sums(spatial_sums + (i * K + j) * g.height * g.width + static_cast<int64_t>(pixel) * VEC, sums[j]);
  }
}

}  // namespace ddf::cuda
