// The end of a residual block: BatchNorm in evaluation, the sum with the shortcut, which may have a norm of its own,
// and ReLU, in one pass over dense maps of either layout.
#pragma once

#include "affine.h"

namespace ddf {
namespace {

// In place.
template <typename A>
DDF_NOINLINE void residual_plane(A* map, const A* shortcut, int64_t count, A scale, A shift, A shortcut_scale) {
  const Vector<A> scales = broadcast(scale), shifts = broadcast(shift), shortcut_scales = broadcast(shortcut_scale);
  int64_t i = 0;
  for (; i + kLanes<A> <= count; i += kLanes<A>) {
    store(map + i, rectified(load(map + i) * scales + shifts + load(shortcut + i) * shortcut_scales));
  }
  for (; i < count; ++i) map[i] = rectified(map[i] * scale + shift + shortcut[i] * shortcut_scale);
}

template <typename A>
DDF_NOINLINE void residual_pixels(A* map, const A* shortcut, int64_t pixels, int64_t channels, const A* scale,
                                  const A* shift, const A* shortcut_scale) {
  for (; pixels > 0; --pixels, map += channels, shortcut += channels) {
    int64_t c = 0;
    for (; c + kLanes<A> <= channels; c += kLanes<A>) {
      store(map + c, rectified(load(map + c) * load(scale + c) + load(shift + c) +
                               load(shortcut + c) * load(shortcut_scale + c)));
    }
    for (; c < channels; ++c) map[c] = rectified(map[c] * scale[c] + shift[c] + shortcut[c] * shortcut_scale[c]);
  }
}

// The map is the call's output.
template <typename A>
void add_residual(const Call& call, const Residual& residual) {
  const int64_t channels = call.channels, pixels = call.out_height * call.out_width;
  Buffer buffer;
  A *scale = buffer.at_least<A>(4 * channels), *shift = scale + channels, *shortcut_scale = shift + channels;
  const Affine<A> norm(residual.norm, channels, scale), shortcut_norm(residual.shortcut_norm, channels, shortcut_scale);
  for (int64_t c = 0; c < channels; ++c) {
    if (shortcut_norm.scale == nullptr) {
      shortcut_scale[c] = 1;
    } else {
      shift[c] += shortcut_norm.shift[c];
    }
  }
  A* map = static_cast<A*>(call.output.data);
  const A* shortcut = static_cast<const A*>(residual.shortcut);
  const auto on_pixels = [&](int64_t offset, int64_t count) {
    residual_pixels(map + offset, shortcut + offset, count, channels, scale, shift, shortcut_scale);
  };
  const auto on_plane = [&](int64_t offset, int64_t channel) {
    residual_plane(map + offset, shortcut + offset, pixels, scale[channel], shift[channel], shortcut_scale[channel]);
  };
  for_each_part(call, residual.channels_last, pixels, on_pixels, on_plane);
}

}  // namespace
}  // namespace ddf
