// What surrounds the operation in a network: a BatchNorm in evaluation and its ReLU, on dense maps of either layout.
#pragma once

#include <cmath>

#include "norm.h"
#include "scratch.h"
#include "storage.h"

namespace ddf {
namespace {

// A norm as a scale and a shift for each channel; a ReLU follows.
template <typename A>
struct Affine {
  const A *scale = nullptr, *shift = nullptr;

  static int64_t size(const Norm& norm, int64_t channels) { return norm.weight != nullptr ? 2 * channels : 0; }

  Affine(const Norm& norm, int64_t channels, A* to) {
    if (norm.weight == nullptr) return;
    const A *weight = static_cast<const A*>(norm.weight), *bias = static_cast<const A*>(norm.bias);
    const A *mean = static_cast<const A*>(norm.mean), *variance = static_cast<const A*>(norm.variance);
    for (int64_t c = 0; c < channels; ++c) {
      to[c] = weight[c] / std::sqrt(variance[c] + static_cast<A>(norm.eps));
      to[channels + c] = bias[c] - mean[c] * to[c];
    }
    scale = to;
    shift = to + channels;
  }
};

// NaN stays.
template <typename V>
DDF_INLINE V rectified(V value) {
  return value < 0 ? V{} : value;
}

// `to` may be `from`.
template <typename A>
DDF_NOINLINE void affine_plane(const A* from, int64_t count, A scale, A shift, A* to) {
  const Vector<A> scales = broadcast(scale), shifts = broadcast(shift);
  int64_t i = 0;
  for (; i + kLanes<A> <= count; i += kLanes<A>) store(to + i, rectified(load(from + i) * scales + shifts));
  for (; i < count; ++i) to[i] = rectified(from[i] * scale + shift);
}

template <typename A>
DDF_NOINLINE void affine_pixels(const A* from, int64_t pixels, int64_t channels, const A* scale, const A* shift,
                                A* to) {
  for (; pixels > 0; --pixels, from += channels, to += channels) {
    int64_t c = 0;
    for (; c + kLanes<A> <= channels; c += kLanes<A>) {
      store(to + c, rectified(load(from + c) * load(scale + c) + load(shift + c)));
    }
    for (; c < channels; ++c) to[c] = rectified(from[c] * scale[c] + shift[c]);
  }
}

// All images of a call, each of `pixels`: on_pixels(offset, count) for runs of pixels of a channels_last map, or
// on_plane(offset, channel).
template <typename OnPixels, typename OnPlane>
void for_each_part(const Call& call, bool channels_last, int64_t pixels, const OnPixels& on_pixels,
                   const OnPlane& on_plane) {
  constexpr int64_t kRun = 32;  // pixels
  if (channels_last) {
    const int64_t all = call.batch * pixels;
    return parallel(call, ceil_divide(all, kRun), [&](int64_t begin, int64_t end) {
      const int64_t first = begin * kRun;
      on_pixels(first * call.channels, smaller(end * kRun, all) - first);
    });
  }
  parallel(call, call.batch * call.channels, [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; ++plane) on_plane(plane * pixels, plane % call.channels);
  });
}

template <typename A>
void apply(const Call& call, const Affine<A>& affine, bool channels_last, int64_t pixels, const A* from, A* to) {
  const auto on_pixels = [&](int64_t offset, int64_t count) {
    affine_pixels(from + offset, count, call.channels, affine.scale, affine.shift, to + offset);
  };
  const auto on_plane = [&](int64_t offset, int64_t channel) {
    affine_plane(from + offset, pixels, affine.scale[channel], affine.shift[channel], to + offset);
  };
  for_each_part(call, channels_last, pixels, on_pixels, on_plane);
}

}  // namespace
}  // namespace ddf
