// Included before every source to compile the AVX-512 kernels for a processor that has AVX2 only: the compiler splits
// their wide vectors in two, and what they take from <immintrin.h> is put together here. Lanes that a mask leaves out
// are not touched in memory.
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

static inline __m512i emulated_cvtepu16_epi32(__m256i words) {
  unsigned short from[16];
  unsigned lanes[16];
  __m512i result;
  __builtin_memcpy(from, &words, sizeof from);
  for (int i = 0; i < 16; ++i) lanes[i] = from[i];
  __builtin_memcpy(&result, lanes, sizeof lanes);
  return result;
}

static inline __m512 emulated_maskz_loadu_ps(__mmask16 mask, const void* from) {
  float lanes[16] = {};
  __m512 result;
  for (int i = 0; i < 16; ++i) {
    if (mask >> i & 1) __builtin_memcpy(lanes + i, static_cast<const char*>(from) + 4 * i, 4);
  }
  __builtin_memcpy(&result, lanes, sizeof lanes);
  return result;
}

static inline void emulated_mask_storeu_ps(void* to, __mmask16 mask, __m512 value) {
  float lanes[16];
  __builtin_memcpy(lanes, &value, sizeof lanes);
  for (int i = 0; i < 16; ++i) {
    if (mask >> i & 1) __builtin_memcpy(static_cast<char*>(to) + 4 * i, lanes + i, 4);
  }
}

static inline __m512 emulated_mask3_fmadd_ps(__m512 a, __m512 b, __m512 sum, __mmask16 mask) {
  float factor[16], other[16], lanes[16];
  __builtin_memcpy(factor, &a, sizeof factor);
  __builtin_memcpy(other, &b, sizeof other);
  __builtin_memcpy(lanes, &sum, sizeof lanes);
  for (int i = 0; i < 16; ++i) {
    if (mask >> i & 1) lanes[i] = __builtin_fmaf(factor[i], other[i], lanes[i]);
  }
  __builtin_memcpy(&sum, lanes, sizeof lanes);
  return sum;
}

static inline __m512 emulated_maskz_mul_ps(__mmask16 mask, __m512 a, __m512 b) {
  float factor[16], other[16], lanes[16] = {};
  __builtin_memcpy(factor, &a, sizeof factor);
  __builtin_memcpy(other, &b, sizeof other);
  for (int i = 0; i < 16; ++i) {
    if (mask >> i & 1) lanes[i] = factor[i] * other[i];
  }
  __builtin_memcpy(&a, lanes, sizeof lanes);
  return a;
}

static inline __m512i emulated_set1_epi32(int value) {
  int lanes[16];
  __m512i result;
  for (int i = 0; i < 16; ++i) lanes[i] = value;
  __builtin_memcpy(&result, lanes, sizeof lanes);
  return result;
}

static inline __mmask16 emulated_cmplt_epu32_mask(__m512i a, __m512i b) {
  unsigned first[16], second[16];
  __mmask16 mask = 0;
  __builtin_memcpy(first, &a, sizeof first);
  __builtin_memcpy(second, &b, sizeof second);
  for (int i = 0; i < 16; ++i) mask |= static_cast<__mmask16>((first[i] < second[i]) << i);
  return mask;
}

static inline __mmask16 emulated_test_epi32_mask(__m512i a, __m512i b) {
  unsigned first[16], second[16];
  __mmask16 mask = 0;
  __builtin_memcpy(first, &a, sizeof first);
  __builtin_memcpy(second, &b, sizeof second);
  for (int i = 0; i < 16; ++i) mask |= static_cast<__mmask16>(((first[i] & second[i]) != 0) << i);
  return mask;
}

static inline __mmask16 emulated_unordered_mask(__m512 a, __m512 b) {
  float first[16], second[16];
  __mmask16 mask = 0;
  __builtin_memcpy(first, &a, sizeof first);
  __builtin_memcpy(second, &b, sizeof second);
  for (int i = 0; i < 16; ++i) mask |= static_cast<__mmask16>(__builtin_isunordered(first[i], second[i]) << i);
  return mask;
}

static inline __m512i emulated_mask_add_epi32(__m512i other, __mmask16 mask, __m512i a, __m512i b) {
  unsigned lanes[16], first[16], second[16];
  __builtin_memcpy(lanes, &other, sizeof lanes);
  __builtin_memcpy(first, &a, sizeof first);
  __builtin_memcpy(second, &b, sizeof second);
  for (int i = 0; i < 16; ++i) {
    if (mask >> i & 1) lanes[i] = first[i] + second[i];
  }
  __builtin_memcpy(&other, lanes, sizeof lanes);
  return other;
}

static inline __m512i emulated_mask_or_epi32(__m512i other, __mmask16 mask, __m512i a, __m512i b) {
  unsigned lanes[16], first[16], second[16];
  __builtin_memcpy(lanes, &other, sizeof lanes);
  __builtin_memcpy(first, &a, sizeof first);
  __builtin_memcpy(second, &b, sizeof second);
  for (int i = 0; i < 16; ++i) {
    if (mask >> i & 1) lanes[i] = first[i] | second[i];
  }
  __builtin_memcpy(&other, lanes, sizeof lanes);
  return other;
}

#undef _mm512_cvtph_ps
#undef _mm512_cvtps_ph
#undef _mm512_cmp_ps_mask
#define _mm512_test_epi32_mask emulated_test_epi32_mask
#define _mm512_cmp_ps_mask(a, b, unordered) emulated_unordered_mask(a, b)
#define _mm512_mask_add_epi32 emulated_mask_add_epi32
#define _mm512_mask_or_epi32 emulated_mask_or_epi32
#define _mm512_cvtph_ps(halves) emulated_cvtph_ps(halves)
#define _mm512_cvtps_ph(floats, rounding) emulated_cvtps_ph(floats)
#define _mm512_cvtepu16_epi32 emulated_cvtepu16_epi32
#define _mm512_maskz_loadu_ps emulated_maskz_loadu_ps
#define _mm512_mask_storeu_ps emulated_mask_storeu_ps
#define _mm512_mask3_fmadd_ps emulated_mask3_fmadd_ps
#define _mm512_maskz_mul_ps emulated_maskz_mul_ps
#define _mm512_set1_epi32 emulated_set1_epi32
#define _mm512_cmplt_epu32_mask emulated_cmplt_epu32_mask
#endif
