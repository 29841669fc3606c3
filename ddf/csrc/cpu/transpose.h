// Transposes matrices in blocks of whole vectors.
#pragma once

#include "storage.h"

namespace ddf {
namespace {

// Elements as bits: nothing is converted.
template <typename T>
struct Bits {
  using type = uint16_t;
};
template <>
struct Bits<float> {
  using type = float;
};
template <>
struct Bits<double> {
  using type = double;
};

// One block of lanes x lanes. With rows and columns counted in bits, interleaving vector i with vector i + lanes / 2
// rotates the bits of (row, column) by one; as many times as a lane number has bits exchanges the two.
template <int lanes, typename E>
DDF_NOINLINE void transpose_block(E* to, int64_t to_row, const E* from, int64_t from_row) {
  using V = Lanes<E, lanes>;
  V rows[lanes], turned[lanes];
  for (int i = 0; i < lanes; ++i) rows[i] = load_raw<V>(from + i * from_row);
#pragma GCC unroll 8
  for (int step = 1; step < lanes; step *= 2) {
#pragma GCC unroll 32
    for (int i = 0; i < lanes / 2; ++i) {
      turned[2 * i] = interleaved<0, E, lanes>(rows[i], rows[i + lanes / 2]);
      turned[2 * i + 1] = interleaved<1, E, lanes>(rows[i], rows[i + lanes / 2]);
    }
#pragma GCC unroll 32
    for (int i = 0; i < lanes; ++i) rows[i] = turned[i];
  }
#pragma GCC unroll 32
  for (int i = 0; i < lanes; ++i) store_raw(to + i * to_row, rows[i]);
}

// In blocks as large as the matrix has room for; what is smaller than the smallest goes one by one.
template <int lanes, typename E>
void transpose_by(E* to, int64_t to_row, const E* from, int64_t from_row, int64_t rows, int64_t columns) {
  constexpr int64_t kSingleColumns = 2;  // that cost less one by one than in a block
  if (rows < lanes || columns < lanes) {
    if constexpr (lanes > 4) return transpose_by<lanes / 2>(to, to_row, from, from_row, rows, columns);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t column = 0; column < columns; ++column) to[column * to_row + row] = from[row * from_row + column];
    }
    return;
  }
  const int64_t single_columns = columns % lanes <= kSingleColumns ? columns % lanes : 0;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = columns - single_columns; column < columns; ++column) {
      to[column * to_row + row] = from[row * from_row + column];
    }
  }
  columns -= single_columns;
  for (int64_t i = 0; i < rows; i += lanes) {
    const int64_t row = i + lanes <= rows ? i : rows - lanes;
    for (int64_t j = 0; j < columns; j += lanes) {
      const int64_t column = j + lanes <= columns ? j : columns - lanes;
      transpose_block<lanes>(to + column * to_row + row, to_row, from + row * from_row + column, from_row);
    }
  }
}

// to[column * to_row + row] = from[row * from_row + column]. The last blocks overlap those before, so nothing outside
// is touched.
template <typename T>
DDF_NOINLINE void transpose(T* to, int64_t to_row, const T* from, int64_t from_row, int64_t rows, int64_t columns) {
  using E = typename Bits<T>::type;
  transpose_by<kLanes<E>>(reinterpret_cast<E*>(to), to_row, reinterpret_cast<const E*>(from), from_row, rows, columns);
}

}  // namespace
}  // namespace ddf
