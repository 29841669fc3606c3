// Chooses the kernel of a gathering and how it is cut into blocks.
#pragma once

#include "gather_general.cuh"
#include "gather_pixels.cuh"
#include "gather_planes.cuh"
#include "launching.cuh"

namespace ddf::cuda {

inline Gather make_gather(const Call& call, bool gradient) {
  Gather g{};
  g.source = gradient ? call.output : call.input;
  g.output = gradient ? call.grad_input : call.output;
  g.channel_filter = call.channel_filter;
  g.spatial_filter = call.spatial_filter;
  g.batch = call.batch;
  g.source_height = gradient ? call.out_height : call.height;
  g.source_width = gradient ? call.out_width : call.width;
  g.height = gradient ? call.height : call.out_height;
  g.width = gradient ? call.width : call.out_width;
  g.kernel_size = call.kernel_size;
  g.dilation = within_map(call, call.dilation);
  g.stride = within_map(call, call.stride);
  g.channels = call.channels;
  g.heads = call.head;
  g.head_channels = call.channels / call.head;
  g.gradient = gradient;
  g.add = call.combine == Combine::add;
  g.normalize = call.normalize;
  g.gain = call.norm_gain;
  return g;
}

// Pixels of the source that `rows` by `columns` adjacent pixels of the gradient touch, at most.
inline int64_t touched_pixels(const Gather& g, int64_t rows, int64_t columns) {
  const int64_t reach = g.kernel_size / 2 * g.dilation;
  const auto touched = [&](int64_t count, int64_t size) {
    return std::min(size, (count - 1 + 2 * reach) / g.stride + 1);
  };
  return touched(rows, g.source_height) * touched(columns, g.source_width);
}

// How many moments the block should share: none where they do not fit in `bytes`, or where the k*k of every pixel of the
// block, computed where they are needed, are fewer.
template <typename T>
int shared_moments(const Gather& g, int64_t touched, int64_t pixels, int64_t bytes) {
  if (!g.gradient || !g.normalize) return 0;
  const int64_t size = sizeof(Moments<Accumulator<T>>);
  const bool fits = touched * size <= bytes && touched <= g.kernel_size * g.kernel_size * pixels;
  return fits ? static_cast<int>(touched) : 0;
}

inline bool fits_planes(const Gather& g) {
  return has_small_planes(g.source, g.source_height, g.source_width) && has_small_planes(g.output, g.height, g.width);
}

template <typename T, int K, int VEC, int STRIDE>
const char* launch_planes(Gather g, void* stream) {
  using A = Accumulator<T>;
  const int64_t vectors = g.width / VEC, heads = g.heads;
  constexpr int kMost = plane_threads(K, VEC);
  const int threads = static_cast<int>(std::min<int64_t>(kMost, divide_up(g.height * vectors, kWarp) * kWarp));
  g.tiles = static_cast<int>(divide_up(g.height * vectors, threads));
  const auto blocks_of = [&](int64_t groups) { return g.batch * g.tiles * heads * groups; };
  const int64_t largest = std::min(kLargestGroup, kFilterBytes / static_cast<int>(K * K * sizeof(Factor<A>)));
  g.group = static_cast<int>(choose_group(g.head_channels, 1, largest, limits.blocks, blocks_of));
  g.groups_per_head = static_cast<int>(divide_up(g.head_channels, g.group));
  g.spatial_vectors = has_vector_rows(g.spatial_filter, g.width, VEC, sizeof(T));
  int64_t bytes = shares_weights(K, VEC) ? int64_t{K} * K * VEC * threads * sizeof(A) : 0;
  constexpr int kChannels = channels_at_once(K, VEC);
  bytes += divide_up(g.group, kChannels) * kChannels * K * K * sizeof(Factor<A>);
  const int64_t rows = std::min(g.height, (threads + vectors - 2) / vectors + 1);
  g.moments = shared_moments<T>(g, touched_pixels(g, rows, g.width), int64_t{threads} * VEC, kSharedBytes - bytes);
  bytes += g.moments * sizeof(Moments<A>);
  return launch(gather_planes<T, K, VEC, STRIDE>, g.batch * g.tiles * heads * g.groups_per_head,
                dim3(static_cast<unsigned>(threads)), bytes, stream, g);
}

template <typename T, int K, bool WINDOW>
const char* launch_pixels(Gather g, void* stream) {
  using A = Accumulator<T>;
  constexpr int VEC = vector_length(sizeof(T), sizeof(A), K);
  const int64_t heads = g.heads, vectors = g.head_channels / VEC;
  g.tile_rows = static_cast<int>(std::min<int64_t>(kTileRows, g.height));
  g.channel_lanes = 1;
  while (g.channel_lanes < kWarp && g.channel_lanes < vectors) g.channel_lanes *= 2;
  g.tile_columns = static_cast<int>(divide_up(g.width, kTileColumns));
  const auto blocks = [&] {
    g.tiles = static_cast<int>(divide_up(g.height, g.tile_rows)) * g.tile_columns;
    g.groups_per_head = static_cast<int>(divide_up(vectors, g.channel_lanes));
    return g.batch * g.tiles * heads * g.groups_per_head;
  };
  const auto bytes = [&] {
    return int64_t{K} * K *
           (g.tile_rows * kTileColumns * sizeof(Factor<A>) + channel_taps_pitch(g.channel_lanes, VEC) * sizeof(A));
  };
  while (g.tile_rows > 1 && bytes() > kSharedBytes) g.tile_rows = (g.tile_rows + 1) / 2;
  while (blocks() < limits.blocks && (g.tile_rows > 2 || g.channel_lanes > 8)) {
    if (g.channel_lanes > 8) {
      g.channel_lanes /= 2;
    } else {
      g.tile_rows = (g.tile_rows + 1) / 2;
    }
  }
  const int64_t touched = touched_pixels(g, g.tile_rows, kTileColumns);
  g.moments = shared_moments<T>(g, touched, g.tile_rows * kTileColumns, kSharedBytes - bytes());
  return launch(gather_pixels<T, K, VEC, WINDOW>, blocks(), dim3(kPixelThreads),
                bytes() + g.moments * sizeof(Moments<A>), stream, g);
}

template <typename T>
const char* launch_general(const Gather& g, void* stream) {
  const int64_t total = g.batch * g.channels * g.height * g.width;
  const int64_t blocks = std::min({divide_up(total, kGeneralThreads), 64 * limits.blocks, limits.grid});
  return launch(gather_general<T>, blocks, dim3(kGeneralThreads), 0, stream, g);
}

// The fastest kernel for k that the layout allows.
template <typename T, int K>
const char* launch_compiled(const Gather& g, void* stream) {
  using A = Accumulator<T>;
  constexpr int kVector = vector_length(sizeof(T), sizeof(A), K), kHalf = half_vector_length(sizeof(T), K);
  constexpr int64_t kElement = sizeof(T);
  const bool has_planes = g.source.column == 1 && g.output.column == 1;
  if (!has_planes && has_vector_pixels(g.source, kVector, kElement) && has_vector_pixels(g.output, kVector, kElement) &&
      g.head_channels % kVector == 0) {
    const bool window = g.stride == 1 && g.dilation == 1;
    return window ? launch_pixels<T, K, true>(g, stream) : launch_pixels<T, K, false>(g, stream);
  }
  if (!has_planes && g.output.channel == 1 && g.channels > 1) return launch_general<T>(g, stream);
  const auto serves = [&](int vector) {
    return has_vector_rows(g.source, g.source_width, vector, kElement) &&
           has_vector_rows(g.output, g.width, vector, kElement) && (K == 1 || g.dilation == 1);
  };
  if (g.stride == 1 && serves(kVector)) return launch_planes<T, K, kVector, 1>(g, stream);
  if constexpr (K == 3) {
    if (g.stride == 2 && !g.gradient && g.source_width == 2 * g.width && serves(kVector)) {
      return launch_planes<T, K, kVector, 2>(g, stream);
    }
  }
  if constexpr (kHalf > 1) {
    if (g.stride == 1 && serves(kHalf)) return launch_planes<T, K, kHalf, 1>(g, stream);
  }
  return launch_planes<T, K, 1, 0>(g, stream);
}

// Forward, or the gradient of the input.
template <typename T>
const char* gather(const Call& call, bool gradient, void* stream) {
  const Gather g = make_gather(call, gradient);
  if (g.batch * g.channels * g.height * g.width == 0) return nullptr;
  const char* status = nullptr;
  const bool small = fits_planes(g) && g.batch * g.channels <= limits.grid / 4 &&
                     g.batch * g.channels * divide_up(g.height * g.width, kWarp) <= limits.grid;
  if (small && with_kernel_size(g.kernel_size, [&](auto k) { status = launch_compiled<T, k()>(g, stream); })) {
    return status;
  }
  return launch_general<T>(g, stream);
}

}  // namespace ddf::cuda
