// Gradients of both filters, for channels_last maps.
//
// A register tile is a few neighbouring pixels at a few taps of a row: it holds their spatial filter and its gradient,
// sums over channels, while it walks through a block of channels. The channel filter and its gradient, sums over
// pixels, come from memory, a vector for each tap and all pixels of the tile. All rows of taps follow before the next
// pixels, so that grad_output is in the first cache then.
#pragma once

#include "filter_gradients.h"
#include "pixels.h"

namespace ddf {
namespace {

constexpr int kGradientPixels = 4, kGradientTaps = kAccumulators >= 16 ? 3 : 1;  // of a register tile
constexpr int64_t kGradientChannels = 128;  // of a block: both filters' parts stay in the first cache

// A run of pixels of one output row at some taps of each row, and a block of channels; distances in elements.
template <typename T, typename A>
struct TapRun {
  int64_t pixels, channels, tap_rows;
  const T* source;
  int64_t source_pixel, source_tap, source_tap_row;
  const T* grad;
  int64_t grad_pixel;
  SpatialView<A> spatial;
  A* weight_sums;
  int64_t weight_tap, weight_tap_row;
  const A* channel_filter;
  A* channel_sums;
  int64_t filter_tap, filter_tap_row;
  int64_t next_source, next_grad;  // from a tap row's source, and from grad, to what the next output row reads
  bool fetches_more;               // where a stride lets outputs share little, and the caches do not hold the map
};

// What add_vector does at some pixels and one row of taps.
template <typename T, typename A>
struct TapRow {
  const T *source, *grad;
  const A* channel_filter;
  A* channel_sums;
  const T* ahead;  // to be fetched into the cache, or null
  int64_t ahead_pixel;
  int64_t ahead_tap;  // to what the second tap reads, where that is to be fetched, too; or 0
};

// Lanes of the last vector of `channels`, which overlaps the one before, that no other vector serves.
template <typename A>
DDF_INLINE auto uncounted_lanes(int64_t channels) {
  Vector<A> index{};
  for (int i = 0; i < kLanes<A>; ++i) index[i] = i;
  return index >= broadcast(static_cast<A>(kLanes<A> - channels % kLanes<A>));
}

// One vector of channels. The sums over channels stay in registers, those over pixels are in memory between tiles.
template <Combine combine, int taps, int pixels, bool partial, typename T, typename A>
DDF_INLINE void add_vector(const TapRun<T, A>& run, const TapRow<T, A>& row, int64_t channel,
                           const Vector<A> (&spatial)[taps][pixels], Vector<A> (&sums)[taps][pixels]) {
  Vector<A> grad[pixels];
  const T *at_pixel[pixels], *grad_at_pixel = row.grad + channel;
  for (int p = 0; p < pixels; ++p) {
    grad[p] = load(grad_at_pixel);
    grad_at_pixel += run.grad_pixel;
    at_pixel[p] = opaque(p == 0 ? row.source + channel : at_pixel[p - 1] + run.source_pixel);
  }
  if (row.ahead != nullptr) {
    for (int p = 0; p < pixels; ++p) {
      const T* ahead = row.ahead + p * row.ahead_pixel + channel;
      __builtin_prefetch(ahead);
      if (row.ahead_tap != 0) __builtin_prefetch(ahead + row.ahead_tap);
    }
  }
  for (int t = 0; t < taps; ++t) {
    const int64_t place = t * run.filter_tap + channel;
    const Vector<A> filter = load(row.channel_filter + place);
    Vector<A> channel_sum = load(row.channel_sums + place);
    for (int p = 0; p < pixels; ++p) {
      Vector<A> u = grad[p] * load(at_pixel[p] + t * run.source_tap);
      if constexpr (partial) u = uncounted_lanes<A>(run.channels) ? u : Vector<A>{};
      add_tap_gradients<combine>(u, filter, spatial[t][p], sums[t][p], channel_sum);
    }
    store(row.channel_sums + place, channel_sum);
  }
}

// `pixels` neighbours from `pixel` on, all rows of taps and all channels of the block.
template <Combine combine, int taps, int pixels, typename T, typename A>
DDF_INLINE void add_pixels(const TapRun<T, A>& run, int64_t pixel) {
  constexpr int lanes = kLanes<A>;
  TapRow<T, A> row{run.source + pixel * run.source_pixel,
                   run.grad + pixel * run.grad_pixel,
                   run.channel_filter,
                   run.channel_sums,
                   nullptr,
                   run.grad_pixel,
                   0};
  row.ahead = row.grad + run.next_grad;
  const A* weights = run.spatial.data + pixel * run.spatial.column;
  A* weight_sums = run.weight_sums + pixel;
  for (int64_t n = 0; n < run.tap_rows; ++n) {
    Vector<A> spatial[taps][pixels], sums[taps][pixels];
    clear(sums);
    for (int t = 0; t < taps; ++t) {
      for (int p = 0; p < pixels; ++p) {
        spatial[t][p] = broadcast(weights[t * run.spatial.tap_column + p * run.spatial.column]);
      }
    }
    if (n > 0) {
      row.ahead = n + 1 == run.tap_rows || run.fetches_more ? row.source + run.next_source : nullptr;
      row.ahead_pixel = run.source_pixel;
      row.ahead_tap = run.fetches_more ? run.source_tap : 0;
    }
    int64_t channel = 0;
    for (; channel + lanes <= run.channels; channel += lanes) {
      add_vector<combine, taps, pixels, false>(run, row, channel, spatial, sums);
    }
    if (channel < run.channels) {
      add_vector<combine, taps, pixels, true>(run, row, run.channels - lanes, spatial, sums);
    }
    for (int t = 0; t < taps; ++t) add_lanes<pixels>(weight_sums + t * run.weight_tap, sums[t]);
    row.source += run.source_tap_row;
    row.channel_filter += run.filter_tap_row;
    row.channel_sums += run.filter_tap_row;
    weights += run.spatial.tap_row;
    weight_sums += run.weight_tap_row;
  }
}

template <Combine combine, int taps, typename T, typename A>
DDF_NOINLINE void add_run(const TapRun<T, A>& run) {
  int64_t pixel = 0;
  for (; pixel + kGradientPixels <= run.pixels; pixel += kGradientPixels) {
    add_pixels<combine, taps, kGradientPixels>(run, pixel);
  }
  if (pixel + 2 <= run.pixels) {
    add_pixels<combine, taps, 2>(run, pixel);
    pixel += 2;
  }
  if (pixel < run.pixels) add_pixels<combine, taps, 1>(run, pixel);
}

template <typename T>
class PixelGradientWorker : GradientWorker<T> {
  using Base = GradientWorker<T>;
  using Base::call_, Base::rows_, Base::columns_, Base::weights_, Base::weight_sums_, Base::row_range_,
      Base::column_range_, Base::spatial_, Base::loads_spatial_, Base::tap;
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
    loads_spatial_ = !__is_same(T, A) || call.normalize;  // else its elements are read where they lie
  }

  void run(int64_t task) {
    Base::run_task(task, [&](int64_t image, int64_t head, A* partial_sums) {
      for (int64_t m = 0; m < columns_.taps; ++m) {
        const Range served = outputs_on_map(columns_, {m, m + 1});
        const int64_t begin = larger(served.begin, column_range_.begin);
        served_[m] = {begin, larger(smaller(served.end, column_range_.end), begin)};
      }
      view_ = view(image, head);
      add_image(image, head);
      store_channel_sums(partial_sums + head * per_head_ * taps_of(call_));
    });
  }

 private:
  // The spatial filter at the tile's first pixel.
  SpatialView<A> view(int64_t image, int64_t head) const {
    if constexpr (__is_same(T, A)) {
      if (!loads_spatial_) {
        auto view = spatial_in_place<A>(call_, rows_, columns_, row_range_.begin, image, head);
        view.data += column_range_.begin * view.column;
        return view;
      }
    }
    return spatial_.view(0, 0, weights_);
  }

  void add_image(int64_t image, int64_t head) {
    const Range channels{head * per_head_, (head + 1) * per_head_};
    load_filters_by_tap<T>(call_, rows_, columns_, image, channels, filters_);
    const int64_t sums = rows_.taps * columns_.taps * per_head_;
    __builtin_memset(channel_sums_, 0, sums * sizeof(A));
    __builtin_memset(recent_sums_, 0, sums * sizeof(A));
    source_ = at<const T>(call_.input, image, channels.begin);
    grad_ = at<const T>(call_.output, image, channels.begin);
    for (int64_t channel = 0; channel < per_head_;) {
      // the rest joins the last block where it would not fill a vector
      const int64_t left = per_head_ - channel;
      const int64_t count = left < kGradientChannels + kLanes<A> ? left : kGradientChannels;
      add_channels({channel, channel + count});
      channel += count;
    }
  }

  // All pixels of the tile, for a block of channels.
  void add_channels(Range channels) {
    int64_t recent_pixels = 0;
    for (int64_t row = row_range_.begin; row < row_range_.end; ++row) {
      int64_t m = 0;
      for (; m + kGradientTaps <= columns_.taps; m += kGradientTaps) add_tap_columns(row, m, channels);
      for (; m < columns_.taps; ++m) add_taps<1>(row, m, served_[m], channels);
      recent_pixels += column_range_.size();
      if (recent_pixels < 128 && row + 1 < row_range_.end) continue;
      end_recent_sums(channels);
      recent_pixels = 0;
    }
  }

  // A few taps side by side of each row: together where all meet the map, fewer at the borders.
  void add_tap_columns(int64_t row, int64_t m, Range channels) {
    Range shared = served_[m];
    for (int64_t t = m + 1; t < m + kGradientTaps; ++t) {
      shared = {larger(shared.begin, served_[t].begin), smaller(shared.end, served_[t].end)};
    }
    shared.end = larger(shared.begin, shared.end);
    add_taps<kGradientTaps>(row, m, shared, channels);
    if constexpr (kGradientTaps == 3) {
      const bool together = shared.size() > 0;
      if (together) {
        add_taps<2>(row, m + 1, {served_[m + 1].begin, shared.begin}, channels);
        add_taps<2>(row, m, {shared.end, served_[m + 1].end}, channels);
        add_taps<1>(row, m + 2, {served_[m + 2].begin, served_[m + 1].begin}, channels);
        add_taps<1>(row, m, {served_[m + 1].end, served_[m].end}, channels);
      } else {
        for (int64_t t = m; t < m + 3; ++t) add_taps<1>(row, t, served_[t], channels);
      }
    }
  }

  template <int taps>
  void add_taps(int64_t row, int64_t m, Range columns, Range channels) {
    if (columns.size() <= 0) return;
    const TapRun<T, A> run = run_of(row, m, columns, channels);
    with_combine(call_, [&]<Combine combine>() { add_run<combine, taps>(run); });
  }

  // Sums of a few pixels are added as a whole, which keeps the rounding errors of large maps small.
  void end_recent_sums(Range channels) {
    for (int64_t t = 0; t < rows_.taps * columns_.taps; ++t) {
      A *sums = channel_sums_ + t * per_head_, *recent = recent_sums_ + t * per_head_;
      for (int64_t c = channels.begin; c < channels.end; ++c) {
        sums[c] += recent[c];
        recent[c] = 0;
      }
    }
  }

  // One row of outputs at the taps of all rows that meet the map, from column m on.
  TapRun<T, A> run_of(int64_t row, int64_t m, Range columns, Range channels) const {
    const Range tap_rows = taps_on_map(rows_, row);
    const int64_t n = tap_rows.begin, first_column = columns.begin - column_range_.begin;
    const int64_t filter = (n * columns_.taps + m) * per_head_ + channels.begin;
    const int64_t source_row = rows_.source_origin + row * rows_.source_step + n * rows_.source_tap_step;
    const int64_t source_column =
        columns_.source_origin + columns.begin * columns_.source_step + m * columns_.source_tap_step;
    const int64_t line = taps_of(call_) * spatial_.pitch();
    TapRun<T, A> run{};
    run.pixels = columns.size();
    run.channels = channels.size();
    run.tap_rows = tap_rows.size();
    run.source = source_ + source_row * call_.input.row + source_column * call_.input.column + channels.begin;
    run.source_pixel = columns_.source_step * call_.input.column;
    run.source_tap = columns_.source_tap_step * call_.input.column;
    run.source_tap_row = rows_.source_tap_step * call_.input.row;
    run.next_source = rows_.source_step * call_.input.row;
    run.fetches_more = call_.stride > 1 && exceeds_caches(call_, call_.height * call_.width);
    run.grad = grad_ + row * call_.output.row + columns.begin * call_.output.column + channels.begin;
    run.grad_pixel = call_.output.column;
    run.next_grad = call_.output.row;
    run.spatial = view_;
    run.spatial.data += (row - row_range_.begin) * view_.row + (columns.begin - column_range_.begin) * view_.column +
                        n * view_.tap_row + m * view_.tap_column;
    run.weight_sums = weight_sums_ + (row - row_range_.begin) * line + tap(n, m) * spatial_.pitch() + first_column;
    run.weight_tap = spatial_.pitch();
    run.weight_tap_row = call_.kernel_size * spatial_.pitch();
    run.channel_filter = filters_ + filter;
    run.channel_sums = recent_sums_ + filter;
    run.filter_tap = per_head_;
    run.filter_tap_row = columns_.taps * per_head_;
    return run;
  }

  void store_channel_sums(A* partial_sums) {
    const int64_t taps = taps_of(call_);
    if (has_all_taps(call_, rows_, columns_)) {
      return transpose(partial_sums, taps, channel_sums_, per_head_, taps, per_head_);
    }
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
  SpatialView<A> view_{};
};

}  // namespace
}  // namespace ddf
