// FilterNorm of spatial taps, as `normalise` of ddf/reference.py defines it.
#pragma once

#include "scalar.cuh"

namespace ddf::cuda {

// (tap - mean) * scale is the normalised tap; scale = gain / (std + 1e-10).
template <typename A>
struct Moments {
  A mean, scale;
};

// `tap(t)` gives the raw taps of one pixel and head. Sums start from the first tap, so that equal taps give zeros.
template <typename A, typename Tap>
__device__ inline Moments<A> moments_of(int taps, A gain, const Tap& tap) {
  const A first = tap(0);
  A sum = 0;
#pragma unroll
  for (int t = 0; t < taps; ++t) sum += tap(t) - first;
  const A offset = sum / static_cast<A>(taps);
  A squares = 0;
#pragma unroll
  for (int t = 0; t < taps; ++t) {
    const A centred = (tap(t) - first) - offset;
    squares += centred * centred;
  }
  const A std = sqrt(squares / static_cast<A>(taps - 1));
  return {first + offset, gain / (std + static_cast<A>(1e-10))};
}

// Of raw taps in memory. A call, not a copy in every place that may need it, which would multiply the code.
template <typename T>
__device__ __noinline__ Moments<Accumulator<T>> moments_in_memory(const T* first, int64_t stride, int taps,
                                                                 Accumulator<T> gain) {
  return moments_of<Accumulator<T>>(taps, gain, [&](int tap) { return widen(__ldg(first + tap * stride)); });
}

}  // namespace ddf::cuda
