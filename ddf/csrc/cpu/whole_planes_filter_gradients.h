// Gradients of both filters at stride 1, for maps in float whose planes lie in one piece, where the instruction set has
// masks: as whole_planes_gather.h does, the kernel takes a plane as one long row and reads the maps where they lie.
//
// A few vectors of eight channels are taken at all taps before the next ones, and stay in the first cache.
#pragma once

#include "filter_gradients.h"
#include "whole_planes_gather.h"

namespace ddf {
namespace {

#if defined(__AVX512F__)
// Eight channels at one tap. Vectors count from the first of a plane; distances in elements.
struct PlaneTap {
  const float *source, *grad;
  int64_t source_channel, grad_channel;
  const float* weights;
  float* weight_sums;
  const Mask* masks;
  const float* channel_filter;
  int64_t channel_filter_step;
  Vector<float>* channel_sums;  // lane by lane
};

// Of what a mask leaves out nothing is added. The vectors of `inner` read nothing outside of their planes.
template <Combine combine>
DDF_NOINLINE void add_vectors(const PlaneTap& tap, Range vectors, Range inner) {
  constexpr int lanes = kLanes<float>;
  const int64_t source_channel = tap.source_channel, grad_channel = tap.grad_channel;
  const float *weights = tap.weights, *source = tap.source, *grad = tap.grad;
  float* weight_sums = tap.weight_sums;
  const Mask* masks = tap.masks;
  Vector<float> c[kPlaneChannels], sums[kPlaneChannels];
  clear(sums);
  for (int i = 0; i < kPlaneChannels; ++i) c[i] = broadcast(tap.channel_filter[i * tap.channel_filter_step]);
  const auto add_vector = [&]<bool is_inner>(int64_t v) DDF_ALWAYS_INLINE {
    const Mask mask = masks[v];
    const auto read = [&](const float* from) { return is_inner ? load(from) : load_masked(from, mask); };
    const Vector<float> spatial = load(weights + v * lanes);
    const float *x = opaque(source + v * lanes), *g = opaque(grad + v * lanes);
    Vector<float> over_channels{};
    for (int i = 0; i < kPlaneChannels; ++i) {
      add_tap_gradients<combine>(product(read(x), read(g), mask), c[i], spatial, over_channels, sums[i]);
      x = opaque(x + source_channel);
      g = opaque(g + grad_channel);
    }
    // eight channels are added as a whole, which keeps rounding errors small
    store(weight_sums + v * lanes, load(weight_sums + v * lanes) + over_channels);
  };
  int64_t v = vectors.begin;
  for (; v < smaller(inner.begin, vectors.end); ++v) add_vector.template operator()<false>(v);
  for (; v < smaller(inner.end, vectors.end); ++v) add_vector.template operator()<true>(v);
  for (; v < vectors.end; ++v) add_vector.template operator()<false>(v);
  for (int i = 0; i < kPlaneChannels; ++i) tap.channel_sums[i] += sums[i];
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
      : Base(call, rows, columns, tiling, partial_sums), inner_(inner_vectors(rows_, columns_)) {
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
    PlaneTap tap{};
    tap.source_channel = call_.input.channel;
    tap.grad = at<const float>(call_.output, image, channel);
    tap.grad_channel = call_.output.channel;
    tap.channel_filter_step = known > 0 ? taps : 1;
    __builtin_memset(channel_sums_, 0, taps * kPlaneChannels * sizeof(Vector<float>));
    for (int64_t v = vectors_.begin; v < vectors_.end; v += kVectorsAtOnce) {
      const Range vectors{v, smaller(v + kVectorsAtOnce, vectors_.end)};
      for (int64_t index = 0; index < taps; ++index) {
        const int64_t n = index / columns_.taps, m = index % columns_.taps;
        const int64_t plane = Base::tap(n, m) * spatial_.pitch() - column_range_.begin;
        tap.source = at<const float>(call_.input, image, channel) + tap_distance(rows_, columns_, n, m);
        tap.weights = weights_ + plane;
        tap.weight_sums = weight_sums_ + plane;
        tap.masks = masks_ + index * vectors_.size() - vectors_.begin;
        tap.channel_filter = filter + (known > 0 ? index : index * kPlaneChannels);
        tap.channel_sums = channel_sums_ + index * kPlaneChannels;
        with_combine(call_, [&]<Combine combine>() { add_vectors<combine>(tap, vectors, inner_); });
      }
    }
    store_channel_sums(partial_sums);
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

  const Range inner_;
  Range vectors_{};
  float* filter_;
  Vector<float>* channel_sums_;  // (taps, channels)
  Mask* masks_;
};
#endif

// Where the gradients of the filters go this way.
template <typename T>
bool adds_whole_planes(const Call& call) {
  return kHasMasks && __is_same(T, float) && call.stride == 1 && channels_per_head(call) % kPlaneChannels == 0 &&
         has_whole_planes(call.input, call.width) && has_whole_planes(call.output, call.width) &&
         has_whole_planes(call.spatial_filter, call.width) && has_whole_planes(call.grad_spatial, call.width);
}

inline void filter_gradients_of_whole_planes([[maybe_unused]] const Call& call) {
#if defined(__AVX512F__)
  Call one_row = call;
  one_row.height = one_row.out_height = 1;
  one_row.width = one_row.out_width = call.width * call.height;
  run_filter_gradients<WholePlanesGradientWorker, float>(call, one_row);
#endif
}

}  // namespace
}  // namespace ddf
