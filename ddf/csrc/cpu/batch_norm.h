// BatchNorm on dense maps, applied in one pass with the sum and the ReLU at the end of a residual block, in evaluation
// and in training.
#pragma once

#include "affine.h"

namespace ddf {
namespace {

// `to` may be `from`.
template <typename A>
DDF_NOINLINE void add_plane(const A* from, const A* shortcut, int64_t count, A scale, A shift, A shortcut_scale,
                            A* to) {
  const Vector<A> scales = broadcast(scale), shifts = broadcast(shift), shortcut_scales = broadcast(shortcut_scale);
  int64_t i = 0;
  for (; i + kLanes<A> <= count; i += kLanes<A>) {
    store(to + i, rectified(load(from + i) * scales + shifts + load(shortcut + i) * shortcut_scales));
  }
  for (; i < count; ++i) to[i] = rectified(from[i] * scale + shift + shortcut[i] * shortcut_scale);
}

template <typename A>
DDF_NOINLINE void add_pixels(const A* from, const A* shortcut, int64_t pixels, int64_t channels, const A* scale,
                             const A* shift, const A* shortcut_scale, A* to) {
  for (; pixels > 0; --pixels, from += channels, shortcut += channels, to += channels) {
    int64_t c = 0;
    for (; c + kLanes<A> <= channels; c += kLanes<A>) {
      store(to + c, rectified(load(from + c) * load(scale + c) + load(shift + c) +
                              load(shortcut + c) * load(shortcut_scale + c)));
    }
    for (; c < channels; ++c) to[c] = rectified(from[c] * scale[c] + shift[c] + shortcut[c] * shortcut_scale[c]);
  }
}

// From the call's input to its output, which may be the same.
template <typename A>
void normalized_sum(const Call& call, const NormalizedSum& sum) {
  const int64_t channels = call.channels, pixels = call.height * call.width;
  Buffer buffer;
  A *scale = buffer.at_least<A>(4 * channels), *shift = scale + channels, *shortcut_scale = shift + channels;
  const Affine<A> norm(sum.norm, channels, scale), shortcut_norm(sum.shortcut_norm, channels, shortcut_scale);
  const A *from = static_cast<const A*>(call.input.data), *shortcut = static_cast<const A*>(sum.shortcut);
  A* to = static_cast<A*>(call.output.data);
  if (shortcut == nullptr) return apply(call, norm, sum.channels_last, pixels, from, to);
  for (int64_t c = 0; c < channels; ++c) {
    if (shortcut_norm.scale == nullptr) {
      shortcut_scale[c] = 1;
    } else {
      shift[c] += shortcut_norm.shift[c];
    }
  }
  const auto on_pixels = [&](int64_t offset, int64_t count) {
    add_pixels(from + offset, shortcut + offset, count, channels, scale, shift, shortcut_scale, to + offset);
  };
  const auto on_plane = [&](int64_t offset, int64_t channel) {
    add_plane(from + offset, shortcut + offset, pixels, scale[channel], shift[channel], shortcut_scale[channel],
              to + offset);
  };
  for_each_part(call, sum.channels_last, pixels, on_pixels, on_plane);
}

}  // namespace
}  // namespace ddf
