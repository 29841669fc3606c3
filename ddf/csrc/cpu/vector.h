// Vectors as wide as the instruction set has them, through the compiler's vector extension. Everything lies in an
// anonymous namespace: each instruction set keeps its own copy.
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

}  // namespace
}  // namespace ddf
