// Adds the partial sums of the filters' gradients in a fixed order and writes the gradients.
//
// Normalised spatial filters get the derivative of the normalisation here rather than in the pass over the maps: there
// the taps of a pixel are spread over warps and its sum over groups. It costs k*k elements per pixel and head.
#pragma once

#include <type_traits>

#include "filter_gradients.cuh"

namespace ddf::cuda {

// Adds in float64, which many addends ask for and few elements allow. A block: 32 elements by 8 parts of the addends.
constexpr int kParts = 8;

template <typename T>
__global__ void __launch_bounds__(kWarp* kParts) finish_channel_gradient(const FilterGradients f) {
  using A = Accumulator<T>;
  const Gather& g = f.at;
  const int64_t taps = g.kernel_size * g.kernel_size, filter = g.channels * taps, total = f.channel_batch * filter;
  const int64_t addends = g.tiles * (f.channel_batch == 1 ? g.batch : int64_t{1});
  double* parts = reinterpret_cast<double*>(shared_memory);
  for (int64_t begin = blockIdx.x * int64_t{kWarp}; begin < total; begin += gridDim.x * int64_t{kWarp}) {
    const int64_t index = begin + threadIdx.x;
    double sum = 0;
    if (index < total) {
      const A* sums = static_cast<const A*>(f.channel_sums) + index / filter * addends * filter + index % filter;
      for (int64_t n = threadIdx.y; n < addends; n += kParts) sum += sums[n * filter];
    }
    parts[threadIdx.y * kWarp + threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && index < total) {
      for (int part = 1; part < kParts; ++part) sum += parts[part * kWarp + threadIdx.x];
      static_cast<T*>(f.grad_channel.data)[index] = narrow<T>(static_cast<A>(sum));
    }
    __syncthreads();
  }
}

// The Jacobian of the normalisation (symmetric), as `normalise_derivative` of ddf/reference.py defines it.
template <typename T>
struct NormaliseDerivative {
  using A = Accumulator<T>;
  A first, offset, direction_first, direction_offset, projection, scale;

  template <typename Tap, typename Along>
  __device__ NormaliseDerivative(int taps, A gain, const Tap& tap, const Along& along)
      : first(tap(0)), direction_first(along(0)) {
    A sum = 0, direction_sum = 0;
    for (int t = 0; t < taps; ++t) sum += tap(t) - first, direction_sum += along(t) - direction_first;
    offset = sum / static_cast<A>(taps), direction_offset = direction_sum / static_cast<A>(taps);
    A squares = 0, products = 0;
    for (int t = 0; t < taps; ++t) {
      const A centred = (tap(t) - first) - offset;
      squares += centred * centred;
      products += centred * ((along(t) - direction_first) - direction_offset);
    }
    const A std = sqrt(squares / static_cast<A>(taps - 1)), padded = std + static_cast<A>(1e-10);
    projection = products / ((std > 0 ? std : A(1)) * padded * static_cast<A>(taps - 1));
    scale = gain / padded;
    if (std::is_same_v<T, __half> && !(std > 0)) scale = 0;  // float16 cannot hold 1 / 1e-10
  }
  __device__ A operator()(A tap, A along) const {
    const A centred = (tap - first) - offset, direction = (along - direction_first) - direction_offset;
    return (direction - centred * projection) * scale;
  }
};

template <typename T>
__global__ void __launch_bounds__(kGeneralThreads, kGeneralBlocks) finish_spatial_gradient(const FilterGradients f) {
  using A = Accumulator<T>;
  const Gather& g = f.at;
  const int taps = static_cast<int>(g.kernel_size * g.kernel_size);
  const int64_t plane = g.height * g.width, heads = g.heads, part = g.batch * heads * taps * plane;
  const int64_t images = f.spatial_batch == 1 ? g.batch : 1;  // that share a filter
  const int64_t total = f.spatial_batch * heads * plane;
  for (int64_t index = blockIdx.x * int64_t{kGeneralThreads} + threadIdx.x; index < total;
       index += gridDim.x * int64_t{kGeneralThreads}) {
    const int64_t pixel = index % plane, head = index / plane % heads, image = index / plane / heads;
    const int64_t y = pixel / g.width, x = pixel % g.width;
    A* sums = static_cast<A*>(f.spatial_sums) + (image * heads + head) * taps * plane + pixel;
    T* gradient = static_cast<T*>(f.grad_spatial.data) + image * f.grad_spatial.batch +
                  head * taps * f.grad_spatial.channel + y * f.grad_spatial.row + x * f.grad_spatial.column;
    for (int tap = 0; tap < taps; ++tap) {
      A sum = 0;
      for (int64_t n = 0; n < images; ++n) {
        for (int group = 0; group < g.groups_per_head; ++group) {
          sum += sums[group * part + n * heads * taps * plane + tap * plane];
        }
      }
      if (!g.normalize) gradient[tap * f.grad_spatial.channel] = narrow<T>(sum);
      if (g.normalize) sums[tap * plane] = sum;  // nobody else reads it
    }
    if (!g.normalize) continue;
    const SpatialTaps<T> spatial(g, image, head);
    const auto tap_at = [&](int tap) { return spatial.raw(tap, y, x); };
    const auto along_at = [&](int tap) { return sums[tap * plane]; };
    const NormaliseDerivative<T> derivative(taps, spatial.gain, tap_at, along_at);
    for (int tap = 0; tap < taps; ++tap) {
      gradient[tap * f.grad_spatial.channel] = narrow<T>(derivative(tap_at(tap), along_at(tap)));
    }
  }
}

}  // namespace ddf::cuda
