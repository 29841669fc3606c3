// Outputs that pass the caches by. An ordinary store reads the line that it writes to, and keeps it in the caches,
// where it takes the place of what will be read again: both in vain where nothing of a map is left there by the time
// that someone reads it.
#pragma once

#include <initializer_list>

#include "scratch.h"
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace ddf {
namespace {

// Not with AVX-512, with which this was not measured.
#if defined(__x86_64__) && !defined(__AVX512F__)
constexpr bool kStreams = true;
#else
constexpr bool kStreams = false;
#endif

// The size of the largest cache, as the processor tells it.
inline int64_t last_cache_bytes() {
  int64_t bytes = 0;
#if defined(__x86_64__)
  constexpr unsigned kIntel = 4, kAmd = 0x8000001d;  // leaves of one form
  for (const unsigned leaf : {kIntel, kAmd}) {
    unsigned a, b, c, d;
    for (unsigned index = 0; __get_cpuid_count(leaf, index, &a, &b, &c, &d) != 0 && (a & 31) != 0; ++index) {
      const int64_t ways = (b >> 22) + 1, partitions = (b >> 12 & 1023) + 1, line = (b & 4095) + 1,
                    sets = c + int64_t{1};
      bytes = larger(bytes, ways * partitions * line * sets);
    }
  }
#endif
  constexpr int64_t kUnknown = 32 << 20;
  return bytes > 0 ? bytes : kUnknown;
}

// Whether a kernel streams its output: that and the source exceed half of the caches, where other data lie as well, and
// whole lines are written one after the other. `strides`, in elements: between the pieces of the output that are
// written at once.
template <typename T>
bool streams(const Call& call, const Array& output, std::initializer_list<int64_t> strides) {
  if constexpr (kStreams) {
    constexpr int64_t kLine = 64, size = sizeof(T);
    static const int64_t cache = last_cache_bytes();
    const int64_t positions = call.height * call.width + call.out_height * call.out_width;
    if (call.batch * call.channels * positions * size <= cache / 2) return false;
    int64_t any = reinterpret_cast<intptr_t>(output.data);
    for (const int64_t stride : strides) any |= stride * size;
    return any % kLine == 0;
  }
  return false;
}

// Stores to an address that is a multiple of the bytes stored. Other threads see what was stored so after
// end_streams().
template <typename V>
DDF_INLINE void stream_raw(void* to, V value) {
#if defined(__x86_64__) && !defined(__AVX512F__)
#if defined(__AVX__)
  if constexpr (sizeof value == sizeof(__m256)) {
    return _mm256_stream_ps(static_cast<float*>(to), same_bits<__m256>(value));
  }
#endif
  if constexpr (sizeof value == sizeof(__m128)) {
    return _mm_stream_ps(static_cast<float*>(to), same_bits<__m128>(value));
  }
#endif
  store_raw(to, value);
}

template <typename T>
DDF_INLINE void stream(T* to, Vector<typename Computed<T>::type> value) {
  constexpr int lanes = kLanes<typename Computed<T>::type>;
  T stored[lanes];
  store(stored, value);
  stream_raw(to, load_raw<Lanes<uint16_t, lanes * sizeof(T) / sizeof(uint16_t)>>(stored));
}

inline void end_streams() {
#if defined(__x86_64__)
  if constexpr (kStreams) _mm_sfence();
#endif
}

}  // namespace
}  // namespace ddf
