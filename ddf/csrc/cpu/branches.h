// The branches that predict the filters, and what is done to the map before them and to the output: weights, dense and
// of the call's type, dimensions in the order given.
#pragma once

#include "../call.h"

namespace ddf {

// A BatchNorm in evaluation and the ReLU behind it: four arrays (channels), or nullptr where there is none.
struct Norm {
  const void *weight, *bias, *mean, *variance;
  double eps;
};

struct Branches {
  int64_t hidden;                             // channels between the layers of the channel branch
  const void *spatial_weight, *spatial_bias;  // (head * taps, channels), (head * taps)
  const void *squeeze_weight, *squeeze_bias;  // (hidden, channels), (hidden)
  const void *excite_weight, *excite_bias;    // (channels * taps, hidden), (channels * taps)
  const void* scale;                          // (channels * taps), of the channel branch's FilterNorm
  bool channels_last;                         // the map, else it is contiguous
  Norm before, after;                         // of the map, of the output
};

}  // namespace ddf
