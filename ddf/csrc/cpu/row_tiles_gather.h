// Forward pass and gradient of the input at stride 1 with 5 or 7 taps a side, for maps in float with contiguous rows,
// where the instruction set has masks.
//
// A task is some rows of some channels of one image and head. Maps are read and written where they lie: masks clear the
// lanes of a row's border, and tap rows off the map are left out. The rows' part of the spatial filter is copied to
// scratch first, in the order in which the inner loop reads it, and stays in the second cache while the channels pass.
#pragma once

#include "planes.h"
#include "row_tiles_registers.h"
#include "spatial_rows.h"

namespace ddf {
namespace {

#if defined(__AVX512F__)
// How a call is cut: output rows in a task, and chunks of channels.
struct RowTiling {
  int64_t rows, tiles, channel_chunks;

  RowTiling(const Call& call, const Axis& row_axis, const Axis& columns) {
    constexpr int64_t kElements = 40 << 10;  // of the spatial filter in a task
    const int64_t block = kTileRows * row_axis.source_tap_step, outputs = row_axis.outputs;
    const int64_t row = taps_of(call) * round_up(columns.outputs, kLanes<float>);
    tiles = ceil_divide(outputs, larger<int64_t>(kElements / row, 1));
    rows = smaller(round_up(ceil_divide(outputs, tiles), block), outputs);
    tiles = ceil_divide(outputs, rows);
    channel_chunks = chunks_for_threads(call, call.batch * call.head * tiles, channels_per_head(call) / kTileChannels);
  }

  Range tile(int64_t index, int64_t outputs) const { return {index * rows, smaller((index + 1) * rows, outputs)}; }
};

// The work of one thread: its scratch, and what lies there for the rows at hand.
class RowTileWorker {
 public:
  RowTileWorker(const Call& call, const Axis& rows, const Axis& columns, const RowTiling& tiling, const Array& source,
                const Array& output)
      : call_(call),
        rows_(rows),
        columns_(columns),
        tiling_(tiling),
        source_(source),
        output_(output),
        width_(columns.outputs),
        step_(rows.source_tap_step),
        vectors_(ceil_divide(columns.outputs, kLanes<float>)),
        blocks_(ceil_divide(vectors_, kTileVectors)),
        taps_(rows.taps * columns.taps) {
    const int64_t filter = round_up(kTileChannels * taps_, kLanes<float>);
    const int64_t spatial = (tiling.rows + step_) * blocks_ * taps_ * kTapElements;
    filter_ = thread_scratch<float>(filter + spatial + (columns.taps + 1) * blocks_);
    spatial_ = filter_ + filter;
    masks_ = reinterpret_cast<Mask*>(spatial_ + spatial);
    make_masks();
  }

  void run(int64_t task) {
    const int64_t chunk = task % tiling_.channel_chunks, rest = task / tiling_.channel_chunks;
    const int64_t map = rest / tiling_.tiles, head = map % call_.head, image = map / call_.head;
    if (rest != loaded_) {
      range_ = tiling_.tile(rest % tiling_.tiles, rows_.outputs);
      load_spatial(spatial_in_place<float>(call_, rows_, columns_, 0, image, head));
    }
    loaded_ = rest;
    const int64_t groups = channels_per_head(call_) / kTileChannels, first = head * channels_per_head(call_);
    const int64_t end = groups * (chunk + 1) / tiling_.channel_chunks;
    for (int64_t group = groups * chunk / tiling_.channel_chunks; group < end; ++group) {
      run_group(image, first + group * kTileChannels);
    }
  }

 private:
  int64_t vectors_of(int64_t block) const { return smaller<int64_t>(vectors_ - block * kTileVectors, kTileVectors); }

  // Of a block: for every tap column, and of the columns themselves in the place of one more.
  Mask* masks(int64_t block) const { return masks_ + block * (columns_.taps + 1) * kTileVectors; }

  void make_masks() {
    for (int64_t v = 0; v < blocks_ * kTileVectors; ++v) {
      const int64_t column = v * kLanes<float>;
      const Mask on_row = first_lanes(width_ - column);
      Mask* to = masks(v / kTileVectors) + v % kTileVectors;
      for (int64_t m = 0; m < columns_.taps; ++m) {
        const int64_t right = columns_.source_origin + m * columns_.source_tap_step;
        to[m * kTileVectors] = on_row & first_lanes(width_ - right - column) & ~first_lanes(-right - column);
      }
      to[columns_.taps * kTileVectors] = on_row;
    }
  }

  // Register tiles of the rows at hand: of two rows that stand as far apart as the taps, or of one where the other is
  // missing; and of some vectors side by side. `body(row, rows, block)`.
  template <typename Body>
  DDF_INLINE void for_tiles(const Body& body) const {
    for (int64_t first = range_.begin; first < range_.end; first += kTileRows * step_) {
      for (int64_t row = first; row < smaller(first + step_, range_.end); ++row) {
        for (int64_t block = 0; block < blocks_; ++block) body(row, row + step_ < range_.end ? 2 : 1, block);
      }
    }
  }

  // Copies the spatial filter, plane by plane as it lies in memory.
  void load_spatial(const SpatialView<float>& view) {
    for (int64_t n = 0; n < rows_.taps; ++n) {
      for (int64_t m = 0; m < columns_.taps; ++m) {
        load_tap(view.data + n * view.tap_row + m * view.tap_column, n, rows_.weights_at_source ? m : columns_.taps,
                 spatial_ + (m * rows_.taps + n) * kTapElements);
      }
    }
    if (!call_.normalize) return;
    float* tile = spatial_;
    for_tiles([&](int64_t, int64_t, int64_t) {
      normalize_row(tile, taps_, kTapElements, static_cast<float>(call_.norm_gain));
      tile += taps_ * kTapElements;
    });
  }

  void load_tap(const float* from, int64_t n, int64_t mask_column, float* to) const {
    constexpr int64_t lanes = kLanes<float>;
    const Array& strides = call_.spatial_filter;
    for_tiles([&](int64_t row, int64_t rows, int64_t block) {
      const Mask* mask = masks(block) + mask_column * kTileVectors;
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t source = rows_.source_origin + row + (r + n) * step_;
        if (rows_.weights_at_source && (source < 0 || source >= rows_.source_size)) continue;
        const float* at_row = from + (row + r * step_) * strides.row + block * kTileVectors * lanes;
        for (int64_t v = 0; v < vectors_of(block); ++v) {
          store(to + (r * kTileVectors + v) * lanes, load_masked(at_row + v * lanes, mask[v]));
          __builtin_prefetch(at_row + v * lanes + strides.channel);
        }
      }
      to += taps_ * kTapElements;
    });
  }

  void run_group(int64_t image, int64_t channel) {
    RowTile tile{};
    tile.channel_filter =
        load_channel_filters(call_.channel_filter, at<const float>(call_.channel_filter, image, channel), rows_,
                             columns_, kTileChannels, rows_.taps, filter_);
    tile.source_channel = source_.channel;
    tile.source_row = step_ * source_.row;
    tile.source_tap_column = columns_.source_tap_step;
    tile.spatial = spatial_;
    tile.output_channel = output_.channel;
    tile.output_row = step_ * output_.row;
    for_tiles([&](int64_t row, int64_t rows, int64_t block) {
      const int64_t column = block * kTileVectors * kLanes<float>, first = row + rows_.source_origin;
      tile.source = at<const float>(source_, image, channel) + first * source_.row + columns_.source_origin + column;
      tile.rows_on_map = {first < 0 ? ceil_divide(-first, step_) : 0,
                          first < rows_.source_size ? (rows_.source_size - 1 - first) / step_ + 1 : 0};
      tile.masks = masks(block);
      tile.output = at<float>(output_, image, channel) + row * output_.row + column;
      tile.columns = width_ - column;
      tile.has_neighbours = has_neighbours(tile, rows);
      gather(tile, rows, vectors_of(block));
      tile.spatial += taps_ * kTapElements;
    });
  }

  // Whether a tile that reads whole vectors touches no memory outside of the tensor.
  bool has_neighbours(const RowTile& tile, int64_t rows) const {
    const Range on_map{tile.rows_on_map.begin, smaller(tile.rows_on_map.end, rows_.taps + rows - 1)};
    const int64_t size = (call_.batch - 1) * source_.batch + (call_.channels - 1) * source_.channel +
                         (rows_.source_size - 1) * source_.row + width_;
    const int64_t begin = tile.source - static_cast<const float*>(source_.data) + on_map.begin * tile.source_row;
    const int64_t distance = (kTileChannels - 1) * tile.source_channel + (on_map.size() - 1) * tile.source_row +
                             (columns_.taps - 1) * columns_.source_tap_step;
    return begin >= 0 && begin + distance + kTileVectors * kLanes<float> <= size;
  }

  void gather(const RowTile& tile, int64_t rows, int64_t vectors) {
    with_combine(call_, [&]<Combine combine>() {
      if (rows_.taps == 5) return gather_row_tile<combine, 5>(tile, rows, vectors);
      gather_row_tile<combine, 7>(tile, rows, vectors);
    });
  }

  const Call& call_;
  const Axis &rows_, &columns_;
  const RowTiling& tiling_;
  const Array &source_, &output_;
  const int64_t width_, step_, vectors_, blocks_, taps_;  // step between tap rows; vectors of a row, blocks of them
  float *filter_, *spatial_;
  Mask* masks_;
  Range range_{};
  int64_t loaded_ = -1;  // tile of a map
};
#endif

// Where forward pass and gradient of the input can go this way: the rows fill their vectors, and the spatial filter is
// read as it lies, or normalised where the outputs lie.
template <typename T>
bool gathers_row_tiles(const Call& call, const AxisSet& rows, const AxisSet& columns, const Array& source,
                       const Array& output) {
  constexpr int64_t lanes = kLanes<float>;
  if (!kHasMasks || !__is_same(T, float) || call.stride != 1) return false;
  const int64_t taps = known_taps<float, kChannelGroup>(rows[0], columns[0]), width = columns[0].outputs;
  const bool fills_vectors = 4 * width >= 3 * round_up(width, lanes) && (taps == 7 || width > lanes);
  const bool has_filters =
      call.spatial_filter.column == 1 && (!call.normalize || (!rows.weights_at_source() && taps == call.kernel_size));
  return taps >= 5 && fills_vectors && has_filters && channels_per_head(call) % kChannelGroup == 0 &&
         source.column == 1 && output.column == 1;
}

inline void gather_row_tiles([[maybe_unused]] const Call& call, [[maybe_unused]] const Axis& rows,
                             [[maybe_unused]] const Axis& columns, [[maybe_unused]] const Array& source,
                             [[maybe_unused]] const Array& output) {
#if defined(__AVX512F__)
  const RowTiling tiling(call, rows, columns);
  parallel(call, call.batch * call.head * tiling.tiles * tiling.channel_chunks, [&](int64_t begin, int64_t end) {
    RowTileWorker worker(call, rows, columns, tiling, source, output);
    for (int64_t task = begin; task < end; ++task) worker.run(task);
  });
#endif
}

}  // namespace
}  // namespace ddf
