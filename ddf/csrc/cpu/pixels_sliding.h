// Rows of channels_last maps, three taps in each direction, at stride 1.
//
// A row of outputs is taken at once for a few vectors of channels, whose filter stays in registers. Each vector of the
// map is loaded once for a row and serves three outputs: the one at its column, the one before and the one behind,
// whose sums are all under way. So nine taps take three loads of the map where tiles of pixels take nine, and as many
// of the filters. Outputs whose columns stand a tap apart are neighbours here: a dilated filter sees every second
// column, and then the others.
#pragma once

#include "pixels.h"

namespace ddf {
namespace {

// With AVX-512: there are registers enough for 18 vectors of the filter and 6 sums. With 16 of them this way is slower;
// elsewhere it was not measured.
constexpr bool kSlides = kVectorBytes >= 64;

// Output rows and columns of one image and head; distances in elements.
template <typename T>
struct SlidingTile {
  using A = typename Computed<T>::type;
  Range rows, columns;
  const T* source;  // the map's first pixel
  int64_t source_row, source_column;
  SpatialView<A> spatial;   // at the tile's first output
  const A* channel_filter;  // (taps, filter_tap)
  int64_t filter_tap;
  T* output;  // the map's first pixel
  int64_t output_row, output_column;
};

// Neighbours in one output row.
template <typename T>
struct SlidingRow {
  using A = typename Computed<T>::type;
  int64_t count;                // outputs
  bool has_earlier, has_later;  // whether the map has columns on either side of theirs
  const T* source;              // at the first output's column, the first tap row that meets the map
  int64_t source_column, source_tap_row;
  const A* spatial;  // at the first output, the same tap row
  int64_t spatial_column, spatial_tap_row, spatial_tap_column;
  const A* channel_filter;  // at the same tap row
  int64_t filter_tap;
  T* output;
  int64_t output_column;
  int64_t ahead, output_ahead;  // from the last row that is read, and that written, to those of the next; or 0
};

template <int tap_rows, int vectors, typename T, typename V>
DDF_INLINE void load_filter(const SlidingRow<T>& row, int64_t channel, V (&filter)[tap_rows][3][vectors]) {
  using A = typename Computed<T>::type;
  for (int n = 0; n < tap_rows; ++n) {
    for (int m = 0; m < 3; ++m) {
      const A* tap = row.channel_filter + (n * 3 + m) * row.filter_tap + channel;
      for (int v = 0; v < vectors; ++v) filter[n][m][v] = load(tap + v * kLanes<A>);
    }
  }
}

// Adds one column of the map to the outputs that taps [first, last) join it to: sums[0] is that of the output behind
// it, sums[1] that of the output there, sums[2] that of the output before.
template <Combine combine, int first, int last, int tap_rows, int vectors, typename T, typename V>
DDF_INLINE void add_column(const SlidingRow<T>& row, const V (&filter)[tap_rows][3][vectors], int64_t column,
                           int64_t channel, V (&sums)[3][vectors]) {
  using A = typename Computed<T>::type;
  const T* x = row.source + column * row.source_column + channel;
  const A* s = row.spatial + (column + 1) * row.spatial_column;
#pragma GCC unroll 3
  for (int n = 0; n < tap_rows; ++n) {
    V spatial[3];
    for (int m = first; m < last; ++m) spatial[m] = broadcast(s[m * (row.spatial_tap_column - row.spatial_column)]);
    for (int v = 0; v < vectors; ++v) {
      const V value = load(x + v * kLanes<A>);
      for (int m = first; m < last; ++m) sums[m][v] += tap_weight<combine>(filter[n][m][v], spatial[m]) * value;
    }
    x += row.source_tap_row;
    s += row.spatial_tap_row;
  }
}

template <Combine combine, int tap_rows, int vectors, typename T>
DDF_NOINLINE void gather_row(const SlidingRow<T>& row, int64_t channel) {
  using A = typename Computed<T>::type;
  constexpr int lanes = kLanes<A>;
  Vector<A> filter[tap_rows][3][vectors], sums[3][vectors];
  load_filter(row, channel, filter);
  clear(sums);
  T* output = row.output + channel;
  const auto add = [&]<int first, int last>(int64_t column)
                       DDF_ALWAYS_INLINE { add_column<combine, first, last>(row, filter, column, channel, sums); };
  const auto advance = [&] DDF_ALWAYS_INLINE {
    for (int v = 0; v < vectors; ++v) {
      sums[2][v] = sums[1][v];
      sums[1][v] = sums[0][v];
    }
    clear(sums[0]);
  };
  const auto finish = [&] DDF_ALWAYS_INLINE {
    for (int v = 0; v < vectors; ++v) store(output + v * lanes, sums[2][v]);
    output += row.output_column;
  };
  const T* upcoming = row.source + (tap_rows - 1) * row.source_tap_row + row.ahead + channel;
  const auto prefetch = [&] DDF_ALWAYS_INLINE {
    for (int v = 0; v < vectors; ++v) {
      __builtin_prefetch(upcoming + v * lanes, 0, 2);
      __builtin_prefetch(output + row.output_ahead + v * lanes, 1, 2);
    }
    upcoming += row.source_column;
  };
  if (row.has_earlier) {
    add.template operator()<0, 1>(-1);
    advance();
  }
  if (row.count > 1) {
    prefetch();
    add.template operator()<0, 2>(0);
    advance();
    for (int64_t column = 1; column + 1 < row.count; ++column) {
      prefetch();
      add.template operator()<0, 3>(column);
      finish();
      advance();
    }
    prefetch();
    add.template operator()<1, 3>(row.count - 1);
    finish();
  } else {
    add.template operator()<1, 2>(0);
  }
  advance();
  if (row.has_later) add.template operator()<2, 3>(row.count);
  finish();
}

// All channels of a head; the last vector overlaps the one before and computes the same values again.
template <Combine combine, int tap_rows, typename T>
DDF_NOINLINE void gather_row_of(const SlidingRow<T>& row, int64_t channels) {
  constexpr int lanes = kLanes<typename Computed<T>::type>, most = 2;
  int64_t channel = 0;
  for (; channel + most * lanes <= channels; channel += most * lanes) gather_row<combine, tap_rows, most>(row, channel);
  for (; channel < channels; channel += lanes) {
    gather_row<combine, tap_rows, 1>(row, smaller(channel, channels - lanes));
  }
}

// Whether the axes are those of this kernel.
inline bool slides(const Axis& rows, const Axis& columns) {
  const auto fits = [](const Axis& axis) { return axis.taps == 3 && axis.source_step == 1 && axis.output_step == 1; };
  return kSlides && fits(rows) && fits(columns);
}

// A few columns at a time, of all rows: so what one row reads is in the second cache for the next one, and what that
// one needs besides can be asked for in time.
template <typename T>
void slide(const Call& call, const Axis& rows, const Axis& columns, const SlidingTile<T>& tile) {
  constexpr int64_t kBlockElements = 8 << 10;
  const int64_t channels = channels_per_head(call), step = columns.source_tap_step;
  const int64_t block = larger<int64_t>(kBlockElements / channels / step, 2) * step;
  SlidingRow<T> run{};
  run.source_column = step * tile.source_column;
  run.source_tap_row = rows.source_tap_step * tile.source_row;
  run.spatial_column = step * tile.spatial.column;
  run.spatial_tap_row = tile.spatial.tap_row;
  run.spatial_tap_column = tile.spatial.tap_column;
  run.filter_tap = tile.filter_tap;
  run.output_column = step * tile.output_column;
  const auto run_neighbours = [&](int64_t row, int64_t first, int64_t end) {
    const Range taps = taps_on_map(rows, row);
    const int64_t source_row = rows.source_origin + row + taps.begin * rows.source_tap_step;
    run.count = ceil_divide(end - first, step);
    run.has_earlier = first >= step;
    run.has_later = first + run.count * step < columns.source_size;
    run.source = tile.source + source_row * tile.source_row + first * tile.source_column;
    run.spatial = tile.spatial.data + (row - tile.rows.begin) * tile.spatial.row + taps.begin * tile.spatial.tap_row +
                  (first - tile.columns.begin) * tile.spatial.column;
    run.channel_filter = tile.channel_filter + taps.begin * 3 * tile.filter_tap;
    run.output = tile.output + row * tile.output_row + first * tile.output_column;
    run.ahead = row + 1 < tile.rows.end ? tile.source_row : 0;
    run.output_ahead = row + 1 < tile.rows.end ? tile.output_row : 0;
    with_combine(call, [&]<Combine combine>() {
      if (taps.size() == 3) return gather_row_of<combine, 3>(run, channels);
      if (taps.size() == 2) return gather_row_of<combine, 2>(run, channels);
      gather_row_of<combine, 1>(run, channels);
    });
  };
  for (int64_t begin = tile.columns.begin; begin < tile.columns.end; begin += block) {
    const int64_t end = smaller(begin + block, tile.columns.end);
    for (int64_t row = tile.rows.begin; row < tile.rows.end; ++row) {
      for (int64_t first = begin; first < smaller(begin + step, end); ++first) run_neighbours(row, first, end);
    }
  }
}

}  // namespace
}  // namespace ddf
