// The norms around the operation in a network.
#pragma once

namespace ddf {

// A BatchNorm as it is applied: four dense arrays (channels) of the call's type, or nullptr where there is none.
struct Norm {
  const void *weight, *bias, *mean, *variance;
  double eps;
};

// What becomes of a map: its norm, a sum, ReLU.
struct NormalizedSum {
  Norm norm;
  const void* shortcut;  // is added, a map of the same shape and layout; or nullptr
  Norm shortcut_norm;    // of the shortcut, or none
  bool channels_last;    // all maps, else they are contiguous
};

// Of each channel of a batch: arrays (channels) of the call's type.
struct Statistics {
  void *mean, *variance;                  // to be written
  void *running_mean, *running_variance;  // to be moved towards these; the variance towards that with one degree less
  double momentum;
};

}  // namespace ddf
