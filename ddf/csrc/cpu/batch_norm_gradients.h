// Gradients of relu(norm(map) + shortcut_norm(shortcut)) in training, with norms by the statistics of the batch.
//
// With g what passes the ReLU of grad_output, z a map's deviations from the mean of its channel, s the inverse of their
// standard deviation and n their number, of each channel:
//
//   grad_weight = s * sum(g * z),  grad_bias = sum(g),
//   grad_map = weight * s * (g - sum(g) / n - z * s^2 * sum(g * z) / n).
//
// So all maps are read twice: for the sums, and for the gradients of the maps. torch does that after it has written g.
#pragma once

#include "affine.h"
#include "pixel_runs.h"

namespace ddf {
namespace {

template <typename V>
DDF_INLINE V passed(V grad, V output) {
  return output <= 0 ? V{} : grad;
}

// A norm, and its gradient of the map as scale * g + slope * z + offset.
template <typename A>
struct NormTerm {
  const A *map, *weight, *mean, *inverse_std;
  A *grad_map, *grad_weight, *grad_bias;
  A *scale, *slope, *offset;  // (channels)

  NormTerm() = default;
  NormTerm(const NormGradients& norm, int64_t channels, A* scratch)
      : map(static_cast<const A*>(norm.map)),
        weight(static_cast<const A*>(norm.weight)),
        mean(static_cast<const A*>(norm.mean)),
        inverse_std(static_cast<const A*>(norm.inverse_std)),
        grad_map(static_cast<A*>(norm.grad_map)),
        grad_weight(static_cast<A*>(norm.grad_weight)),
        grad_bias(static_cast<A*>(norm.grad_bias)),
        scale(scratch),
        slope(scratch + channels),
        offset(scratch + 2 * channels) {}

  void end_sums(int64_t c, double sum, double product, double count) const {
    const double inverse = inverse_std[c], gain = weight[c] * inverse;
    grad_weight[c] = product * inverse;
    grad_bias[c] = sum;
    scale[c] = gain;
    slope[c] = -gain * inverse * inverse * product / count;
    offset[c] = -gain * sum / count;
  }
};

template <typename A, int norms>
class SumBackward {
 public:
  SumBackward(const Call& call, const SumGradients& to, A* scratch)
      : call_(call),
        channels_(call.channels),
        pixels_(call.height * call.width),
        grad_(static_cast<const A*>(to.grad_output)),
        output_(static_cast<const A*>(to.output)),
        grad_sum_(static_cast<A*>(to.grad_sum)) {
    for (int i = 0; i < norms; ++i) norms_[i] = NormTerm<A>(to.norms[i], channels_, scratch + i * 3 * channels_);
  }

  // A channel's planes at a time: the second time they come from the caches.
  void on_planes() const {
    parallel(call_, channels_, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        double sums[kTerms] = {};
        for (int64_t b = 0; b < call_.batch; ++b) add_plane((b * channels_ + c) * pixels_, c, sums);
        end_sums(c, sums);
        for (int64_t b = 0; b < call_.batch; ++b) write_plane((b * channels_ + c) * pixels_, c);
      }
    });
  }

  void on_pixels() const {
    const PixelRuns runs(call_);
    Buffer buffer;
    A* sums = buffer.at_least<A>(runs.count * kTerms * channels_);
    runs.on_threads(call_, [&](int64_t run) { sum_run(runs[run], sums + run * kTerms * channels_); });
    parallel(call_, channels_, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        double totals[kTerms] = {};
        for (int64_t i = 0; i < runs.count * kTerms; ++i) totals[i % kTerms] += sums[i * channels_ + c];
        end_sums(c, totals);
      }
    });
    runs.on_threads(call_, [&](int64_t run) {
      for (int64_t pixel = runs[run].begin; pixel < runs[run].end; ++pixel) write_pixel(pixel);
    });
  }

 private:
  static constexpr int kTerms = 1 + norms;

  template <typename V>
  DDF_INLINE V passed_at(int64_t place) const {
    return passed(load_raw<V>(grad_ + place), load_raw<V>(output_ + place));
  }

  // g, and its products with the maps' deviations.
  template <typename V>
  DDF_INLINE void terms_at(int64_t place, const V (&means)[norms], V (&values)[kTerms]) const {
    values[0] = passed_at<V>(place);
    for (int i = 0; i < norms; ++i) values[1 + i] = values[0] * (load_raw<V>(norms_[i].map + place) - means[i]);
  }

  void end_sums(int64_t c, const double (&sums)[kTerms]) const {
    const double count = static_cast<double>(call_.batch * pixels_);
    for (int i = 0; i < norms; ++i) norms_[i].end_sums(c, sums[0], sums[1 + i], count);
  }

  DDF_NOINLINE void sum_run(Range run, A* sums) const {
    sum_pixels<kTerms>(run, channels_, sums,
                       [&]<typename V>(int64_t pixel, int64_t c, V(&values)[kTerms]) DDF_ALWAYS_INLINE {
                         V means[norms];
                         for (int i = 0; i < norms; ++i) means[i] = load_raw<V>(norms_[i].mean + c);
                         terms_at<V>(pixel * channels_ + c, means, values);
                       });
  }

  DDF_NOINLINE void add_plane(int64_t place, int64_t c, double (&sums)[kTerms]) const {
    Vector<A> totals[kTerms];
    clear(totals);
    for_vectors<A>(pixels_, [&]<typename V>(int64_t p) DDF_ALWAYS_INLINE {
      V means[norms], values[kTerms];
      for (int i = 0; i < norms; ++i) means[i] = norms_[i].mean[c] - V{};
      terms_at<V>(place + p, means, values);
      for (int t = 0; t < kTerms; ++t) {
        if constexpr (__is_same(V, A)) {
          sums[t] += values[t];
        } else {
          totals[t] += values[t];
        }
      }
    });
    for (int t = 0; t < kTerms; ++t) sums[t] += horizontal_sum<A>(totals[t]);
  }

  DDF_NOINLINE void write_plane(int64_t place, int64_t c) const {
    for_vectors<A>(pixels_, [&]<typename V>(int64_t p) DDF_ALWAYS_INLINE {
      write_at<V>(place + p, [&](const A* of_channels) DDF_ALWAYS_INLINE { return of_channels[c] - V{}; });
    });
  }

  DDF_INLINE void write_pixel(int64_t pixel) const {
    for_vectors<A>(channels_, [&]<typename V>(int64_t c) DDF_ALWAYS_INLINE {
      write_at<V>(pixel * channels_ + c,
                  [&](const A* of_channels) DDF_ALWAYS_INLINE { return load_raw<V>(of_channels + c); });
    });
  }

  // The gradients of the maps. `of` gives the values of the channels at that place.
  template <typename V, typename Of>
  DDF_INLINE void write_at(int64_t place, const Of& of) const {
    const V grad = passed_at<V>(place);
    if (grad_sum_ != nullptr) store_raw(grad_sum_ + place, grad);
    for (int i = 0; i < norms; ++i) {
      const NormTerm<A>& norm = norms_[i];
      const V deviation = load_raw<V>(norm.map + place) - of(norm.mean);
      store_raw(norm.grad_map + place, of(norm.scale) * grad + of(norm.slope) * deviation + of(norm.offset));
    }
  }

  const Call& call_;
  const int64_t channels_, pixels_;
  const A *grad_, *output_;
  A* grad_sum_;
  NormTerm<A> norms_[norms];
};

template <typename A>
void normalized_sum_gradients(const Call& call, const SumGradients& to) {
  Buffer buffer;
  A* scratch = buffer.at_least<A>(to.norm_count * 3 * call.channels);
  const auto run = [&](const auto& backward) { to.channels_last ? backward.on_pixels() : backward.on_planes(); };
  if (to.norm_count == 2) return run(SumBackward<A, 2>(call, to, scratch));
  run(SumBackward<A, 1>(call, to, scratch));
}

}  // namespace
}  // namespace ddf
