// Rows of channels in scratch: what the kernels for contiguous maps read.
#pragma once

#include "scratch.h"
#include "vector.h"

namespace ddf {
namespace {

constexpr int kChannelGroup = 4;  // channels that share every load of the spatial filter

// The kernels for 3, 5 or 7 taps in both directions that are known to the compiler: made for float and whole groups,
// 5 and 7 where vectors are wide.
template <typename A, int channels>
constexpr bool kHasKnownTaps = __is_same(A, float) && channels == kChannelGroup;
constexpr int64_t kMostKnownTaps = kVectorBytes > 16 ? 7 : 3;

// Their number of taps, 0 where they do not serve.
template <typename A, int channels>
int64_t known_taps(const Axis& rows, const Axis& columns) {
  const bool known = rows.taps > 1 && rows.taps <= kMostKnownTaps && rows.taps % 2 == 1;
  return kHasKnownTaps<A, channels> && known && columns.taps == rows.taps ? rows.taps : 0;
}

// Every second element, as many as asked for and no element beyond the last of them.
template <typename T, typename A>
DDF_INLINE void copy_even(A* to, const T* from, int64_t count) {
  constexpr int lanes = kLanes<A>;
  int64_t i = 0;
  for (; i + lanes < count; i += lanes) {
    store(to + i, even_lanes<A>(load(from + 2 * i), load(from + 2 * i + lanes)));
  }
  for (; i < count; ++i) to[i] = Conversion<T, 1>::load(from + 2 * i);
}

// Copies the rows of one channel that a tile reads, to (slots, pitch). Places outside of the map are not written: they
// are zeros from before, and the same for every channel.
template <typename T, typename A>
DDF_NOINLINE void load_plane(const RowSlots& row_slots, int64_t height, const ColumnSlots& slots, const T* from,
                             int64_t row_stride, int64_t column_stride, A* to) {
  const int64_t stride = slots.step * column_stride;
  for (int64_t remainder = 0; remainder < slots.step; ++remainder) {
    if (!slots.is_read(remainder)) continue;
    const auto [begin, end] = slots.on_map(remainder);
    const int64_t count = end - begin;
    if (count <= 0) continue;
    const T* source = from + (slots.position + remainder + begin * slots.step) * column_stride;
    A* target = to + remainder * slots.length + begin;
    for (int64_t slot = 0; slot < row_slots.count; ++slot, target += slots.pitch) {
      const int64_t row = row_slots.source_row(slot);
      if (row < 0 || row >= height) continue;
      if (stride == 1) {
        copy(target, source + row * row_stride, count);
      } else if (stride == 2) {
        copy_even(target, source + row * row_stride, count);
      } else {
        copy_strided(target, 1, source + row * row_stride, stride, count);
      }
    }
  }
}

// The channel filters of `channels` neighbours at the taps of both axes. A known number of taps lies as in the tensor,
// (channels, taps), where it is often found without a copy; any other as (taps, channels).
template <typename T, typename A>
DDF_NOINLINE const A* load_channel_filters(const Array& filter, const T* from, const Axis& rows, const Axis& columns,
                                           int64_t channels, int64_t known_taps, A* to) {
  const int64_t taps = known_taps * known_taps;
  if constexpr (__is_same(T, A)) {
    if (known_taps > 0 && rows.tap_step == 1 && columns.tap_step == 1 && filter.column == 1 &&
        filter.row == known_taps && filter.channel == taps) {
      return from + rows.first_tap * known_taps + columns.first_tap;
    }
  }
  const int64_t channel_step = known_taps > 0 ? taps : 1, tap_step = known_taps > 0 ? 1 : channels;
  A* target = to;
  for (int64_t n = 0; n < rows.taps; ++n) {
    for (int64_t m = 0; m < columns.taps; ++m, target += tap_step) {
      const T* tap = at_tap(filter, from, rows, columns, n, m);
      for (int64_t c = 0; c < channels; ++c) {
        target[c * channel_step] = Conversion<T, 1>::load(tap + c * filter.channel);
      }
    }
  }
  return to;
}

}  // namespace
}  // namespace ddf
