// Forward pass and gradient of the input, for channels_last maps.
//
// A task is a few output rows of one image, or some columns of them where wide rows in half precision are converted, of
// the map or of the spatial filter. They are cut into register tiles of a few pixels, or slide along rows where there
// are registers enough.
#pragma once

#include "pixels.h"
#include "pixels_registers.h"
#include "pixels_sliding.h"

namespace ddf {
namespace {

struct PixelTiling {
  int64_t rows, columns, row_tiles, column_tiles;

  int64_t tiles() const { return row_tiles * column_tiles; }
};

// Elements of the map that are converted for a tile.
template <typename T>
int64_t source_scratch(const Call& call, const AxisSet& rows, const Axis& columns, int64_t tile_rows,
                       int64_t tile_columns) {
  if (slides(rows[0], columns)) return 0;
  return PixelRows<T>::scratch_size(call, rows, columns, tile_rows, tile_columns);
}

// Rows of one task share what the copies to scratch cost at their borders, as far as the copies stay in the cache; with
// fewer columns, where a few rows are too much. Rows that slide copy no map, and what two tasks read comes late to
// both.
template <typename T>
PixelTiling make_pixel_tiling(const Call& call, const Axis& rows, const Axis& columns) {
  constexpr int64_t kFewestColumns = 16, kScratchElements = 96 << 10;
  const int64_t most_rows = slides(rows, columns) ? 32 : 8;
  const AxisSet row_set(&rows, 1), column_set(&columns, 1);
  const auto fits = [&](int64_t tile_rows, int64_t tile_columns) {
    const int64_t map = source_scratch<T>(call, row_set, columns, tile_rows, tile_columns);
    const int64_t spatial = SpatialTile<T>(call, row_set, column_set, {0, tile_rows}, {0, tile_columns}).size();
    return map + spatial <= kScratchElements;
  };
  const int64_t for_every_thread = ceil_divide(call.batch * rows.outputs, 4 * call.threads);
  PixelTiling tiling{};
  tiling.rows = smaller(smaller(for_every_thread, most_rows), rows.outputs);
  tiling.columns = columns.outputs;
  if constexpr (!__is_same(T, typename Computed<T>::type)) {
    while (tiling.columns > kFewestColumns && !fits(tiling.rows, tiling.columns)) {
      tiling.columns = ceil_divide(tiling.columns, 2);
    }
  }
  while (tiling.rows > 1 && !fits(tiling.rows, tiling.columns)) --tiling.rows;
  tiling.row_tiles = ceil_divide(rows.outputs, tiling.rows);
  tiling.rows = ceil_divide(rows.outputs, tiling.row_tiles);
  tiling.row_tiles = ceil_divide(rows.outputs, tiling.rows);
  tiling.column_tiles = ceil_divide(columns.outputs, tiling.columns);
  return tiling;
}

template <typename T>
class PixelWorker {
  using A = typename Computed<T>::type;

 public:
  PixelWorker(const Call& call, const Axis& rows, const Axis& columns, const PixelTiling& tiling, const Array& source,
              const Array& output)
      : call_(call),
        rows_(rows),
        columns_(columns),
        row_set_(&rows, 1),
        column_set_(&columns, 1),
        tiling_(tiling),
        source_(source),
        output_(output),
        streams_(streams<T>(call, output, {output.batch, output.row, output.column, channels_per_head(call)})),
        inner_rows_(outputs_on_map(rows, {0, rows.taps})),
        inner_columns_(outputs_on_map(columns, {0, columns.taps})) {
    const int64_t filter_size = round_up(rows.taps * columns.taps * call.channels, kLanes<A>);
    const int64_t spatial =
        in_place() ? 0 : SpatialTile<T>(call, row_set_, column_set_, {0, tiling.rows}, {0, tiling.columns}).size();
    filters_ = thread_scratch<A>(filter_size + spatial +
                                 source_scratch<T>(call, row_set_, columns, tiling.rows, tiling.columns));
    spatial_scratch_ = filters_ + filter_size;
    source_scratch_ = spatial_scratch_ + spatial;
  }

  void run(int64_t task) {
    const int64_t image = task / tiling_.tiles(), tile = task % tiling_.tiles();
    if (image != loaded_image_ && (loaded_image_ < 0 || call_.channel_batch > 1)) {
      load_filters_by_tap<T>(call_, rows_, columns_, image, {0, call_.channels}, filters_);
    }
    loaded_image_ = image;
    const int64_t row = tile / tiling_.column_tiles * tiling_.rows,
                  column = tile % tiling_.column_tiles * tiling_.columns;
    const Range range{row, smaller(row + tiling_.rows, rows_.outputs)};
    column_range_ = {column, smaller(column + tiling_.columns, columns_.outputs)};
    if (slides(rows_, columns_)) {
      for (int64_t head = 0; head < call_.head; ++head) slide_over(image, head, range);
      return;
    }
    const PixelRows<T> source(call_, row_set_, columns_, range, column_range_, source_, image, source_scratch_);
    for (int64_t head = 0; head < call_.head; ++head) run_head(image, head, range, source);
  }

 private:
  // Elements of the spatial filter are read one by one, so that they need no copy unless they change on the way.
  bool in_place() const { return __is_same(T, A) && !call_.normalize; }

  SpatialView<A> view(int64_t image, int64_t head, Range range) {
    if constexpr (__is_same(T, A)) {
      if (in_place()) {
        auto view = spatial_in_place<A>(call_, rows_, columns_, range.begin, image, head);
        view.data += column_range_.begin * view.column;
        return view;
      }
    }
    const SpatialTile<T> tile(call_, row_set_, column_set_, range, column_range_, element_layout<T, A>(call_));
    tile.load(image, head, call_.normalize, spatial_scratch_);
    return tile.view(0, 0, spatial_scratch_);
  }

  // Of so many neighbours that all taps serve; others come one by one.
  static int64_t pixels_of_a_tile(int64_t alike, int64_t most) { return alike >= most ? most : alike >= 2 ? 2 : 1; }

  void run_head(int64_t image, int64_t head, Range range, const PixelRows<T>& map) {
    const int64_t first = head * channels_per_head(call_);
    const SpatialView<A> spatial = view(image, head, range);
    PixelRun<T, A> run{};
    run.source_tap_row = map.tap_row;
    run.source_tap_column = columns_.source_tap_step * map.column;
    run.spatial = spatial;
    run.channel_filter = filters_ + first;
    run.filter_tap_row = columns_.taps * call_.channels;
    run.filter_tap_column = call_.channels;
    const A* source = map.data + columns_.source_origin * map.column + first;
    T* output =
        at<T>(output_, image, first) + rows_.output_origin * output_.row + columns_.output_origin * output_.column;
    // a register tile of two pixels and many channels is best, where there are as many
    const int64_t most = channels_per_head(call_) >= kAccumulators / 2 * kLanes<A> ? 2 : 4;
    // rows that stand as far apart as the taps read the same rows of the map, if these are not sampled
    const int64_t tap_step = rows_.source_step == 1 ? larger(rows_.source_tap_step, -rows_.source_tap_step) : 1;
    for (int64_t row = range.begin; row < range.end;) {
      const int64_t alike = row < inner_rows_.begin ? 1 : smaller(inner_rows_.end, range.end) - row;
      const int64_t apart = alike >= most * tap_step ? tap_step : 1, rows = pixels_of_a_tile(alike / apart, most);
      run.tap_rows = taps_on_map(rows_, row);
      for (int64_t first = row; first < row + apart; ++first) {
        run.source = source + (first - range.begin) * map.row;
        run.spatial.data = spatial.data + (first - range.begin) * spatial.row;
        run.output = output + first * rows_.output_step * output_.row;
        run_columns(run, map, rows, apart, most);
      }
      row += rows * apart;
    }
  }

  void slide_over(int64_t image, int64_t head, Range range) {
    if constexpr (kSlides) {
      const int64_t first = head * channels_per_head(call_);
      SlidingTile<T> tile{};
      tile.rows = range;
      tile.columns = column_range_;
      tile.source = at<const T>(source_, image, first);
      tile.source_row = source_.row;
      tile.source_column = source_.column;
      tile.spatial = view(image, head, range);
      tile.channel_filter = filters_ + first;
      tile.filter_tap = call_.channels;
      tile.output = at<T>(output_, image, first);
      tile.output_row = output_.row;
      tile.output_column = output_.column;
      slide(call_, rows_, columns_, tile);
    }
  }

  // Register tiles of rows that stand `apart` from each other, or of neighbours in one row: all columns of a run that
  // starts at column 0 of the map and of the output, and at the first one at hand of the spatial filter.
  void run_columns(const PixelRun<T, A>& rows_run, const PixelRows<T>& map, int64_t rows, int64_t apart, int64_t most) {
    const int64_t source_column = columns_.source_step * map.column;
    const int64_t output_row = rows_.output_step * output_.row, output_column = columns_.output_step * output_.column;
    PixelRun<T, A> run = rows_run;
    run.streams = streams_;
    constexpr bool asks_for_source = __is_same(T, A) && !kSlides;  // where rows slide this was not measured
    for (int64_t column = column_range_.begin; column < column_range_.end;) {
      const int64_t alike_end = smaller(inner_columns_.end, column_range_.end);
      const int64_t alike = column < inner_columns_.begin ? 1 : larger<int64_t>(alike_end - column, 1);
      // pixels one below the other share most of the rows that they read, which stay in the first cache
      const int64_t columns = rows > 1 ? 1 : pixels_of_a_tile(alike, most);
      run.tiles = alike / columns;
      run.source_tile = columns * source_column;
      run.spatial_tile = columns * run.spatial.column;
      run.output_tile = columns * output_column;
      // a phase of a gradient writes every second pixel, which the processor does not foresee
      if (!streams_ && columns_.output_step > 1) run.output_ahead = prefetch(2 * run.output_tile);
      // nor the rows below, which the next register tiles read
      if (asks_for_source) run.source_ahead = prefetch((rows_.taps - 1) * map.tap_row + rows * apart * map.row);
      run.source_pixel = rows > 1 ? apart * map.row : source_column;
      run.spatial_pixel = rows > 1 ? apart * run.spatial.row : run.spatial.column;
      run.output_pixel = rows > 1 ? apart * output_row : output_column;
      run.tap_columns = taps_on_map(columns_, column);
      run.source = rows_run.source + column * source_column;
      run.spatial.data = rows_run.spatial.data + (column - column_range_.begin) * run.spatial.column;
      run.output = rows_run.output + column * output_column;
      run_tiles(run, rows * columns);
      column += run.tiles * columns;
    }
  }

  int64_t prefetch(int64_t distance) const { return prefetch_distance(call_, call_.height * call_.width, distance); }

  void run_tiles(const PixelRun<T, A>& run, int64_t pixels) {
    with_combine(call_, [&]<Combine combine>() {
      if (pixels == 4) return gather_channels_of<combine, 4>(run, channels_per_head(call_));
      if (pixels == 2) return gather_channels_of<combine, 2>(run, channels_per_head(call_));
      gather_channels_of<combine, 1>(run, channels_per_head(call_));
    });
  }

  const Call& call_;
  const Axis &rows_, &columns_;
  const AxisSet row_set_, column_set_;
  const PixelTiling& tiling_;
  const Array &source_, &output_;
  const bool streams_;
  const Range inner_rows_, inner_columns_;  // the outputs for which every tap meets the map
  A *filters_, *spatial_scratch_, *source_scratch_;
  Range column_range_{};
  int64_t loaded_image_ = -1;
};

template <typename T>
void gather_all_pixels(const Call& call, const Axis& rows, const Axis& columns, const Array& source,
                       const Array& output) {
  if (rows.outputs == 0 || columns.outputs == 0) return;
  const auto tiling = make_pixel_tiling<T>(call, rows, columns);
  parallel(call, call.batch * tiling.tiles(), [&](int64_t begin, int64_t end) {
    PixelWorker<T> worker(call, rows, columns, tiling, source, output);
    for (int64_t task = begin; task < end; ++task) worker.run(task);
    end_streams();
  });
}

}  // namespace
}  // namespace ddf
