// The channel filter, from the channels' sums: two layers and FilterNorm.
#pragma once

#include "branches.h"
#include "scratch.h"
#include "spatial_rows.h"
#include "storage.h"
#include "transpose.h"

namespace ddf {
namespace {

// A vector that matrices are multiplied with. Its last elements stand once more in a vector of their own, with zeros
// where that overlaps what whole vectors have taken: so a row of a matrix is read in whole vectors within its bounds.
template <typename A>
struct Factor {
  const A* values;
  int64_t length;
  Vector<A> last;  // where length is at least a vector's

  Factor() = default;
  Factor(const A* from, int64_t count) : values(from), length(count), last{} {
    const int64_t rest = count % kLanes<A>;
    if (count < kLanes<A> || rest == 0) return;
    A lanes[kLanes<A>] = {};
    for (int64_t i = kLanes<A> - rest; i < kLanes<A>; ++i) lanes[i] = from[count - kLanes<A> + i];
    last = load(lanes);
  }
};

// A register tile of products: rows of a matrix, and vectors that share every load of those.
constexpr int kLinearRows = 4, kLinearFactors = kAccumulators / kLinearRows;

// Adds to sums[f * pitch + i] the product of row i of a matrix (rows, length) with vector f.
template <int rows, int factors, typename A>
DDF_INLINE void add_products(const A* matrix, const Factor<A>* factor, A* sums, int64_t pitch) {
  const int64_t length = factor->length;
  if (length < kLanes<A>) {
    for (int f = 0; f < factors; ++f, ++factor, sums += pitch) {
      for (int row = 0; row < rows; ++row) {
        for (int64_t i = 0; i < length; ++i) sums[row] += matrix[row * length + i] * factor->values[i];
      }
    }
    return;
  }
  Vector<A> products[factors][rows];
  clear(products);
  const auto add = [&](int64_t i, const auto& values_of) DDF_ALWAYS_INLINE {
    Vector<A> elements[rows];
    for (int row = 0; row < rows; ++row) elements[row] = load(matrix + row * length + i);
    for (int f = 0; f < factors; ++f) {
      const Vector<A> values = values_of(factor[f]);
      for (int row = 0; row < rows; ++row) products[f][row] += elements[row] * values;
    }
  };
  int64_t i = 0;
  for (; i + kLanes<A> <= length; i += kLanes<A>) {
    add(i, [&](const Factor<A>& one) DDF_ALWAYS_INLINE { return load(one.values + i); });
  }
  if (i < length) add(length - kLanes<A>, [](const Factor<A>& one) DDF_ALWAYS_INLINE { return one.last; });
  for (int f = 0; f < factors; ++f) add_lanes<rows, A>(sums + f * pitch, products[f]);
}

template <int factors, typename A>
DDF_NOINLINE void multiply_rows(const A* weights, const A* bias, int64_t rows, const Factor<A>* factor, A* to,
                                int64_t pitch) {
  for (int f = 0; f < factors; ++f) copy(to + f * pitch, bias, rows);
  int64_t row = 0;
  for (; row + kLinearRows <= rows; row += kLinearRows) {
    add_products<kLinearRows, factors>(weights + row * factor->length, factor, to + row, pitch);
  }
  for (; row < rows; ++row) add_products<1, factors>(weights + row * factor->length, factor, to + row, pitch);
}

// Some images' vectors, one every `pitch` elements.
template <typename A>
struct ImageVectors {
  A* data;
  int64_t pitch;

  A* operator[](int64_t image) const { return data + image * pitch; }
};

// A linear layer: for every image its bias and the products of the weights' rows with its vector, which has `length`
// elements. What one image gets does not depend on the others.
template <typename A>
void linear(const A* weights, const A* bias, int64_t rows, int64_t length, int64_t images,
            const ImageVectors<const A>& from, const ImageVectors<A>& to) {
  int64_t image = 0;
  const auto take = [&]<int factors>() {
    for (; image + factors <= images; image += factors) {
      Factor<A> factor[factors];
      for (int f = 0; f < factors; ++f) factor[f] = Factor<A>(from[image + f], length);
      multiply_rows<factors>(weights, bias, rows, factor, to[image], to.pitch);
    }
  };
  take.template operator()<kLinearFactors>();
  if constexpr (kLinearFactors > 2) take.template operator()<2>();
  take.template operator()<1>();
}

// (batch, hidden): what the first layer and its ReLU make of the sums, (batch, runs, channels), which
// are added up in the first run's place.
template <typename A>
void squeeze(const Call& call, const Branches& branches, A* sums, int64_t runs, A* hidden) {
  const A count = static_cast<A>(call.height * call.width);
  const ImageVectors<A> means{sums, runs * call.channels}, outputs{hidden, branches.hidden};
  parallel(call, call.batch, [&](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image) {
      A* mean = means[image];
      for (int64_t run = 1; run < runs; ++run) {
        for (int64_t c = 0; c < call.channels; ++c) mean[c] += mean[run * call.channels + c];
      }
      for (int64_t c = 0; c < call.channels; ++c) mean[c] /= count;
    }
    linear<A>(static_cast<const A*>(branches.squeeze_weight), static_cast<const A*>(branches.squeeze_bias),
              branches.hidden, call.channels, end - begin, {means[begin], means.pitch},
              {outputs[begin], outputs.pitch});
    for (A* to = outputs[begin]; to != outputs[end]; ++to) *to = *to < 0 ? 0 : *to;  // NaN stays
  });
}

// FilterNorm of some channels' taps (channels, taps), in place, and with their scale to `to`, which may be the same
// place; `turned` has room for (taps, lanes).
template <typename A>
DDF_NOINLINE void normalize_channels(A* filter, int64_t channels, int64_t taps, const A* scale, A* turned, A* to) {
  transpose(turned, kLanes<A>, filter, taps, channels, taps);
  normalize_row(turned, taps, kLanes<A>, A{1});
  transpose(filter, taps, turned, kLanes<A>, taps, channels);
  for (int64_t i = 0; i < channels * taps; ++i) to[i] = filter[i] * scale[i];
}

// The channel filter, and, where asked for, its taps before FilterNorm. A task is a vector of channels of all images,
// which share its weights.
template <typename A>
void excite(const Call& call, const Branches& branches, const A* hidden) {
  constexpr int64_t lanes = kLanes<A>;
  const int64_t taps = taps_of(call);
  A* excited = static_cast<A*>(branches.predictions.excited);
  parallel(call, ceil_divide(call.channels, lanes), [&](int64_t begin, int64_t end) {
    A* turned = thread_scratch<A>(taps * lanes);
    __builtin_memset(turned, 0, taps * lanes * sizeof(A));
    for (int64_t block = begin; block < end; ++block) {
      const int64_t channels = smaller(lanes, call.channels - block * lanes), first = block * lanes * taps;
      const ImageVectors<A> filters{at<A>(call.channel_filter, 0, 0) + first, call.channel_filter.batch};
      linear<A>(static_cast<const A*>(branches.excite_weight) + first * branches.hidden,
                static_cast<const A*>(branches.excite_bias) + first, channels * taps, branches.hidden, call.batch,
                {hidden, branches.hidden}, filters);
      for (int64_t image = 0; image < call.batch; ++image) {
        if (excited != nullptr) {
          copy(excited + image * call.channels * taps + first, filters[image], channels * taps);
        }
        normalize_channels(filters[image], channels, taps, static_cast<const A*>(branches.scale) + first, turned,
                           filters[image]);
      }
    }
  });
}

}  // namespace
}  // namespace ddf
