// What stands around the operation in a network, in evaluation.
#pragma once

namespace ddf {

// A BatchNorm: four dense arrays (channels) of the call's type, or nullptr where there is none.
struct Norm {
  const void *weight, *bias, *mean, *variance;
  double eps;
};

// What is added to a map behind its norm, before the ReLU: a map of its shape and layout.
struct Residual {
  const void* shortcut;
  Norm norm, shortcut_norm;  // of the map, which has one, and of the shortcut
  bool channels_last;        // both maps, else they are contiguous
};

}  // namespace ddf
