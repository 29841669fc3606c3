// Loads, stores and arithmetic on some lanes of a vector.
#pragma once

#include "storage.h"

namespace ddf {
namespace {

// Whether the instruction set loads and stores some lanes of a vector at no cost.
#if defined(__AVX512F__)
constexpr bool kHasMasks = true;

using Mask = __mmask16;  // a bit per lane of float

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
// Lane by lane: sanitizers do not watch what masked instructions touch.
DDF_INLINE Vector<float> load_masked(const float* from, Mask mask) {
  Vector<float> value{};
  for (int i = 0; i < kLanes<float>; ++i) {
    if (mask >> i & 1) value[i] = from[i];
  }
  return value;
}

DDF_INLINE void store_masked(float* to, Vector<float> value, Mask mask) {
  for (int i = 0; i < kLanes<float>; ++i) {
    if (mask >> i & 1) to[i] = value[i];
  }
}

template <typename T>
DDF_INLINE void store_masked(T* to, Vector<float> value, Mask mask) {
  const auto narrowed = Conversion<T, kLanes<float>>::narrowed(value);
  for (int i = 0; i < kLanes<float>; ++i) {
    if (mask >> i & 1) to[i].bits = narrowed[i];
  }
}
#else
DDF_INLINE Vector<float> load_masked(const float* from, Mask mask) {
  return same_bits<Vector<float>>(_mm512_maskz_loadu_ps(mask, from));
}

DDF_INLINE void store_masked(float* to, Vector<float> value, Mask mask) {
  _mm512_mask_storeu_ps(to, mask, same_bits<__m512>(value));
}

// In half precision.
template <typename T>
DDF_INLINE void store_masked(T* to, Vector<float> value, Mask mask) {
  _mm256_mask_storeu_epi16(to, mask, same_bits<__m256i>(Conversion<T, kLanes<float>>::narrowed(value)));
}
#endif

template <int count>
DDF_INLINE bool any_nan(const Vector<float> (&pairs)[count][2]) {
  Mask found = 0;
  for (const auto& pair : pairs) {
    found |= _mm512_cmp_ps_mask(same_bits<__m512>(pair[0]), same_bits<__m512>(pair[1]), _CMP_UNORD_Q);
  }
  return found != 0;
}

// sum + a * b in the lanes of the mask; costs as much as without one, where masking a load costs an instruction.
DDF_INLINE Vector<float> add_product(Vector<float> sum, Vector<float> a, Vector<float> b, Mask mask) {
  return same_bits<Vector<float>>(
      _mm512_mask3_fmadd_ps(same_bits<__m512>(a), same_bits<__m512>(b), same_bits<__m512>(sum), mask));
}

// a * b in the lanes of the mask, zero elsewhere.
DDF_INLINE Vector<float> product(Vector<float> a, Vector<float> b, Mask mask) {
  return same_bits<Vector<float>>(_mm512_maskz_mul_ps(mask, same_bits<__m512>(a), same_bits<__m512>(b)));
}

// Keeps a vector that was loaded in a register: the compiler would otherwise read it anew for every use.
DDF_INLINE Vector<float> kept(Vector<float> value) {
#if !defined(DDF_EMULATES_AVX512)  // which has no such registers
  asm("" : "+v"(value));
#endif
  return value;
}

// Four elements, and zeros.
DDF_INLINE Vector<float> load_four(const float* from) {
  return kept(same_bits<Vector<float>>(_mm512_zextps128_ps512(load_raw<__m128>(from))));
}

// Of the lanes of two vectors side by side those from number `first` on.
template <int first>
DDF_INLINE Vector<float> lanes_from(Vector<float> low, Vector<float> high) {
  if constexpr (first == 0) return low;
  return same_bits<Vector<float>>(_mm512_alignr_epi32(same_bits<__m512i>(high), same_bits<__m512i>(low), first));
}

// The first `count` lanes; all or none where it is beyond their number or not positive.
DDF_INLINE Mask first_lanes(int64_t count) {
  return static_cast<Mask>(count >= kLanes<float> ? 0xffff : count <= 0 ? 0 : (1 << count) - 1);
}
#else
constexpr bool kHasMasks = false;

template <int count, int vectors>
DDF_INLINE bool any_nan(const Vector<float> (&values)[count][vectors]) {
  Vector<int32_t> found{};
  for (const auto& row : values) {
    for (const Vector<float>& value : row) found |= value != value;
  }
  return any_lane(found);
}
#endif

// The first `count` lanes of a vector, or all, from memory that may hold no more; zeros behind them.
template <typename A>
DDF_INLINE Vector<A> load_first(const A* from, int64_t count) {
#if defined(__AVX512F__)
  if constexpr (__is_same(A, float)) return load_masked(from, first_lanes(count));
#endif
  if (count >= kLanes<A>) return load(from);
  A lanes[kLanes<A>] = {};
  copy_by_lanes<kLanes<A> / 2>(lanes, from, count);
  return load(lanes);
}

// The first `count` lanes of a vector, or all, to memory that may have no room for more.
template <typename A>
DDF_INLINE void store_first(A* to, Vector<A> value, int64_t count) {
#if defined(__AVX512F__)
  if constexpr (__is_same(A, float)) return store_masked(to, value, first_lanes(count));
#endif
  if (count >= kLanes<A>) return store(to, value);
  A lanes[kLanes<A>];
  store(lanes, value);
  copy_by_lanes<kLanes<A> / 2>(to, lanes, count);
}

}  // namespace
}  // namespace ddf
