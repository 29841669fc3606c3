// Planes in scratch, taken as one long row.
#pragma once

#include "planes.h"

namespace ddf {
namespace {

// Some positions of planes in scratch, seen from where position 0 would lie.
struct PlaneScratch {
  float* data;
  Range positions;
  int64_t pitch;  // from one plane to the next

  float* origin() const { return data - positions.begin; }

  template <typename T>
  void load(int64_t plane, Range range, const T* from, const Array& strides, int64_t width) const {
    float* to = origin() + plane * pitch;
    if (has_whole_planes(strides, width)) return copy(to + range.begin, from + range.begin, range.size());
    for (int64_t position = range.begin; position < range.end;) {
      const int64_t row = position / width, column = position % width;
      const int64_t count = smaller(width - column, range.end - position);
      copy_strided(to + position, 1, from + row * strides.row + column * strides.column, strides.column, count);
      position += count;
    }
  }
};

}  // namespace
}  // namespace ddf
