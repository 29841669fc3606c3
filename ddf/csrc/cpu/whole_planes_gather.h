// Forward pass and gradient of the input at stride 1, for maps whose planes lie in one piece.
//
// A plane is taken as one long row: a tap reads it at a constant distance from the output. Lanes in which that misses
// the map, above or below or by running into the neighbouring row, are cleared by masks or by zeros in the spatial
// filter. So vectors are full whatever the width, and maps in float are read and written where they lie. A task is a
// range of vectors of some channels of one image and head. What is read of maps in half precision is converted in
// scratch, a few vectors at a time, and channels at the ends of a tensor are copied there without masks; filters that
// pass FilterNorm first, or that the inner loop or the caches would not serve well where they lie, are copied there.
#pragma once

#include "packed_planes_registers.h"
#include "plane_scratch.h"
#include "planes.h"
#include "streaming.h"
#include "whole_planes_registers.h"

namespace ddf {
namespace {

// How a call is cut: vectors of a plane in a tile, and chunks of channels.
struct PlaneTiling {
  int64_t vectors, tiles, tile_vectors, channel_chunks;

  explicit PlaneTiling(const Call& call) {
    constexpr int64_t kTileElements = 40 << 10;  // of the spatial filter: they stay in the second cache
    vectors = ceil_divide(call.height * call.width, kLanes<float>);
    tile_vectors = larger<int64_t>(kTileElements / (PlaneBorders::parts(call) * taps_of(call)) / kLanes<float>, 1);
    tiles = ceil_divide(vectors, tile_vectors);
    tile_vectors = ceil_divide(vectors, tiles);
    tiles = ceil_divide(vectors, tile_vectors);
    channel_chunks = chunks_for_threads(call, call.batch * call.head * tiles, channels_per_head(call) / kPlaneChannels);
  }

  Range tile(int64_t index) const { return {index * tile_vectors, smaller((index + 1) * tile_vectors, vectors)}; }
};

// The work of one thread: its scratch, and what lies there for the tile at hand.
template <typename T>
class WholePlanesWorker {
 public:
  WholePlanesWorker(const Call& call, const Axis& rows, const Axis& columns, const PlaneTiling& tiling,
                    const Array& source, const Array& output)
      : call_(call),
        rows_(rows),
        columns_(columns),
        tiling_(tiling),
        source_(source),
        output_(output),
        streams_(in_tensors() && streams<T>(call, output, {output.batch, output.channel})),
        first_tap_(tap_distance(rows, columns, 0, 0)),
        last_tap_(tap_distance(rows, columns, rows.taps - 1, columns.taps - 1)),
        borders_(call, rows, columns),
        reach_(round_up(larger(-first_tap_, last_tap_), kLanes<float>)) {
    const int64_t pitch = tiling.tile_vectors * kLanes<float> + 2 * reach_;
    const int64_t filter = round_up(kPlaneChannels * taps_of(call), kLanes<float>);
    const int64_t spatial = spatial_in_tensor() ? 0 : taps_of(call) * pitch;
    const int64_t packed = packs_spatial() ? borders_.packed_size(tiling.tile_vectors) : 0;
    maps_size_ = in_tensors() && kHasMasks ? 0 : (kPlaneChannels + 2) * pitch;
    filter_ =
        thread_scratch<float>(filter + spatial + packed + maps_size_ + borders_.scratch_size(tiling.tile_vectors));
    spatial_scratch_ = {filter_ + filter, {}, pitch};
    packed_ = spatial_scratch_.data + spatial;
    maps_ = packed_ + packed;
    source_scratch_ = {maps_ + pitch, {}, pitch};
    // what is read around the map counts for nothing, unless it is NaN
    if (!kHasMasks) __builtin_memset(maps_, 0, maps_size_ * sizeof(float));
  }

  void run(int64_t task) {
    const int64_t chunk = task % tiling_.channel_chunks, rest = task / tiling_.channel_chunks;
    const int64_t tile = rest % tiling_.tiles, map = rest / tiling_.tiles;
    const int64_t head = map % call_.head, image = map / call_.head;
    load_tile(tile, image, head);
    const int64_t groups = channels_per_head(call_) / kPlaneChannels, first = head * channels_per_head(call_);
    const int64_t end = groups * (chunk + 1) / tiling_.channel_chunks;
    for (int64_t group = groups * chunk / tiling_.channel_chunks; group < end; ++group) {
      run_group(image, first + group * kPlaneChannels);
    }
  }

 private:
  static constexpr int64_t kBlock = 8 * kLanes<float>;  // positions that are converted at once

  bool in_tensors() const { return __is_same(T, float); }
  bool spatial_in_tensor() const {
    return in_tensors() && !call_.normalize && has_whole_planes(call_.spatial_filter, call_.width);
  }
  int64_t positions() const { return call_.height * call_.width; }

  // Whether the spatial filter is copied in the order in which it is read: without masks always; with them where its
  // planes would crowd each other out of the first cache, or are too many and too large to be fetched ahead, and
  // channels enough use the copy.
  bool packs_spatial() const {
    if (!kHasMasks) return true;
    constexpr int64_t kSamePlaces = 1024, kLarge = 24 << 10;
    const bool crowds = positions() % kSamePlaces == 0, is_large = taps_of(call_) * positions() > kLarge;
    const int64_t channels = channels_per_head(call_) / tiling_.channel_chunks;
    return spatial_in_tensor() && (crowds || is_large) && channels >= 4 * kPlaneChannels;
  }

  void load_tile(int64_t tile, int64_t image, int64_t head) {
    vectors_ = tiling_.tile(tile);
    if (tile != loaded_tile_) borders_.load_tile(vectors_, maps_ + maps_size_, packed_);
    if (tile == loaded_tile_ && image == loaded_image_ && head == loaded_head_) return;
    loaded_tile_ = tile;
    loaded_image_ = image;
    loaded_head_ = head;
    const Range outputs{vectors_.begin * kLanes<float>, smaller(vectors_.end * kLanes<float>, positions())};
    const Range inputs{larger<int64_t>(outputs.begin - reach_, 0), smaller(outputs.end + reach_, positions())};
    source_scratch_.positions = inputs;
    if (spatial_in_tensor()) {
      weights_ = in_rows(spatial_in_place<float>(call_, rows_, columns_, 0, image, head));
      readable_weights_ = readable_in_tensor(weights_);
    } else {
      load_spatial(image, head, rows_.weights_at_source ? inputs : outputs);
    }
    if (!packs_spatial()) return;
    weights_ = borders_.pack(weights_, packed_);
    readable_weights_ = vectors_;
  }

  void load_spatial(int64_t image, int64_t head, Range range) {
    const int64_t taps = taps_of(call_), pitch = spatial_scratch_.pitch;
    spatial_scratch_.positions = range;
    for (int64_t t = 0; t < taps; ++t) {
      spatial_scratch_.load(t, range, at<const T>(call_.spatial_filter, image, head * taps + t), call_.spatial_filter,
                            call_.width);
      float* plane = spatial_scratch_.data + t * pitch;
      for (int64_t i = range.size(); i < pitch; ++i) plane[i] = 0;
    }
    if (call_.normalize) normalize_row(spatial_scratch_.data, taps, pitch, static_cast<float>(call_.norm_gain));
    Call in_scratch = call_;
    in_scratch.spatial_filter = {spatial_scratch_.origin(), 0, pitch, call_.width, 1};
    weights_ = in_rows(spatial_in_place<float>(in_scratch, rows_, columns_, 0, 0, 0));
    readable_weights_ = vectors_;
  }

  static PlaneWeights in_rows(const SpatialView<float>& view) {
    return {view.data, kLanes<float>, view.tap_row, view.tap_column};
  }

  void run_group(int64_t image, int64_t channel) {
    PlaneGroup group{};
    group.source_tap_row = rows_.source_tap_step * call_.width;
    group.source_tap_column = columns_.source_tap_step;
    group.weights = weights_;
    group.channel_filter = load_channel_filters(call_.channel_filter, at<const T>(call_.channel_filter, image, channel),
                                                rows_, columns_, kPlaneChannels, rows_.taps, filter_);
    group.positions = positions();
    T* output = at<T>(output_, image, channel);
    const T* source = at<const T>(source_, image, channel);
    group.output = output;
    group.output_channel = output_.channel;
    group.streams = streams_;
    group.dtype = call_.dtype;
    group.prefetch = prefetch(source, streams_ ? nullptr : output);
    borders_.prepare(group);
    if constexpr (__is_same(T, float)) {
      const Range map = readable_vectors(call_, source_, positions(), image, channel, kPlaneChannels,
                                         {first_tap_, last_tap_ + PlaneBorders::kBehind});
      if (kHasMasks || covers(map, vectors_)) {
        group.source = source + first_tap_;
        group.source_channel = source_.channel;
        group.readable = common(map, readable_weights_);
        return gather(group, vectors_);
      }
    }
    group.source = source_scratch_.origin() + first_tap_;
    group.source_channel = source_scratch_.pitch;
    group.readable = vectors_;
    gather_in_scratch(group, source);
  }

  PlanePrefetch prefetch(const T* source, const T* output) const {
    constexpr int64_t size = sizeof(T), lanes = kLanes<float>;
    // What is asked for in vain costs kernels of 3 a few percent, larger ones one: they ask for smaller maps, too.
    const int64_t cached = rows_.taps == 3 ? kCached : kCached / 2;
    if (in_tensors() && !exceeds_caches(call_, positions(), cached)) source = nullptr;
    return {reinterpret_cast<const char*>(output),
            reinterpret_cast<const char*>(source),
            output_.channel * size,
            source_.channel * size,
            (kBlock + reach_) * size,
            size,
            {vectors_.begin * lanes * size, vectors_.end * lanes * size}};
  }

  Range readable_in_tensor(const PlaneWeights& weights) const {
    const Array& filter = call_.spatial_filter;
    const int64_t first = weights.data - static_cast<const float*>(filter.data);
    const int64_t rows = (rows_.taps - 1) * weights.tap_row, columns = (columns_.taps - 1) * weights.tap_column;
    const int64_t size =
        (call_.spatial_batch - 1) * filter.batch + (call_.head * taps_of(call_) - 1) * filter.channel + positions();
    return readable_vectors(first + smaller<int64_t>(rows, 0) + smaller<int64_t>(columns, 0),
                            first + larger<int64_t>(rows, 0) + larger<int64_t>(columns, 0), size);
  }

  // A few vectors at a time, which stay in the first cache between conversions and use. Scratch is written in whole
  // vectors: `reach_` is one of them.
  void gather_in_scratch(const PlaneGroup& group, const T* source) {
    constexpr int64_t lanes = kLanes<float>;
    Range inputs{0, source_scratch_.positions.begin};
    for (int64_t v = vectors_.begin; v < vectors_.end; v += kBlock / lanes) {
      const Range vectors{v, smaller(v + kBlock / lanes, vectors_.end)};
      inputs = {inputs.end, smaller(vectors.end * lanes + reach_, source_scratch_.positions.end)};
      for (int i = 0; i < kPlaneChannels; ++i) {
        source_scratch_.load(i, inputs, source + i * source_.channel, source_, call_.width);
      }
      gather(group, vectors);
    }
  }

  void gather(const PlaneGroup& group, Range vectors) {
    with_combine(call_, [&]<Combine combine>() { borders_.template gather<combine>(group, vectors); });
  }

  const Call& call_;
  const Axis &rows_, &columns_;
  const PlaneTiling& tiling_;
  const Array &source_, &output_;
  const bool streams_;
  const int64_t first_tap_, last_tap_;  // from an output to what its first and last tap read
  PlaneBorders borders_;
  const int64_t reach_;  // how far from an output its taps read, in whole vectors
  float *filter_, *packed_, *maps_;
  int64_t maps_size_;
  PlaneScratch spatial_scratch_, source_scratch_;
  PlaneWeights weights_{};
  Range readable_weights_{};
  Range vectors_{};
  int64_t loaded_tile_ = -1, loaded_image_ = -1, loaded_head_ = -1;
};

// Where forward pass and gradient of the input go this way.
template <typename T>
bool gathers_whole_planes(const Call& call, const AxisSet& rows, const AxisSet& columns, const Array& source,
                          const Array& output) {
  return known_taps<typename Computed<T>::type, kChannelGroup>(rows[0], columns[0]) > 0 && call.stride == 1 &&
         channels_per_head(call) % kPlaneChannels == 0 && has_whole_planes(source, call.width) &&
         has_whole_planes(output, call.width);
}

// Whether that is faster than tiles of rows where both are possible: where a unit permutes vectors, as taps that share
// what they read must, while those for FMA are busy; unless rows fill their vectors and share more over seven taps.
inline bool favours_whole_planes([[maybe_unused]] const Axis& columns) {
#if defined(__AVX512F__)
  __builtin_cpu_init();
  return __builtin_cpu_is("amd") && columns.source_tap_step == 1 &&
         (columns.taps < 7 || columns.outputs % kLanes<float> != 0);
#else
  return false;
#endif
}

template <typename T>
void gather_whole_planes(const Call& call, const Axis& rows, const Axis& columns, const Array& source,
                         const Array& output) {
  if constexpr (!__is_same(T, double)) {
    const PlaneTiling tiling(call);
    parallel(call, call.batch * call.head * tiling.tiles * tiling.channel_chunks, [&](int64_t begin, int64_t end) {
      WholePlanesWorker<T> worker(call, rows, columns, tiling, source, output);
      for (int64_t task = begin; task < end; ++task) worker.run(task);
      end_streams();
    });
  }
}

}  // namespace
}  // namespace ddf
