// Included before every source to compile the AVX-512 kernels for a processor that has AVX2 only: the compiler splits
// their wide vectors in two, and the conversions that they take from <immintrin.h> are put together here.
#pragma once
#include <immintrin.h>

#if !defined(__AVX512F__)
#define __AVX512F__ 1

static inline __m512 emulated_cvtph_ps(__m256i halves) {
  const __m256 low = _mm256_cvtph_ps(_mm256_castsi256_si128(halves));
  const __m256 high = _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1));
  __m512 floats;
  __builtin_memcpy(&floats, &low, sizeof low);
  __builtin_memcpy(reinterpret_cast<char*>(&floats) + sizeof low, &high, sizeof high);
  return floats;
}

static inline __m256i emulated_cvtps_ph(__m512 floats) {
  __m256 low, high;
  __builtin_memcpy(&low, &floats, sizeof low);
  __builtin_memcpy(&high, reinterpret_cast<const char*>(&floats) + sizeof low, sizeof high);
  const __m128i first = _mm256_cvtps_ph(low, 0), second = _mm256_cvtps_ph(high, 0);
  return _mm256_inserti128_si256(_mm256_castsi128_si256(first), second, 1);
}

#undef _mm512_cvtph_ps
#undef _mm512_cvtps_ph
#define _mm512_cvtph_ps(halves) emulated_cvtph_ps(halves)
#define _mm512_cvtps_ph(floats, rounding) emulated_cvtps_ph(floats)
#endif
