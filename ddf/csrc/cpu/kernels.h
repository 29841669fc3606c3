// The CPU kernels, one set for each instruction set.
#pragma once

#include "../call.h"
#include "branches.h"

namespace ddf {

struct Kernels {
  const char* capability;
  void (*forward)(const Call&);
  void (*input_gradient)(const Call&);                   // writes grad_input
  void (*filter_gradients)(const Call&);                 // writes grad_channel (contiguous) and grad_spatial
  void (*dynamic_filter)(const Call&, const Branches&);  // writes output, with filters that the branches predict
};

Kernels kernels_default();
Kernels kernels_avx2();
Kernels kernels_avx512();

void dynamic_filter_default(const Call&, const Branches&, void (*forward)(const Call&));
void dynamic_filter_avx2(const Call&, const Branches&, void (*forward)(const Call&));
void dynamic_filter_avx512(const Call&, const Branches&, void (*forward)(const Call&));

}  // namespace ddf
