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
  bool channels_last;  // the map, else it is contiguous
};

// A map that a norm by the statistics of its batch takes into a sum, and its gradients, to be written: of the map's
// layout, or arrays (channels).
struct NormGradients {
  const void *map, *weight, *mean, *inverse_std;
  void *grad_map, *grad_weight, *grad_bias;
};

// The gradients of NormalizedSum in training.
struct SumGradients {
  const void *grad_output, *output;  // maps
  NormGradients norms[2];
  int norm_count;  // 1: the shortcut has no norm, or there is none
  void* grad_sum;  // that of a shortcut without norm, to be written; or nullptr
  bool channels_last;
};

}  // namespace ddf
