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
#include "storage.h"
#include "transpose.h"

namespace ddf {
namespace {

// What one element of one channel adds to the gradients of both filters at a tap, from u = grad_output * input there:
// `over_channels` becomes that of the spatial filter, `over_pixels` that of the channel filter.
template <Combine combine, typename V>
DDF_INLINE void add_tap_gradients(V u, [[maybe_unused]] V channel, [[maybe_unused]] V spatial, V& over_channels,
                                  V& over_pixels) {
  if constexpr (combine == Combine::mul) {
    over_channels += channel * u;
    over_pixels += spatial * u;
  } else {
    over_channels += u;
    over_pixels += u;
  }
}

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
  const int64_t taps = taps_of(call), lanes = kLanes<A>;
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

// The work of one thread: a task at a time, of which the kernel of a layout adds the images.
template <typename T>
class GradientWorker {
 protected:
  using A = typename Computed<T>::type;

  // `partial_sums` is (batch, tiles, channels, taps).
  GradientWorker(const Call& call, const AxisSet& rows, const AxisSet& columns, const GradientTiling& tiling,
                 A* partial_sums)
      : call_(call),
        rows_(rows[0]),
        columns_(columns[0]),
        row_set_(rows),
        column_set_(columns),
        tiling_(tiling),
        partial_sums_(partial_sums),
        row_range_{0, tiling.rows},
        column_range_{0, tiling.columns},
        spatial_(call, rows, columns, row_range_, column_range_) {}

  // Takes this thread's scratch: the largest tile's spatial filter and its gradient, then `others` elements.
  A* take_scratch(int64_t others) {
    const int64_t tile = spatial_.size();
    weights_ = thread_scratch<A>(2 * tile + others);
    weight_sums_ = weights_ + tile;
    return weight_sums_ + tile;
  }

  // Calls add_image(image, head, partial_sums) for the images of a task, with the tile's part of partial_sums; it adds
  // to weight_sums_, and leaves the sums of the head's channels, all taps.
  template <typename AddImage>
  void run_task(int64_t task, const AddImage& add_image) {
    const int64_t tile = task % tiling_.tiles(), map = task / tiling_.tiles();
    const int64_t spatial_image = map / call_.head, head = map % call_.head;
    row_range_ = tiling_.row_range(call_, tile);
    column_range_ = tiling_.column_range(call_, tile);
    spatial_ = SpatialTile<T>(call_, row_set_, column_set_, row_range_, column_range_);
    if (loads_spatial_) spatial_.load(spatial_image, head, call_.normalize, weights_);
    __builtin_memset(weight_sums_, 0, spatial_.size() * sizeof(A));
    const bool shared = call_.spatial_batch < call_.batch;
    const Range images = shared ? Range{0, call_.batch} : Range{spatial_image, spatial_image + 1};
    for (int64_t image = images.begin; image < images.end; ++image) {
      add_image(image, head, partial_sums_ + (image * tiling_.tiles() + tile) * call_.channels * taps_of(call_));
    }
    store_weight_sums(spatial_image, head);
  }

  // Where a tap of both axes stands among all taps.
  int64_t tap(int64_t n, int64_t m) const { return (rows_.first_tap + n) * call_.kernel_size + columns_.first_tap + m; }

  const Call& call_;
  const Axis &rows_, &columns_;
  const AxisSet &row_set_, &column_set_;
  const GradientTiling& tiling_;
  A* partial_sums_;
  bool loads_spatial_ = true;                      // to weights_
  A *weights_ = nullptr, *weight_sums_ = nullptr;  // (rows, taps, pitch)
  Range row_range_, column_range_;
  SpatialTile<T> spatial_;

 private:
  // Brings the spatial filter's gradient to its place; through FilterNorm where it is part of the call, for which the
  // logits take the place of the filter.
  void store_weight_sums(int64_t image, int64_t head) {
    const int64_t taps = taps_of(call_), pitch = spatial_.pitch();
    if (call_.normalize) {
      spatial_.load(image, head, false, weights_);
      for (int64_t row = 0; row < row_range_.size(); ++row) {
        normalize_row_gradient(weights_ + row * taps * pitch, weight_sums_ + row * taps * pitch, taps, pitch,
                               static_cast<A>(call_.norm_gain), __is_same(T, Half));
      }
    }
    const Array& strides = call_.grad_spatial;
    T* to = at<T>(strides, image, head * taps) + column_range_.begin * strides.column;
    const A* from = weight_sums_;
    for (int64_t row = row_range_.begin; row < row_range_.end; ++row) {
      if constexpr (__is_same(T, A)) {
        if (strides.channel == 1) {
          transpose(to + row * strides.row, strides.column, from, pitch, taps, column_range_.size());
          from += taps * pitch;
          continue;
        }
      }
      for (int64_t t = 0; t < taps; ++t, from += pitch) {
        copy_strided(to + t * strides.channel + row * strides.row, strides.column, from, 1, column_range_.size());
      }
    }
  }
};

// grad_channel, contiguous, from partial sums (batch, tiles, channels, taps) in the computed type.
template <typename T, typename A>
void sum_channel_gradients(const Call& call, int64_t tiles, const A* partial_sums) {
  const int64_t plane = call.channels * taps_of(call);
  const int64_t parts = call.batch / larger<int64_t>(call.channel_batch, 1) * tiles;
  constexpr int64_t kBlock = 64;
  const int64_t blocks = ceil_divide(plane, kBlock);
  parallel(call, call.channel_batch * blocks, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t filter = task / blocks, first = task % blocks * kBlock, count = smaller(plane - first, kBlock);
      const A* from = partial_sums + filter * parts * plane + first;
      double sums[kBlock] = {};
      for (int64_t part = 0; part < parts; ++part) {
        for (int64_t i = 0; i < count; ++i) sums[i] += from[part * plane + i];
      }
      A rounded[kBlock];
      for (int64_t i = 0; i < count; ++i) rounded[i] = static_cast<A>(sums[i]);
      copy(static_cast<T*>(call.grad_channel.data) + filter * plane + first, rounded, count);
    }
  });
}

// Runs Worker over all tasks, (spatial batch, head, tiles), and sums up what they leave in partial_sums. `tiled` is
// what the worker cuts into tiles: the call, or its maps in another shape.
template <template <typename> class Worker, typename T>
void run_filter_gradients(const Call& call, const Call& tiled) {
  using A = typename Computed<T>::type;
  const GradientTiling tiling = make_gradient_tiling<A>(tiled);
  const Axis rows = forward_rows(call), columns = forward_columns(call);
  const AxisSet row_set(&rows, 1), column_set(&columns, 1);
  const bool whole = call.channel_batch == call.batch && tiling.tiles() == 1 && __is_same(T, A);
  Buffer buffer;
  A* partial_sums = static_cast<A*>(call.grad_channel.data);  // sums of one part are final
  if (!whole) partial_sums = buffer.at_least<A>(call.batch * tiling.tiles() * call.channels * taps_of(call));
  parallel(call, call.spatial_batch * call.head * tiling.tiles(), [&](int64_t begin, int64_t end) {
    Worker<T> worker(tiled, row_set, column_set, tiling, partial_sums);
    for (int64_t task = begin; task < end; ++task) worker.run(task);
  });
  if (!whole) sum_channel_gradients<T>(call, tiling.tiles(), partial_sums);
}

template <template <typename> class Worker, typename T>
void run_filter_gradients(const Call& call) {
  run_filter_gradients<Worker, T>(call, call);
}

}  // namespace
}  // namespace ddf
