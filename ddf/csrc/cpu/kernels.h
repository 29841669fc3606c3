// The CPU kernels, one set for each instruction set.
#pragma once

#include "../call.h"
#include "branches.h"

namespace ddf {

using Kernel = void (*)(const Call&);

struct Kernels {
  const char* capability;
  Kernel forward;
  Kernel input_gradient;                                 // writes grad_input
  Kernel filter_gradients;                               // writes grad_channel (contiguous) and grad_spatial
  void (*dynamic_filter)(const Call&, const Branches&);  // writes output, with filters that the branches predict
  void (*dynamic_filter_gradients)(const Call&, const Branches&, const WeightGradients&);  // writes grad_input, too
  void (*normalized_sum)(const Call&, const NormalizedSum&);                               // writes output
  void (*normalized_sum_gradients)(const Call&, const SumGradients&);
  void (*batch_statistics)(const Call&, const Statistics&);
};

Kernels kernels_default();
Kernels kernels_avx2();
Kernels kernels_avx512();

void dynamic_filter_default(const Call&, const Branches&, Kernel forward);
void dynamic_filter_avx2(const Call&, const Branches&, Kernel forward);
void dynamic_filter_avx512(const Call&, const Branches&, Kernel forward);

void dynamic_filter_gradients_default(const Call&, const Branches&, const WeightGradients&, Kernel input_gradient,
                                      Kernel filter_gradients);
void dynamic_filter_gradients_avx2(const Call&, const Branches&, const WeightGradients&, Kernel input_gradient,
                                   Kernel filter_gradients);
void dynamic_filter_gradients_avx512(const Call&, const Branches&, const WeightGradients&, Kernel input_gradient,
                                     Kernel filter_gradients);

}  // namespace ddf
