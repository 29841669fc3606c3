// Gathers contiguous maps (columns adjacent), and with VEC = 1 maps of any strides.
//
// A thread owns VEC adjacent pixels and their k*k*VEC weights: in registers up to k = 3 (k = 5 for VEC = 1), above
// in its own column of shared memory, where two channels share each reading. It walks over the channels of a group, whose
// filters lie in shared memory. Vectors of pixels are counted in linear order, so small maps leave few threads idle, and
// groups of one tile are neighbours in the grid, so that all but the first find the tile's taps in the cache.
// STRIDE is the distance of the vectorised window's pixels; 0, with VEC = 1, is any stride and dilation, and the
// gradient's phases too.
//
// Must move, per output: one element of the source (stride^2 forward, 1/stride^2 in the gradient), one of the output,
// k*k/C of spatial and k*k/(Ho*Wo) of channel filter. Moves that from memory; from L2 also k*k/group of spatial filter
// and k*k/tile of channel filter; the k rows of the source of a pixel come through L1, each as a
// vector and, at k = 3, an element on either side of it; at k = 5 and 7, two vectors on either side at most.
#pragma once

#include "gather.cuh"

namespace ddf::cuda {

// Weights of a thread's pixels: in registers, or in its column of shared memory. Of the latter a row of taps is handled
// at once: were it all of them, the compiler would hold them in registers after all, more than there are.
template <typename A, int K, int VEC, bool SHARED>
struct PlaneWeights {
  static constexpr int kAtOnce = K * K;
  A values[K * K][VEC];
  __device__ PlaneWeights(A*) {}
  __device__ A get(int tap, int v) const { return values[tap][v]; }
  __device__ void set(int tap, int v, A value) { values[tap][v] = value; }
};

template <typename A, int K, int VEC>
struct PlaneWeights<A, K, VEC, true> {
  static constexpr int kAtOnce = K;
  A* column;
  __device__ PlaneWeights(A* shared) : column(shared + threadIdx.x * VEC) {}
  __device__ A get(int tap, int v) const { return column[tap * blockDim.x * VEC + v]; }
  __device__ void set(int tap, int v, A value) { column[tap * blockDim.x * VEC + v] = value; }
};

__host__ __device__ constexpr bool shares_weights(int kernel_size, int vector) {
  return kernel_size > (vector > 1 ? kRegisterKernel : kScalarRegisterKernel);
}
__host__ __device__ constexpr int channels_at_once(int kernel_size, int vector) { return shares_weights(kernel_size, vector) ? 2 : 1; }

// One row of the source that K taps of VEC pixels read, for one channel.
template <typename T, int K, int VEC, int STRIDE>
struct Window {
  using A = Accumulator<T>;
  static constexpr int kReach = K / 2;
  static constexpr int kHalo = kReach <= 1 ? kReach : (kReach + VEC - 1) / VEC * VEC;  // elements loaded on each side
  static constexpr int kLength = STRIDE * VEC + 2 * kHalo;
  A values[kLength];

  // `row` points to the row's first pixel and may be any pointer where not `inside`; `x` is where VEC*STRIDE pixels
  // begin, aligned to VEC.
  __device__ void read(bool inside, const T* row, int x, int width) {
#pragma unroll
    for (int part = 0; part < STRIDE; ++part) put<VEC>(kHalo + part * VEC, inside, row, x + part * VEC, width);
    if constexpr (kReach == 1) {
      put<1>(0, inside, row, x - 1, width);
      if constexpr (STRIDE == 1) put<1>(kHalo + VEC, inside, row, x + VEC, width);
    } else {
#pragma unroll
      for (int part = 0; part < kHalo; part += VEC) {
        put<VEC>(part, inside, row, x - kHalo + part, width);
        if (kReach + 1 - STRIDE > part) {
          put<VEC>(kHalo + STRIDE * VEC + part, inside, row, x + STRIDE * VEC + part, width);
        }
      }
    }
  }
  __device__ A operator()(int v, int tap) const { return values[kHalo - kReach + v * STRIDE + tap]; }

 private:
  template <int N>
  __device__ void put(int at, bool inside, const T* row, int x, int width) {
    const Pack<T, N> pack = load_if<N>(inside && x >= 0 && x < width, row + x);
#pragma unroll
    for (int n = 0; n < N; ++n) values[at + n] = widen(pack.values[n]);
  }
};

// The same where K columns lie anywhere.
template <typename T, int K>
struct Window<T, K, 1, 0> {
  using A = Accumulator<T>;
  A values[K];
  __device__ void read(bool inside, const T* row, const int (&columns)[K]) {
#pragma unroll
    for (int j = 0; j < K; ++j) values[j] = widen(load_if<1>(inside && columns[j] >= 0, row + columns[j]).values[0]);
  }
  __device__ A operator()(int, int tap) const { return values[tap]; }
};

template <typename T, int K, int VEC, typename Weights>
__device__ inline void load_weights(const Gather& g, const SpatialTaps<T>& spatial, int y, int x, Weights& weights) {
  using A = Accumulator<T>;
  const int dilation = static_cast<int>(g.dilation), stride = static_cast<int>(g.stride);
  const int height = static_cast<int>(g.source_height), width = static_cast<int>(g.source_width);
#pragma unroll (Weights::kAtOnce)
  for (int tap = 0; tap < K * K; ++tap) {
    if (!g.gradient && g.spatial_vectors) {
      const Pack<T, VEC> pack = load<VEC>(spatial.address(tap, y, x));
#pragma unroll
      for (int v = 0; v < VEC; ++v) weights.set(tap, v, widen(pack.values[v]));
      continue;
    }
    const int row = g.gradient ? source_index(y, (tap / K - K / 2) * dilation, stride, height, true) : y;
#pragma unroll
    for (int v = 0; v < VEC; ++v) {
      const int column = g.gradient ? source_index(x + v, (tap % K - K / 2) * dilation, stride, width, true) : x + v;
      A weight = 0;
      if (row >= 0 && column >= 0) {
        const int of_filter = g.gradient ? K * K - 1 - tap : tap;
        weight = g.gradient && g.normalize ? spatial.normalised(of_filter, row, column)
                                           : spatial.raw(of_filter, row, column);
      }
      weights.set(tap, v, weight);
    }
  }
  if (!g.normalize || g.gradient) return;
  const int taps = Weights::kAtOnce == K * K ? K * K : spatial.taps;  // not known to the compiler: no loop is unrolled
#pragma unroll
  for (int v = 0; v < VEC; ++v) {
    const auto at = moments_of<A>(taps, spatial.gain, [&](int tap) { return weights.get(tap, v); });
#pragma unroll (Weights::kAtOnce)
    for (int tap = 0; tap < K * K; ++tap) weights.set(tap, v, (weights.get(tap, v) - at.mean) * at.scale);
  }
}

template <typename T>
__device__ inline void share_factors(const Gather& g, int64_t image, int64_t first, int count, int padded, int taps,
                                     Factor<Accumulator<T>>* factors) {
  const T* filter =
      static_cast<const T*>(g.channel_filter.data) + image * g.channel_filter.batch + first * g.channel_filter.channel;
  const int k = static_cast<int>(g.kernel_size);
  for (int index = threadIdx.x; index < padded * taps; index += blockDim.x) {
    const int channel = index / taps, tap = g.gradient ? taps - 1 - index % taps : index % taps;
    Accumulator<T> value = 0;
    if (channel < count) {
      value = widen(__ldg(filter + channel * g.channel_filter.channel + tap / k * g.channel_filter.row +
                          tap % k * g.channel_filter.column));
    }
    factors[index] = factor_of(value, g.add);
  }
}

template <typename T, int K, int VEC, int STRIDE>
__global__ void __launch_bounds__(plane_threads(K, VEC), plane_blocks(K, VEC, sizeof(Accumulator<T>))) gather_planes(const Gather g) {
  using A = Accumulator<T>;
  constexpr int kTaps = K * K, kChannels = channels_at_once(K, VEC);
  constexpr bool kShared = shares_weights(K, VEC);
  const int groups = static_cast<int>(g.heads) * g.groups_per_head;
  const int group = blockIdx.x % groups, tile = blockIdx.x / groups % g.tiles;
  const int64_t image = blockIdx.x / groups / g.tiles;
  const int head = group / g.groups_per_head, within = group % g.groups_per_head * g.group;
  const int count = min(g.group, static_cast<int>(g.head_channels) - within);
  const int64_t first = head * g.head_channels + within;

  A* shared_weights = reinterpret_cast<A*>(shared_memory);
  auto* factors = reinterpret_cast<Factor<A>*>(shared_weights + (kShared ? kTaps * VEC * blockDim.x : 0));
  const int padded = (g.group + kChannels - 1) / kChannels * kChannels;
  share_factors<T>(g, image, first, count, padded, kTaps, factors);

  const int vectors = static_cast<int>(g.width) / VEC;  // of a row; VEC divides it
  const int pixels = static_cast<int>(g.height) * vectors, begin = tile * static_cast<int>(blockDim.x);
  SpatialTaps<T> spatial(g, image, head);
  if (g.moments > 0) {
    const int end = min(begin + static_cast<int>(blockDim.x), pixels) - 1;
    const int top = begin / vectors, bottom = end / vectors;
    const bool one_row = top == bottom;
    const int left = one_row ? begin % vectors * VEC : 0;
    const int right = one_row ? end % vectors * VEC + VEC - 1 : static_cast<int>(g.width) - 1;
    spatial.share_moments(g, reinterpret_cast<Moments<A>*>(factors + padded * kTaps), top, bottom, left, right,
                          threadIdx.x, blockDim.x);
  }
  __syncthreads();
  const int pixel = begin + static_cast<int>(threadIdx.x);
  if (pixel >= pixels) return;
  const int y = pixel / vectors, x = pixel % vectors * VEC;

  PlaneWeights<A, K, VEC, kShared> weights(shared_weights);
  load_weights<T, K, VEC>(g, spatial, y, x, weights);

  const int row_stride = static_cast<int>(g.source.row), height = static_cast<int>(g.source_height);
  const int width = static_cast<int>(g.source_width), dilation = static_cast<int>(g.dilation);
  const int stride = static_cast<int>(g.stride);
  const auto row_at = [&](int i) {
    if constexpr (STRIDE == 0) return source_index(y, (i - K / 2) * dilation, stride, height, g.gradient);
    return source_index(y, i - K / 2, STRIDE, height, false);
  };
  constexpr bool kUnrolled = !kShared;
  int rows[kUnrolled ? K : 1], columns[K];  // offsets of rows and columns, -1 outside
  if constexpr (kUnrolled) {
#pragma unroll
    for (int i = 0; i < K; ++i) rows[i] = row_at(i);
  }
  if constexpr (STRIDE == 0) {
#pragma unroll
    for (int j = 0; j < K; ++j) {
      columns[j] = source_index(x, (j - K / 2) * dilation, stride, width, g.gradient);
      if (columns[j] > 0) columns[j] *= static_cast<int>(g.source.column);
    }
  }
  const T* source = static_cast<const T*>(g.source.data) + image * g.source.batch + first * g.source.channel;
  T* output = static_cast<T*>(g.output.data) + image * g.output.batch + first * g.output.channel +
              y * g.output.row + x * g.output.column;

#pragma unroll 1
  for (int channel = 0; channel < count; channel += kChannels) {
    A sums[kChannels][VEC] = {};
    const auto add_row = [&](int i, int row) {
      Window<T, K, VEC, STRIDE> windows[kChannels];
#pragma unroll
      for (int n = 0; n < kChannels; ++n) {
        const bool inside = row >= 0 && channel + n < count;
        const T* start = source + n * g.source.channel + static_cast<int64_t>(row) * row_stride;
        if constexpr (STRIDE == 0) {
          windows[n].read(inside, start, columns);
        } else {
          windows[n].read(inside, start, x * STRIDE, width);
        }
      }
#pragma unroll
      for (int j = 0; j < K; ++j) {
        A weight[VEC];
#pragma unroll
        for (int v = 0; v < VEC; ++v) weight[v] = weights.get(i * K + j, v);
#pragma unroll
        for (int n = 0; n < kChannels; ++n) {
          const Factor<A> filter = factors[(channel + n) * kTaps + i * K + j];
#pragma unroll
          for (int v = 0; v < VEC; ++v) {
            sums[n][v] += (weight[v] * filter.factor + filter.summand) * windows[n](v, j);
          }
        }
      }
    };
    if constexpr (kUnrolled) {
#pragma unroll
      for (int i = 0; i < K; ++i) add_row(i, rows[i]);
    } else {
#pragma unroll 1
      for (int i = 0; i < K; ++i) add_row(i, row_at(i));
    }
#pragma unroll
    for (int n = 0; n < kChannels; ++n) {
      if (channel + n < count) store<VEC>(output + n * g.output.channel, sums[n]);
    }
    source += kChannels * g.source.channel;
    output += kChannels * g.output.channel;
  }
}

}  // namespace ddf::cuda
