// Gradients of both filters at stride 1, for maps in float whose planes lie in one piece, where masks would cost
// instructions: as packed_planes_registers.h does, the kernel takes a plane as one long row and reads the maps where
// they lie.
//
// What a tap that misses the map reads adds to the channel filter's gradient zero times that; for `add`, ones and zeros
// take the place of the spatial filter. The spatial filter's gradient is cleared there when the channels of an image
// are done. Zero times infinity or NaN is NaN: where the channel filter's gradient is NaN, that of the group of
// channels is summed again, position by position.
#pragma once

#include "filter_gradients.h"
#include "packed_planes_registers.h"
#include "plane_scratch.h"

namespace ddf {
namespace {

#if !defined(__AVX512F__)
// A group of channels at one tap. Positions count from the first of a plane; distances in elements.
struct PackedTap {
  const float *source, *grad, *weights;  // the source as the tap reads it; the weights are zero off the map
  float* weight_sums;
  int64_t source_channel, grad_channel;
  const float* channel_filter;
  int64_t channel_filter_channel;
  Vector<float>* channel_sums;  // lane by lane, one of each channel
  int64_t ahead;                // from what is read to the lines that are asked for; 0: none
};

template <Combine combine>
DDF_NOINLINE void add_packed(const PackedTap& tap, Range vectors) {
  constexpr int lanes = kLanes<float>;
  Vector<float> channel[kPlaneChannels], sums[kPlaneChannels];
  clear(sums);
  for (int i = 0; i < kPlaneChannels; ++i) channel[i] = broadcast(tap.channel_filter[i * tap.channel_filter_channel]);
  for (int64_t v = vectors.begin; v < vectors.end; ++v) {
    const Vector<float> weights = load(tap.weights + v * lanes);
    Vector<float> over_channels{};
    const float *x = tap.source + v * lanes, *g = tap.grad + v * lanes;
    unrolled<kPlaneChannels>([&]<int i>() DDF_ALWAYS_INLINE {
      if (tap.ahead > 0) {
        __builtin_prefetch(x + tap.ahead, 0, 2);
        __builtin_prefetch(g + tap.ahead, 0, 2);
      }
      const Vector<float> u = load(g) * load(x);
      over_channels += combine == Combine::mul ? channel[i] * u : u;
      sums[i] += weights * u;
      x = opaque(x + tap.source_channel);
      g = opaque(g + tap.grad_channel);
    });
    // the channels are added as a whole, which keeps rounding errors small
    store(tap.weight_sums + v * lanes, load(tap.weight_sums + v * lanes) + over_channels);
  }
  for (int i = 0; i < kPlaneChannels; ++i) tap.channel_sums[i] += sums[i];
}

// The call that it is given has planes of one row.
template <typename T>
class PackedPlanesGradientWorker : GradientWorker<T> {
  using Base = GradientWorker<T>;
  using Base::call_, Base::rows_, Base::columns_, Base::weights_, Base::weight_sums_, Base::column_range_,
      Base::spatial_, Base::tap;

 public:
  PackedPlanesGradientWorker(const Call& call, const AxisSet& rows, const AxisSet& columns,
                             const GradientTiling& tiling, float* partial_sums)
      : Base(call, rows, columns, tiling, partial_sums) {
    const int64_t filter = round_up(kPlaneChannels * taps(), kLanes<float>);
    const int64_t sums = taps() * kPlaneChannels * kLanes<float>;
    const int64_t grad_pitch = round_up(tiling.columns, kLanes<float>), pitch = grad_pitch + 2 * reach();
    const int64_t maps = (kPlaneChannels + 2) * pitch + kPlaneChannels * grad_pitch;
    filter_ = Base::take_scratch(filter + sums + maps);
    channel_sums_ = reinterpret_cast<Vector<float>*>(filter_ + filter);
    float* map_scratch = filter_ + filter + sums;
    source_scratch_ = {map_scratch + pitch, {}, pitch};
    grad_scratch_ = {map_scratch + (kPlaneChannels + 2) * pitch, {}, grad_pitch};
    // what is read around the map counts for nothing, unless it is NaN
    __builtin_memset(map_scratch, 0, maps * sizeof(float));
    Base::loads_spatial_ = call.combine == Combine::mul;
  }

  void run(int64_t task) {
    bool is_loaded = false;
    Base::run_task(task, [&](int64_t image, int64_t head, float* partial_sums) {
      if (!is_loaded) load_weights();
      is_loaded = true;
      const int64_t per_head = channels_per_head(call_);
      for (int64_t channel = head * per_head; channel < (head + 1) * per_head; channel += kPlaneChannels) {
        add_group(image, channel, partial_sums + channel * taps_of(call_));
      }
      clear_off_map(weight_sums_);
    });
  }

 private:
  int64_t taps() const { return rows_.taps * columns_.taps; }
  Range vectors() const { return {column_range_.begin / kLanes<float>, ceil_divide(column_range_.end, kLanes<float>)}; }

  // What channel sums are multiplied by: the spatial filter or ones, and zeros where a tap misses the map.
  void load_weights() {
    if (Base::loads_spatial_) return clear_off_map(weights_);
    for (int64_t n = 0; n < rows_.taps; ++n) {
      for (int64_t m = 0; m < columns_.taps; ++m) {
        pack_tap(rows_, columns_, n, m, vectors(), nullptr, kLanes<float>, weights_ + tap(n, m) * spatial_.pitch());
      }
    }
  }

  // Clears the elements of (taps, pitch) for which a tap misses the map.
  void clear_off_map(float* planes) const {
    for (int64_t n = 0; n < rows_.taps; ++n) {
      for (int64_t m = 0; m < columns_.taps; ++m) {
        float* plane = planes + tap(n, m) * spatial_.pitch();
        pack_tap(rows_, columns_, n, m, vectors(), plane - column_range_.begin, kLanes<float>, plane);
      }
    }
  }

  void add_group(int64_t image, int64_t channel, float* partial_sums) {
    constexpr int64_t kElementsAtOnce = 3 << 9, kFewestVectors = 6;  // of all taps: they stay in the first cache
    const int64_t at_once = larger(kElementsAtOnce / kLanes<float> / taps(), kFewestVectors);
    const int64_t known = known_taps<float, kChannelGroup>(rows_, columns_);
    const float* filter =
        load_channel_filters(call_.channel_filter, at<const float>(call_.channel_filter, image, channel), rows_,
                             columns_, kPlaneChannels, known, filter_);
    PackedTap group = maps_of(image, channel);
    group.channel_filter = filter;
    group.channel_filter_channel = known > 0 ? taps() : 1;
    const int64_t filter_tap = known > 0 ? 1 : kPlaneChannels;
    const int64_t ahead = prefetch_distance(call_, call_.height * call_.width, at_once * kLanes<float>);
    __builtin_memset(channel_sums_, 0, taps() * kPlaneChannels * sizeof(Vector<float>));
    for (int64_t v = vectors().begin; v < vectors().end; v += at_once) {
      for (int64_t t = 0; t < taps(); ++t) {
        PackedTap at_tap = tap_of(group, t / columns_.taps, t % columns_.taps, filter_tap);
        at_tap.ahead = t == 0 ? ahead : 0;
        with_combine(call_,
                     [&]<Combine combine>() { add_packed<combine>(at_tap, {v, smaller(v + at_once, vectors().end)}); });
      }
    }
    if (has_nan()) add_one_by_one(group, filter_tap);
    store_channel_sums(partial_sums);
  }

  // A group's maps where they lie, or in scratch where whole vectors would go beyond the tensors.
  PackedTap maps_of(int64_t image, int64_t channel) {
    const float* source = at<const float>(call_.input, image, channel);
    const float* grad = at<const float>(call_.output, image, channel);
    PackedTap group{};
    if (covers(readable_vectors(image, channel), vectors())) {
      group.source = source;
      group.source_channel = call_.input.channel;
      group.grad = grad;
      group.grad_channel = call_.output.channel;
      return group;
    }
    const int64_t positions = rows_.outputs * columns_.outputs;
    source_scratch_.positions = {larger<int64_t>(column_range_.begin - reach(), 0),
                                 smaller(column_range_.end + reach(), positions)};
    grad_scratch_.positions = column_range_;
    for (int64_t i = 0; i < kPlaneChannels; ++i) {
      source_scratch_.load(i, source_scratch_.positions, source + i * call_.input.channel, call_.input, call_.width);
      grad_scratch_.load(i, column_range_, grad + i * call_.output.channel, call_.output, call_.out_width);
    }
    group.source = source_scratch_.origin();
    group.source_channel = source_scratch_.pitch;
    group.grad = grad_scratch_.origin();
    group.grad_channel = grad_scratch_.pitch;
    return group;
  }

  PackedTap tap_of(PackedTap group, int64_t n, int64_t m, int64_t filter_tap) const {
    const int64_t t = n * columns_.taps + m, plane = tap(n, m) * spatial_.pitch() - column_range_.begin;
    group.source += tap_distance(rows_, columns_, n, m);
    group.weights = weights_ + plane;
    group.weight_sums = weight_sums_ + plane;
    group.channel_filter += t * filter_tap;
    group.channel_sums = channel_sums_ + t * kPlaneChannels;
    return group;
  }

  Range distances() const {
    return {tap_distance(rows_, columns_, 0, 0), tap_distance(rows_, columns_, rows_.taps - 1, columns_.taps - 1)};
  }
  // How far from an output its taps read, in whole vectors.
  int64_t reach() const { return round_up(larger(-distances().begin, distances().end), kLanes<float>); }

  // Vectors that may be read whole at every tap.
  Range readable_vectors(int64_t image, int64_t channel) const {
    const int64_t positions = rows_.outputs * columns_.outputs;
    const auto of = [&](const Array& map, Range reach) {
      return ddf::readable_vectors(call_, map, positions, image, channel, kPlaneChannels, reach);
    };
    return common(of(call_.input, distances()), of(call_.output, {0, 0}));
  }

  // The channel filter's sums anew, from the positions in which each tap meets the map.
  void add_one_by_one(const PackedTap& group, int64_t filter_tap) {
    __builtin_memset(channel_sums_, 0, taps() * kPlaneChannels * sizeof(Vector<float>));
    for (int64_t p = column_range_.begin; p < column_range_.end; ++p) {
      const Range on_rows = taps_on_map(rows_, p / columns_.outputs);
      const Range on_columns = taps_on_map(columns_, p % columns_.outputs);
      for (int64_t n = on_rows.begin; n < on_rows.end; ++n) {
        for (int64_t m = on_columns.begin; m < on_columns.end; ++m) {
          const PackedTap at_tap = tap_of(group, n, m, filter_tap);
          for (int64_t i = 0; i < kPlaneChannels; ++i) {
            const float u = at_tap.grad[i * at_tap.grad_channel + p] * at_tap.source[i * at_tap.source_channel + p];
            at_tap.channel_sums[i][p % kLanes<float>] += at_tap.weights[p] * u;
          }
        }
      }
    }
  }

  bool has_nan() const {
    Vector<int32_t> found{};
    for (int64_t i = 0; i < taps() * kPlaneChannels; ++i) found |= channel_sums_[i] != channel_sums_[i];
    return any_lane(found);
  }

  void store_channel_sums(float* partial_sums) const {
    __builtin_memset(partial_sums, 0, kPlaneChannels * taps_of(call_) * sizeof(float));
    const Vector<float>* sums = channel_sums_;
    for (int64_t n = 0; n < rows_.taps; ++n) {
      for (int64_t m = 0; m < columns_.taps; ++m) {
        for (int i = 0; i < kPlaneChannels; ++i, ++sums) {
          partial_sums[i * taps_of(call_) + tap(n, m)] = horizontal_sum<float>(*sums);
        }
      }
    }
  }

  float* filter_;
  Vector<float>* channel_sums_;  // (taps, channels)
  PlaneScratch source_scratch_, grad_scratch_;
};
#endif

}  // namespace
}  // namespace ddf
