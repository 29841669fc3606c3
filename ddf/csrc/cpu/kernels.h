// The CPU kernels, one set for each instruction set.
#pragma once

#include "../call.h"

namespace ddf {

struct Kernels {
  const char* capability;
  void (*forward)(const Call&);
  void (*input_gradient)(const Call&);    // writes grad_input
  void (*filter_gradients)(const Call&);  // writes grad_channel (contiguous) and grad_spatial
};

Kernels kernels_default();
Kernels kernels_avx2();
Kernels kernels_avx512();

}  // namespace ddf
