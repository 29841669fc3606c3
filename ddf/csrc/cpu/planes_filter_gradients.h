// Gradients of both filters, for maps whose rows are contiguous (or strided in any way but slower): four channels at a
// time in scratch, zeros around the map.
#pragma once

#include "filter_gradients.h"
#include "planes.h"

namespace ddf {
namespace {

// One group of channels in scratch; distances in elements.
template <typename A>
struct GradientTile {
  const A* source;
  int64_t source_channel, source_row, source_tap_row;
  const A* grad;
  int64_t grad_channel;
  const A* weights;  // (rows, taps, pitch), as is
  A* weight_sums;    // the gradient of the spatial filter so far
  int64_t pitch, tile_row;
  const A* channel_filter;  // as load_channel_filters leaves it
  Vector<A>* channel_sums;  // (taps, channels): the gradient of the channel filter so far, lane by lane
};

// Rows [begin, end) at one tap. The sums of these few rows are added to the sums before them as a whole, which keeps
// the rounding errors of large maps small.
template <Combine combine, int channels, typename A>
DDF_INLINE void add_tap(const GradientTile<A>& tile, const A* source, const A* weights, A* weight_sums,
                        const A* channel_filter, int64_t channel_step, Vector<A>* channel_sums, Range rows) {
  Vector<A> c[channels], sums[channels] = {};
  for (int i = 0; i < channels; ++i) c[i] = broadcast(channel_filter[i * channel_step]);
  const int64_t pitch = tile.pitch;  // and no member of `tile` below: each would be read again after every store
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const A *x[channels], *g[channels];
    for (int i = 0; i < channels; ++i) {
      x[i] = source + row * tile.source_row + i * tile.source_channel;
      g[i] = tile.grad + row * pitch + i * tile.grad_channel;
    }
    const A* s = weights + row * tile.tile_row;
    A* target = weight_sums + row * tile.tile_row;
    for (int64_t column = 0; column < pitch; column += kLanes<A>) {
      [[maybe_unused]] const Vector<A> spatial = load(s + column);
      Vector<A> over_channels{};
      for (int i = 0; i < channels; ++i) {
        const Vector<A> u = load(g[i] + column) * load(x[i] + column);
        if constexpr (combine == Combine::mul) {
          over_channels += c[i] * u;
          sums[i] += spatial * u;
        } else {
          over_channels += u;
          sums[i] += u;
        }
      }
      store(target + column, load(target + column) + over_channels);
    }
  }
  for (int i = 0; i < channels; ++i) channel_sums[i] += sums[i];
}

// Rows [begin, end) of a tile at all taps.
template <Combine combine, int channels, typename A>
DDF_NOINLINE void add_rows(const GradientTile<A>& tile, const Axis& rows, const Axis& columns,
                           const ColumnSlots& column_slots, int64_t kernel_size, Range range) {
  const int64_t known = known_taps<A, channels>(rows, columns);
  int64_t index = 0;
  for (int64_t n = 0; n < rows.taps; ++n) {
    for (int64_t m = 0; m < columns.taps; ++m, index += channels) {
      const int64_t plane = ((rows.first_tap + n) * kernel_size + columns.first_tap + m) * tile.pitch;
      add_tap<combine, channels>(tile, tile.source + n * tile.source_tap_row + column_slots.offset(0, m),
                                 tile.weights + plane, tile.weight_sums + plane,
                                 tile.channel_filter + (known > 0 ? index / channels : index),
                                 known > 0 ? known * known : 1, tile.channel_sums + index, range);
    }
  }
}

template <typename T>
class FilterGradientWorker {
  using A = typename Computed<T>::type;

 public:
  // `partial_sums` is (batch, tiles, channels, taps).
  FilterGradientWorker(const Call& call, const AxisSet& rows, const AxisSet& columns, const GradientTiling& tiling,
                       A* partial_sums)
      : call_(call), rows_(rows), columns_(columns), tiling_(tiling), partial_sums_(partial_sums) {
    const ColumnSlots column_slots(columns, {0, tiling.columns}, kLanes<A>);
    const int64_t plane = RowSlots(rows, {0, tiling.rows}).count * column_slots.pitch;
    const int64_t pitch = round_up(tiling.columns, kLanes<A>), tile = tiling.rows * taps() * pitch;
    const int64_t grad_size = kChannelGroup * tiling.rows * pitch, sums = kChannelGroup * taps() * kLanes<A>;
    A* scratch = thread_scratch<A>(2 * tile + kChannelGroup * plane + grad_size + sums + kChannelGroup * taps());
    weights_ = scratch;
    weight_sums_ = weights_ + tile;
    source_ = weight_sums_ + tile;
    grad_ = source_ + kChannelGroup * plane;
    channel_sums_ = grad_ + grad_size;
    filter_ = channel_sums_ + sums;
  }

  void run(int64_t task) {
    const int64_t tile = task % tiling_.tiles(), map = task / tiling_.tiles();
    row_range_ = tiling_.row_range(call_, tile);
    column_range_ = tiling_.column_range(call_, tile);
    pitch_ = round_up(column_range_.size(), kLanes<A>);
    const int64_t spatial_image = map / call_.head, head = map % call_.head;
    SpatialTile<T>(call_, rows_, columns_, row_range_, column_range_).load(spatial_image, head, weights_);
    __builtin_memset(weight_sums_, 0, row_range_.size() * taps() * pitch_ * sizeof(A));
    const bool shared = call_.spatial_batch < call_.batch;
    const Range images = shared ? Range{0, call_.batch} : Range{spatial_image, spatial_image + 1};
    for (int64_t image = images.begin; image < images.end; ++image) {
      add_image(image, head, partial_sums_ + (image * tiling_.tiles() + tile) * call_.channels * taps());
    }
    store_spatial_gradient<T>(call_, rows_, columns_, row_range_, column_range_, spatial_image, head, weights_,
                              weight_sums_);
  }

 private:
  int64_t taps() const { return call_.kernel_size * call_.kernel_size; }

  void add_image(int64_t image, int64_t head, A* partial_sums) {
    const RowSlots slots(rows_, row_range_);
    const ColumnSlots column_slots(columns_, column_range_, kLanes<A>);
    __builtin_memset(source_, 0, kChannelGroup * slots.count * column_slots.pitch * sizeof(A));
    __builtin_memset(grad_, 0, kChannelGroup * row_range_.size() * pitch_ * sizeof(A));
    const int64_t per_head = call_.channels / call_.head, end = (head + 1) * per_head;
    int64_t channel = head * per_head;
    for (; channel + kChannelGroup <= end; channel += kChannelGroup) {
      add_group<kChannelGroup>(image, channel, slots, column_slots, partial_sums + channel * taps());
    }
    for (; channel < end; ++channel) add_group<1>(image, channel, slots, column_slots, partial_sums + channel * taps());
  }

  template <int channels>
  void add_group(int64_t image, int64_t channel, const RowSlots& slots, const ColumnSlots& column_slots,
                 A* partial_sums) {
    const int64_t plane = slots.count * column_slots.pitch, grad_plane = row_range_.size() * pitch_;
    for (int i = 0; i < channels; ++i) {
      load_plane(slots, call_.height, column_slots, at<const T>(call_.input, image, channel + i), call_.input.row,
                 call_.input.column, source_ + i * plane);
      const T* grad = at<const T>(call_.output, image, channel + i) + column_range_.begin * call_.output.column;
      for (int64_t row = 0; row < row_range_.size(); ++row) {
        copy_strided(grad_ + i * grad_plane + row * pitch_, 1, grad + (row_range_.begin + row) * call_.output.row,
                     call_.output.column, column_range_.size());
      }
    }
    const A* filter =
        load_channel_filters(call_.channel_filter, at<const T>(call_.channel_filter, image, channel), rows_[0],
                             columns_[0], channels, known_taps<A, channels>(rows_[0], columns_[0]), filter_);
    __builtin_memset(channel_sums_, 0, channels * rows_[0].taps * columns_[0].taps * sizeof(Vector<A>));
    GradientTile<A> tile{source_,
                         plane,
                         slots.row_step * column_slots.pitch,
                         slots.tap_step(0) * column_slots.pitch,
                         grad_,
                         grad_plane,
                         weights_,
                         weight_sums_,
                         pitch_,
                         taps() * pitch_,
                         filter,
                         reinterpret_cast<Vector<A>*>(channel_sums_)};
    const int64_t rows_at_once = larger<int64_t>(48 * kLanes<A> / pitch_, 1);
    for (int64_t row = 0; row < row_range_.size(); row += rows_at_once) {
      const Range range{row, smaller(row + rows_at_once, row_range_.size())};
      with_combine(call_, [&]<Combine combine>() {
        add_rows<combine, channels>(tile, rows_[0], columns_[0], column_slots, call_.kernel_size, range);
      });
    }
    store_channel_sums<channels>(partial_sums);
  }

  int64_t tap(int64_t n, int64_t m) const {
    return (rows_[0].first_tap + n) * call_.kernel_size + columns_[0].first_tap + m;
  }

  template <int channels>
  void store_channel_sums(A* partial_sums) {
    __builtin_memset(partial_sums, 0, channels * taps() * sizeof(A));
    const A* sums = channel_sums_;
    for (int64_t n = 0; n < rows_[0].taps; ++n) {
      for (int64_t m = 0; m < columns_[0].taps; ++m) {
        for (int i = 0; i < channels; ++i, sums += kLanes<A>) {
          partial_sums[i * taps() + tap(n, m)] = horizontal_sum<A>(load(sums));
        }
      }
    }
  }

  const Call& call_;
  const AxisSet &rows_, &columns_;
  const GradientTiling& tiling_;
  A* partial_sums_;
  A *weights_, *weight_sums_, *source_, *grad_, *channel_sums_, *filter_;
  Range row_range_{0, 0}, column_range_{0, 0};
  int64_t pitch_ = 0;
};

template <typename T>
void filter_gradients_of_planes(const Call& call) {
  using A = typename Computed<T>::type;
  const GradientTiling tiling = make_gradient_tiling<A>(call);
  const Axis rows = forward_axis(call.height, call.out_height, call.kernel_size, call.dilation, call.stride);
  const Axis columns = forward_axis(call.width, call.out_width, call.kernel_size, call.dilation, call.stride);
  const AxisSet row_set(&rows, 1), column_set(&columns, 1);
  run_filter_gradients<T>(call, tiling, [&](A* partial_sums, int64_t begin, int64_t end) {
    FilterGradientWorker<T> worker(call, row_set, column_set, tiling, partial_sums);
    for (int64_t task = begin; task < end; ++task) worker.run(task);
  });
}

}  // namespace
}  // namespace ddf
