// Gradients of what the branches read of the map: the spatial branch's layer, whose logits are products of each pixel
// with its weights, and the channels' means. The kernels of the layouts add both to the map's gradient where the
// operation has left it, and take the weights' gradients in the same pass; an image's part of these is a partial sum,
// so the results do not depend on the number of threads.
#pragma once

#include "logits.h"

namespace ddf {
namespace {

constexpr int kMapRows = 9;  // logits that a pass over the map takes: all of k = 3

inline int64_t map_passes(const Call& call) { return ceil_divide(logits_of(call), kMapRows); }

// Of all images of a call.
template <typename A>
struct MapGradients {
  const A* grad_logits;  // (batch, logits, out_height, out_width), dense, in the map's layout
  const A* grad_sums;    // (batch, channels)
  A* partial_weights;    // (batch, passes * kMapRows, channels), to be written; zero for logits that are not there
  A* partial_biases;     // (batch, logits), to be written
};

}  // namespace
}  // namespace ddf
