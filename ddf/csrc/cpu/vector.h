// Vectors as wide as the instruction set has them, through the compiler's vector extension, and the storage types.
// Everything lies in an anonymous namespace: each instruction set keeps its own copy.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>
#if defined(__AVX__) || defined(__F16C__)
#include <immintrin.h>
#endif

namespace ddf {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// Accumulators that a tile may hold: about half of the registers, the rest serves operands.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kAccumulators = 16;
#else
constexpr int kAccumulators = 8;
#endif

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

// `lanes` elements of a type as one value.
template <typename E, int lanes>
struct VectorOf {
  typedef E type __attribute__((vector_size(lanes * sizeof(E))));
};
template <typename E>
struct VectorOf<E, 1> {
  using type = E;
};
template <typename E, int lanes>
using Lanes = typename VectorOf<E, lanes>::type;

template <typename A>
constexpr int kLanes = kVectorBytes / sizeof(A);
template <typename A>
using Vector = Lanes<A, kLanes<A>>;

#define DDF_ALWAYS_INLINE __attribute__((always_inline))
#define DDF_INLINE inline DDF_ALWAYS_INLINE
#define DDF_NOINLINE __attribute__((noinline))

template <typename V, typename T>
DDF_INLINE V load_raw(const T* from) {
  V value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}

template <typename V, typename T>
DDF_INLINE void store_raw(T* to, V value) {
  __builtin_memcpy(to, &value, sizeof value);
}

template <typename To, typename From>
DDF_INLINE To same_bits(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  __builtin_memcpy(&result, &value, sizeof result);
  return result;
}

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

template <typename A>
DDF_INLINE Vector<A> broadcast(A value) {
  return value - Vector<A>{};  // minus zero leaves every value as it is, and costs nothing
}

// Calls body.operator()<i>() for i from 0 to count - 1: a loop that is unrolled before the compiler decides what lives
// in registers.
template <int count, typename Body>
DDF_INLINE void unrolled(const Body& body) {
  [&]<int... i>(std::integer_sequence<int, i...>)
      DDF_ALWAYS_INLINE { (body.template operator()<i>(), ...); }(std::make_integer_sequence<int, count>{});
}

// Sets arrays of vectors to zero, one by one and without a loop: what is declared with `= {}`, and a loop of zeros, the
// compiler clears with a string instruction, which takes longer to start than some tiles take.
template <typename V>
DDF_INLINE void clear(V& values) {
  if constexpr (std::is_array_v<V>) {
    [&]<std::size_t... index>(std::index_sequence<index...>)
        DDF_ALWAYS_INLINE { (clear(values[index]), ...); }(std::make_index_sequence<std::extent_v<V>>{});
  } else {
    values = V{};
  }
}

// Hides where a pointer came from: the compiler would otherwise keep one precomputed address for each channel and tap,
// and run out of registers.
template <typename A>
DDF_INLINE const A* opaque(const A* pointer) {
  asm("" : "+r"(pointer));
  return pointer;
}

template <typename E, int lanes>
DDF_INLINE E sum_of_lanes(Lanes<E, lanes> value) {
  if constexpr (lanes == 1) {
    return value;
  } else {
    struct {
      Lanes<E, lanes / 2> low, high;
    } halves;
    __builtin_memcpy(&halves, &value, sizeof value);
    return sum_of_lanes<E, lanes / 2>(halves.low + halves.high);
  }
}

template <typename A>
DDF_INLINE A horizontal_sum(Vector<A> value) {
  return sum_of_lanes<A, kLanes<A>>(value);
}

// Whether a comparison holds in any lane.
DDF_INLINE bool any_lane(Vector<int32_t> holds) {
#if defined(__AVX__) && !defined(__AVX512F__)
  return _mm256_movemask_ps(same_bits<__m256>(holds)) != 0;
#else
  uint64_t parts[kVectorBytes / sizeof(uint64_t)], any = 0;
  store_raw(parts, holds);
  for (uint64_t part : parts) any |= part;
  return any != 0;
#endif
}

template <int first_lane, typename V, int... index>
DDF_INLINE V every_second_of(V first, V second, std::integer_sequence<int, index...>) {
  return __builtin_shufflevector(first, second, first_lane + 2 * index...);
}

// Every second lane of two vectors side by side, from the first (0) or the second (1) on.
template <int first_lane, typename A>
DDF_INLINE Vector<A> every_second(Vector<A> first, Vector<A> second) {
  return every_second_of<first_lane>(first, second, std::make_integer_sequence<int, kLanes<A>>{});
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

template <int half, typename V, int... index>
DDF_INLINE V interleaved_of(V first, V second, std::integer_sequence<int, index...>) {
  constexpr int lanes = sizeof...(index);
  return __builtin_shufflevector(first, second, (half * lanes + index) / 2 + index % 2 * lanes...);
}

// The lower (half 0) or upper (half 1) half of the lanes of two vectors, taken in turns.
template <int half, typename A, int lanes = kLanes<A>>
DDF_INLINE Lanes<A, lanes> interleaved(Lanes<A, lanes> first, Lanes<A, lanes> second) {
  return interleaved_of<half>(first, second, std::make_integer_sequence<int, lanes>{});
}

// Adds lanes that stand four apart.
template <typename A, int lanes>
DDF_INLINE Lanes<A, 4> fold_to_four(Lanes<A, lanes> value) {
  if constexpr (lanes == 4) {
    return value;
  } else {
    struct {
      Lanes<A, lanes / 2> low, high;
    } halves;
    __builtin_memcpy(&halves, &value, sizeof value);
    return fold_to_four<A, lanes / 2>(halves.low + halves.high);
  }
}

// Adds to sums[i] the lanes of values[i]: four at once share their shuffles.
template <int count, typename A>
DDF_INLINE void add_lanes(A* sums, const Vector<A> (&values)[count]) {
  if constexpr (count == 4 && kLanes<A> >= 4) {
    const Vector<A> even = interleaved<0, A>(values[0], values[2]) + interleaved<1, A>(values[0], values[2]);
    const Vector<A> odd = interleaved<0, A>(values[1], values[3]) + interleaved<1, A>(values[1], values[3]);
    const Vector<A> all = interleaved<0, A>(even, odd) + interleaved<1, A>(even, odd);
    store_raw(sums, load_raw<Lanes<A, 4>>(sums) + fold_to_four<A, kLanes<A>>(all));
  } else {
    for (int i = 0; i < count; ++i) sums[i] += horizontal_sum<A>(values[i]);
  }
}

// Many taps are summed row by row, which keeps the rounding error of a sum in float small: ends a row of them. The last
// row leaves the whole sums in `sums`, the others zeros.
template <int count, typename V>
DDF_INLINE void end_tap_row(V* sums, V* earlier_rows, bool is_last) {
  for (int i = 0; i < count; ++i) {
    earlier_rows[i] += sums[i];
    sums[i] = is_last ? earlier_rows[i] : V{};
  }
}
constexpr int64_t kMostTapsInOneSum = 7;  // in a row; where there are more, each row is summed by itself

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
