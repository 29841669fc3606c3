// Planes taken as one long row: a tap reads them at a constant distance from the output.
#pragma once

#include "pixels.h"

namespace ddf {
namespace {

// From an output to what tap (n, m) of both axes reads, in a plane taken as one long row.
inline int64_t tap_distance(const Axis& rows, const Axis& columns, int64_t n, int64_t m) {
  return (rows.source_origin + n * rows.source_tap_step) * columns.outputs + columns.source_origin +
         m * columns.source_tap_step;
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

inline bool covers(Range whole, Range part) { return whole.begin <= part.begin && part.end <= whole.end; }

inline Range common(Range a, Range b) { return {larger(a.begin, b.begin), smaller(a.end, b.end)}; }

}  // namespace
}  // namespace ddf
