// The inner loop at stride 2 with 3 taps a side, down the rows of maps that are read where they lie.
//
// Each step reads two map rows, as whole vectors that permutations turn into what the three tap columns read. The lower
// of them is the upper one of the next step and stays in registers, as the channel's taps do; the spatial filter comes
// from scratch, where it lies as the loop reads it.
#pragma once

#include "masks.h"
#include "scratch.h"

namespace ddf {
namespace {

constexpr int kStridedTaps = 9;

#if defined(__AVX512F__)
// A vector's width of output columns, and `steps` vectors down the rows of a tile. Each holds outputs of one row; or,
// where the columns fill half of it at most, of two rows that stand `steps` apart, one in each half.
struct StridedBlock {
  int64_t column, steps;
  bool paired;
  // for the first and the second half: lanes of a vector of the map, and of the outputs; where no rows are paired, of
  // both vectors of a map row, and of the outputs and none
  Mask reads[2], writes[2];
  // whether there is a map row above the first outputs; the steps in which there are outputs, and a map row below them
  bool has_upper[2];
  int64_t middle_end[2], lower_end[2];
  int64_t whole_steps;  // the least of those numbers
};

// Output rows of some blocks, and the channels that pass through them one by one. Distances in elements.
struct StridedTile {
  const float* source;  // what the first row's middle tap reads for column 0
  int64_t source_channel, source_row;
  const float* channel_filter;  // (channels, taps)
  const float* spatial;         // (blocks, steps, taps, lanes)
  float* output;
  int64_t output_channel, output_row;
  int64_t channels;
  const StridedBlock* blocks;
  int64_t block_count;
  const float* zeros;            // what is read in place of rows off the map: two vectors, and an element before them
  int64_t ahead, ahead_of_last;  // from a channel, and from the last, to what the second cache needs next; 0: nothing
};

// What the tap columns read of a map row, or of one in each half.
struct StridedColumns {
  Vector<float> left, middle, right;
};

// What lies left of the middle column: `right`, one lane further up, and where a row begins the lane of `edges`.
template <bool paired>
DDF_INLINE Vector<float> left_columns(Vector<float> right, Vector<float> edges) {
  if constexpr (paired) {
    return __builtin_shufflevector(right, edges, 16, 0, 1, 2, 3, 4, 5, 6, 24, 8, 9, 10, 11, 12, 13, 14);
  } else {
    return __builtin_shufflevector(edges, right, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30);
  }
}

// `from`: what the middle tap reads for the first output of each half. At the border the map begins there.
template <bool at_border, bool paired>
DDF_INLINE StridedColumns read_columns(const float* const (&from)[2], const Mask (&reads)[2]) {
  const float* second = paired ? from[1] : from[0] + kLanes<float>;
  const Vector<float> a = load_masked(from[0], reads[0]), b = load_masked(second, reads[1]);
  Vector<float> edges{};
  if constexpr (!at_border) edges = broadcast(from[0][-1]);
  if constexpr (!at_border && paired) {
    edges =
        __builtin_shufflevector(edges, broadcast(second[-1]), 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
  }
  const Vector<float> right = every_second<1, float>(a, b);
  return {left_columns<paired>(right, edges), every_second<0, float>(a, b), right};
}

template <Combine combine>
DDF_INLINE void add_tap_row(Vector<float>& sum, const Vector<float>* channel, const float* spatial,
                            const StridedColumns& columns) {
  constexpr int lanes = kLanes<float>;
  sum += tap_weight<combine>(channel[0], load(spatial)) * columns.left;
  sum += tap_weight<combine>(channel[1], load(spatial + lanes)) * columns.middle;
  sum += tap_weight<combine>(channel[2], load(spatial + 2 * lanes)) * columns.right;
}

// The tile's first channel in one block. Not inlined: the compiler would keep pointers of the loops around it in vector
// registers, from where they come back late.
template <Combine combine, bool at_border, bool paired>
DDF_NOINLINE void gather_block(const StridedTile& tile, const StridedBlock& block, const float* spatial) {
  constexpr int lanes = kLanes<float>;
  Vector<float> channel[kStridedTaps];
  for (int t = 0; t < kStridedTaps; ++t) channel[t] = broadcast(tile.channel_filter[t]);
  const Mask reads[] = {block.reads[0], block.reads[1]}, writes[] = {block.writes[0], block.writes[1]};
  const int64_t row = tile.source_row, ahead = tile.ahead, to_second = block.steps * tile.output_row - lanes / 2;
  const float *zeros = tile.zeros, *first = tile.source + 2 * block.column;
  const float* second = first + (paired ? 2 * block.steps * row : lanes);
  float* output = tile.output + block.column;
  const float* const upper[] = {block.has_upper[0] ? first - row : zeros, block.has_upper[1] ? second - row : zeros};
  StridedColumns top = read_columns<at_border, paired>(upper, reads);
  for (int64_t step = 0; step < block.steps; ++step) {
    const float *middle[] = {first, second}, *lower[] = {first + row, second + row};
    if (ahead != 0) {
      for (const float* from : {first, second, lower[0], lower[1]}) __builtin_prefetch(from + ahead, 0, 2);
    }
    if (step >= block.whole_steps) [[unlikely]] {
      if (step >= block.middle_end[1]) middle[1] = zeros;
      if (step >= block.lower_end[0]) lower[0] = zeros;
      if (step >= block.lower_end[1]) lower[1] = zeros;
    }
    const StridedColumns centre = read_columns<at_border, paired>(middle, reads);
    const StridedColumns bottom = read_columns<at_border, paired>(lower, reads);
    Vector<float> sum{};
    add_tap_row<combine>(sum, channel, spatial, top);
    add_tap_row<combine>(sum, channel + 3, spatial + 3 * lanes, centre);
    add_tap_row<combine>(sum, channel + 6, spatial + 6 * lanes, bottom);
    store_masked(output, sum, writes[0]);
    if (paired && step < block.middle_end[1]) store_masked(output + to_second, sum, writes[1]);
    top = bottom;
    first += 2 * row;
    second += 2 * row;
    spatial += kStridedTaps * lanes;
    output += tile.output_row;
  }
}

template <Combine combine>
DDF_NOINLINE void gather_strided_tile(StridedTile tile) {
  using Gather = void(const StridedTile&, const StridedBlock&, const float*);
  constexpr Gather* gather[2][2] = {{gather_block<combine, false, false>, gather_block<combine, false, true>},
                                    {gather_block<combine, true, false>, gather_block<combine, true, true>}};
  for (int64_t left = tile.channels; left > 0; --left) {
    if (left == 1) tile.ahead = tile.ahead_of_last;
    const float* spatial = tile.spatial;
    for (int64_t b = 0; b < tile.block_count; ++b) {
      const StridedBlock& block = tile.blocks[b];
      gather[block.column == 0][block.paired](tile, block, spatial);
      spatial += block.steps * kStridedTaps * kLanes<float>;
    }
    tile.source += tile.source_channel;
    tile.channel_filter += kStridedTaps;
    tile.output += tile.output_channel;
  }
}
#endif

}  // namespace
}  // namespace ddf
