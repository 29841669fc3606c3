// Stored types, the types that sums are kept in, and accesses of up to 16 bytes at once.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

namespace ddf::cuda {

// Halves are accumulated in float32.
template <typename T>
struct AccumulatorOf {
  using Type = float;
};
template <>
struct AccumulatorOf<double> {
  using Type = double;
};
template <typename T>
using Accumulator = typename AccumulatorOf<T>::Type;

__device__ inline double widen(double value) { return value; }
__device__ inline float widen(float value) { return value; }
__device__ inline float widen(__half value) { return __half2float(value); }
__device__ inline float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename T>
__device__ inline T narrow(Accumulator<T> value) {
  return value;
}
template <>
__device__ inline __half narrow<__half>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ inline __nv_bfloat16 narrow<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

// The unsigned integer (or tuple of them) that one access moves.
template <int BYTES>
struct WordOf;
template <>
struct WordOf<16> {
  using Type = uint4;
};
template <>
struct WordOf<8> {
  using Type = uint2;
};
template <>
struct WordOf<4> {
  using Type = unsigned int;
};
template <>
struct WordOf<2> {
  using Type = unsigned short;
};

template <typename T, int N>
struct Pack {
  T values[N];
};

// N elements at an address that is a multiple of their size together, from memory that no kernel in flight writes.
template <int N, typename T>
__device__ inline Pack<T, N> load(const T* address) {
  using Word = typename WordOf<N * sizeof(T)>::Type;
  const Word word = __ldg(reinterpret_cast<const Word*>(address));
  Pack<T, N> pack;
  memcpy(&pack, &word, sizeof word);
  return pack;
}

// The same, or zeros where there is nothing to load.
template <int N, typename T>
__device__ inline Pack<T, N> load_if(bool inside, const T* address) {
  using Word = typename WordOf<N * sizeof(T)>::Type;
  const Word word = inside ? __ldg(reinterpret_cast<const Word*>(address)) : Word{};
  Pack<T, N> pack;
  memcpy(&pack, &word, sizeof word);
  return pack;
}

// Narrows and stores N sums at an address that is a multiple of the stored size.
template <int N, typename T>
__device__ inline void store(T* address, const Accumulator<T>* sums) {
  using Word = typename WordOf<N * sizeof(T)>::Type;
  Pack<T, N> pack;
#pragma unroll
  for (int n = 0; n < N; ++n) pack.values[n] = narrow<T>(sums[n]);
  Word word;
  memcpy(&word, &pack, sizeof word);
  *reinterpret_cast<Word*>(address) = word;
}

// All shared memory is dynamic: the host says how much, by the same functions that lay it out.
extern __shared__ __align__(16) unsigned char shared_memory[];

}  // namespace ddf::cuda
