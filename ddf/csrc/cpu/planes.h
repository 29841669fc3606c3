// Rows of channels in scratch: what the kernels for contiguous maps read.
#pragma once

#include "masks.h"
#include "scratch.h"
#include "storage.h"

namespace ddf {
namespace {

constexpr int kChannelGroup = 4;       // channels that share every load of the spatial filter
constexpr int64_t kPlaneAhead = 1024;  // elements: the prefetch_distance of planes that are copied one by one

// Whether the planes of a map lie in one piece each.
inline bool has_whole_planes(const Array& map, int64_t width) { return map.column == 1 && map.row == width; }

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

// Deals `count` elements out, in turns: the first to `even`, the second to `odd`. Made once for many rows.
template <typename T, typename A>
class Dealer {
 public:
  explicit Dealer(int64_t count) : count_(count), pairs_(count / (2 * lanes) * 2 * lanes) {
#if defined(__AVX512F__)
    const int64_t left = count - pairs_;
    first_ = first_lanes(left);
    second_ = first_lanes(left - lanes);
    even_ = first_lanes((left + 1) / 2);
    odd_ = first_lanes(left / 2);
#endif
  }

  DDF_INLINE void operator()(A* even, A* odd, const T* from) const {
    int64_t i = 0;
    for (; i < pairs_; i += 2 * lanes) {
      const Vector<A> first = load(from + i), second = load(from + i + lanes);
      store(even + i / 2, every_second<0, A>(first, second));
      store(odd + i / 2, every_second<1, A>(first, second));
    }
#if defined(__AVX512F__)
    if constexpr (__is_same(A, float)) {
      Vector<A> first, second;
      if constexpr (__is_same(T, float)) {
        first = load_masked(from + i, first_);
        second = load_masked(from + i + lanes, second_);
      } else {
        T padded[2 * lanes] = {};
        __builtin_memcpy(padded, from + i, (count_ - i) * sizeof(T));
        first = load(padded);
        second = load(padded + lanes);
      }
      store_masked(even + i / 2, every_second<0, A>(first, second), even_);
      return store_masked(odd + i / 2, every_second<1, A>(first, second), odd_);
    }
#endif
    for (; i + 2 <= count_; i += 2) {
      even[i / 2] = Conversion<T, 1>::load(from + i);
      odd[i / 2] = Conversion<T, 1>::load(from + i + 1);
    }
    if (i < count_) even[i / 2] = Conversion<T, 1>::load(from + i);
  }

 private:
  static constexpr int lanes = kLanes<A>;

  int64_t count_, pairs_;  // elements, and those of them that fill pairs of vectors
#if defined(__AVX512F__)
  Mask first_, second_, even_, odd_;  // of the others
#endif
};

// Copies the rows of one channel that a tile reads, to (slots, pitch). Places outside of the map are not written: they
// are zeros from before, and the same for every channel. `ahead`: a prefetch_distance.
template <typename T, typename A>
DDF_NOINLINE void load_plane(const RowSlots& row_slots, int64_t height, const ColumnSlots& slots, const T* from,
                             int64_t row_stride, int64_t column_stride, int64_t ahead, A* to) {
  const auto for_rows = [&](const auto& copy_row) {
    for (int64_t slot = 0; slot < row_slots.count; ++slot) {
      const int64_t row = row_slots.source_row(slot);
      if (row >= 0 && row < height) copy_row(from + row * row_stride, to + slot * slots.pitch);
    }
  };
  const auto first_column = [&](int64_t remainder) {
    return slots.position + remainder + slots.on_map(remainder).begin * slots.step;
  };
  if (slots.step == 2 && column_stride == 1 && slots.is_read(0) && slots.is_read(1)) {
    const int64_t even = first_column(1) < first_column(0) ? 1 : 0;
    const Range evens = slots.on_map(even), odds = slots.on_map(1 - even);
    if (evens.size() <= 0) return;
    A *to_even = to + even * slots.length + evens.begin, *to_odd = to + (1 - even) * slots.length + odds.begin;
    const int64_t count = evens.size() + larger<int64_t>(odds.size(), 0);
    const Dealer<T, A> deal(count);
    return for_rows([&](const T* source, A* row) {
      for (int64_t i = 0; ahead > 0 && i < count; i += 64 / sizeof(T)) __builtin_prefetch(source + i + ahead);
      deal(to_even + (row - to), to_odd + (row - to), source + first_column(even));
    });
  }
  for (int64_t remainder = 0; remainder < slots.step; ++remainder) {
    const auto [begin, end] = slots.on_map(remainder);
    if (!slots.is_read(remainder) || end <= begin) continue;
    const int64_t place = remainder * slots.length + begin, count = end - begin;
    const int64_t offset = first_column(remainder) * column_stride, stride = slots.step * column_stride;
    for_rows([&](const T* source, A* row) {
      if (stride == 1) return copy(row + place, source + offset, count);
      copy_strided(row + place, 1, source + offset, stride, count);
    });
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
    if (rows.tap_step == -1 && columns.tap_step == -1 && rows.first_tap == known_taps - 1 &&
        columns.first_tap == known_taps - 1 && filter.column == 1 && filter.row == known_taps) {
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t t = 0; t < taps; ++t) to[c * taps + t] = from[c * filter.channel + taps - 1 - t];
      }
      return to;
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
