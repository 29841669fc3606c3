// Forward pass at stride 2 with 3 taps a side, for maps in float with contiguous rows, where the instruction set has
// masks.
//
// A task is some output rows and columns of some channels of one image and head. Maps are read and written where they
// lie. The tile's part of the spatial filter is copied to scratch first, in the order in which the inner loop reads it;
// it takes half of the first cache and stays there while the channels pass one by one.
#pragma once

#include "planes.h"
#include "spatial_rows.h"
#include "strided_rows_registers.h"
#include "transposed.h"

namespace ddf {
namespace {

#if defined(__AVX512F__)
// How a call is cut: output rows and blocks of columns in a tile, and chunks of channels. Few rows would waste what the
// steps hand on to each other, few columns would read long rows in pieces.
struct StridedTiling {
  static constexpr int64_t kMostBlocks = 8, kHalf = kLanes<float> / 2;

  int64_t rows, row_tiles, blocks, block_tiles, channel_chunks;

  StridedTiling(const Call& call, const Axis& row_axis, const Axis& columns) {
    constexpr int64_t kTileElements = 4 << 10, kFewestRows = 4;  // of the spatial filter
    const int64_t halves = ceil_divide(columns.outputs, kHalf), all_blocks = ceil_divide(halves, 2);
    block_tiles = ceil_divide(all_blocks, kMostBlocks);
    blocks = ceil_divide(all_blocks, block_tiles);
    const int64_t row = kStridedTaps * kHalf * smaller(halves, 2 * blocks);
    row_tiles = ceil_divide(row_axis.outputs, larger(kTileElements / row, kFewestRows));
    rows = ceil_divide(row_axis.outputs, row_tiles);
    channel_chunks = chunks_for_threads(call, call.batch * call.head * tiles(), channels_per_head(call));
  }

  int64_t tiles() const { return row_tiles * block_tiles; }
};

// The work of one thread: its scratch, and what lies there for the tile at hand.
class StridedWorker {
 public:
  StridedWorker(const Call& call, const Axis& rows, const Axis& columns, const StridedTiling& tiling,
                const Array& source, const Array& output)
      : call_(call), rows_(rows), columns_(columns), tiling_(tiling), source_(source), output_(output) {
    const int64_t spatial = tiling.blocks * tiling.rows * kStridedTaps * kLanes<float>;
    spatial_ = thread_scratch<float>(spatial + channels_per_head(call) * kStridedTaps);
    filter_ = spatial_ + spatial;
  }

  void run(int64_t task) {
    const int64_t chunk = task % tiling_.channel_chunks, rest = task / tiling_.channel_chunks;
    const int64_t tile = rest % tiling_.tiles(), map = rest / tiling_.tiles();
    const int64_t head = map % call_.head, image = map / call_.head;
    if (rest != loaded_) {
      const int64_t row = tile % tiling_.row_tiles * tiling_.rows;
      range_ = {row, smaller(row + tiling_.rows, rows_.outputs)};
      make_blocks(tile / tiling_.row_tiles);
      load_spatial(image, head);
    }
    loaded_ = rest;
    const int64_t per_head = channels_per_head(call_), first = head * per_head;
    gather(image, {first + per_head * chunk / tiling_.channel_chunks,
                   first + per_head * (chunk + 1) / tiling_.channel_chunks});
  }

 private:
  static constexpr int64_t kHalf = StridedTiling::kHalf;

  void make_blocks(int64_t block_tile) {
    block_count_ = 0;
    for (int64_t b = block_tile * tiling_.blocks; b < (block_tile + 1) * tiling_.blocks; ++b) {
      if (b * kLanes<float> < columns_.outputs) blocks_[block_count_++] = make_block(b * kLanes<float>);
    }
  }

  StridedBlock make_block(int64_t column) const {
    const int64_t outputs = columns_.outputs - column, inputs = columns_.source_size - 2 * column;
    StridedBlock block{};
    block.column = column;
    block.paired = outputs <= kHalf;
    block.steps = block.paired ? ceil_divide(range_.size(), 2) : range_.size();
    block.reads[0] = first_lanes(inputs);
    block.reads[1] = first_lanes(block.paired ? inputs : inputs - kLanes<float>);
    block.writes[0] = first_lanes(outputs);
    block.writes[1] = static_cast<Mask>(block.paired ? block.writes[0] << kHalf : 0);
    for (int half = 0; half < 2; ++half) {
      const int64_t first = range_.begin + (block.paired ? half * block.steps : 0);
      block.has_upper[half] = first > 0 && first < range_.end;
      block.middle_end[half] = smaller(range_.end - first, block.steps);
      block.lower_end[half] = smaller(rows_.source_size / 2 - first, block.middle_end[half]);
    }
    block.whole_steps = smaller(block.lower_end[0], block.lower_end[1]);
    return block;
  }

  // Copies the spatial filter, plane by plane and row by row as it lies in memory.
  void load_spatial(int64_t image, int64_t head) {
    constexpr int64_t vector = kStridedTaps * kLanes<float>;
    const Array& strides = call_.spatial_filter;
    int64_t vectors = 0;
    for (int64_t b = 0; b < block_count_; ++b) vectors += blocks_[b].steps;
    for (int64_t t = 0; t < kStridedTaps; ++t) {
      const float* row = at<const float>(strides, image, head * kStridedTaps + t) + range_.begin * strides.row;
      for (int64_t step = 0; step < range_.size(); ++step, row += strides.row) {
        float* to = spatial_ + step * vector + t * kLanes<float>;
        for (int64_t b = 0; b < block_count_; to += blocks_[b++].steps * vector) {
          if (step < blocks_[b].steps) store(to, load_taps(blocks_[b], step, row));
        }
      }
    }
    if (!call_.normalize) return;
    for (int64_t v = 0; v < vectors; ++v) {
      normalize_row(spatial_ + v * vector, kStridedTaps, kLanes<float>, static_cast<float>(call_.norm_gain));
    }
  }

  // One tap for the outputs of a step; `row`: for column 0 of the first half's.
  Vector<float> load_taps(const StridedBlock& block, int64_t step, const float* row) const {
    const Array& strides = call_.spatial_filter;
    const float* first = row + block.column * strides.column;
    const Vector<float> taps = load_lanes(first, strides.column, block.writes[0]);
    if (!block.paired || step >= block.middle_end[1]) return taps;
    const float* second = first + block.steps * strides.row - kHalf * strides.column;
    return taps + load_lanes(second, strides.column, block.writes[1]);
  }

  // The lanes of the mask, from elements that lie `stride` apart.
  static Vector<float> load_lanes(const float* from, int64_t stride, Mask mask) {
    if (stride == 1) return load_masked(from, mask);
    Vector<float> value{};
    for (int i = 0; i < kLanes<float>; ++i) {
      if (mask >> i & 1) value[i] = from[i * stride];
    }
    return value;
  }

  void gather(int64_t image, Range channels) {
    StridedTile tile{};
    tile.source = at<const float>(source_, image, channels.begin) + 2 * range_.begin * source_.row;
    tile.source_channel = source_.channel;
    tile.source_row = source_.row;
    tile.channel_filter =
        load_channel_filters(call_.channel_filter, at<const float>(call_.channel_filter, image, channels.begin), rows_,
                             columns_, channels.size(), rows_.taps, filter_);
    tile.spatial = spatial_;
    tile.output = at<float>(output_, image, channels.begin) + range_.begin * output_.row;
    tile.output_channel = output_.channel;
    tile.output_row = output_.row;
    tile.channels = channels.size();
    tile.blocks = blocks_;
    tile.block_count = block_count_;
    tile.zeros = zeros_ + kLanes<float>;
    // the next channel's part of the tile, or the next tile's of the first channel
    const int64_t positions = rows_.source_size * columns_.source_size;
    const int64_t back = (channels.size() - 1) * source_.channel;
    tile.ahead = prefetch_distance(call_, positions, source_.channel);
    tile.ahead_of_last = prefetch_distance(call_, positions, 2 * range_.size() * source_.row - back);
    with_combine(call_, [&]<Combine combine>() { gather_strided_tile<combine>(tile); });
  }

  const Call& call_;
  const Axis &rows_, &columns_;
  const StridedTiling& tiling_;
  const Array &source_, &output_;
  float *spatial_, *filter_;
  float zeros_[3 * kLanes<float>] = {};
  Range range_{};
  StridedBlock blocks_[StridedTiling::kMostBlocks];
  int64_t block_count_ = 0;
  int64_t loaded_ = -1;  // tile of a map
};
#endif

// Where the forward pass goes this way: all maps that do not go transposed, and of those the ones whose planes have
// enough outputs to fill most lanes.
template <typename T>
bool gathers_strided_rows(const Call& call, const AxisSet& rows, const AxisSet& columns, const Array& source,
                          const Array& output) {
  constexpr int64_t kFewestColumns = 5, kFewestOutputs = 20;
  const int64_t width = call.out_width, outputs = call.out_height * width;
  const bool serves = kHasMasks && __is_same(T, float) && !rows.weights_at_source() && call.kernel_size == 3 &&
                      call.stride == 2 && call.dilation == 1 && rows[0].taps == 3 && columns[0].taps == 3 &&
                      source.column == 1 && output.column == 1;
  const bool fills_vectors = width >= kFewestColumns && outputs >= kFewestOutputs;
  return serves && (fills_vectors || !gathers_transposed<T>(call, columns, source, output));
}

inline void gather_strided_rows([[maybe_unused]] const Call& call, [[maybe_unused]] const Axis& rows,
                                [[maybe_unused]] const Axis& columns, [[maybe_unused]] const Array& source,
                                [[maybe_unused]] const Array& output) {
#if defined(__AVX512F__)
  const StridedTiling tiling(call, rows, columns);
  parallel(call, call.batch * call.head * tiling.tiles() * tiling.channel_chunks, [&](int64_t begin, int64_t end) {
    StridedWorker worker(call, rows, columns, tiling, source, output);
    for (int64_t task = begin; task < end; ++task) worker.run(task);
  });
#endif
}

}  // namespace
}  // namespace ddf
