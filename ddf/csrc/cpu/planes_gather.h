// Forward pass and gradient of the input, for maps whose rows are contiguous (or strided in any way but slower).
//
// A task is a tile of output rows and columns of some channels of one image and head. The spatial filter's tile goes to
// scratch once; then each group of channels goes there, with zeros around the map, so that the inner loop has no
// branches. The gradient at a stride above 1 has several phases, which read the same scratch.
#pragma once

#include "planes.h"
#include "planes_registers.h"
#include "spatial_rows.h"

namespace ddf {
namespace {

// How a call is cut: sizes of tiles in output rows and columns of a phase, and chunks of channels.
struct GatherTiling {
  int64_t rows, columns, row_tiles, column_tiles, channel_chunks;

  int64_t tasks(const Call& call) const { return call.batch * call.head * row_tiles * column_tiles * channel_chunks; }
};

template <typename A>
GatherTiling make_gather_tiling(const Call& call, const AxisSet& rows, const AxisSet& columns) {
  constexpr int64_t kRowElements = 1 << 14, kTileElements = 40 << 10;  // of the spatial filter in scratch
  const int64_t taps = taps_of(call), lanes = kLanes<A>;
  GatherTiling tiling;
  tiling.columns = smaller(columns.outputs(), larger<int64_t>(kRowElements / taps / lanes, 4) * lanes);
  tiling.column_tiles = ceil_divide(columns.outputs(), tiling.columns);
  tiling.rows = larger<int64_t>(kTileElements / (taps * round_up(tiling.columns, lanes)), 1);
  tiling.row_tiles = ceil_divide(rows.outputs(), smaller(tiling.rows, rows.outputs()));
  tiling.rows = ceil_divide(rows.outputs(), tiling.row_tiles);
  tiling.channel_chunks = chunks_for_threads(call, call.batch * call.head * tiling.row_tiles * tiling.column_tiles,
                                             ceil_divide(channels_per_head(call), kChannelGroup));
  return tiling;
}

// The work of one thread: its scratch, and the tile of the spatial filter that lies in it.
template <typename T>
class GatherWorker {
  using A = typename Computed<T>::type;

 public:
  GatherWorker(const Call& call, const AxisSet& rows, const AxisSet& columns, const GatherTiling& tiling,
               const Array& source, const Array& output)
      : call_(call),
        rows_(rows),
        columns_(columns),
        tiling_(tiling),
        source_(source),
        output_(output),
        row_range_{0, tiling.rows},
        column_range_{0, tiling.columns},
        row_slots_(rows, row_range_),
        column_slots_(columns, column_range_, kLanes<A>),
        spatial_(call, rows, columns, row_range_, column_range_) {
    const int64_t weights = spatial_.size();
    const int64_t source_size = kChannelGroup * row_slots_.count * column_slots_.pitch;
    const int64_t output_size = columns.count * kChannelGroup * tiling.rows * round_up(tiling.columns, kLanes<A>);
    const int64_t filter_size = round_up(kChannelGroup * taps_of(call), kLanes<A>);
    const int64_t offsets = call.kernel_size * static_cast<int64_t>(sizeof(int64_t) / sizeof(A));
    weights_ = thread_scratch<A>(weights + source_size + output_size + filter_size + offsets);
    source_scratch_ = weights_ + weights;
    output_scratch_ = source_scratch_ + source_size;
    filter_ = output_scratch_ + output_size;
    source_column_ = reinterpret_cast<int64_t*>(filter_ + filter_size);
  }

  void run(int64_t task) {
    const int64_t chunk = task % tiling_.channel_chunks, tile = task / tiling_.channel_chunks;
    if (tile != loaded_tile_) load_tile(tile);
    const int64_t per_head = channels_per_head(call_);
    const int64_t groups = ceil_divide(per_head, kChannelGroup);
    const int64_t begin = groups * chunk / tiling_.channel_chunks * kChannelGroup;
    const int64_t end = smaller(groups * (chunk + 1) / tiling_.channel_chunks * kChannelGroup, per_head);
    const int64_t first = head_ * per_head;
    int64_t channel = begin;
    for (; channel + kChannelGroup <= end; channel += kChannelGroup) run_group<kChannelGroup>(first + channel);
    for (; channel < end; ++channel) run_group<1>(first + channel);
  }

 private:
  // Brings the tile's spatial filter to scratch, and clears the borders around the channels to come.
  void load_tile(int64_t tile) {
    const int64_t column_tile = tile % tiling_.column_tiles, rest = tile / tiling_.column_tiles;
    const int64_t row_tile = rest % tiling_.row_tiles, map = rest / tiling_.row_tiles;
    row_range_ = {row_tile * tiling_.rows, smaller((row_tile + 1) * tiling_.rows, rows_.outputs())};
    column_range_ = {column_tile * tiling_.columns, smaller((column_tile + 1) * tiling_.columns, columns_.outputs())};
    head_ = map % call_.head;
    image_ = map / call_.head;
    spatial_ = SpatialTile<T>(call_, rows_, columns_, row_range_, column_range_);
    spatial_.load(image_, head_, call_.normalize, weights_);
    row_slots_ = RowSlots(rows_, row_range_);
    column_slots_ = ColumnSlots(columns_, column_range_, kLanes<A>);
    __builtin_memset(source_scratch_, 0, kChannelGroup * row_slots_.count * column_slots_.pitch * sizeof(A));
    loaded_tile_ = tile;
  }

  template <int channels>
  void run_group(int64_t channel) {
    const int64_t plane = row_slots_.count * column_slots_.pitch;
    const int64_t ahead = prefetch_distance(call_, rows_[0].source_size * columns_[0].source_size, kPlaneAhead);
    for (int i = 0; i < channels; ++i) {
      load_plane(row_slots_, rows_[0].source_size, column_slots_, at<const T>(source_, image_, channel + i),
                 source_.row, source_.column, ahead, source_scratch_ + i * plane);
    }
    for (int64_t row_phase = 0; row_phase < rows_.count; ++row_phase) {
      for (int64_t column_phase = 0; column_phase < columns_.count; ++column_phase) {
        run_phase<channels>(channel, row_phase, column_phase);
      }
      if (!writes_directly()) store_rows<channels>(channel, row_phase);
    }
  }

  template <int channels>
  void run_phase(int64_t channel, int64_t row_phase, int64_t column_phase) {
    const Axis &rows = rows_[row_phase], &columns = columns_[column_phase];
    for (int64_t m = 0; m < columns.taps; ++m) source_column_[m] = column_slots_.offset(column_phase, m);
    const SpatialView<A> spatial = spatial_.view(row_phase, column_phase, weights_);
    const int64_t pitch = column_slots_.pitch;
    const TapOffsets taps{rows.taps,       columns.taps,   row_slots_.tap_step(row_phase) * pitch,
                          spatial.tap_row, source_column_, spatial.tap_column};
    GroupTile<A> tile{};
    tile.source = source_scratch_ + row_slots_.first(row_phase) * pitch;
    tile.source_channel = row_slots_.count * pitch;
    tile.source_row = row_slots_.row_step * pitch;
    tile.weights = spatial.data;
    tile.weight_row = spatial.row;
    tile.channel_filter =
        load_channel_filters(call_.channel_filter, at<const T>(call_.channel_filter, image_, channel), rows, columns,
                             channels, known_taps<A, channels>(rows, columns), filter_);
    if (writes_directly()) {
      tile.output = at<A>(output_, image_, channel) + row_range_.begin * output_.row;
      tile.output_channel = output_.channel;
      tile.output_row = output_.row;
      tile.room = row_range_.size() * output_.row;
    } else {
      tile.output = output_scratch_ + column_phase * kChannelGroup * output_plane();
      tile.output_channel = output_plane();
      tile.output_row = output_pitch();
      tile.room = output_plane();
    }
    with_combine(call_, [&]<Combine combine>() { gather<combine, channels>(rows, columns, taps, tile); });
  }

  template <Combine combine, int channels>
  void gather(const Axis& rows, const Axis& columns, const TapOffsets& taps, const GroupTile<A>& tile) {
    const int64_t row_count = row_range_.size(), column_count = column_range_.size();
    if constexpr (kHasKnownTaps<A, channels>) {
      const int64_t known = known_taps<A, channels>(rows, columns);
      if (known == 3) return gather_group<combine, 3, channels>(taps, tile, row_count, column_count);
      if constexpr (kMostKnownTaps >= 7) {
        if (known == 5) return gather_group<combine, 5, channels>(taps, tile, row_count, column_count);
        if (known == 7) return gather_group<combine, 7, channels>(taps, tile, row_count, column_count);
      }
    }
    gather_group<combine, 0, channels>(taps, tile, row_count, column_count);
  }

  // Whether vectors may run over the end of a row in the tensor: into the next row, which the same task writes later.
  bool may_run_over() const {
    return rows_.count == 1 && columns_.count == 1 && columns_[0].output_step == 1 && rows_[0].output_step == 1 &&
           tiling_.column_tiles == 1 && output_.column == 1 && output_.row == columns_.outputs();
  }

  bool writes_directly() const { return __is_same(A, T) && may_run_over(); }

  int64_t output_pitch() const { return round_up(column_range_.size(), kLanes<A>); }
  int64_t output_plane() const { return row_range_.size() * output_pitch(); }

  // Brings one phase of rows, all phases of columns, from scratch to the tensor.
  template <int channels>
  void store_rows(int64_t channel, int64_t row_phase) {
    const Axis& rows = rows_[row_phase];
    const int64_t end = smaller(row_range_.end, rows.outputs);
    for (int i = 0; i < channels; ++i) {
      T* plane = at<T>(output_, image_, channel + i);
      const A* from = output_scratch_ + i * output_plane();
      int64_t row = row_range_.begin;
      if (may_run_over()) {
        for (; row + 1 < end && column_range_.size() >= kLanes<A>; ++row, from += output_pitch()) {
          T* to = plane + row * output_.row;
          for (int64_t x = 0; x < column_range_.size(); x += kLanes<A>) store(to + x, load(from + x));
        }
      }
      for (; row < end; ++row, from += output_pitch()) {
        store_row(from, plane + (rows.output_origin + row * rows.output_step) * output_.row);
      }
    }
  }

  void store_row(const A* from, T* row) {
    const int64_t between_phases = kChannelGroup * output_plane(), step = columns_[0].output_step;
    int64_t done = 0;
    if (columns_.count == 2 && step == 2 && output_.column == 1) {
      const int64_t count = smaller(column_range_.end, columns_[1].outputs) - column_range_.begin;
      T* to = row + 2 * column_range_.begin;
      // whole vectors of both phases, which alternate
      for (; done + kLanes<A> <= count; done += kLanes<A>) {
        const Vector<A> even = load(from + done), odd = load(from + between_phases + done);
        store(to + 2 * done, interleaved<0, A>(even, odd));
        store(to + 2 * done + kLanes<A>, interleaved<1, A>(even, odd));
      }
#if defined(__AVX512F__)
      if constexpr (__is_same(T, float)) {
        const int64_t evens = smaller(column_range_.end, columns_[0].outputs) - column_range_.begin;
        const int64_t left = evens + count - 2 * done;
        const Vector<A> even = load(from + done), odd = load(from + between_phases + done);
        store_masked(to + 2 * done, interleaved<0, A>(even, odd), first_lanes(left));
        return store_masked(to + 2 * done + kLanes<A>, interleaved<1, A>(even, odd), first_lanes(left - kLanes<A>));
      }
#endif
    }
    for (int64_t phase = 0; phase < columns_.count; ++phase, from += between_phases) {
      const Axis& columns = columns_[phase];
      const int64_t first = column_range_.begin + done, end = smaller(column_range_.end, columns.outputs);
      copy_strided(row + (columns.output_origin + first * step) * output_.column, step * output_.column, from + done, 1,
                   end - first);
    }
  }

  const Call& call_;
  const AxisSet &rows_, &columns_;
  const GatherTiling& tiling_;
  const Array &source_, &output_;
  A *weights_, *source_scratch_, *output_scratch_, *filter_;
  int64_t* source_column_;
  int64_t loaded_tile_ = -1, image_ = 0, head_ = 0;
  Range row_range_, column_range_;
  RowSlots row_slots_;
  ColumnSlots column_slots_;
  SpatialTile<T> spatial_;
};

// Computes the outputs of all phases, for every image and channel.
template <typename T>
void gather_planes(const Call& call, const AxisSet& rows, const AxisSet& columns, const Array& source,
                   const Array& output) {
  const GatherTiling tiling = make_gather_tiling<typename Computed<T>::type>(call, rows, columns);
  parallel(call, tiling.tasks(call), [&](int64_t begin, int64_t end) {
    GatherWorker<T> worker(call, rows, columns, tiling, source, output);
    for (int64_t task = begin; task < end; ++task) worker.run(task);
  });
}

}  // namespace
}  // namespace ddf
