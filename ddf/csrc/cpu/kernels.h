// The operation and its gradients on the CPU, on contiguous float or double arrays. Free of torch.
//
// Shapes: input (B, C, H, W), channel_filter (B, C, k*k), spatial_filter (B, head, k*k, Ho, Wo), output (B, C, Ho, Wo).
// Each function cuts its result into tasks; a task alone writes its part, in a fixed order, so the results do not
// depend on the number of threads. `parallel(tasks, cost, task)` runs task(0) ... task(tasks - 1), each of about `cost`
// multiplications.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "geometry.h"

namespace ddf {

template <Combine combine, typename T>
inline T weight(T channel, T spatial) {
  return combine == Combine::mul ? channel * spatial : channel + spatial;
}

// Calls body(tap, output_offset, map_offset) for every tap and every output row of `rows` that it serves: the offsets
// of the tap's first pixel in that row, within an output plane and within an input plane.
template <typename Body>
inline void for_each_tap_row(const Geometry& g, Range rows, const Body& body) {
  for (const Tap& tap : g.touching_taps) {
    const int64_t end = std::min(rows.end, tap.rows.end);
    for (int64_t y = std::max(rows.begin, tap.rows.begin); y < end; ++y) {
      const int64_t map_row = y * g.stride + tap.row_offset;
      const int64_t map_column = tap.columns.begin * g.stride + tap.column_offset;
      body(tap, y * g.out_width + tap.columns.begin, map_row * g.width + map_column);
    }
  }
}

// The same over all rows of a plane, in blocks that stay in the first-level cache while the taps pass over them.
template <typename Body>
inline void for_each_block_tap_row(const Geometry& g, const Body& body) {
  const int64_t rows = std::max<int64_t>(1, 1024 / std::max<int64_t>(1, g.out_width));
  for (int64_t begin = 0; begin < g.out_height; begin += rows) {
    for_each_tap_row(g, {begin, std::min(begin + rows, g.out_height)}, body);
  }
}

// Calls body(x, x * stride) for x in [0, count); separately for stride 1, so that this case reads contiguously.
template <typename Body>
inline void for_each_pixel(int64_t count, int64_t stride, const Body& body) {
  if (stride == 1) {
#pragma omp simd
    for (int64_t x = 0; x < count; ++x) body(x, x);
  } else {
    for (int64_t x = 0; x < count; ++x) body(x, x * stride);
  }
}

template <Combine combine, typename T>
void forward_plane(const Geometry& g, const T* input, const T* channel_filter, const T* spatial_filter, T* output) {
  std::fill_n(output, g.out_size(), T(0));
  for_each_block_tap_row(g, [&](const Tap& tap, int64_t output_offset, int64_t map_offset) {
    const T channel = channel_filter[tap.index];
    const T* spatial = spatial_filter + tap.index * g.out_size() + output_offset;
    const T* source = input + map_offset;
    T* target = output + output_offset;
    for_each_pixel(tap.columns.size(), g.stride, [=](int64_t x, int64_t map_x) {
      target[x] += weight<combine>(channel, spatial[x]) * source[map_x];
    });
  });
}

template <Combine combine, typename T>
void input_gradient_plane(const Geometry& g, const T* grad_output, const T* channel_filter, const T* spatial_filter,
                          T* grad_input) {
  std::fill_n(grad_input, g.map_size(), T(0));
  for_each_block_tap_row(g, [&](const Tap& tap, int64_t output_offset, int64_t map_offset) {
    const T channel = channel_filter[tap.index];
    const T* spatial = spatial_filter + tap.index * g.out_size() + output_offset;
    const T* source = grad_output + output_offset;
    T* target = grad_input + map_offset;
    for_each_pixel(tap.columns.size(), g.stride, [=](int64_t x, int64_t map_x) {
      target[map_x] += weight<combine>(channel, spatial[x]) * source[x];
    });
  });
}

// The gradient of one channel's filter: d(weight)/d(channel) is `spatial` for mul, 1 for add.
template <Combine combine, typename T>
void channel_gradient_plane(const Geometry& g, const T* grad_output, const T* input, const T* spatial_filter,
                            T* grad_channel) {
  std::fill_n(grad_channel, g.taps(), T(0));
  for_each_block_tap_row(g, [&](const Tap& tap, int64_t output_offset, int64_t map_offset) {
    const T* grad = grad_output + output_offset;
    const T* source = input + map_offset;
    const T* spatial = spatial_filter + tap.index * g.out_size() + output_offset;
    const int64_t count = tap.columns.size();
    const auto sum = [=](auto stride) {
      T total = 0;
#pragma omp simd reduction(+ : total)
      for (int64_t x = 0; x < count; ++x) {
        const T product = grad[x] * source[x * stride];
        total += combine == Combine::mul ? product * spatial[x] : product;
      }
      return total;
    };
    grad_channel[tap.index] += g.stride == 1 ? sum(std::integral_constant<int64_t, 1>{}) : sum(g.stride);
  });
}

// Row y of the gradient of one head's spatial filter, summed over the head's channels; the pointers are the head's
// first channel and first tap. d(weight)/d(spatial) is `channel` for mul, 1 for add.
template <Combine combine, typename T>
void spatial_gradient_row(const Geometry& g, int64_t y, const T* grad_output, const T* input, const T* channel_filter,
                          T* grad_spatial) {
  for (int64_t tap = 0; tap < g.taps(); ++tap) {
    std::fill_n(grad_spatial + tap * g.out_size() + y * g.out_width, g.out_width, T(0));
  }
  for (int64_t c = 0; c < g.channels_per_head(); ++c) {
    for_each_tap_row(g, {y, y + 1}, [&](const Tap& tap, int64_t output_offset, int64_t map_offset) {
      const T channel = combine == Combine::mul ? channel_filter[c * g.taps() + tap.index] : T(1);
      const T* grad = grad_output + c * g.out_size() + output_offset;
      const T* source = input + c * g.map_size() + map_offset;
      T* target = grad_spatial + tap.index * g.out_size() + output_offset;
      for_each_pixel(tap.columns.size(), g.stride,
                     [=](int64_t x, int64_t map_x) { target[x] += channel * grad[x] * source[map_x]; });
    });
  }
}

// Offset of the spatial filter, (k*k, Ho, Wo), that serves a plane of the (B, C) planes.
inline int64_t spatial_offset(const Geometry& g, int64_t plane) {
  return plane / g.channels_per_head() * g.taps() * g.out_size();
}

template <Combine combine, typename T, typename Parallel>
void forward(const Geometry& g, const T* input, const T* channel_filter, const T* spatial_filter, T* output,
             const Parallel& parallel) {
  parallel(g.batch * g.channels, g.taps() * g.out_size(), [&](int64_t plane) {
    forward_plane<combine>(g, input + plane * g.map_size(), channel_filter + plane * g.taps(),
                           spatial_filter + spatial_offset(g, plane), output + plane * g.out_size());
  });
}

template <Combine combine, typename T, typename Parallel>
void input_gradient(const Geometry& g, const T* grad_output, const T* channel_filter, const T* spatial_filter,
                    T* grad_input, const Parallel& parallel) {
  parallel(g.batch * g.channels, g.taps() * g.out_size(), [&](int64_t plane) {
    input_gradient_plane<combine>(g, grad_output + plane * g.out_size(), channel_filter + plane * g.taps(),
                                  spatial_filter + spatial_offset(g, plane), grad_input + plane * g.map_size());
  });
}

template <Combine combine, typename T, typename Parallel>
void filter_gradients(const Geometry& g, const T* grad_output, const T* input, const T* channel_filter,
                      const T* spatial_filter, T* grad_channel, T* grad_spatial, const Parallel& parallel) {
  parallel(g.batch * g.channels, g.taps() * g.out_size(), [&](int64_t plane) {
    channel_gradient_plane<combine>(g, grad_output + plane * g.out_size(), input + plane * g.map_size(),
                                    spatial_filter + spatial_offset(g, plane), grad_channel + plane * g.taps());
  });
  const int64_t cost = g.channels_per_head() * g.taps() * g.out_width;
  parallel(g.batch * g.head * g.out_height, cost, [&](int64_t task) {
    const int64_t head = task / g.out_height;  // in B * head
    const int64_t first_plane = head * g.channels_per_head();
    spatial_gradient_row<combine>(g, task % g.out_height, grad_output + first_plane * g.out_size(),
                                  input + first_plane * g.map_size(), channel_filter + first_plane * g.taps(),
                                  grad_spatial + head * g.taps() * g.out_size());
  });
}

}  // namespace ddf
