// Gradients of both filters, for channels_last maps: a few vectors of channels at one tap keep the channel filter and
// its gradient in registers for a row of pixels, each of which leaves a sum over the channels.
#pragma once

#include "filter_gradients.h"
#include "pixels.h"

namespace ddf {
namespace {

// A run of pixels of one output row at one tap, from some channel on; distances in elements.
template <typename T, typename A>
struct TapRun {
  int64_t pixels;
  const T* source;
  int64_t source_pixel;
  const T* grad;
  int64_t grad_pixel;
  const A* weights;
  A* weight_sums;
  const A* channel_filter;
  A* channel_sums;
  int64_t counted;  // of the first channels, which another vector serves
};

// `count` pixels from `pixel` on.
template <Combine combine, int count, int vectors, bool partial, typename T, typename A>
DDF_INLINE void add_pixels(const TapRun<T, A>& run, int64_t pixel, const Vector<A> (&filter)[vectors],
                           Vector<A> (&channel_sums)[vectors], Vector<A> kept) {
  constexpr int lanes = kLanes<A>;
  Vector<A> sums[count] = {};
  for (int p = 0; p < count; ++p) {
    const T *x = run.source + (pixel + p) * run.source_pixel, *g = run.grad + (pixel + p) * run.grad_pixel;
    const Vector<A> spatial = broadcast(run.weights[pixel + p]);
    for (int v = 0; v < vectors; ++v) {
      Vector<A> u = load(g + v * lanes) * load(x + v * lanes);
      if constexpr (partial) u = kept != 0 ? u : Vector<A>{};
      add_tap_gradients<combine>(u, filter[v], spatial, sums[p], channel_sums[v]);
    }
  }
  add_lanes<count>(run.weight_sums + pixel, sums);
}

template <Combine combine, int vectors, bool partial = false, typename T, typename A>
DDF_NOINLINE void add_run(const TapRun<T, A>& run) {
  constexpr int lanes = kLanes<A>;
  Vector<A> filter[vectors], channel_sums[vectors], kept{};
  for (int i = 0; i < lanes; ++i) kept[i] = i >= run.counted;
  for (int v = 0; v < vectors; ++v) {
    filter[v] = load(run.channel_filter + v * lanes);
    channel_sums[v] = load(run.channel_sums + v * lanes);
  }
  int64_t pixel = 0;
  for (; pixel + 4 <= run.pixels; pixel += 4) {
    add_pixels<combine, 4, vectors, partial>(run, pixel, filter, channel_sums, kept);
  }
  if (pixel + 2 <= run.pixels) {
    add_pixels<combine, 2, vectors, partial>(run, pixel, filter, channel_sums, kept);
    pixel += 2;
  }
  if (pixel < run.pixels) add_pixels<combine, 1, vectors, partial>(run, pixel, filter, channel_sums, kept);
  for (int v = 0; v < vectors; ++v) store(run.channel_sums + v * lanes, channel_sums[v]);
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
    filters_ = Base::take_scratch(3 * filters + columns_.taps * static_cast<int64_t>(sizeof(Range) / sizeof(A)));
    channel_sums_ = filters_ + filters;
    recent_sums_ = channel_sums_ + filters;
    served_ = reinterpret_cast<Range*>(recent_sums_ + filters);
  }

  void run(int64_t task) {
    Base::run_task(task, [&](int64_t image, int64_t head, A* partial_sums) {
      for (int64_t m = 0; m < columns_.taps; ++m) {
        const Range served = outputs_on_map(columns_, {m, m + 1});
        const int64_t begin = larger(served.begin, column_range_.begin);
        served_[m] = {begin, larger(smaller(served.end, column_range_.end), begin)};
      }
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
    constexpr int lanes = kLanes<A>, most = kAccumulators / 2;
    int64_t channel = 0;
    for (; channel + most * lanes <= per_head_; channel += most * lanes) add_channels<most>(channel);
    for (; channel + most / 2 * lanes <= per_head_; channel += most / 2 * lanes) add_channels<most / 2>(channel);
    for (; channel + lanes <= per_head_; channel += lanes) add_channels<1>(channel);
    if (channel < per_head_) add_channels<1, true>(per_head_ - lanes, channel - (per_head_ - lanes));
  }

  // All pixels of the tile, for a few vectors of channels.
  template <int vectors, bool partial = false>
  void add_channels(int64_t channel, int64_t counted = 0) {
    int64_t recent_pixels = 0;
    for (int64_t row = row_range_.begin; row < row_range_.end; ++row) {
      const Range tap_rows = taps_on_map(rows_, row);
      for (int64_t n = tap_rows.begin; n < tap_rows.end; ++n) {
        for (int64_t m = 0; m < columns_.taps; ++m) {
          TapRun<T, A> run = run_of(row, n, m, channel);
          run.counted = counted;
          with_combine(call_, [&]<Combine combine>() { add_run<combine, vectors, partial>(run); });
        }
      }
      recent_pixels += column_range_.size();
      if (recent_pixels < 128 && row + 1 < row_range_.end) continue;
      end_recent_sums<vectors>(channel);
      recent_pixels = 0;
    }
  }

  // Sums of a few pixels are added as a whole, which keeps the rounding errors of large maps small.
  template <int vectors>
  void end_recent_sums(int64_t channel) {
    for (int64_t t = 0; t < rows_.taps * columns_.taps; ++t) {
      for (int v = 0; v < vectors; ++v) {
        const int64_t place = t * per_head_ + channel + v * kLanes<A>;
        store(channel_sums_ + place, load(channel_sums_ + place) + load(recent_sums_ + place));
        store(recent_sums_ + place, Vector<A>{});
      }
    }
  }

  // One row of outputs at one tap: those that the tap serves.
  TapRun<T, A> run_of(int64_t row, int64_t n, int64_t m, int64_t channel) const {
    const Range columns = served_[m];
    const int64_t filter = (n * columns_.taps + m) * per_head_ + channel;
    const int64_t source_row = rows_.source_origin + row * rows_.source_step + n * rows_.source_tap_step;
    const int64_t source_column =
        columns_.source_origin + columns.begin * columns_.source_step + m * columns_.source_tap_step;
    const int64_t spatial = ((row - row_range_.begin) * taps_of(call_) + tap(n, m)) * spatial_.pitch() + columns.begin -
                            column_range_.begin;
    TapRun<T, A> run{};
    run.pixels = columns.size();
    run.source = source_ + source_row * call_.input.row + source_column * call_.input.column + channel;
    run.source_pixel = columns_.source_step * call_.input.column;
    run.grad = grad_ + row * call_.output.row + columns.begin * call_.output.column + channel;
    run.grad_pixel = call_.output.column;
    run.weights = weights_ + spatial;
    run.weight_sums = weight_sums_ + spatial;
    run.channel_filter = filters_ + filter;
    run.channel_sums = recent_sums_ + filter;
    return run;
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
  Range* served_;  // the columns that each tap column serves
  const T *source_ = nullptr, *grad_ = nullptr;
};

}  // namespace
}  // namespace ddf
