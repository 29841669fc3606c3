// Chooses the kernels of the filters' gradients, how they are cut into blocks, and where their partial sums lie.
#pragma once

#include "filter_gradients_general.cuh"
#include "filter_gradients_pixels.cuh"
#include "filter_gradients_planes.cuh"
#include "finish_filter_gradients.cuh"
#include "launch_gather.cuh"

namespace ddf::cuda {

enum class Pass { general, pixels, planes, half_vector_planes, vector_planes };

struct FilterPlan {
  FilterGradients f{};
  Pass pass = Pass::general;
  int64_t channel_bytes = 0;  // of the channel gradient's partial sums, which come first in the workspace
  int64_t bytes = 0;
};

// A tile is a warp's vectors of adjacent pixels.
template <typename T>
void cut_planes(Gather& g, int vector) {
  const int64_t heads = g.heads, taps = g.kernel_size * g.kernel_size;
  g.tiles = static_cast<int>(divide_up(g.height * g.width / vector, kWarp));
  const int64_t largest = std::min<int64_t>(kLargestSum, kSumBytes / (taps * sizeof(Accumulator<T>)));
  g.group = static_cast<int>(choose_group(g.head_channels, kSmallestSum, largest, limits.blocks / 2,
                                          [&](int64_t groups) { return g.batch * g.tiles * heads * groups; }));
  g.groups_per_head = static_cast<int>(divide_up(g.head_channels, g.group));
}

template <typename T>
int64_t pixels_shared_bytes(const FilterGradients& f) {
  const int64_t k = f.at.kernel_size, size = sizeof(Accumulator<T>);
  return (k * k * f.tile_pixels + k * buffered_rows(static_cast<int>(k), size) * kPitch) * size;
}

template <typename T>
int64_t planes_shared_bytes(const FilterGradients& f) {
  const int64_t k = f.at.kernel_size, size = sizeof(Accumulator<T>);
  return (k * k * f.at.group + k * buffered_rows(static_cast<int>(k), size) * kPitch) * size;
}

// A tile is a run of pixels.
template <typename T>
void cut_pixels(FilterGradients& f, int vector) {
  Gather& g = f.at;
  const int64_t vectors = g.head_channels / vector, plane = g.height * g.width;
  g.channel_lanes = 1;
  while (g.channel_lanes < kWarp && g.channel_lanes < vectors) g.channel_lanes *= 2;
  g.groups_per_head = static_cast<int>(divide_up(vectors, g.channel_lanes));
  const int64_t groups = g.heads * g.groups_per_head;
  f.tile_pixels = kLargestSum;
  while (f.tile_pixels > kSmallestSum && (pixels_shared_bytes<T>(f) > kSharedBytes ||
                                          g.batch * divide_up(plane, f.tile_pixels) * groups < limits.blocks / 2)) {
    f.tile_pixels /= 2;
  }
  g.tiles = static_cast<int>(divide_up(plane, f.tile_pixels));
}

inline int64_t general_blocks(const FilterGradients& f) {
  const Gather& g = f.at;
  return g.batch * g.tiles * g.heads * g.groups_per_head * general_parts(g.kernel_size * g.kernel_size);
}

// A tile is a run of pixels, a group all channels of a head: smaller ones ask for more partial sums, and are taken where
// there would be too few blocks.
inline void cut_general(FilterGradients& f) {
  Gather& g = f.at;
  g.groups_per_head = 1;
  for (f.tile_pixels = kLargestTile;; f.tile_pixels /= 2) {
    g.tiles = static_cast<int>(divide_up(g.height * g.width, f.tile_pixels));
    if (f.tile_pixels <= kWarp || general_blocks(f) >= limits.blocks / 2) break;
  }
  g.group = static_cast<int>(choose_group(g.head_channels, kSmallestSum, g.head_channels, limits.blocks / 2,
                                          [&](int64_t groups) { return general_blocks(f) * groups; }));
  g.groups_per_head = static_cast<int>(divide_up(g.head_channels, g.group));
}

template <typename T>
Pass choose_pass(const Gather& g) {
  const int64_t plane = divide_up(g.height * g.width, kSmallestSum);
  const bool compiled = with_kernel_size(g.kernel_size, [](auto) {});
  if (!compiled || !fits_planes(g) || g.batch * g.channels * plane > limits.grid) return Pass::general;
  const int vector = vector_length(sizeof(T), sizeof(Accumulator<T>), static_cast<int>(g.kernel_size));
  const int64_t element = sizeof(T);
  if (g.source.column != 1 || g.output.column != 1) {
    if (has_vector_pixels(g.source, vector, element) && has_vector_pixels(g.output, vector, element) &&
        g.head_channels % vector == 0) {
      return Pass::pixels;
    }
    if (g.output.channel == 1 && g.channels > 1) return Pass::general;
  }
  const auto serves = [&](int length) {
    return has_vector_rows(g.source, g.source_width, length, element) &&
           has_vector_rows(g.output, g.width, length, element);
  };
  if (g.stride > 1 || (g.kernel_size > 1 && g.dilation > 1)) return Pass::planes;
  if (serves(vector)) return Pass::vector_planes;
  const int half = half_vector_length(sizeof(T), static_cast<int>(g.kernel_size));
  return half > 1 && serves(half) ? Pass::half_vector_planes : Pass::planes;
}

template <typename T>
FilterPlan plan_filter_gradients(const Call& call) {
  using A = Accumulator<T>;
  FilterPlan plan;
  FilterGradients& f = plan.f;
  Gather& g = f.at;
  g = make_gather(call, false);
  f.grad_channel = call.grad_channel;
  f.grad_spatial = call.grad_spatial;
  f.channel_batch = call.channel_batch;
  f.spatial_batch = call.spatial_batch;
  g.tiles = g.groups_per_head = 1;
  const int64_t taps = g.kernel_size * g.kernel_size, plane = g.height * g.width;
  const int k = static_cast<int>(g.kernel_size), vector = vector_length(sizeof(T), sizeof(A), k);
  if (g.batch * g.channels * plane > 0) {
    plan.pass = choose_pass<T>(g);
    if (plan.pass == Pass::general) cut_general(f);
    if (plan.pass == Pass::pixels) cut_pixels<T>(f, vector);
    if (plan.pass == Pass::planes) cut_planes<T>(g, 1);
    if (plan.pass == Pass::half_vector_planes) cut_planes<T>(g, half_vector_length(sizeof(T), k));
    if (plan.pass == Pass::vector_planes) cut_planes<T>(g, vector);
  } else {  // nothing to sum: the gradients are zeros
    g.tiles = g.groups_per_head = 0;
    g.normalize = false;
  }
  const auto aligned = [](int64_t bytes) { return divide_up(bytes, 256) * 256; };
  const int64_t heads = call.head;
  plan.channel_bytes = aligned(g.batch * g.tiles * g.channels * taps * sizeof(A));
  plan.bytes = plan.channel_bytes + aligned(g.groups_per_head * g.batch * heads * taps * plane * sizeof(A));
  return plan;
}

template <typename T, int K>
const char* launch_compiled_sums(const FilterPlan& plan, void* stream) {
  constexpr int kVector = vector_length(sizeof(T), sizeof(Accumulator<T>), K), kHalf = half_vector_length(sizeof(T), K);
  const FilterGradients& f = plan.f;
  const Gather& g = f.at;
  const int64_t blocks = g.batch * g.tiles * g.heads * g.groups_per_head;
  const dim3 threads(kWarp, K);
  switch (plan.pass) {
    case Pass::pixels:
      return launch(filter_gradients_pixels<T, K, kVector>, blocks, threads, pixels_shared_bytes<T>(f), stream, f);
    case Pass::vector_planes:
      return launch(filter_gradients_planes<T, K, kVector, 1>, blocks, threads, planes_shared_bytes<T>(f), stream, f);
    case Pass::half_vector_planes:
      if constexpr (kHalf > 1) {
        return launch(filter_gradients_planes<T, K, kHalf, 1>, blocks, threads, planes_shared_bytes<T>(f), stream, f);
      }
      [[fallthrough]];
    default:
      return launch(filter_gradients_planes<T, K, 1, 0>, blocks, threads, planes_shared_bytes<T>(f), stream, f);
  }
}

template <typename T>
const char* launch_sums(const FilterPlan& plan, void* stream) {
  const FilterGradients& f = plan.f;
  const Gather& g = f.at;
  const int64_t taps = g.kernel_size * g.kernel_size, plane = g.height * g.width;
  if (g.batch * g.channels * plane == 0) return nullptr;
  if (plan.pass != Pass::general) {
    const char* status = nullptr;
    with_kernel_size(g.kernel_size, [&](auto k) { status = launch_compiled_sums<T, k()>(plan, stream); });
    return status;
  }
  const int64_t warps = general_warps(taps), most = std::min(64 * limits.blocks, limits.grid);
  return launch(filter_gradients_general<T>, std::min(general_blocks(f), most),
                dim3(kWarp, static_cast<unsigned>(warps)), warps * kGeneralRows * kPitch * sizeof(Accumulator<T>), stream,
                f);
}

template <typename T>
int64_t workspace_bytes(const Call& call) {
  return plan_filter_gradients<T>(call).bytes;
}

template <typename T>
const char* filter_gradients(const Call& call, void* workspace, void* stream) {
  FilterPlan plan = plan_filter_gradients<T>(call);
  FilterGradients& f = plan.f;
  const Gather& g = f.at;
  f.channel_sums = workspace;
  f.spatial_sums = static_cast<char*>(workspace) + plan.channel_bytes;
  if (const char* status = launch_sums<T>(plan, stream)) return status;
  const int64_t most = std::min(64 * limits.blocks, limits.grid);
  const int64_t channel_elements = f.channel_batch * g.channels * g.kernel_size * g.kernel_size;
  if (channel_elements > 0) {
    const char* status = launch(finish_channel_gradient<T>, std::min(divide_up(channel_elements, kWarp), most),
                                dim3(kWarp, kParts), kWarp * kParts * sizeof(double), stream, f);
    if (status != nullptr) return status;
  }
  const int64_t pixels = f.spatial_batch * call.head * g.height * g.width;
  if (pixels == 0) return nullptr;
  return launch(finish_spatial_gradient<T>, std::min(divide_up(pixels, kGeneralThreads), most), dim3(kGeneralThreads),
                0, stream, f);
}

}  // namespace ddf::cuda
