// Rows of the spatial filter in scratch, converted, normalised where the call says so, and zero around the map.
#pragma once

#include <cmath>

#include "scratch.h"
#include "storage.h"

namespace ddf {
namespace {

constexpr double kNormEps = 1e-10;  // FilterNorm's

template <typename A>
DDF_INLINE Vector<A> square_root(Vector<A> value) {
  A lanes[kLanes<A>];
  store_raw(lanes, value);
  for (int i = 0; i < kLanes<A>; ++i) lanes[i] = std::sqrt(lanes[i]);
  return load_raw<Vector<A>>(lanes);
}

// The sum of term(t) over the taps. Sums of a few are added as a whole, which keeps rounding errors small.
template <typename A, typename Term>
DDF_INLINE Vector<A> sum_of_taps(int64_t count, const Term& term) {
  Vector<A> sum{};
  for (int64_t begin = 0; begin < count; begin += 16) {
    Vector<A> part{};
    for (int64_t t = begin; t < smaller(begin + 16, count); ++t) part += term(t);
    sum += part;
  }
  return sum;
}

// Deviations of one pixel vector's taps from their mean, in place, and the standard deviation (unbiased). Measured from
// the first tap, so that equal taps give exact zeros.
template <typename A>
DDF_INLINE Vector<A> centre(A* taps, int64_t count, int64_t pitch) {
  const Vector<A> first = load(taps);
  const Vector<A> sum = sum_of_taps<A>(count, [&](int64_t t) { return load(taps + t * pitch) - first; });
  const Vector<A> mean = sum / static_cast<A>(count);
  const Vector<A> squares = sum_of_taps<A>(count, [&](int64_t t) {
    const Vector<A> deviation = load(taps + t * pitch) - first - mean;
    if (t > 0) store(taps + t * pitch, deviation);
    return deviation * deviation;
  });
  store(taps, -mean);
  return square_root<A>(squares / static_cast<A>(count - 1));
}

// FilterNorm over the taps of every column of a row (taps, pitch).
template <typename A>
DDF_NOINLINE void normalize_row(A* row, int64_t taps, int64_t pitch, A gain) {
  for (int64_t x = 0; x < pitch; x += kLanes<A>) {
    const Vector<A> scale = gain / (centre<A>(row + x, taps, pitch) + static_cast<A>(kNormEps));
    for (int64_t t = 0; t < taps; ++t) store(row + t * pitch + x, load(row + t * pitch + x) * scale);
  }
}

// Turns the gradient of normalised taps into that of the logits, in place. With z the deviations and d their standard
// deviation: n = gain * z / (d + eps), so dL/dz = gain / (d + eps) * (g - z * sum(g * z) / ((d + eps) * d * (k*k -
// 1))), and the mean's part is taken off. Equal taps have z = 0 and no second term; their 1 / eps is too large for
// float16, which asks for zero there.
template <typename A>
DDF_NOINLINE void normalize_row_gradient(A* logits, A* gradient, int64_t taps, int64_t pitch, A gain,
                                         bool zero_where_equal) {
  for (int64_t x = 0; x < pitch; x += kLanes<A>) {
    const Vector<A> deviation = centre<A>(logits + x, taps, pitch);
    Vector<A> scale = 1 / (deviation + static_cast<A>(kNormEps));
    if (zero_where_equal) scale = deviation > 0 ? scale : Vector<A>{};
    Vector<A> product{}, mean{};
    for (int64_t t = 0; t < taps; ++t) {
      const Vector<A> grad = load(gradient + t * pitch + x);
      product += grad * load(logits + t * pitch + x);
      mean += grad;
    }
    mean /= static_cast<A>(taps);
    const Vector<A> along = deviation > 0 ? product * scale / (deviation * static_cast<A>(taps - 1)) : Vector<A>{};
    for (int64_t t = 0; t < taps; ++t) {
      const Vector<A> grad = load(gradient + t * pitch + x) - mean - load(logits + t * pitch + x) * along;
      store(gradient + t * pitch + x, grad * scale * gain);
    }
  }
}

// The spatial filter of one image and head, wherever it lies: the value for output (r, q) and tap (n, m) stands at
// data + r * row + q * column + n * tap_row + m * tap_column. Rows and columns count from a tile's first.
template <typename A>
struct SpatialView {
  const A* data;
  int64_t row, column, tap_row, tap_column;
};

// Copies row `row` of one head's filter at columns [column, column + count) to (taps, pitch).
template <typename T, typename A>
DDF_NOINLINE void load_spatial_row(const Call& call, const T* filter, int64_t row, int64_t column, int64_t count,
                                   int64_t pitch, bool normalize, A* to) {
  const int64_t taps = taps_of(call);
  const int64_t begin = smaller(larger<int64_t>(-column, 0), count);
  const int64_t end = larger(smaller(call.out_width - column, count), begin);
  if (row < 0 || row >= call.out_height || begin == end) {
    __builtin_memset(to, 0, taps * pitch * sizeof(A));
    return;
  }
  const Array& strides = call.spatial_filter;
  const T* from = filter + row * strides.row + (column + begin) * strides.column;
  for (int64_t t = 0; t < taps; ++t, to += pitch, from += strides.channel) {
    for (int64_t x = 0; x < begin; ++x) to[x] = 0;
    for (int64_t x = end; x < pitch; ++x) to[x] = 0;
    copy_strided(to + begin, 1, from, strides.column, end - begin);
  }
  if (normalize) normalize_row(to - taps * pitch, taps, pitch, static_cast<A>(call.norm_gain));
}

// How rows of the spatial filter lie in scratch: (taps, pitch), whole vectors of columns; or as a channels_last filter
// that is not normalised has them, (columns, taps), for kernels that take one element at a time.
enum class SpatialLayout { columns_last, taps_last };

template <typename T, typename A>
SpatialLayout element_layout(const Call& call) {
  const bool has_taps_last = call.spatial_filter.channel == 1 && !call.normalize && !__is_same(T, A);
  return has_taps_last ? SpatialLayout::taps_last : SpatialLayout::columns_last;
}

// The spatial filter's part in a tile, in scratch.
template <typename T>
class SpatialTile {
  using A = typename Computed<T>::type;

 public:
  DDF_NOINLINE SpatialTile(const Call& call, const AxisSet& rows, const AxisSet& columns, Range row_range,
                           Range column_range, SpatialLayout layout = SpatialLayout::columns_last)
      : call_(&call), rows_(&rows), columns_(&columns), slots_(rows, row_range), layout_(layout) {
    const ColumnSlots column_slots(columns, column_range, kLanes<A>);
    const bool at_source = rows.weights_at_source();
    first_row_ = row_range.begin;
    row_count_ = at_source ? slots_.count : row_range.size();
    first_column_ = at_source ? column_slots.position : column_range.begin;
    column_count_ = at_source ? column_slots.length : column_range.size();
    pitch_ = at_source ? column_slots.pitch : round_up(column_range.size(), kLanes<A>);
  }

  int64_t size() const { return row_count_ * line(); }
  int64_t pitch() const { return pitch_; }

  // `normalize`: through FilterNorm, or as it is.
  DDF_NOINLINE void load(int64_t image, int64_t head, bool normalize, A* scratch) const {
    const T* filter = at<const T>(call_->spatial_filter, image, head * taps_of(*call_));
    for (int64_t row = 0; row < row_count_; ++row) {
      const int64_t position = rows_->weights_at_source() ? slots_.source_row(row) : first_row_ + row;
      if (layout_ == SpatialLayout::taps_last) {
        load_taps_last(filter, position, scratch + row * line());
        continue;
      }
      load_spatial_row(*call_, filter, position, first_column_, column_count_, pitch_, normalize,
                       scratch + row * line());
    }
  }

  // How a pair of phases finds its taps in what was loaded.
  DDF_NOINLINE SpatialView<A> view(int64_t row_phase, int64_t column_phase, const A* scratch) const {
    const Axis &rows = (*rows_)[row_phase], &columns = (*columns_)[column_phase];
    const bool taps_last = layout_ == SpatialLayout::taps_last;
    const int64_t column = taps_last ? taps_of(*call_) : 1, tap = taps_last ? 1 : pitch_;
    const int64_t tap_row = call_->kernel_size * tap;
    SpatialView<A> view{scratch + rows.first_tap * tap_row + columns.first_tap * tap, line(), column,
                        rows.tap_step * tap_row, columns.tap_step * tap};
    if (rows_->weights_at_source()) {
      view.data += slots_.first(row_phase) * line() + (columns.source_origin - columns_->base) * column;
      view.row = slots_.row_step * line();
      view.tap_row += slots_.tap_step(row_phase) * line();
      view.tap_column += columns.source_tap_step * column;
    }
    return view;
  }

 private:
  int64_t line() const { return taps_of(*call_) * pitch_; }

  // A row of the filter; what lies around the map keeps any values, and no kernel reads it.
  void load_taps_last(const T* filter, int64_t row, A* to) const {
    const Array& strides = call_->spatial_filter;
    const int64_t taps = taps_of(*call_);
    const int64_t begin = larger<int64_t>(first_column_, 0);
    const int64_t end = smaller(first_column_ + column_count_, call_->out_width);
    if (row < 0 || row >= call_->out_height) return;
    const T* from = filter + row * strides.row;
    if (strides.column == taps && end > begin) {
      return copy(to + (begin - first_column_) * taps, from + begin * taps, (end - begin) * taps);
    }
    for (int64_t x = begin; x < end; ++x) copy(to + (x - first_column_) * taps, from + x * strides.column, taps);
  }

  const Call* call_;
  const AxisSet *rows_, *columns_;
  RowSlots slots_;
  SpatialLayout layout_;
  int64_t first_row_, row_count_, first_column_, column_count_, pitch_;
};

// The same read where it lies, by kernels that use nothing of what lies off the map.
template <typename A>
SpatialView<A> spatial_in_place(const Call& call, const Axis& rows, const Axis& columns, int64_t first_row,
                                int64_t image, int64_t head) {
  const Array& strides = call.spatial_filter;
  const int64_t k = call.kernel_size, tap = strides.channel;
  const bool at_source = rows.weights_at_source;
  const A* data = at<const A>(strides, image, head * k * k) + (rows.first_tap * k + columns.first_tap) * tap;
  data += (at_source ? rows.source_origin + first_row : first_row) * strides.row;
  data += (at_source ? columns.source_origin : 0) * strides.column;
  return {data, strides.row, strides.column,
          rows.tap_step * k * tap + (at_source ? rows.source_tap_step * strides.row : 0),
          columns.tap_step * tap + (at_source ? columns.source_tap_step * strides.column : 0)};
}

}  // namespace
}  // namespace ddf
