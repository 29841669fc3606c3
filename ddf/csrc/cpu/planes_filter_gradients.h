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
  Vector<A> c[channels], sums[channels];
  clear(sums);
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
      const Vector<A> spatial = load(s + column);
      Vector<A> over_channels{};
      for (int i = 0; i < channels; ++i) {
        add_tap_gradients<combine>(load(g[i] + column) * load(x[i] + column), c[i], spatial, over_channels, sums[i]);
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
class PlaneGradientWorker : GradientWorker<T> {
  using Base = GradientWorker<T>;
  using Base::call_, Base::rows_, Base::columns_, Base::row_set_, Base::column_set_, Base::weights_, Base::weight_sums_,
      Base::row_range_, Base::column_range_, Base::spatial_, Base::tap;
  using typename Base::A;

 public:
  PlaneGradientWorker(const Call& call, const AxisSet& rows, const AxisSet& columns, const GradientTiling& tiling,
                      A* partial_sums)
      : Base(call, rows, columns, tiling, partial_sums) {
    const ColumnSlots column_slots(columns, column_range_, kLanes<A>);
    const int64_t source_size = kChannelGroup * RowSlots(rows, row_range_).count * column_slots.pitch;
    const int64_t grad_size = kChannelGroup * tiling.rows * spatial_.pitch();
    const int64_t filter_size = kChannelGroup * taps_of(call), sums = filter_size * kLanes<A>;
    source_ = Base::take_scratch(source_size + grad_size + sums + filter_size);
    grad_ = source_ + source_size;
    channel_sums_ = grad_ + grad_size;
    filter_ = channel_sums_ + sums;
  }

  void run(int64_t task) {
    Base::run_task(task, [&](int64_t image, int64_t head, A* partial_sums) { add_image(image, head, partial_sums); });
  }

 private:
  void add_image(int64_t image, int64_t head, A* partial_sums) {
    const RowSlots slots(row_set_, row_range_);
    const ColumnSlots column_slots(column_set_, column_range_, kLanes<A>);
    __builtin_memset(source_, 0, kChannelGroup * slots.count * column_slots.pitch * sizeof(A));
    __builtin_memset(grad_, 0, kChannelGroup * row_range_.size() * spatial_.pitch() * sizeof(A));
    const int64_t per_head = channels_per_head(call_), end = (head + 1) * per_head;
    int64_t channel = head * per_head;
    for (; channel + kChannelGroup <= end; channel += kChannelGroup) {
      add_group<kChannelGroup>(image, channel, slots, column_slots, partial_sums + channel * taps_of(call_));
    }
    for (; channel < end; ++channel)
      add_group<1>(image, channel, slots, column_slots, partial_sums + channel * taps_of(call_));
  }

  template <int channels>
  void add_group(int64_t image, int64_t channel, const RowSlots& slots, const ColumnSlots& column_slots,
                 A* partial_sums) {
    const int64_t plane = slots.count * column_slots.pitch, grad_plane = row_range_.size() * spatial_.pitch();
    for (int i = 0; i < channels; ++i) {
      load_plane(slots, call_.height, column_slots, at<const T>(call_.input, image, channel + i), call_.input.row,
                 call_.input.column, prefetch_distance(call_, call_.height * call_.width, kPlaneAhead),
                 source_ + i * plane);
      const T* grad = at<const T>(call_.output, image, channel + i) + column_range_.begin * call_.output.column;
      for (int64_t row = 0; row < row_range_.size(); ++row) {
        copy_strided(grad_ + i * grad_plane + row * spatial_.pitch(), 1,
                     grad + (row_range_.begin + row) * call_.output.row, call_.output.column, column_range_.size());
      }
    }
    const A* filter =
        load_channel_filters(call_.channel_filter, at<const T>(call_.channel_filter, image, channel), rows_, columns_,
                             channels, known_taps<A, channels>(rows_, columns_), filter_);
    __builtin_memset(channel_sums_, 0, channels * rows_.taps * columns_.taps * sizeof(Vector<A>));
    GradientTile<A> tile{source_,
                         plane,
                         slots.row_step * column_slots.pitch,
                         slots.tap_step(0) * column_slots.pitch,
                         grad_,
                         grad_plane,
                         weights_,
                         weight_sums_,
                         spatial_.pitch(),
                         taps_of(call_) * spatial_.pitch(),
                         filter,
                         reinterpret_cast<Vector<A>*>(channel_sums_)};
    const int64_t rows_at_once = larger<int64_t>(48 * kLanes<A> / spatial_.pitch(), 1);
    for (int64_t row = 0; row < row_range_.size(); row += rows_at_once) {
      const Range range{row, smaller(row + rows_at_once, row_range_.size())};
      with_combine(call_, [&]<Combine combine>() {
        add_rows<combine, channels>(tile, rows_, columns_, column_slots, call_.kernel_size, range);
      });
    }
    store_channel_sums<channels>(partial_sums);
  }

  template <int channels>
  void store_channel_sums(A* partial_sums) {
    __builtin_memset(partial_sums, 0, channels * taps_of(call_) * sizeof(A));
    const A* sums = channel_sums_;
    for (int64_t n = 0; n < rows_.taps; ++n) {
      for (int64_t m = 0; m < columns_.taps; ++m) {
        for (int i = 0; i < channels; ++i, sums += kLanes<A>) {
          partial_sums[i * taps_of(call_) + tap(n, m)] = horizontal_sum<A>(load(sums));
        }
      }
    }
  }

  A *source_, *grad_, *channel_sums_, *filter_;
};

}  // namespace
}  // namespace ddf
