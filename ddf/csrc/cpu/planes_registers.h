// The inner loop over contiguous rows in scratch. The accumulators of a register tile (channels x rows x vectors) stay
// in registers over all taps, and every vector of the spatial filter serves all channels of the group.
#pragma once

#include "masks.h"
#include "scratch.h"

namespace ddf {
namespace {

// Where the taps read, relative to an output's place in scratch.
struct TapOffsets {
  int64_t rows, columns;           // how many taps
  int64_t source_row, weight_row;  // from one tap row to the next
  const int64_t* source_column;    // of each tap column
  int64_t weight_column;           // from one tap column to the next
};

// A group of channels in scratch and where its outputs go; distances in elements.
template <typename A>
struct GroupTile {
  const A* source;
  int64_t source_channel, source_row;  // from one channel, one output row, to the next
  const A* weights;
  int64_t weight_row;
  const A* channel_filter;  // (channels, taps) where the taps are known, else (taps, channels)
  A* output;
  int64_t output_channel, output_row;
  int64_t room;  // elements from `output` on, in each channel, that may be written before their turn comes
};

// Stores a register tile (channels, rows, vectors) that reaches beyond the room: what lies within.
template <typename A>
DDF_NOINLINE void store_within(const Vector<A>* sums, int channels, int rows, int vectors, const GroupTile<A>& tile,
                               int64_t offset) {
  constexpr int lanes = kLanes<A>;
  for (int i = 0; i < channels; ++i) {
    for (int r = 0; r < rows; ++r) {
      for (int v = 0; v < vectors; ++v, ++sums) {
        const int64_t place = offset + r * tile.output_row + v * lanes;
        A* output = tile.output + i * tile.output_channel + place;
        if (place + lanes <= tile.room) {
          store(output, *sums);
        } else if (place < tile.room) {
          store_first(output, *sums, tile.room - place);
        }
      }
    }
  }
}

// `taps_known` is the number of taps in each direction, 0 where it is known at run time only.
template <Combine combine, int taps_known, int channels, int rows, int vectors, typename A>
DDF_INLINE void gather_registers(const TapOffsets& taps, const GroupTile<A>& tile, int64_t row, int64_t column) {
  constexpr int lanes = kLanes<A>;
  constexpr int channel_step = taps_known > 0 ? taps_known * taps_known : 1, tap_step = taps_known > 0 ? 1 : channels;
  Vector<A> sums[channels][rows][vectors];
  [[maybe_unused]] Vector<A> earlier_rows[channels][rows][vectors];
  clear(sums);
  if constexpr (taps_known == 0) clear(earlier_rows);
  const A* source = tile.source + row * tile.source_row + column;
  const A* weights = tile.weights + row * tile.weight_row + column;
  const A* filter = tile.channel_filter;
  const int64_t tap_rows = taps_known > 0 ? taps_known : taps.rows;
  const int64_t tap_columns = taps_known > 0 ? taps_known : taps.columns;
  for (int64_t n = 0; n < tap_rows; ++n) {
#pragma GCC unroll 7
    for (int64_t m = 0; m < tap_columns; ++m) {
      const A* x = opaque(source + taps.source_column[m]);
      const A* s = opaque(weights + m * taps.weight_column);
      Vector<A> c[channels];
      for (int i = 0; i < channels; ++i) c[i] = broadcast(filter[i * channel_step]);
      for (int r = 0; r < rows; ++r) {
        for (int v = 0; v < vectors; ++v) {
          const Vector<A> spatial = load(s + r * tile.weight_row + v * lanes);
          for (int i = 0; i < channels; ++i) {
            sums[i][r][v] += tap_weight<combine>(c[i], spatial) *
                             load(x + i * tile.source_channel + r * tile.source_row + v * lanes);
          }
        }
      }
      filter += tap_step;
    }
    source += taps.source_row;
    weights += taps.weight_row;
    if constexpr (taps_known == 0) {
      if (tap_columns > kMostTapsInOneSum) {
        end_tap_row<channels * rows * vectors>(&sums[0][0][0], &earlier_rows[0][0][0], n + 1 == tap_rows);
      }
    }
  }
  const int64_t offset = row * tile.output_row + column;
  A* output = tile.output + offset;
  const bool fits = offset + (rows - 1) * tile.output_row + vectors * lanes <= tile.room;
  if (__builtin_expect(fits, true)) {
    for (int i = 0; i < channels; ++i) {
      for (int r = 0; r < rows; ++r) {
        for (int v = 0; v < vectors; ++v) {
          store(output + i * tile.output_channel + r * tile.output_row + v * lanes, sums[i][r][v]);
        }
      }
    }
  } else {
    store_within<A>(&sums[0][0][0], channels, rows, vectors, tile, offset);
  }
}

// Cuts a tile into register tiles. The last vector of a row may run over into the next rows, which come later: so one
// row at a time, or whole rows.
template <Combine combine, int taps_known, int channels, typename A>
DDF_NOINLINE void gather_group(const TapOffsets& taps, const GroupTile<A>& tile, int64_t rows, int64_t columns) {
  constexpr int most = kAccumulators / channels, lanes = kLanes<A>;
  int64_t row = 0;
  if (columns <= lanes) {
    for (; row + most <= rows; row += most) {
      gather_registers<combine, taps_known, channels, most, 1>(taps, tile, row, 0);
    }
  }
  for (; row < rows; ++row) {
    int64_t column = 0;
    for (; column + (most - 1) * lanes < columns; column += most * lanes) {
      gather_registers<combine, taps_known, channels, 1, most>(taps, tile, row, column);
    }
    for (; column < columns; column += lanes) {
      gather_registers<combine, taps_known, channels, 1, 1>(taps, tile, row, column);
    }
  }
}

}  // namespace
}  // namespace ddf
