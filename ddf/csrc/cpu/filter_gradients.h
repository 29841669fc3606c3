// Gradients of both filters: what the kernels of both layouts share.
//
// With u = grad_output * input at a tap, the spatial filter's gradient is the sum of channel_filter * u over channels
// and the channel filter's the sum of spatial_filter * u over pixels ('add': of u): both are taken in one pass. A task
// is a tile of output rows and columns of one head and of all images that share the spatial filter; it alone writes its
// part of grad_spatial, and a partial sum of grad_channel. The tiles depend on the shapes alone, and the partial sums
// are added in one order, so the results do not depend on the number of threads.
#pragma once

#include "scratch.h"
#include "spatial_rows.h"
#include "vector.h"

namespace ddf {
namespace {

struct GradientTiling {
  int64_t rows, columns, row_tiles, column_tiles;

  int64_t tiles() const { return row_tiles * column_tiles; }
  Range row_range(const Call& call, int64_t tile) const {
    const int64_t begin = tile / column_tiles * rows;
    return {begin, smaller(begin + rows, call.out_height)};
  }
  Range column_range(const Call& call, int64_t tile) const {
    const int64_t begin = tile % column_tiles * columns;
    return {begin, smaller(begin + columns, call.out_width)};
  }
};

template <typename A>
GradientTiling make_gradient_tiling(const Call& call) {
  constexpr int64_t kRowElements = 1 << 13, kTileElements = 12 << 10, kWantedTasks = 16, kFewestRows = 8;
  const int64_t taps = call.kernel_size * call.kernel_size, lanes = kLanes<A>;
  GradientTiling tiling;
  tiling.columns = smaller(call.out_width, larger<int64_t>(kRowElements / taps / lanes, 4) * lanes);
  tiling.column_tiles = ceil_divide(call.out_width, tiling.columns);
  const int64_t fitting = kTileElements / (taps * round_up(tiling.columns, lanes));
  const int64_t others = call.spatial_batch * call.head * tiling.column_tiles;
  const int64_t wanted = larger(ceil_divide(call.out_height * others, kWantedTasks), kFewestRows);
  tiling.rows = smaller(larger<int64_t>(smaller(fitting, wanted), 1), call.out_height);
  tiling.row_tiles = ceil_divide(call.out_height, tiling.rows);
  tiling.rows = ceil_divide(call.out_height, tiling.row_tiles);
  return tiling;
}

// Brings a tile of the spatial filter's gradient, rows (taps, pitch), to its place; through FilterNorm where it is part
// of the call, which takes `scratch` of the same size for the logits.
template <typename T, typename A>
void store_spatial_gradient(const Call& call, const AxisSet& rows, const AxisSet& columns, Range row_range,
                            Range column_range, int64_t image, int64_t head, A* scratch, A* gradient) {
  const int64_t taps = call.kernel_size * call.kernel_size, pitch = round_up(column_range.size(), kLanes<A>);
  if (call.normalize) {
    Call raw = call;
    raw.normalize = false;
    SpatialTile<T>(raw, rows, columns, row_range, column_range).load(image, head, scratch);
    for (int64_t row = 0; row < row_range.size(); ++row) {
      normalize_row_gradient(scratch + row * taps * pitch, gradient + row * taps * pitch, taps, pitch,
                             static_cast<A>(call.norm_gain), __is_same(T, Half));
    }
  }
  const Array& strides = call.grad_spatial;
  T* to = at<T>(strides, image, head * taps) + column_range.begin * strides.column;
  for (int64_t row = row_range.begin; row < row_range.end; ++row) {
    for (int64_t t = 0; t < taps; ++t, gradient += pitch) {
      copy_strided(to + t * strides.channel + row * strides.row, strides.column, gradient, 1, column_range.size());
    }
  }
}

// grad_channel, contiguous, from partial sums (batch, tiles, channels, taps) in the computed type.
template <typename T, typename A>
void sum_channel_gradients(const Call& call, int64_t tiles, const A* partial_sums) {
  const int64_t plane = call.channels * call.kernel_size * call.kernel_size;
  const int64_t parts = call.batch / larger<int64_t>(call.channel_batch, 1) * tiles;
  parallel(call, call.channel_batch * call.channels, [&](int64_t begin, int64_t end) {
    const int64_t taps = call.kernel_size * call.kernel_size;
    for (int64_t index = begin * taps; index < end * taps; ++index) {
      const A* first = partial_sums + index / plane * parts * plane + index % plane;
      double sum = 0;
      for (int64_t part = 0; part < parts; ++part) sum += first[part * plane];
      const A rounded = static_cast<A>(sum);
      Conversion<T, 1>::store(static_cast<T*>(call.grad_channel.data) + index, rounded);
    }
  });
}

// Runs body(partial_sums, begin, end) over all tasks, (spatial batch, head, tiles), and sums up what they leave in
// partial_sums (batch, tiles, channels, taps).
template <typename T, typename Body>
void run_filter_gradients(const Call& call, const GradientTiling& tiling, const Body& body) {
  using A = typename Computed<T>::type;
  Buffer buffer;
  A* partial_sums =
      buffer.at_least<A>(call.batch * tiling.tiles() * call.channels * call.kernel_size * call.kernel_size);
  parallel(call, call.spatial_batch * call.head * tiling.tiles(),
           [&](int64_t begin, int64_t end) { body(partial_sums, begin, end); });
  sum_channel_gradients<T>(call, tiling.tiles(), partial_sums);
}

}  // namespace
}  // namespace ddf
