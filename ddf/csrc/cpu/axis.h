// Where output positions and taps meet along one dimension. The forward pass and the gradient of the input are the same
// sum over taps, read from different places, so both are described by an Axis for the rows and one for the columns.
#pragma once

#include <cstdint>

#include "../call.h"

namespace ddf {
namespace {

template <typename I>
constexpr I smaller(I a, I b) {
  return b < a ? b : a;
}
template <typename I>
constexpr I larger(I a, I b) {
  return a < b ? b : a;
}
constexpr int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_divide(a, b) * b; }

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// Output q is written to `output_origin + q * output_step`; tap n, which is `first_tap + n * tap_step` of the kernel,
// reads the source at `source_origin + q * source_step + n * source_tap_step`, zero outside [0, source_size).
// The spatial filter of that pair stands at output q (forward), or at the source's position (gradient).
struct Axis {
  int64_t outputs = 0, output_origin = 0, output_step = 1;
  int64_t taps = 0, first_tap = 0, tap_step = 1;
  int64_t source_size = 0, source_origin = 0, source_step = 1, source_tap_step = 1;
  bool weights_at_source = false;
};

// A step beyond the map's extent acts as one of just that extent, so products cannot overflow.
inline int64_t bounded_step(int64_t step, int64_t size) { return smaller(step, larger<int64_t>(size, 1)); }

// Taps farther from the centre than this miss the map wherever the centre stands.
inline int64_t tap_reach(int64_t kernel_size, int64_t dilation, int64_t size) {
  return smaller(kernel_size / 2, (size - 1) / dilation);
}

inline Axis forward_axis(int64_t size, int64_t out_size, int64_t kernel_size, int64_t dilation, int64_t stride) {
  dilation = bounded_step(dilation, size);
  const int64_t reach = tap_reach(kernel_size, dilation, size);
  Axis axis;
  axis.outputs = out_size;
  axis.taps = 2 * reach + 1;
  axis.first_tap = kernel_size / 2 - reach;
  axis.source_size = size;
  axis.source_origin = -reach * dilation;
  axis.source_step = bounded_step(stride, size);
  axis.source_tap_step = dilation;
  return axis;
}

inline Axis forward_rows(const Call& call) {
  return forward_axis(call.height, call.out_height, call.kernel_size, call.dilation, call.stride);
}
inline Axis forward_columns(const Call& call) {
  return forward_axis(call.width, call.out_width, call.kernel_size, call.dilation, call.stride);
}

// The gradient of the input positions congruent to `phase` modulo the stride: those that the same taps serve. Tap i
// carries position p to the output position (p - (i - centre) * dilation) / stride, where that is whole.
inline Axis gradient_axis(int64_t size, int64_t out_size, int64_t kernel_size, int64_t dilation, int64_t stride,
                          int64_t phase) {
  dilation = bounded_step(dilation, size);
  stride = bounded_step(stride, size);
  const int64_t reach = tap_reach(kernel_size, dilation, size);
  Axis axis;
  axis.outputs = phase < size ? (size - 1 - phase) / stride + 1 : 0;
  axis.output_origin = phase;
  axis.output_step = stride;
  axis.source_size = out_size;
  axis.weights_at_source = true;
  // from the last tap to the first, so that the source positions ascend
  for (int64_t offset = reach; offset >= -reach; --offset) {
    const int64_t distance = phase - offset * dilation;
    if (distance % stride != 0) continue;
    const int64_t tap = kernel_size / 2 + offset, source = distance / stride;
    if (axis.taps == 0) {
      axis.first_tap = tap;
      axis.source_origin = source;
    } else if (axis.taps == 1) {
      axis.tap_step = tap - axis.first_tap;
      axis.source_tap_step = source - axis.source_origin;
    }
    ++axis.taps;
  }
  return axis;
}

// The phases of one dimension: one for the forward pass, one per remainder of the stride for the gradient of the input.
struct AxisSet {
  const Axis* phases;
  int64_t count;
  int64_t base = 0;    // the first source position that output 0 reads
  int64_t extent = 0;  // how many positions behind it the last one lies

  AxisSet(const Axis* phases, int64_t count) : phases(phases), count(count) {
    bool found = false;
    int64_t last = 0;
    for (int64_t p = 0; p < count; ++p) {
      const Axis& axis = phases[p];
      if (axis.taps == 0) continue;
      const int64_t end = axis.source_origin + (axis.taps - 1) * axis.source_tap_step;
      base = found ? smaller(base, axis.source_origin) : axis.source_origin;
      last = found ? larger(last, end) : end;
      found = true;
    }
    extent = last - base;
  }

  const Axis& operator[](int64_t phase) const { return phases[phase]; }
  int64_t outputs() const { return phases[0].outputs; }  // of the first phase, which has the most
  bool weights_at_source() const { return phases[0].weights_at_source; }
};

// The source rows that a tile of output rows needs, as slots: row r and tap n of a phase read slot
// `first(phase) + r * row_step + n * tap_step(phase)`. Where the taps lie far apart each tap has rows of its own, else
// they share them.
class RowSlots {
 public:
  int64_t count, row_step;

  RowSlots(const AxisSet& axes, Range rows)
      : axes_(&axes), rows_(rows.size()), position_(axes.base + rows.begin * axes[0].source_step) {
    const int64_t span = (rows_ - 1) * axes[0].source_step + axes.extent + 1;
    shared_ = axes.count > 1 || span <= rows_ * axes[0].taps;
    count = shared_ ? span : rows_ * axes[0].taps;
    row_step = shared_ ? axes[0].source_step : 1;
  }

  int64_t first(int64_t phase) const { return axis(phase).taps > 0 ? axis(phase).source_origin - axes_->base : 0; }
  int64_t tap_step(int64_t phase) const { return shared_ ? axis(phase).source_tap_step : rows_; }

  int64_t source_row(int64_t slot) const {
    if (shared_) return position_ + slot;
    return position_ + slot % rows_ * axis(0).source_step + slot / rows_ * axis(0).source_tap_step;
  }

 private:
  const Axis& axis(int64_t phase) const { return (*axes_)[phase]; }

  const AxisSet* axes_;
  int64_t rows_, position_;
  bool shared_;
};

// The source columns of a tile. A source step above 1 is undone while copying: columns of one remainder lie side by
// side, so that every tap reads contiguously; tap n of column q reads slot `offset(phase, n) + q`.
class ColumnSlots {
 public:
  int64_t position, step, pitch, length;  // `length` columns of each of `step` remainders, `pitch` in all

  ColumnSlots(const AxisSet& axes, Range columns, int64_t lanes)
      : position(axes.base + columns.begin * axes[0].source_step), step(axes[0].source_step), axes_(&axes) {
    length = round_up(columns.size(), lanes) + axes.extent / step;
    pitch = round_up(step * length, lanes);
  }

  bool is_read(int64_t remainder) const {
    if (step == 1) return true;
    const Axis& axis = (*axes_)[0];
    for (int64_t tap = 0; tap < smaller(axis.taps, step); ++tap) {
      if (tap * axis.source_tap_step % step == remainder) return true;
    }
    return false;
  }

  // Slots of one remainder whose source column lies on the map.
  Range on_map(int64_t remainder) const {
    const int64_t first = position + remainder, size = (*axes_)[0].source_size;
    if (step == 1) return {larger<int64_t>(-first, 0), smaller(size - first, length)};
    return {first < 0 ? ceil_divide(-first, step) : 0, smaller(ceil_divide(size - first, step), length)};
  }

  int64_t offset(int64_t phase, int64_t tap) const {
    const Axis& axis = (*axes_)[phase];
    const int64_t place = axis.source_origin - axes_->base + tap * axis.source_tap_step;
    return step == 1 ? place : place % step * length + place / step;
  }

 private:
  const AxisSet* axes_;
};

}  // namespace
}  // namespace ddf
