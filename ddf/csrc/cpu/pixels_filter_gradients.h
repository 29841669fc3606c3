// Gradients of both filters, for channels_last maps: a few pixels at one tap share every vector of the channel filter
// and of its gradient, and leave one sum over the channels each.
#pragma once

#include "filter_gradients.h"
#include "pixels.h"

namespace ddf {
namespace {

// A run of pixels of one output row at one tap; distances in elements.
template <typename T, typename A>
struct TapRun {
  const T* source;
  int64_t source_pixel;
  const T* grad;
  int64_t grad_pixel;
  const A* weights;
  A* weight_sums;
  const A* channel_filter;
  A* channel_sums;
};

// A run's pointers, pixel by pixel, where stores cannot change them.
template <int pixels, typename T, typename A>
struct PixelPointers {
  const T *source[pixels], *grad[pixels];
  const A* channel_filter;
  A* channel_sums;
};

// One vector of channels; `keep` clears the lanes that another vector serves.
template <Combine combine, int pixels, typename T, typename A, typename Keep>
DDF_INLINE void add_channels(const PixelPointers<pixels, T, A>& at, int64_t channel, const Vector<A> (&spatial)[pixels],
                             Vector<A> (&sums)[pixels], const Keep& keep) {
  Vector<A> over_pixels{};
  const Vector<A> filter = load(at.channel_filter + channel);
  for (int p = 0; p < pixels; ++p) {
    const Vector<A> u = keep(load(at.grad[p] + channel) * load(at.source[p] + channel));
    if constexpr (combine == Combine::mul) {
      sums[p] += filter * u;
      over_pixels += spatial[p] * u;
    } else {
      sums[p] += u;
      over_pixels += u;
    }
  }
  store(at.channel_sums + channel, load(at.channel_sums + channel) + over_pixels);
}

template <Combine combine, int pixels, typename T, typename A>
DDF_NOINLINE void add_pixels(const TapRun<T, A>& run, int64_t channels) {
  constexpr int lanes = kLanes<A>;
  PixelPointers<pixels, T, A> at;
  at.channel_filter = run.channel_filter;
  at.channel_sums = run.channel_sums;
  Vector<A> spatial[pixels], sums[pixels] = {};
  for (int p = 0; p < pixels; ++p) {
    at.source[p] = run.source + p * run.source_pixel;
    at.grad[p] = run.grad + p * run.grad_pixel;
    spatial[p] = broadcast(run.weights[p]);
  }
  int64_t channel = 0;
  for (; channel + lanes <= channels; channel += lanes) {
    add_channels<combine, pixels>(at, channel, spatial, sums, [](Vector<A> u) { return u; });
  }
  if (channel < channels) {  // the last vector overlaps: its first lanes have been counted
    A numbers[lanes];
    for (int i = 0; i < lanes; ++i) numbers[i] = static_cast<A>(i);
    const Vector<A> lane = load(numbers), counted = broadcast(static_cast<A>(channel - (channels - lanes)));
    add_channels<combine, pixels>(at, channels - lanes, spatial, sums,
                                  [&](Vector<A> u) { return lane >= counted ? u : Vector<A>{}; });
  }
  for (int p = 0; p < pixels; ++p) run.weight_sums[p] += horizontal_sum<A>(sums[p]);
}

template <typename T>
class PixelGradientWorker {
  using A = typename Computed<T>::type;

 public:
  PixelGradientWorker(const Call& call, const Axis& rows, const Axis& columns, const GradientTiling& tiling,
                      A* partial_sums)
      : call_(call),
        rows_(rows),
        columns_(columns),
        row_set_(&rows, 1),
        column_set_(&columns, 1),
        tiling_(tiling),
        partial_sums_(partial_sums) {
    const Range row_range{0, tiling.rows}, column_range{0, tiling.columns};
    const int64_t tile = SpatialTile<T>(call, row_set_, column_set_, row_range, column_range).size();
    const int64_t filters = round_up(rows.taps * columns.taps * per_head(), kLanes<A>);
    A* scratch = thread_scratch<A>(2 * tile + 3 * filters);
    weights_ = scratch;
    weight_sums_ = weights_ + tile;
    filters_ = weight_sums_ + tile;
    channel_sums_ = filters_ + filters;
    recent_sums_ = channel_sums_ + filters;
  }

  void run(int64_t task) {
    const int64_t tile = task % tiling_.tiles(), map = task / tiling_.tiles();
    const int64_t spatial_image = map / call_.head, head = map % call_.head;
    row_range_ = tiling_.row_range(call_, tile);
    column_range_ = tiling_.column_range(call_, tile);
    const SpatialTile<T> spatial(call_, row_set_, column_set_, row_range_, column_range_);
    spatial.load(spatial_image, head, weights_);
    spatial_ = spatial.view(0, 0, weights_);
    const int64_t taps = call_.kernel_size * call_.kernel_size;
    const int64_t pitch = round_up(column_range_.size(), kLanes<A>);
    __builtin_memset(weight_sums_, 0, row_range_.size() * taps * pitch * sizeof(A));
    const bool shared = call_.spatial_batch < call_.batch;
    const Range images = shared ? Range{0, call_.batch} : Range{spatial_image, spatial_image + 1};
    for (int64_t image = images.begin; image < images.end; ++image) {
      add_image(image, head);
      store_channel_sums(partial_sums_ +
                         ((image * tiling_.tiles() + tile) * call_.channels + head * per_head()) * taps);
    }
    store_spatial_gradient<T>(call_, row_set_, column_set_, row_range_, column_range_, spatial_image, head, weights_,
                              weight_sums_);
  }

 private:
  int64_t per_head() const { return call_.channels / call_.head; }

  void add_image(int64_t image, int64_t head) {
    const Range channels{head * per_head(), (head + 1) * per_head()};
    load_filters_by_tap<T>(call_, rows_, columns_, image, channels, filters_);
    const int64_t sums = rows_.taps * columns_.taps * per_head();
    __builtin_memset(channel_sums_, 0, sums * sizeof(A));
    __builtin_memset(recent_sums_, 0, sums * sizeof(A));
    source_ = at<const T>(call_.input, image, channels.begin);
    grad_ = at<const T>(call_.output, image, channels.begin);
    int64_t recent_pixels = 0;
    for (int64_t row = row_range_.begin; row < row_range_.end; ++row) {
      add_row(row);
      recent_pixels += column_range_.size();
      if (recent_pixels < 128 && row + 1 < row_range_.end) continue;
      // sums of a few pixels are added as a whole, which keeps the rounding errors of large maps small
      for (int64_t i = 0; i < sums; ++i) channel_sums_[i] += recent_sums_[i];
      __builtin_memset(recent_sums_, 0, sums * sizeof(A));
      recent_pixels = 0;
    }
  }

  void add_row(int64_t row) {
    const Range tap_rows = taps_on_map(rows_, row);
    for (int64_t n = tap_rows.begin; n < tap_rows.end; ++n) {
      for (int64_t m = 0; m < columns_.taps; ++m) add_tap(row, n, m);
    }
  }

  // One row of outputs at one tap: those that the tap serves, a few at a time.
  void add_tap(int64_t row, int64_t n, int64_t m) {
    const Range served = outputs_on_map(columns_, {m, m + 1});
    const Range columns{larger(served.begin, column_range_.begin), smaller(served.end, column_range_.end)};
    const int64_t tap = (n * columns_.taps + m) * per_head();
    const int64_t source_row = rows_.source_origin + row * rows_.source_step + n * rows_.source_tap_step;
    const int64_t source_column =
        columns_.source_origin + columns.begin * columns_.source_step + m * columns_.source_tap_step;
    const int64_t spatial = spatial_.data - weights_ + n * spatial_.tap_row + m * spatial_.tap_column +
                            (row - row_range_.begin) * spatial_.row + columns.begin - column_range_.begin;
    TapRun<T, A> run{};
    run.source = source_ + source_row * call_.input.row + source_column * call_.input.column;
    run.source_pixel = columns_.source_step * call_.input.column;
    run.grad = grad_ + row * call_.output.row + columns.begin * call_.output.column;
    run.grad_pixel = call_.output.column;
    run.weights = weights_ + spatial;
    run.weight_sums = weight_sums_ + spatial;
    run.channel_filter = filters_ + tap;
    run.channel_sums = recent_sums_ + tap;
    int64_t left = columns.size();
    for (; left >= 4; left -= 4) add_run<4>(run);
    if (left >= 2) {
      add_run<2>(run);
      left -= 2;
    }
    if (left == 1) add_run<1>(run);
  }

  template <int pixels>
  void add_run(TapRun<T, A>& run) {
    with_combine(call_, [&]<Combine combine>() { add_pixels<combine, pixels>(run, per_head()); });
    run.source += pixels * run.source_pixel;
    run.grad += pixels * run.grad_pixel;
    run.weights += pixels;
    run.weight_sums += pixels;
  }

  void store_channel_sums(A* partial_sums) {
    const int64_t k = call_.kernel_size, taps = k * k;
    __builtin_memset(partial_sums, 0, per_head() * taps * sizeof(A));
    const A* sums = channel_sums_;
    for (int64_t n = 0; n < rows_.taps; ++n) {
      for (int64_t m = 0; m < columns_.taps; ++m, sums += per_head()) {
        const int64_t tap = (rows_.first_tap + n) * k + columns_.first_tap + m;
        for (int64_t c = 0; c < per_head(); ++c) partial_sums[c * taps + tap] = sums[c];
      }
    }
  }

  const Call& call_;
  const Axis &rows_, &columns_;
  const AxisSet row_set_, column_set_;
  const GradientTiling& tiling_;
  A* partial_sums_;
  A *weights_, *weight_sums_, *filters_, *channel_sums_, *recent_sums_;
  Range row_range_{0, 0}, column_range_{0, 0};
  SpatialView<A> spatial_{};
  const T *source_ = nullptr, *grad_ = nullptr;
};

template <typename T>
void filter_gradients_of_pixels(const Call& call) {
  using A = typename Computed<T>::type;
  const GradientTiling tiling = make_gradient_tiling<A>(call);
  const Axis rows = forward_axis(call.height, call.out_height, call.kernel_size, call.dilation, call.stride);
  const Axis columns = forward_axis(call.width, call.out_width, call.kernel_size, call.dilation, call.stride);
  run_filter_gradients<T>(call, tiling, [&](A* partial_sums, int64_t begin, int64_t end) {
    PixelGradientWorker<T> worker(call, rows, columns, tiling, partial_sums);
    for (int64_t task = begin; task < end; ++task) worker.run(task);
  });
}

}  // namespace
}  // namespace ddf
