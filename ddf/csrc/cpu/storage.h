// The types in which maps and filters are stored: as vectors to compute with, and copied from one to the other.
#pragma once

#include "vector.h"

namespace ddf {
namespace {

// Storage types of the half precisions; they are computed in float.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <typename T>
struct Computed {
  using type = float;
};
template <>
struct Computed<double> {
  using type = double;
};

// Conversion of `lanes` values between storage and computation; the general case is that they are the same type.
template <typename T, int lanes>
struct Conversion {
  using A = typename Computed<T>::type;
  static DDF_INLINE Lanes<A, lanes> load(const T* from) { return load_raw<Lanes<A, lanes>>(from); }
  static DDF_INLINE void store(T* to, Lanes<A, lanes> value) { store_raw(to, value); }
};

template <int lanes, typename To, typename From>
DDF_INLINE To convert_lanes(From value) {
  if constexpr (lanes == 1) {
    return static_cast<To>(value);
  } else {
    return __builtin_convertvector(value, To);
  }
}

template <int lanes>
struct Conversion<BFloat16, lanes> {
  using F = Lanes<float, lanes>;
  using W = Lanes<uint32_t, lanes>;
  using N = Lanes<uint16_t, lanes>;
  static DDF_INLINE F load(const BFloat16* from) {
#if defined(__AVX512F__)
    if constexpr (lanes == 16) {  // in one instruction, where the compiler would take four
      return same_bits<F>(same_bits<W>(_mm512_cvtepu16_epi32(load_raw<__m256i>(from))) << 16);
    }
#endif
    return same_bits<F>(convert_lanes<lanes, W>(load_raw<N>(from)) << 16);
  }
  // To nearest, ties to even, in the upper half of the bits; NaN may become anything.
  static DDF_INLINE W rounded(W bits) {
#if defined(__AVX512F__)
    if constexpr (lanes == 16) {  // with an addition under a mask, where the compiler would blend
      const __m512i before = same_bits<__m512i>(bits);
      const __mmask16 is_odd = _mm512_test_epi32_mask(before, _mm512_set1_epi32(0x10000));
      return same_bits<W>(
          _mm512_mask_add_epi32(same_bits<__m512i>(bits + 0x7fff), is_odd, before, _mm512_set1_epi32(0x8000)));
    }
#endif
    return bits + 0x7fff + (bits >> 16 & 1);
  }

  // NaN stays NaN.
  static DDF_INLINE N narrowed(F value) {
    const W bits = same_bits<W>(value);
#if defined(__AVX512F__)
    if constexpr (lanes == 16) {  // in one instruction each, where the compiler would blend and permute
      const __mmask16 is_nan = _mm512_cmp_ps_mask(same_bits<__m512>(value), same_bits<__m512>(value), _CMP_UNORD_Q);
      const __m512i either = _mm512_mask_or_epi32(same_bits<__m512i>(rounded(bits)), is_nan, same_bits<__m512i>(bits),
                                                  _mm512_set1_epi32(0x400000));
      return same_bits<N>(_mm512_cvtepi32_epi16(same_bits<__m512i>(same_bits<W>(either) >> 16)));
    }
#endif
    return convert_lanes<lanes, N>((value == value ? rounded(bits) : bits | 0x400000) >> 16);
  }
  static DDF_INLINE void store(BFloat16* to, F value) { store_raw(to, narrowed(value)); }
};

template <int lanes>
struct Conversion<Half, lanes> {
  using F = Lanes<float, lanes>;
  using W = Lanes<uint32_t, lanes>;
  using N = Lanes<uint16_t, lanes>;

  static DDF_INLINE F load(const Half* from) {
#if defined(__F16C__)
    if constexpr (lanes == 8) return same_bits<F>(_mm256_cvtph_ps(load_raw<__m128i>(from)));
#endif
#if defined(__AVX512F__)
    if constexpr (lanes == 16) return same_bits<F>(_mm512_cvtph_ps(load_raw<__m256i>(from)));
#endif
    const W bits = convert_lanes<lanes, W>(load_raw<N>(from));
    const W magnitude = (bits & 0x7fff) << 13;
    // the exponent's bias grows by 112: the product also brings subnormal numbers to their place
    const F scaled = same_bits<F>(magnitude) * 0x1p112f;
    const W special = magnitude | 0x7f800000;
    const W finite = same_bits<W>(scaled);
    return same_bits<F>((magnitude >= 0x0f800000 ? special : finite) | (bits & 0x8000) << 16);
  }

  // To nearest, ties to even; NaN stays NaN.
  static DDF_INLINE N narrowed(F value) {
#if defined(__F16C__)
    if constexpr (lanes == 8) return same_bits<N>(_mm256_cvtps_ph(same_bits<__m256>(value), 0));
#endif
#if defined(__AVX512F__)
    if constexpr (lanes == 16) return same_bits<N>(_mm512_cvtps_ph(same_bits<__m512>(value), 0));
#endif
    const W bits = same_bits<W>(value);
    const W magnitude = bits & 0x7fffffff;
    const W normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    // adding 0.5 leaves a subnormal half in the low bits, rounded by the addition itself
    const W subnormal = same_bits<W>(same_bits<F>(magnitude) + 0.5f) - 0x3f000000;
    const W finite = magnitude < 0x38800000 ? subnormal : normal;
    const W special = magnitude > 0x7f800000 ? finite * 0 + 0x7e00 : finite * 0 + 0x7c00;
    return convert_lanes<lanes, N>((magnitude >= 0x477ff000 ? special : finite) | (bits >> 16 & 0x8000));
  }
  static DDF_INLINE void store(Half* to, F value) { store_raw(to, narrowed(value)); }
};

template <typename T>
DDF_INLINE Vector<typename Computed<T>::type> load(const T* from) {
  return Conversion<T, kLanes<typename Computed<T>::type>>::load(from);
}

template <typename T>
DDF_INLINE void store(T* to, Vector<typename Computed<T>::type> value) {
  Conversion<T, kLanes<typename Computed<T>::type>>::store(to, value);
}

// Two vectors side by side as BFloat16. NaN may become anything.
DDF_INLINE Lanes<uint16_t, 2 * kLanes<float>> narrowed_pair(Vector<float> first, Vector<float> second) {
  using Words = Vector<uint32_t>;
  using Halves = Lanes<uint16_t, 2 * kLanes<float>>;
  const Words low = Conversion<BFloat16, kLanes<float>>::rounded(same_bits<Words>(first));
  const Words high = Conversion<BFloat16, kLanes<float>>::rounded(same_bits<Words>(second));
#if defined(__AVX2__) && !defined(__AVX512F__)  // in two instructions, where the compiler would take six
  const __m256i by_halves = _mm256_packus_epi32(same_bits<__m256i>(low >> 16), same_bits<__m256i>(high >> 16));
  return same_bits<Halves>(_mm256_permute4x64_epi64(by_halves, 0b11011000));
#else
  return every_second<1, uint16_t>(same_bits<Halves>(low), same_bits<Halves>(high));
#endif
}

// Copies `count` elements with conversion; whole vectors, the last one overlapping, so nothing outside is touched.
template <int lanes, typename To, typename From>
DDF_INLINE void copy_by_lanes(To* to, const From* from, int64_t count) {
  using Read = Conversion<From, lanes>;
  using Write = Conversion<To, lanes>;
  if (count >= lanes) {
    int64_t i = 0;
    for (; i + lanes <= count; i += lanes) Write::store(to + i, Read::load(from + i));
    if (i < count) Write::store(to + count - lanes, Read::load(from + count - lanes));
  } else if constexpr (lanes > 1) {
    copy_by_lanes<lanes / 2>(to, from, count);
  }
}

template <int lanes, typename V, int... index>
DDF_INLINE V even_then_odd(V first, V second, std::integer_sequence<int, index...>) {
  return __builtin_shufflevector(first, second, (index < lanes / 2 ? 2 * index : 2 * index + 1)...);
}

// Every second of `from`, the same way. The second half of a vector is read one element early, so that nothing behind
// the last one is touched.
template <int lanes, typename To, typename From>
DDF_INLINE void copy_every_second_by_lanes(To* to, const From* from, int64_t count) {
  using Read = Conversion<From, lanes>;
  const auto copy_at = [&](int64_t i) {
    if constexpr (lanes == 1) {
      Conversion<To, 1>::store(to + i, Read::load(from + 2 * i));
    } else {
      const auto first = Read::load(from + 2 * i), second = Read::load(from + 2 * i + lanes - 1);
      Conversion<To, lanes>::store(to + i,
                                   even_then_odd<lanes>(first, second, std::make_integer_sequence<int, lanes>{}));
    }
  };
  if (count >= lanes) {
    int64_t i = 0;
    for (; i + lanes <= count; i += lanes) copy_at(i);
    if (i < count) copy_at(count - lanes);
  } else if constexpr (lanes > 1) {
    copy_every_second_by_lanes<lanes / 2>(to, from, count);
  }
}

template <typename To, typename From>
DDF_INLINE void copy(To* to, const From* from, int64_t count) {
  copy_by_lanes<kLanes<typename Computed<From>::type>>(to, from, count);
}

// The same between strides; a source stride of 0 repeats one element.
template <typename To, typename From>
DDF_NOINLINE void copy_strided(To* to, int64_t to_stride, const From* from, int64_t from_stride, int64_t count) {
  if (to_stride == 1 && from_stride == 1) return copy(to, from, count);
  if (to_stride == 1 && from_stride == 2) {
    return copy_every_second_by_lanes<kLanes<typename Computed<From>::type>>(to, from, count);
  }
  if (to_stride == 1 && from_stride == 0 && count > 0) {
    Conversion<To, 1>::store(to, Conversion<From, 1>::load(from));
    for (int64_t i = 1; i < count; ++i) to[i] = to[0];
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    Conversion<To, 1>::store(to + i * to_stride, Conversion<From, 1>::load(from + i * from_stride));
  }
}

}  // namespace
}  // namespace ddf
