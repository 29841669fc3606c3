// Forward pass and gradient of the input, for channels_last maps.
//
// A task is a few output rows of one image. The accumulators of a few pixels and several vectors of channels stay in
// registers over all taps; every vector of the channel filter serves all these pixels, every element of the spatial
// filter all channels.
#pragma once

#include "pixels.h"

namespace ddf {
namespace {

// A run of pixels of one output row; distances in elements.
template <typename T, typename A>
struct PixelRun {
  const A* source;  // at the first pixel, tap (0, 0), which may lie off the map
  int64_t source_pixel, source_tap_row, source_tap_column;
  SpatialView<A> spatial;  // data at the first pixel
  const A* channel_filter;
  int64_t filter_tap_row, filter_tap_column;
  T* output;
  int64_t output_pixel;
  Range tap_rows, tap_columns;
};

template <Combine combine, int pixels, int vectors, typename T, typename A>
DDF_INLINE void gather_pixels(const PixelRun<T, A>& run, int64_t channel) {
  constexpr int lanes = kLanes<A>;
  Vector<A> sums[pixels][vectors] = {}, earlier_rows[pixels][vectors] = {};
  const int64_t first_row = run.tap_rows.begin, first_column = run.tap_columns.begin;
  const int64_t tap_columns = run.tap_columns.size(), pixel = run.source_pixel;
  const A* x_row = run.source + first_row * run.source_tap_row + first_column * run.source_tap_column + channel;
  const A* s_row = run.spatial.data + first_row * run.spatial.tap_row + first_column * run.spatial.tap_column;
  const A* c_row = run.channel_filter + first_row * run.filter_tap_row + first_column * run.filter_tap_column + channel;
  for (int64_t n = first_row; n < run.tap_rows.end; ++n) {
    const A *x = x_row, *s = s_row, *c = c_row;
    for (int64_t m = 0; m < tap_columns; ++m) {
      Vector<A> spatial[pixels];
      for (int p = 0; p < pixels; ++p) spatial[p] = broadcast(s[p * run.spatial.column]);
      for (int v = 0; v < vectors; ++v) {
        const Vector<A> filter = load(c + v * lanes);
        for (int p = 0; p < pixels; ++p) {
          sums[p][v] += tap_weight<combine>(filter, spatial[p]) * load(x + p * pixel + v * lanes);
        }
      }
      x += run.source_tap_column;
      s += run.spatial.tap_column;
      c += run.filter_tap_column;
    }
    x_row += run.source_tap_row;
    s_row += run.spatial.tap_row;
    c_row += run.filter_tap_row;
    if (tap_columns > kMostTapsInOneSum) {
      end_tap_row<pixels * vectors>(&sums[0][0], &earlier_rows[0][0], n + 1 == run.tap_rows.end);
    }
  }
  for (int p = 0; p < pixels; ++p) {
    for (int v = 0; v < vectors; ++v) store(run.output + p * run.output_pixel + channel + v * lanes, sums[p][v]);
  }
}

// All channels of a head. The last vector overlaps the one before: it computes the same values again.
template <Combine combine, int pixels, typename T, typename A>
DDF_NOINLINE void gather_channels(const PixelRun<T, A>& run, int64_t channels) {
  constexpr int lanes = kLanes<A>, most = kAccumulators / (pixels > 1 ? pixels : 2);
  int64_t channel = 0;
  for (; channel + most * lanes <= channels; channel += most * lanes) {
    gather_pixels<combine, pixels, most>(run, channel);
  }
  for (; channel + lanes <= channels; channel += lanes) gather_pixels<combine, pixels, 1>(run, channel);
  if (channel < channels) gather_pixels<combine, pixels, 1>(run, channels - lanes);
}

template <typename T>
class PixelWorker {
  using A = typename Computed<T>::type;

 public:
  PixelWorker(const Call& call, const Axis& rows, const Axis& columns, int64_t tile_rows, const Array& source,
              const Array& output)
      : call_(call),
        rows_(rows),
        columns_(columns),
        row_set_(&rows, 1),
        column_set_(&columns, 1),
        tile_rows_(tile_rows),
        source_(source),
        output_(output),
        inner_(outputs_on_map(columns, {0, columns.taps})) {
    const int64_t filter_size = round_up(rows.taps * columns.taps * call.channels, kLanes<A>);
    const int64_t spatial =
        in_place() ? 0 : SpatialTile<T>(call, row_set_, column_set_, {0, tile_rows}, {0, columns.outputs}).size();
    filters_ =
        thread_scratch<A>(filter_size + spatial + PixelRows<T>::scratch_size(call, row_set_, columns, tile_rows));
    spatial_scratch_ = filters_ + filter_size;
    source_scratch_ = spatial_scratch_ + spatial;
  }

  void run(int64_t task) {
    const int64_t tiles = ceil_divide(rows_.outputs, tile_rows_);
    const int64_t image = task / tiles, tile = task % tiles;
    if (image != loaded_image_ && (loaded_image_ < 0 || call_.channel_batch > 1)) {
      load_filters_by_tap<T>(call_, rows_, columns_, image, {0, call_.channels}, filters_);
    }
    loaded_image_ = image;
    const Range range{tile * tile_rows_, smaller((tile + 1) * tile_rows_, rows_.outputs)};
    const PixelRows<T> source(call_, row_set_, columns_, range, source_, image, source_scratch_);
    for (int64_t head = 0; head < call_.head; ++head) {
      const SpatialView<A> spatial = view(image, head, range);
      for (int64_t row = range.begin; row < range.end; ++row) {
        run_row(image, head, row, source, spatial, row - range.begin);
      }
    }
  }

 private:
  // Elements of the spatial filter are read one by one, so that they need no copy unless they change on the way.
  bool in_place() const { return __is_same(T, A) && !call_.normalize; }

  SpatialView<A> view(int64_t image, int64_t head, Range range) {
    if constexpr (__is_same(T, A)) {
      if (in_place()) return spatial_in_place<A>(call_, rows_, columns_, range.begin, image, head);
    }
    const SpatialTile<T> tile(call_, row_set_, column_set_, range, {0, columns_.outputs});
    tile.load(image, head, call_.normalize, spatial_scratch_);
    return tile.view(0, 0, spatial_scratch_);
  }

  void run_row(int64_t image, int64_t head, int64_t row, const PixelRows<T>& map, const SpatialView<A>& spatial,
               int64_t tile_row) {
    const int64_t first = head * channels_per_head(call_);
    PixelRun<T, A> run{};
    run.source_pixel = columns_.source_step * map.column;
    run.source_tap_row = map.tap_row;
    run.source_tap_column = columns_.source_tap_step * map.column;
    run.spatial = spatial;
    run.channel_filter = filters_ + first;
    run.filter_tap_row = columns_.taps * call_.channels;
    run.filter_tap_column = call_.channels;
    run.output_pixel = columns_.output_step * output_.column;
    run.tap_rows = taps_on_map(rows_, row);
    const A* source = map.data + tile_row * map.row + columns_.source_origin * map.column + first;
    T* output = at<T>(output_, image, first) + (rows_.output_origin + row * rows_.output_step) * output_.row +
                columns_.output_origin * output_.column;
    // a register tile of two pixels and many channels is best, where there are as many
    const int64_t most = channels_per_head(call_) >= kAccumulators / 2 * kLanes<A> ? 2 : 4;
    for (int64_t column = 0; column < columns_.outputs;) {
      const bool inner = column >= inner_.begin && column < inner_.end;
      const int64_t alike = inner ? inner_.end - column : 1;  // pixels from here on that the same taps serve
      const int64_t pixels = alike >= most ? most : alike >= 2 ? 2 : 1;
      run.tap_columns = inner ? Range{0, columns_.taps} : taps_on_map(columns_, column);
      run.source = source + column * run.source_pixel;
      run.spatial.data = spatial.data + tile_row * spatial.row + column * spatial.column;
      run.output = output + column * run.output_pixel;
      with_combine(call_, [&]<Combine combine>() {
        if (pixels == 4) return gather_channels<combine, 4>(run, channels_per_head(call_));
        if (pixels == 2) return gather_channels<combine, 2>(run, channels_per_head(call_));
        gather_channels<combine, 1>(run, channels_per_head(call_));
      });
      column += pixels;
    }
  }

  const Call& call_;
  const Axis &rows_, &columns_;
  const AxisSet row_set_, column_set_;
  const int64_t tile_rows_;
  const Array &source_, &output_;
  const Range inner_;  // the output columns for which every tap meets the map
  A *filters_, *spatial_scratch_, *source_scratch_;
  int64_t loaded_image_ = -1;
};

// Rows of one task share what the copies to scratch cost at their borders, as far as the copies stay in the cache.
template <typename T>
int64_t rows_of_a_tile(const Call& call, const Axis& rows, const Axis& columns) {
  constexpr int64_t kMostRows = 8, kScratchElements = 96 << 10;
  const AxisSet row_set(&rows, 1), column_set(&columns, 1);
  const auto scratch = [&](int64_t tile_rows) {
    return PixelRows<T>::scratch_size(call, row_set, columns, tile_rows) +
           SpatialTile<T>(call, row_set, column_set, {0, tile_rows}, {0, columns.outputs}).size();
  };
  const int64_t for_every_thread = ceil_divide(call.batch * rows.outputs, 4 * call.threads);
  int64_t tile_rows = smaller(smaller(for_every_thread, kMostRows), rows.outputs);
  while (tile_rows > 1 && scratch(tile_rows) > kScratchElements) --tile_rows;
  return tile_rows;
}

template <typename T>
void gather_all_pixels(const Call& call, const Axis& rows, const Axis& columns, const Array& source,
                       const Array& output) {
  if (rows.outputs == 0 || columns.outputs == 0) return;
  const int64_t tile_rows = rows_of_a_tile<T>(call, rows, columns);
  parallel(call, call.batch * ceil_divide(rows.outputs, tile_rows), [&](int64_t begin, int64_t end) {
    PixelWorker<T> worker(call, rows, columns, tile_rows, source, output);
    for (int64_t task = begin; task < end; ++task) worker.run(task);
  });
}

}  // namespace
}  // namespace ddf
