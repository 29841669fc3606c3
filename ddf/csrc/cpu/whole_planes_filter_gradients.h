// Gradients of both filters at stride 1, for maps in float whose planes lie in one piece, where the instruction set has
// masks: as whole_planes_registers.h does, the kernel takes a plane as one long row and reads the maps where they lie.
//
// A few vectors of eight channels are taken at all taps before the next ones, and stay in the first cache.
#pragma once

#include "filter_gradients.h"
#include "packed_planes_filter_gradients.h"
#include "whole_planes_gather.h"

namespace ddf {
namespace {

#if defined(__AVX512F__)
constexpr int kTapChannels = 4;  // whose sums are in registers at once

// Eight channels at some tap columns of one row. Vectors count from the first of a plane; distances in elements.
struct PlaneTaps {
  const float *source, *grad;  // for the first of the taps
  int64_t source_channel, grad_channel;
  const float* weights;
  float* weight_sums;
  int64_t weights_tap;
  const Mask* masks;
  int64_t masks_tap;
  const float* channel_filter;
  int64_t channel_filter_channel, channel_filter_tap;
  Vector<float>* channel_sums;  // lane by lane, (taps, channels)
  int64_t ahead;                // from what is read to the lines that are asked for; 0: none
  Range tile;                   // of positions; behind its end those of the next channels are asked for
};

// Asks for the lines that some channels need a while after a position, in the second cache: the first has no room.
DDF_INLINE void fetch_ahead(const PlaneTaps& taps, const float* x, const float* g, int64_t position) {
  const bool in_tile = position + taps.ahead < taps.tile.end;
  const int64_t ahead = in_tile ? taps.ahead : taps.ahead - taps.tile.size(), skipped = in_tile ? 0 : kPlaneChannels;
  for (int i = 0; i < kTapChannels; ++i) {
    __builtin_prefetch(x + (i + skipped) * taps.source_channel + ahead, 0, 2);
    __builtin_prefetch(g + (i + skipped) * taps.grad_channel + ahead, 0, 2);
  }
}

// Adds some of the eight channels, from `channel` on, at `count` tap columns, which stand `step` apart and share what
// they read of the map, as in whole_planes_registers.h; or at one, with `step` 0. `anywhere`: masked loads alone may
// touch memory. `fetches`: asks for what lies ahead.
template <Combine combine, int count, int step, bool anywhere, bool fetches>
DDF_INLINE void add_channels(const PlaneTaps& taps, int channel, Range vectors) {
  constexpr int lanes = kLanes<float>, channels = kTapChannels;
  Vector<float> c[channels][count], sums[channels][count];
  clear(sums);
  for (int i = 0; i < channels; ++i) {
    const float* filter = taps.channel_filter + (channel + i) * taps.channel_filter_channel;
    for (int m = 0; m < count; ++m) c[i][m] = broadcast(filter[m * taps.channel_filter_tap]);
  }
  const float *source = taps.source + channel * taps.source_channel, *grad = taps.grad + channel * taps.grad_channel;
  for (int64_t v = vectors.begin; v < vectors.end; ++v) {
    Mask masks[count];
    Vector<float> spatial[count], over_channels[count];
    for (int m = 0; m < count; ++m) {
      masks[m] = taps.masks[m * taps.masks_tap + v];
      spatial[m] = load(taps.weights + m * taps.weights_tap + v * lanes);
    }
    clear(over_channels);
    const float *x = opaque(source + v * lanes), *g = opaque(grad + v * lanes);
    if constexpr (fetches) fetch_ahead(taps, x, g, v * lanes);
    unrolled<channels>([&]<int i>() DDF_ALWAYS_INLINE {
      const Vector<float> value = anywhere ? load_masked(x, masks[0]) : kept(load(x));
      const Vector<float> gradient = anywhere ? load_masked(g, masks[0]) : kept(load(g));
      const Vector<float> behind = step > 0 ? load_four(x + lanes) : Vector<float>{};
      unrolled<count>([&]<int m>() DDF_ALWAYS_INLINE {
        const Vector<float> at_tap = product(lanes_from<m * step>(value, behind), gradient, masks[m]);
        add_tap_gradients<combine>(at_tap, c[i][m], spatial[m], over_channels[m], sums[i][m]);
      });
      x = opaque(x + taps.source_channel);
      g = opaque(g + taps.grad_channel);
    });
    // the channels are added as a whole, which keeps rounding errors small
    for (int m = 0; m < count; ++m) {
      float* to = taps.weight_sums + m * taps.weights_tap + v * lanes;
      store(to, load(to) + over_channels[m]);
    }
  }
  for (int m = 0; m < count; ++m) {
    for (int i = 0; i < channels; ++i) taps.channel_sums[m * kPlaneChannels + channel + i] += sums[i][m];
  }
}

// Adds one tap, in vectors that may not be read whole.
template <Combine combine>
DDF_NOINLINE void add_border_vectors(const PlaneTaps& taps, Range vectors) {
  if (vectors.size() <= 0) return;
  for (int channel = 0; channel < kPlaneChannels; channel += kTapChannels) {
    add_channels<combine, 1, 0, true, false>(taps, channel, vectors);
  }
}

template <Combine combine, int count, int step, bool fetches>
DDF_NOINLINE void add_whole_vectors(const PlaneTaps& taps, Range vectors) {
  if (vectors.size() <= 0) return;
  for (int channel = 0; channel < kPlaneChannels; channel += kTapChannels) {
    add_channels<combine, count, step, false, fetches>(taps, channel, vectors);
  }
}

template <Combine combine, bool fetches>
void add_whole_vectors(const PlaneTaps& taps, int64_t count, int64_t step, Range vectors) {
  if (count == 3 && step == 2) return add_whole_vectors<combine, 3, 2, fetches>(taps, vectors);
  if (count == 3) return add_whole_vectors<combine, 3, 1, fetches>(taps, vectors);
  if (count == 2) return add_whole_vectors<combine, 2, 1, fetches>(taps, vectors);
  add_whole_vectors<combine, 1, 0, fetches>(taps, vectors);
}

// Of what a mask leaves out nothing is added.
template <Combine combine>
void add_vectors(PlaneTaps taps, int64_t count, int64_t step, Range vectors, Range readable) {
  readable = common(readable, vectors);
  if (readable.size() <= 0) readable = {vectors.end, vectors.end};
  if (taps.ahead > 0) {
    add_whole_vectors<combine, true>(taps, count, step, readable);
  } else {
    add_whole_vectors<combine, false>(taps, count, step, readable);
  }
  for (int64_t m = 0; m < count; ++m) {
    add_border_vectors<combine>(taps, {vectors.begin, readable.begin});
    add_border_vectors<combine>(taps, {readable.end, vectors.end});
    taps.source += step;
    taps.weights += taps.weights_tap;
    taps.weight_sums += taps.weights_tap;
    taps.masks += taps.masks_tap;
    taps.channel_filter += taps.channel_filter_tap;
    taps.channel_sums += kPlaneChannels;
  }
}

// The call that it is given has planes of one row.
template <typename T>
class WholePlanesGradientWorker : GradientWorker<T> {
  using Base = GradientWorker<T>;
  using Base::call_, Base::rows_, Base::columns_, Base::weights_, Base::weight_sums_, Base::column_range_,
      Base::spatial_, Base::tap;

 public:
  WholePlanesGradientWorker(const Call& call, const AxisSet& rows, const AxisSet& columns, const GradientTiling& tiling,
                            float* partial_sums)
      : Base(call, rows, columns, tiling, partial_sums) {
    const int64_t taps = rows_.taps * columns_.taps, filter = round_up(kPlaneChannels * taps, kLanes<float>);
    const int64_t masks = ceil_divide(taps * ceil_divide(tiling.columns, kLanes<float>), 2);
    filter_ = Base::take_scratch(filter + taps * kPlaneChannels * kLanes<float> + masks);
    channel_sums_ = reinterpret_cast<Vector<float>*>(filter_ + filter);
    masks_ = reinterpret_cast<Mask*>(channel_sums_ + taps * kPlaneChannels);
  }

  void run(int64_t task) {
    Base::run_task(task, [&](int64_t image, int64_t head, float* partial_sums) {
      vectors_ = {column_range_.begin / kLanes<float>, ceil_divide(column_range_.end, kLanes<float>)};
      make_tap_masks(rows_, columns_, vectors_, masks_);
      const int64_t per_head = channels_per_head(call_);
      for (int64_t channel = head * per_head; channel < (head + 1) * per_head; channel += kPlaneChannels) {
        add_group(image, channel, partial_sums + channel * taps_of(call_));
      }
    });
  }

 private:
  void add_group(int64_t image, int64_t channel, float* partial_sums) {
    constexpr int64_t kVectorsAtOnce = 20;
    const int64_t known = known_taps<float, kChannelGroup>(rows_, columns_), taps = rows_.taps * columns_.taps;
    const float* filter =
        load_channel_filters(call_.channel_filter, at<const float>(call_.channel_filter, image, channel), rows_,
                             columns_, kPlaneChannels, known, filter_);
    PlaneTaps row{};
    row.source_channel = call_.input.channel;
    row.grad = at<const float>(call_.output, image, channel);
    row.grad_channel = call_.output.channel;
    row.tile = column_range_;
    row.weights_tap = columns_.tap_step * spatial_.pitch();
    row.masks_tap = vectors_.size();
    row.channel_filter_channel = known > 0 ? taps : 1;
    row.channel_filter_tap = known > 0 ? 1 : kPlaneChannels;
    const Range readable = readable_vectors(image, channel);
    const int64_t ahead = prefetch_distance(call_, call_.height * call_.width, kVectorsAtOnce * kLanes<float>);
    const int64_t parts = shares() ? ceil_divide(columns_.taps, kSharedTaps) : columns_.taps;
    __builtin_memset(channel_sums_, 0, taps * kPlaneChannels * sizeof(Vector<float>));
    for (int64_t v = vectors_.begin; v < vectors_.end; v += kVectorsAtOnce) {
      const Range vectors{v, smaller(v + kVectorsAtOnce, vectors_.end)};
      for (int64_t index = 0; index < rows_.taps * parts; ++index) {
        const int64_t n = index / parts, part = index % parts;
        const int64_t m = part * columns_.taps / parts, count = (part + 1) * columns_.taps / parts - m;
        const int64_t first = n * columns_.taps + m;
        const int64_t plane = Base::tap(n, m) * spatial_.pitch() - column_range_.begin;
        row.source = at<const float>(call_.input, image, channel) + tap_distance(rows_, columns_, n, m);
        row.weights = weights_ + plane;
        row.weight_sums = weight_sums_ + plane;
        row.masks = masks_ + first * vectors_.size() - vectors_.begin;
        row.channel_filter = filter + first * row.channel_filter_tap;
        row.channel_sums = channel_sums_ + first * kPlaneChannels;
        row.ahead = index == 0 ? ahead : 0;
        with_combine(call_, [&]<Combine combine>() {
          add_vectors<combine>(row, count, columns_.source_tap_step, vectors, readable);
        });
      }
    }
    store_channel_sums(partial_sums);
  }

  // Whether tap columns stand as near to each other as the kernels that share reads know.
  bool shares() const {
    const int64_t step = columns_.source_tap_step;
    return columns_.taps > 1 && (step == 1 || (step == 2 && columns_.taps == 3));
  }

  Range readable_vectors(int64_t image, int64_t channel) const {
    const Range reach{tap_distance(rows_, columns_, 0, 0),
                      tap_distance(rows_, columns_, rows_.taps - 1, columns_.taps - 1) + kReadBeyond};
    const int64_t positions = rows_.outputs * columns_.outputs;
    return common(ddf::readable_vectors(call_, call_.input, positions, image, channel, kPlaneChannels, reach),
                  ddf::readable_vectors(call_, call_.output, positions, image, channel, kPlaneChannels, {0, 0}));
  }

  void store_channel_sums(float* partial_sums) {
    __builtin_memset(partial_sums, 0, kPlaneChannels * taps_of(call_) * sizeof(float));
    const Vector<float>* sums = channel_sums_;
    for (int64_t n = 0; n < rows_.taps; ++n) {
      for (int64_t m = 0; m < columns_.taps; ++m, sums += kPlaneChannels) {
        float totals[kPlaneChannels] = {};
        add_lanes<4>(totals, *reinterpret_cast<const Vector<float>(*)[4]>(sums));
        add_lanes<4>(totals + 4, *reinterpret_cast<const Vector<float>(*)[4]>(sums + 4));
        for (int i = 0; i < kPlaneChannels; ++i) partial_sums[i * taps_of(call_) + tap(n, m)] = totals[i];
      }
    }
  }

  Range vectors_{};
  float* filter_;
  Vector<float>* channel_sums_;  // (taps, channels)
  Mask* masks_;
};
#endif

// Where the gradients of the filters go this way.
template <typename T>
bool adds_whole_planes(const Call& call) {
  return __is_same(T, float) && call.stride == 1 && channels_per_head(call) % kPlaneChannels == 0 &&
         has_whole_planes(call.input, call.width) && has_whole_planes(call.output, call.width) &&
         has_whole_planes(call.spatial_filter, call.width) && has_whole_planes(call.grad_spatial, call.width);
}

inline void filter_gradients_of_whole_planes(const Call& call) {
  Call one_row = call;
  one_row.height = one_row.out_height = 1;
  one_row.width = one_row.out_width = call.width * call.height;
#if defined(__AVX512F__)
  run_filter_gradients<WholePlanesGradientWorker, float>(call, one_row);
#else
  run_filter_gradients<PackedPlanesGradientWorker, float>(call, one_row);
#endif
}

}  // namespace
}  // namespace ddf
