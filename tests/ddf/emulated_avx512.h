// Included before every source to compile the AVX-512 kernels for a processor that has AVX2 only: the compiler splits
// their wide vectors in two, and what they take from <immintrin.h> is put together here. Lanes that a mask leaves out
// are not touched in memory.
#pragma once
#include <immintrin.h>

#if !defined(__AVX512F__)
#define __AVX512F__ 1
#define DDF_EMULATES_AVX512

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

template <typename E, int count = 16>
struct EmulatedLanes {
  E lane[count];

  template <typename V>
  static EmulatedLanes of(V value) {
    EmulatedLanes lanes;
    static_assert(sizeof lanes == sizeof value);
    __builtin_memcpy(&lanes, &value, sizeof value);
    return lanes;
  }

  template <typename V>
  V as() const {
    V value;
    __builtin_memcpy(&value, this, sizeof value);
    return value;
  }
};
using EmulatedFloats = EmulatedLanes<float>;
using EmulatedWords = EmulatedLanes<unsigned>;

// `value` with operation(i) in the lanes of the mask.
template <typename E, typename Operation>
static inline EmulatedLanes<E> emulated_where(__mmask16 mask, EmulatedLanes<E> value, const Operation& operation) {
  for (int i = 0; i < 16; ++i) {
    if (mask >> i & 1) value.lane[i] = operation(i);
  }
  return value;
}

// The lanes in which condition(i) holds.
template <typename Condition>
static inline __mmask16 emulated_mask(const Condition& condition) {
  __mmask16 mask = 0;
  for (int i = 0; i < 16; ++i) mask |= static_cast<__mmask16>(condition(i) << i);
  return mask;
}

static inline __m512i emulated_cvtepu16_epi32(__m256i words) {
  const auto from = EmulatedLanes<unsigned short>::of(words);
  return emulated_where(0xffff, EmulatedWords{}, [&](int i) { return from.lane[i]; }).as<__m512i>();
}

static inline __m256i emulated_cvtepi32_epi16(__m512i words) {
  const auto from = EmulatedWords::of(words);
  const auto low = [&](int i) { return static_cast<unsigned short>(from.lane[i]); };
  return emulated_where(0xffff, EmulatedLanes<unsigned short>{}, low).as<__m256i>();
}

static inline __m512 emulated_maskz_loadu_ps(__mmask16 mask, const float* from) {
  return emulated_where(mask, EmulatedFloats{}, [&](int i) { return from[i]; }).as<__m512>();
}

static inline void emulated_mask_storeu_ps(float* to, __mmask16 mask, __m512 value) {
  const auto lanes = EmulatedFloats::of(value);
  for (int i = 0; i < 16; ++i) {
    if (mask >> i & 1) to[i] = lanes.lane[i];
  }
}

static inline void emulated_mask_storeu_epi16(void* to, __mmask16 mask, __m256i value) {
  const auto lanes = EmulatedLanes<unsigned short>::of(value);
  for (int i = 0; i < 16; ++i) {
    if (mask >> i & 1) __builtin_memcpy(static_cast<char*>(to) + 2 * i, &lanes.lane[i], 2);
  }
}

static inline __m512 emulated_mask3_fmadd_ps(__m512 a, __m512 b, __m512 sum, __mmask16 mask) {
  const auto x = EmulatedFloats::of(a), y = EmulatedFloats::of(b), z = EmulatedFloats::of(sum);
  return emulated_where(mask, z, [&](int i) { return __builtin_fmaf(x.lane[i], y.lane[i], z.lane[i]); }).as<__m512>();
}

static inline __m512 emulated_maskz_mul_ps(__mmask16 mask, __m512 a, __m512 b) {
  const auto x = EmulatedFloats::of(a), y = EmulatedFloats::of(b);
  return emulated_where(mask, EmulatedFloats{}, [&](int i) { return x.lane[i] * y.lane[i]; }).as<__m512>();
}

static inline __m512i emulated_set1_epi32(unsigned value) {
  return emulated_where(0xffff, EmulatedWords{}, [&](int) { return value; }).as<__m512i>();
}

static inline __mmask16 emulated_cmplt_epu32_mask(__m512i a, __m512i b) {
  const auto x = EmulatedWords::of(a), y = EmulatedWords::of(b);
  return emulated_mask([&](int i) { return x.lane[i] < y.lane[i]; });
}

static inline __mmask16 emulated_test_epi32_mask(__m512i a, __m512i b) {
  const auto x = EmulatedWords::of(a), y = EmulatedWords::of(b);
  return emulated_mask([&](int i) { return (x.lane[i] & y.lane[i]) != 0; });
}

static inline __mmask16 emulated_unordered_mask(__m512 a, __m512 b) {
  const auto x = EmulatedFloats::of(a), y = EmulatedFloats::of(b);
  return emulated_mask([&](int i) { return __builtin_isunordered(x.lane[i], y.lane[i]) != 0; });
}

static inline __m512i emulated_mask_add_epi32(__m512i other, __mmask16 mask, __m512i a, __m512i b) {
  const auto x = EmulatedWords::of(a), y = EmulatedWords::of(b);
  return emulated_where(mask, EmulatedWords::of(other), [&](int i) { return x.lane[i] + y.lane[i]; }).as<__m512i>();
}

static inline __m512i emulated_mask_or_epi32(__m512i other, __mmask16 mask, __m512i a, __m512i b) {
  const auto x = EmulatedWords::of(a), y = EmulatedWords::of(b);
  return emulated_where(mask, EmulatedWords::of(other), [&](int i) { return x.lane[i] | y.lane[i]; }).as<__m512i>();
}

static inline __m512i emulated_alignr_epi32(__m512i high, __m512i low, int first) {
  const auto x = EmulatedWords::of(high), y = EmulatedWords::of(low);
  const auto lane = [&](int i) { return i < 16 ? y.lane[i] : x.lane[i - 16]; };
  return emulated_where(0xffff, EmulatedWords{}, [&](int i) { return lane(i + first); }).as<__m512i>();
}

static inline __m512 emulated_zextps128_ps512(__m128 four) {
  const auto from = EmulatedLanes<float, 4>::of(four);
  return emulated_where(0xf, EmulatedFloats{}, [&](int i) { return from.lane[i]; }).as<__m512>();
}

#undef _mm512_cvtph_ps
#undef _mm512_cvtps_ph
#undef _mm512_cmp_ps_mask
#undef _mm512_alignr_epi32
#define _mm512_alignr_epi32 emulated_alignr_epi32
#define _mm512_zextps128_ps512 emulated_zextps128_ps512
#define _mm512_test_epi32_mask emulated_test_epi32_mask
#define _mm512_cmp_ps_mask(a, b, unordered) emulated_unordered_mask(a, b)
#define _mm512_mask_add_epi32 emulated_mask_add_epi32
#define _mm512_mask_or_epi32 emulated_mask_or_epi32
#define _mm512_cvtph_ps(halves) emulated_cvtph_ps(halves)
#define _mm512_cvtps_ph(floats, rounding) emulated_cvtps_ph(floats)
#define _mm512_cvtepu16_epi32 emulated_cvtepu16_epi32
#define _mm512_cvtepi32_epi16 emulated_cvtepi32_epi16
#define _mm512_maskz_loadu_ps emulated_maskz_loadu_ps
#define _mm512_mask_storeu_ps emulated_mask_storeu_ps
#define _mm256_mask_storeu_epi16 emulated_mask_storeu_epi16
#define _mm512_mask3_fmadd_ps emulated_mask3_fmadd_ps
#define _mm512_maskz_mul_ps emulated_maskz_mul_ps
#define _mm512_set1_epi32 emulated_set1_epi32
#define _mm512_cmplt_epu32_mask emulated_cmplt_epu32_mask
#endif
