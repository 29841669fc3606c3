// The inner loop over channels_last maps. The accumulators of a few pixels and several vectors of channels stay in
// registers over all taps; every vector of the channel filter serves all these pixels, every element of the spatial
// filter all channels.
#pragma once

#include "masks.h"
#include "pixels.h"
#include "streaming.h"

namespace ddf {
namespace {

// Register tiles of some pixels, side by side or one below the other, and side by side themselves, that the same taps
// serve; distances in elements.
template <typename T, typename A>
struct PixelRun {
  int64_t tiles, source_tile, spatial_tile, output_tile;  // how many, and from one to the next
  const A* source;                                        // at the first pixel, tap (0, 0), which may lie off the map
  int64_t source_pixel, source_tap_row, source_tap_column;
  SpatialView<A> spatial;  // data at the first pixel; of its distances those between taps count
  int64_t spatial_pixel;
  const A* channel_filter;
  int64_t filter_tap_row, filter_tap_column;
  T* output;
  int64_t output_pixel;
  int64_t source_ahead, output_ahead;  // to the lines that are asked for, of the source at its tap (0, 0); 0: none
  bool streams;
  Range tap_rows, tap_columns;
};

// The number of taps in a row, as far as the compiler may know it: 3, few enough for one sum, or any.
constexpr int kFewTaps = 0, kAnyTaps = -1;

template <int pixels, int vectors, typename T, typename A>
DDF_INLINE void store_pixels(const PixelRun<T, A>& run, int64_t channel, const Vector<A> (&sums)[pixels][vectors]) {
  constexpr int lanes = kLanes<A>;
  T* output = run.output + channel;
  if constexpr (__is_same(T, BFloat16) && vectors % 2 == 0 && !kHasMasks) {
    if (__builtin_expect(!any_nan(sums), true)) {
      for (int p = 0; p < pixels; ++p) {
        for (int v = 0; v < vectors; v += 2) {
          T* to = output + p * run.output_pixel + v * lanes;
          const auto pair = narrowed_pair(sums[p][v], sums[p][v + 1]);
          run.streams ? stream_raw(to, pair) : store_raw(to, pair);
        }
      }
      return;
    }
  }
  for (int p = 0; p < pixels; ++p) {
    for (int v = 0; v < vectors; ++v) {
      T* to = output + p * run.output_pixel + v * lanes;
      run.streams ? stream(to, sums[p][v]) : store(to, sums[p][v]);
    }
  }
}

template <Combine combine, int taps, int pixels, int vectors, typename T, typename A>
DDF_INLINE void gather_pixels(const PixelRun<T, A>& run, int64_t channel) {
  constexpr int lanes = kLanes<A>;
  Vector<A> sums[pixels][vectors];
  [[maybe_unused]] Vector<A> earlier_rows[pixels][vectors];
  clear(sums);
  if constexpr (taps == kAnyTaps) clear(earlier_rows);
  const int64_t first_row = run.tap_rows.begin, first_column = run.tap_columns.begin;
  const int64_t tap_columns = taps > 0 ? taps : run.tap_columns.size();
  const int64_t pixel = run.source_pixel, spatial_pixel = run.spatial_pixel, output_pixel = run.output_pixel;
  const A* x_row = run.source + first_row * run.source_tap_row + first_column * run.source_tap_column + channel;
  const A* s_row = run.spatial.data + first_row * run.spatial.tap_row + first_column * run.spatial.tap_column;
  const A* c_row = run.channel_filter + first_row * run.filter_tap_row + first_column * run.filter_tap_column + channel;
  for (int p = 0; p < pixels && run.source_ahead != 0; ++p) {
    const A* ahead = run.source + run.source_ahead + p * pixel + channel;
    for (int v = 0; v < vectors; ++v) __builtin_prefetch(ahead + v * lanes, 0, 2);
  }
  for (int p = 0; p < pixels && run.output_ahead != 0; ++p) {
    const T* ahead = run.output + run.output_ahead + p * output_pixel + channel;
    for (int v = 0; v < vectors; ++v) __builtin_prefetch(ahead + v * lanes, 1, 2);
  }
  for (int64_t n = first_row; n < run.tap_rows.end; ++n) {
    const A *x = x_row, *s = s_row, *c = c_row;
#pragma GCC unroll 3
    for (int64_t m = 0; m < tap_columns; ++m) {
      Vector<A> spatial[pixels];
      const A* at_pixel[pixels];
      for (int p = 0; p < pixels; ++p) {
        spatial[p] = broadcast(s[p * spatial_pixel]);
        at_pixel[p] = opaque(p == 0 ? x : at_pixel[p - 1] + pixel);
      }
      for (int v = 0; v < vectors; ++v) {
        const Vector<A> filter = load(c + v * lanes);
        for (int p = 0; p < pixels; ++p) {
          sums[p][v] += tap_weight<combine>(filter, spatial[p]) * load(at_pixel[p] + v * lanes);
        }
      }
      x = opaque(x + run.source_tap_column);
      s = opaque(s + run.spatial.tap_column);
      c = opaque(c + run.filter_tap_column);
    }
    x_row += run.source_tap_row;
    s_row += run.spatial.tap_row;
    c_row += run.filter_tap_row;
    if constexpr (taps == kAnyTaps) {
      end_tap_row<pixels * vectors>(&sums[0][0], &earlier_rows[0][0], n + 1 == run.tap_rows.end);
    }
  }
  store_pixels(run, channel, sums);
}

// All channels of a head. The last vector overlaps the one before: it computes the same values again.
template <Combine combine, int taps, int pixels, typename T, typename A>
DDF_NOINLINE void gather_channels(PixelRun<T, A> run, int64_t channels) {
  constexpr int lanes = kLanes<A>, most = kAccumulators / (pixels > 1 ? pixels : 2);
  for (int64_t tile = 0; tile < run.tiles; ++tile) {
    int64_t channel = 0;
    for (; channel + most * lanes <= channels; channel += most * lanes) {
      gather_pixels<combine, taps, pixels, most>(run, channel);
    }
    for (; channel + lanes <= channels; channel += lanes) gather_pixels<combine, taps, pixels, 1>(run, channel);
    if (channel < channels) gather_pixels<combine, taps, pixels, 1>(run, channels - lanes);
    run.source += run.source_tile;
    run.spatial.data += run.spatial_tile;
    run.output += run.output_tile;
  }
}

template <Combine combine, int pixels, typename T, typename A>
void gather_channels_of(const PixelRun<T, A>& run, int64_t channels) {
  const int64_t taps = run.tap_columns.size();
  if (taps == 3) return gather_channels<combine, 3, pixels>(run, channels);
  if (taps <= kMostTapsInOneSum) return gather_channels<combine, kFewTaps, pixels>(run, channels);
  gather_channels<combine, kAnyTaps, pixels>(run, channels);
}

}  // namespace
}  // namespace ddf
