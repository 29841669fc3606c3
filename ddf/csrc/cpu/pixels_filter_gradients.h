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
  add_lanes<pixels>(run.weight_sums, sums);
}

template <typename T>
class PixelGradientWorker : GradientWorker<T> {
  using Base = GradientWorker<T>;
  using Base::call_, Base::rows_, Base::columns_, Base::weights_, Base::weight_sums_, Base::row_range_,
      Base::column_range_, Base::spatial_, Base::tap;
  using typename Base::A;

 public:
  PixelGradientWorker(const Call& call, const AxisSet& rows, const AxisSet& columns, const GradientTiling& tiling,
                      A* partial_sums)
      : Base(call, rows, columns, tiling, partial_sums), per_head_(channels_per_head(call)) {
    const int64_t filters = round_up(rows_.taps * columns_.taps * per_head_, kLanes<A>);
    filters_ = Base::take_scratch(3 * filters);
    channel_sums_ = filters_ + filters;
    recent_sums_ = channel_sums_ + filters;
  }

  void run(int64_t task) {
    Base::run_task(task, [&](int64_t image, int64_t head, A* partial_sums) {
      add_image(image, head);
      store_channel_sums(partial_sums + head * per_head_ * taps_of(call_));
    });
  }

 private:
  void add_image(int64_t image, int64_t head) {
    const Range channels{head * per_head_, (head + 1) * per_head_};
    load_filters_by_tap<T>(call_, rows_, columns_, image, channels, filters_);
    const int64_t sums = rows_.taps * columns_.taps * per_head_;
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
    const int64_t filter = (n * columns_.taps + m) * per_head_;
    const int64_t source_row = rows_.source_origin + row * rows_.source_step + n * rows_.source_tap_step;
    const int64_t source_column =
        columns_.source_origin + columns.begin * columns_.source_step + m * columns_.source_tap_step;
    const int64_t spatial = ((row - row_range_.begin) * taps_of(call_) + tap(n, m)) * spatial_.pitch() + columns.begin -
                            column_range_.begin;
    TapRun<T, A> run{};
    run.source = source_ + source_row * call_.input.row + source_column * call_.input.column;
    run.source_pixel = columns_.source_step * call_.input.column;
    run.grad = grad_ + row * call_.output.row + columns.begin * call_.output.column;
    run.grad_pixel = call_.output.column;
    run.weights = weights_ + spatial;
    run.weight_sums = weight_sums_ + spatial;
    run.channel_filter = filters_ + filter;
    run.channel_sums = recent_sums_ + filter;
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
    with_combine(call_, [&]<Combine combine>() { add_pixels<combine, pixels>(run, per_head_); });
    run.source += pixels * run.source_pixel;
    run.grad += pixels * run.grad_pixel;
    run.weights += pixels;
    run.weight_sums += pixels;
  }

  void store_channel_sums(A* partial_sums) {
    const int64_t taps = taps_of(call_);
    __builtin_memset(partial_sums, 0, per_head_ * taps * sizeof(A));
    const A* sums = channel_sums_;
    for (int64_t n = 0; n < rows_.taps; ++n) {
      for (int64_t m = 0; m < columns_.taps; ++m, sums += per_head_) {
        for (int64_t c = 0; c < per_head_; ++c) partial_sums[c * taps + tap(n, m)] = sums[c];
      }
    }
  }

  const int64_t per_head_;
  A *filters_, *channel_sums_, *recent_sums_;
  const T *source_ = nullptr, *grad_ = nullptr;
};

}  // namespace
}  // namespace ddf
