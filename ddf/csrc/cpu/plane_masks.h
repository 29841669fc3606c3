// The lanes of a plane, taken as one long row, whose taps meet the map.
#pragma once

#include "long_rows.h"
#include "masks.h"

namespace ddf {
namespace {

#if defined(__AVX512F__)
// The vectors of a plane from which no tap, and no read of `beyond` elements more, goes outside of it.
inline Range inner_vectors(const Axis& rows, const Axis& columns, int64_t beyond) {
  const Range on_map = outputs_on_map(rows, {0, rows.taps});
  const int64_t width = columns.outputs, positions = rows.outputs * width;
  const int64_t first = tap_distance(rows, columns, 0, 0);
  const int64_t last = tap_distance(rows, columns, rows.taps - 1, columns.taps - 1);
  return {ceil_divide(larger(on_map.begin * width, -first), kLanes<float>),
          smaller(on_map.end * width, positions - last - beyond) / kLanes<float>};
}

// The lanes in which 0 <= value < bound.
DDF_INLINE Mask lanes_within(Lanes<int32_t, 16> value, int32_t bound) {
  return _mm512_cmplt_epu32_mask(same_bits<__m512i>(value), _mm512_set1_epi32(bound));
}

// The lanes of vectors [begin, end) of a plane for which a tap meets the map: bits to (row taps, column taps, vectors).
DDF_NOINLINE inline void make_tap_masks(const Axis& rows, const Axis& columns, Range vectors, Mask* to) {
  constexpr int lanes = kLanes<float>;
  const auto width = static_cast<int32_t>(columns.outputs), height = static_cast<int32_t>(rows.outputs);
  const auto first_tap = [](const Axis& axis) { return static_cast<int32_t>(axis.source_origin); };
  const auto tap_step = [](const Axis& axis) { return static_cast<int32_t>(axis.source_tap_step); };
  auto row = static_cast<int32_t>(vectors.begin * lanes / width);
  auto column = static_cast<int32_t>(vectors.begin * lanes % width);
  for (int64_t v = 0; v < vectors.size(); ++v) {
    Lanes<int32_t, lanes> at_row, at_column;
    for (int i = 0; i < lanes; ++i) {
      at_row[i] = row;
      at_column[i] = column;
      if (++column == width) {
        column = 0;
        ++row;
      }
    }
    const Mask on_plane = lanes_within(at_row, height);
    for (int64_t n = 0; n < rows.taps; ++n) {
      const int32_t down = first_tap(rows) + static_cast<int32_t>(n) * tap_step(rows);
      const Mask row_mask = on_plane & lanes_within(at_row + down, height);
      for (int64_t m = 0; m < columns.taps; ++m) {
        const int32_t right = first_tap(columns) + static_cast<int32_t>(m) * tap_step(columns);
        to[(n * columns.taps + m) * vectors.size() + v] = row_mask & lanes_within(at_column + right, width);
      }
    }
  }
}
#endif

}  // namespace
}  // namespace ddf
