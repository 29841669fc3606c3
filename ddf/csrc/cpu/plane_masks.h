// The lanes of a plane, taken as one long row, whose taps meet the map.
#pragma once

#include "masks.h"
#include "pixels.h"

namespace ddf {
namespace {

#if defined(__AVX512F__)
// The lanes in which 0 <= value < bound.
DDF_INLINE Mask lanes_within(Lanes<int32_t, 16> value, int32_t bound) {
  return _mm512_cmplt_epu32_mask(same_bits<__m512i>(value), _mm512_set1_epi32(bound));
}

// From an output to what tap (n, m) of both axes reads, in a plane taken as one long row.
inline int64_t tap_distance(const Axis& rows, const Axis& columns, int64_t n, int64_t m) {
  return (rows.source_origin + n * rows.source_tap_step) * columns.outputs + columns.source_origin +
         m * columns.source_tap_step;
}

// The vectors of a plane from which no tap, and no read of `beyond` elements more, goes outside of it.
inline Range inner_vectors(const Axis& rows, const Axis& columns, int64_t beyond) {
  const Range on_map = outputs_on_map(rows, {0, rows.taps});
  const int64_t width = columns.outputs, positions = rows.outputs * width;
  const int64_t first = tap_distance(rows, columns, 0, 0);
  const int64_t last = tap_distance(rows, columns, rows.taps - 1, columns.taps - 1);
  return {ceil_divide(larger(on_map.begin * width, -first), kLanes<float>),
          smaller(on_map.end * width, positions - last - beyond) / kLanes<float>};
}

// The vectors for which all of [lowest, highest], as seen from a plane's first position, lies in a tensor of `size`
// elements.
inline Range readable_vectors(int64_t lowest, int64_t highest, int64_t size) {
  return {ceil_divide(larger<int64_t>(-lowest, 0), kLanes<float>), (size - highest) / kLanes<float>};
}

// What a group of channels reads of a map in tensor `array`, of whole vectors at every tap: as above.
inline Range readable_vectors(const Call& call, const Array& array, int64_t positions, int64_t image, int64_t channel,
                              int64_t channels, Range reach) {
  const int64_t first = image * array.batch + channel * array.channel;
  const int64_t size = (call.batch - 1) * array.batch + (call.channels - 1) * array.channel + positions;
  return readable_vectors(first + reach.begin, first + (channels - 1) * array.channel + reach.end, size);
}

inline Range common(Range a, Range b) { return {larger(a.begin, b.begin), smaller(a.end, b.end)}; }

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
