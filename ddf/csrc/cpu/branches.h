// The branches that predict the filters, and what is done to the map before them and to the output: weights, dense and
// of the call's type, dimensions in the order given.
#pragma once

#include "../call.h"
#include "norm.h"

namespace ddf {

// What the branches make of the map on their way to the filters, for their gradients; nullptr where nobody asks.
struct Predictions {
  void* logits;   // (batch, head * taps, out_height, out_width), in the map's layout, not normalised
  void* means;    // (batch, channels)
  void* hidden;   // (batch, hidden), behind the ReLU
  void* excited;  // (batch, channels * taps), not normalised
};

struct Branches {
  int64_t hidden;                             // channels between the layers of the channel branch
  const void *spatial_weight, *spatial_bias;  // (head * taps, channels), (head * taps)
  const void *squeeze_weight, *squeeze_bias;  // (hidden, channels), (hidden)
  const void *excite_weight, *excite_bias;    // (channels * taps, hidden), (channels * taps)
  const void* scale;                          // (channels * taps), of the channel branch's FilterNorm
  bool channels_last;                         // the map, else it is contiguous
  Norm before, after;                         // of the map, of the output; a ReLU is behind each
  Predictions predictions;                    // written by the forward pass, read by the gradients
};

// Shaped as the weights.
struct WeightGradients {
  void *spatial_weight, *spatial_bias, *squeeze_weight, *squeeze_bias, *excite_weight, *excite_bias, *scale;
};

}  // namespace ddf
