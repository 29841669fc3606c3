// The channel filter, from the channels' sums: two layers and FilterNorm.
#pragma once

#include "branches.h"
#include "scratch.h"
#include "spatial_rows.h"
#include "transpose.h"
#include "vector.h"

namespace ddf {
namespace {

// A vector that matrices are multiplied with. Its last elements stand once more in a vector of their own, with zeros
// where that overlaps what whole vectors have taken: so a row of a matrix is read in whole vectors within its bounds.
template <typename A>
struct Factor {
  const A* values;
  int64_t length;
  Vector<A> last;  // where length is at least a vector's

  Factor(const A* from, int64_t count) : values(from), length(count), last{} {
    const int64_t rest = count % kLanes<A>;
    if (count < kLanes<A> || rest == 0) return;
    A lanes[kLanes<A>] = {};
    for (int64_t i = kLanes<A> - rest; i < kLanes<A>; ++i) lanes[i] = from[count - kLanes<A> + i];
    last = load(lanes);
  }
};

// Adds to sums[i] the product of row i of a matrix (rows, length) with the vector.
template <int rows, typename A>
DDF_INLINE void add_products(const A* matrix, const Factor<A>& factor, A* sums) {
  const int64_t length = factor.length;
  if (length < kLanes<A>) {
    for (int row = 0; row < rows; ++row) {
      for (int64_t i = 0; i < length; ++i) sums[row] += matrix[row * length + i] * factor.values[i];
    }
    return;
  }
  Vector<A> products[rows];
  clear(products);
  int64_t i = 0;
  for (; i + kLanes<A> <= length; i += kLanes<A>) {
    const Vector<A> values = load(factor.values + i);
    for (int row = 0; row < rows; ++row) products[row] += load(matrix + row * length + i) * values;
  }
  if (i < length) {
    for (int row = 0; row < rows; ++row) {
      products[row] += load(matrix + (row + 1) * length - kLanes<A>) * factor.last;
    }
  }
  add_lanes<rows, A>(sums, products);
}

// A linear layer: to[i] is bias[i] and the product of row i of the weights with the vector.
template <typename A>
DDF_NOINLINE void linear(const A* weights, const A* bias, int64_t rows, const Factor<A>& factor, A* to) {
  copy(to, bias, rows);
  int64_t row = 0;
  for (; row + 4 <= rows; row += 4) add_products<4>(weights + row * factor.length, factor, to + row);
  for (; row < rows; ++row) add_products<1>(weights + row * factor.length, factor, to + row);
}

// (batch, hidden): what the first layer and its ReLU make of the sums, (batch, runs, channels), which
// are added up in the first run's place.
template <typename A>
void squeeze(const Call& call, const Branches& branches, A* sums, int64_t runs, A* hidden) {
  const A count = static_cast<A>(call.height * call.width);
  parallel(call, call.batch, [&](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image) {
      A *mean = sums + image * runs * call.channels, *to = hidden + image * branches.hidden;
      const A* part = mean;
      for (int64_t run = 1; run < runs; ++run) {
        part += call.channels;
        for (int64_t c = 0; c < call.channels; ++c) mean[c] += part[c];
      }
      for (int64_t c = 0; c < call.channels; ++c) mean[c] /= count;
      linear(static_cast<const A*>(branches.squeeze_weight), static_cast<const A*>(branches.squeeze_bias),
             branches.hidden, Factor<A>(mean, call.channels), to);
      for (int64_t i = 0; i < branches.hidden; ++i) to[i] = to[i] < 0 ? 0 : to[i];  // NaN stays
    }
  });
}

// FilterNorm of some channels' taps (channels, taps), in place; `turned` has room for (taps, lanes).
template <typename A>
DDF_NOINLINE void normalize_channels(A* filter, int64_t channels, int64_t taps, const A* scale, A* turned) {
  transpose(turned, kLanes<A>, filter, taps, channels, taps);
  normalize_row(turned, taps, kLanes<A>, A{1});
  transpose(filter, taps, turned, kLanes<A>, taps, channels);
  for (int64_t i = 0; i < channels * taps; ++i) filter[i] *= scale[i];
}

// The channel filter. A task is a vector of channels of all images, which share its weights.
template <typename A>
void excite(const Call& call, const Branches& branches, const A* hidden) {
  constexpr int64_t lanes = kLanes<A>;
  const int64_t taps = taps_of(call);
  parallel(call, ceil_divide(call.channels, lanes), [&](int64_t begin, int64_t end) {
    A* turned = thread_scratch<A>(taps * lanes);
    __builtin_memset(turned, 0, taps * lanes * sizeof(A));
    for (int64_t block = begin; block < end; ++block) {
      const int64_t channels = smaller(lanes, call.channels - block * lanes), first = block * lanes * taps;
      for (int64_t image = 0; image < call.batch; ++image) {
        A* filter = at<A>(call.channel_filter, image, 0) + first;
        linear(static_cast<const A*>(branches.excite_weight) + first * branches.hidden,
               static_cast<const A*>(branches.excite_bias) + first, channels * taps,
               Factor<A>(hidden + image * branches.hidden, branches.hidden), filter);
        normalize_channels(filter, channels, taps, static_cast<const A*>(branches.scale) + first, turned);
      }
    }
  });
}

}  // namespace
}  // namespace ddf
