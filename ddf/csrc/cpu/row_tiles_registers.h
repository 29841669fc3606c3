// The inner loop over the rows of planes. The accumulators of a register tile (rows x channels x vectors) stay in
// registers over all taps. A vector of the map serves every output row that a tap brings it to, a vector of the spatial
// filter all channels of the group.
#pragma once

#include "masks.h"
#include "planes.h"

namespace ddf {
namespace {

#if defined(__AVX512F__)
constexpr int kTileRows = 2, kTileChannels = kChannelGroup, kTileVectors = 2;
constexpr int kTapElements = kTileRows * kTileVectors * kLanes<float>;  // of the spatial filter, in a tile

// Output rows of a tile stand as far apart as the taps of the kernel, so that they share what they read: row r meets
// source row y, of rows + taps - 1, with its tap row y - r. Distances in elements.
struct RowTile {
  const float* source;  // what tap (0, 0) of the first output reads; what lies off the map is not used
  int64_t source_channel, source_row, source_tap_column;
  Range rows_on_map;            // of the source rows
  const float* spatial;         // (tap columns, tap rows, kTileRows, kTileVectors)
  const float* channel_filter;  // (channels, tap rows, tap columns)
  const Mask* masks;            // the lanes in which a tap column meets the map, (tap columns, kTileVectors)
  float* output;
  int64_t output_channel, output_row;
  int64_t columns;      // from the first output on, in a row
  bool has_neighbours;  // memory around the rows may be read, as far as any tap reaches
};

// What stays in registers while the source rows of one tap column pass: sums of the tile, and elements of the channel
// filter, those of tap row y - r for output row r.
template <int rows, int vectors>
struct TileRegisters {
  Vector<float> sums[rows][kTileChannels][vectors], filter[rows][kTileChannels];
  Mask masks[vectors];
};

template <Combine combine, int taps, int y, bool has_neighbours, int rows, int vectors>
DDF_INLINE void add_source_row(const float* source, int64_t channel_step, const float* spatial, const float* filter,
                               Range rows_on_map, TileRegisters<rows, vectors>& tile) {
  constexpr int lanes = kLanes<float>;
  for (int r = rows - 1; r > 0; --r) {
    for (int i = 0; i < kTileChannels; ++i) tile.filter[r][i] = tile.filter[r - 1][i];
  }
  if constexpr (y < taps) {
    for (int i = 0; i < kTileChannels; ++i) tile.filter[0][i] = broadcast(filter[(i * taps + y) * taps]);
  }
  if (y < rows_on_map.begin || y >= rows_on_map.end) return;
  constexpr int first = y < taps ? 0 : y - taps + 1, last = y < rows ? y : rows - 1;  // output rows that meet it
  Vector<float> s[rows][vectors];
  for (int r = first; r <= last; ++r) {
    for (int v = 0; v < vectors; ++v) s[r][v] = load(spatial + (y - r) * kTapElements + (r * kTileVectors + v) * lanes);
  }
  for (int i = 0; i < kTileChannels; ++i, source = opaque(source + channel_step)) {
    for (int v = 0; v < vectors; ++v) {
      const float* from = source + v * lanes;
      const Vector<float> x = kept(has_neighbours ? load(from) : load_masked(from, tile.masks[v]));
      for (int r = first; r <= last; ++r) {
        Vector<float>& sum = tile.sums[r][i][v];
        sum = add_product(sum, tap_weight<combine>(tile.filter[r][i], s[r][v]), x, tile.masks[v]);
      }
    }
  }
}

template <Combine combine, int taps, int rows, int vectors, bool has_neighbours>
DDF_NOINLINE void gather_rows(const RowTile& tile) {
  constexpr int lanes = kLanes<float>;
  TileRegisters<rows, vectors> registers;
  clear(registers.sums);
  clear(registers.filter);
  const Range rows_on_map = tile.rows_on_map;
  for (int64_t m = 0; m < taps; ++m) {
    const float* source = tile.source + m * tile.source_tap_column;
    const float* spatial = tile.spatial + m * taps * kTapElements;
    for (int v = 0; v < vectors; ++v) registers.masks[v] = tile.masks[m * kTileVectors + v];
    unrolled<rows + taps - 1>([&]<int y>() DDF_ALWAYS_INLINE {
      add_source_row<combine, taps, y, has_neighbours>(source, tile.source_channel, spatial, tile.channel_filter + m,
                                                       rows_on_map, registers);
      source = opaque(source + tile.source_row);
    });
  }
  for (int r = 0; r < rows; ++r) {
    for (int i = 0; i < kTileChannels; ++i) {
      float* output = tile.output + r * tile.output_row + i * tile.output_channel;
      for (int v = 0; v < vectors; ++v) {
        store_masked(output + v * lanes, registers.sums[r][i][v], first_lanes(tile.columns - v * lanes));
      }
    }
  }
}

template <Combine combine, int taps, int rows, int vectors>
void gather_rows_of(const RowTile& tile) {
  if (tile.has_neighbours) return gather_rows<combine, taps, rows, vectors, true>(tile);
  gather_rows<combine, taps, rows, vectors, false>(tile);
}

template <Combine combine, int taps>
void gather_row_tile(const RowTile& tile, int64_t rows, int64_t vectors) {
  if (rows == 2 && vectors == 2) return gather_rows_of<combine, taps, 2, 2>(tile);
  if (rows == 2) return gather_rows_of<combine, taps, 2, 1>(tile);
  if (vectors == 2) return gather_rows_of<combine, taps, 1, 2>(tile);
  gather_rows_of<combine, taps, 1, 1>(tile);
}
#endif

}  // namespace
}  // namespace ddf
