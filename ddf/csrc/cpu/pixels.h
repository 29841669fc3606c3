// What the kernels for channels_last maps share: they read the maps where they lie, many channels at a time, and leave
// out the taps that miss the map.
#pragma once

#include "scratch.h"
#include "spatial_rows.h"
#include "storage.h"
#include "transpose.h"

namespace ddf {
namespace {

// Whether a map's channels lie side by side, enough of them in each head to fill a vector.
template <typename T>
bool has_pixels(const Call& call, const Array& map) {
  return map.channel == 1 && channels_per_head(call) >= kLanes<typename Computed<T>::type>;
}

// The taps of an axis that meet the map for output q.
inline Range taps_on_map(const Axis& axis, int64_t q) {
  const int64_t first = axis.source_origin + q * axis.source_step, step = axis.source_tap_step;
  const int64_t begin = first < 0 ? ceil_divide(-first, step) : 0;
  const int64_t end = first < axis.source_size ? (axis.source_size - 1 - first) / step + 1 : 0;
  return {smaller(begin, axis.taps), larger(smaller(end, axis.taps), smaller(begin, axis.taps))};
}

// The outputs for which taps [taps.begin, taps.end) meet the map.
inline Range outputs_on_map(const Axis& axis, Range taps) {
  const int64_t first = axis.source_origin + taps.begin * axis.source_tap_step;
  const int64_t last = axis.source_origin + (taps.end - 1) * axis.source_tap_step;
  const int64_t begin = first < 0 ? ceil_divide(-first, axis.source_step) : 0;
  const int64_t end = last < axis.source_size ? (axis.source_size - 1 - last) / axis.source_step + 1 : 0;
  return {smaller(begin, axis.outputs), larger(smaller(end, axis.outputs), smaller(begin, axis.outputs))};
}

// Whether the axes have all taps of the kernel, in its order or the reverse.
inline bool has_all_taps(const Call& call, const Axis& rows, const Axis& columns) {
  return rows.taps * columns.taps == taps_of(call) && rows.tap_step == columns.tap_step &&
         (rows.tap_step == 1 || rows.tap_step == -1);
}

// The channel filters of one image at the taps of both axes, to (taps, channels).
template <typename T, typename A>
DDF_NOINLINE void load_filters_by_tap(const Call& call, const Axis& rows, const Axis& columns, int64_t image,
                                      Range channels, A* to) {
  const Array& filter = call.channel_filter;
  const int64_t taps = rows.taps * columns.taps;
  if constexpr (__is_same(T, A)) {
    if (has_all_taps(call, rows, columns) && filter.column == 1 && filter.row == columns.taps) {
      const bool ascends = rows.tap_step > 0;
      transpose(ascends ? to : to + (taps - 1) * channels.size(), ascends ? channels.size() : -channels.size(),
                at<const T>(filter, image, channels.begin), filter.channel, channels.size(), taps);
      return;
    }
  }
  for (int64_t n = 0; n < rows.taps; ++n) {
    for (int64_t m = 0; m < columns.taps; ++m, to += channels.size()) {
      const T* tap = at_tap(filter, at<const T>(filter, image, channels.begin), rows, columns, n, m);
      copy_strided(to, 1, tap, filter.channel, channels.size());
    }
  }
}

// The map that a tile of output rows and columns reads: for row r of the tile and tap row n, column x of the map and a
// channel, the value at data + r * row + n * tap_row + x * column + channel. Half precision is converted once, into
// scratch, not at every tap.
template <typename T>
class PixelRows {
  using A = typename Computed<T>::type;

 public:
  const A* data = nullptr;
  int64_t row = 0, tap_row = 0, column = 0;

  static int64_t scratch_size(const Call& call, const AxisSet& rows, const Axis& columns, int64_t tile_rows,
                              int64_t tile_columns) {
    if (__is_same(T, A)) return 0;
    return RowSlots(rows, {0, tile_rows}).count * most_columns_read(columns, tile_columns) * call.channels;
  }

  PixelRows(const Call& call, const AxisSet& rows, const Axis& columns, Range range, Range column_range,
            const Array& source, int64_t image, A* scratch) {
    const T* map = at<const T>(source, image, 0);
    if constexpr (__is_same(T, A)) {
      data = map + (rows[0].source_origin + range.begin * rows[0].source_step) * source.row;
      row = rows[0].source_step * source.row;
      tap_row = rows[0].source_tap_step * source.row;
      column = source.column;
    } else {
      const RowSlots slots(rows, range);
      const Range read = columns_read(columns, column_range);
      const int64_t line = read.size() * call.channels;
      for (int64_t slot = 0; slot < slots.count; ++slot) {
        const int64_t y = slots.source_row(slot);
        if (y < 0 || y >= rows[0].source_size) continue;
        const T* from = map + y * source.row + read.begin * source.column;
        if (source.column == call.channels) {
          copy(scratch + slot * line, from, line);
          continue;
        }
        for (int64_t x = 0; x < read.size(); ++x) {
          copy(scratch + slot * line + x * call.channels, from + x * source.column, call.channels);
        }
      }
      data = scratch - read.begin * call.channels;
      row = slots.row_step * line;
      tap_row = slots.tap_step(0) * line;
      column = call.channels;
    }
  }

 private:
  // The columns of the map between the first and the last tap of some outputs.
  static Range columns_read(const Axis& columns, Range outputs) {
    const int64_t first = columns.source_origin + outputs.begin * columns.source_step;
    const int64_t last = columns.source_origin + (outputs.end - 1) * columns.source_step +
                         larger<int64_t>(columns.taps - 1, 0) * columns.source_tap_step;
    const int64_t begin = smaller(larger<int64_t>(first, 0), columns.source_size);
    return {begin, larger(smaller(last + 1, columns.source_size), begin)};
  }

  static int64_t most_columns_read(const Axis& columns, int64_t outputs) {
    const int64_t span =
        (outputs - 1) * columns.source_step + larger<int64_t>(columns.taps - 1, 0) * columns.source_tap_step + 1;
    return smaller(span, columns.source_size);
  }
};

}  // namespace
}  // namespace ddf
