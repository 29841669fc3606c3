// Gradients of the branches' part in channels_last maps: vectors of channels.
#pragma once

#include "map_gradients.h"
#include "masks.h"

namespace ddf {
namespace {

// In scratch the logits' gradients of an image are (passes, output pixels, kMapRows).
template <typename A>
class PixelMapGradients {
 public:
  explicit PixelMapGradients(const Call& call) : call_(call), out_pixels_(call.out_height * call.out_width) {}

  int64_t packed_size() const { return map_passes(call_) * kMapRows * call_.channels; }
  int64_t scratch_size() const { return map_passes(call_) * out_pixels_ * kMapRows; }
  int64_t block_channels() const { return call_.threads == 1 ? call_.channels : 4 * kLanes<A>; }

  void pack(const Branches& branches, A* packed) const {
    const int64_t weights = logits_of(call_) * call_.channels;
    copy(packed, static_cast<const A*>(branches.spatial_weight), weights);
    __builtin_memset(packed + weights, 0, (packed_size() - weights) * sizeof(A));
  }

  DDF_NOINLINE void prepare(const A* grad_logits, A* scratch) const {
    const int64_t logits = logits_of(call_);
    for (int64_t pass = 0; pass < map_passes(call_); ++pass) {
      const int64_t first = pass * kMapRows, rows = smaller<int64_t>(kMapRows, logits - first);
      for (int64_t pixel = 0; pixel < out_pixels_; ++pixel, scratch += kMapRows) {
        const A* from = grad_logits + pixel * logits + first;
        for (int64_t row = 0; row < kMapRows; ++row) scratch[row] = row < rows ? from[row] : 0;
      }
    }
  }

  void run(const MapGradients<A>& gradients, const A* packed, int64_t image, Range channels, const A* scratch) const {
    const int64_t rows = map_passes(call_) * kMapRows;
    A* partial = gradients.partial_weights + image * rows * call_.channels;
    for (int64_t row = 0; row < rows; ++row) {
      __builtin_memset(partial + row * call_.channels + channels.begin, 0, channels.size() * sizeof(A));
    }
    const A* grad_sums = gradients.grad_sums + image * call_.channels;
    const bool is_whole = call_.stride == 1;  // every pixel has an output, and all of them are one row
    add_sums(grad_sums, image, channels);
    const int64_t row_count = is_whole ? 1 : call_.out_height, row_pixels = is_whole ? out_pixels_ : call_.out_width;
    for (int64_t row = 0; row < row_count; ++row) {
      for (int64_t column = 0; column < row_pixels; column += kRun) {
        const int64_t count = smaller<int64_t>(kRun, row_pixels - column), first = row * row_pixels + column;
        const int64_t place = sampled_pixel(call_, first) * call_.channels;
        const A* x = at<const A>(call_.input, image, 0) + place;
        A* grad = at<A>(call_.grad_input, image, 0) + place;
        for (int64_t pass = 0; pass < map_passes(call_); ++pass) {
          const int64_t part = pass * kMapRows * call_.channels;
          add(scratch + (pass * out_pixels_ + first) * kMapRows, count, packed + part, channels, x, grad,
              partial + part);
        }
      }
    }
  }

  void sum_logits(const A* grad_logits, A* to) const {
    const int64_t logits = logits_of(call_);
    for (int64_t logit = 0; logit < logits; ++logit) to[logit] = 0;
    for (int64_t pixel = 0; pixel < out_pixels_; ++pixel, grad_logits += logits) {
      for (int64_t logit = 0; logit < logits; ++logit) to[logit] += grad_logits[logit];
    }
  }

 private:
  static constexpr int kRun = 64;  // pixels, which stay in the first cache from one vector of channels to the next

  DDF_NOINLINE void add_sums(const A* grad_sums, int64_t image, Range channels) const {
    const int64_t pixels = call_.height * call_.width;
    A* grad = at<A>(call_.grad_input, image, 0);
    for (int64_t pixel = 0; pixel < pixels; ++pixel, grad += call_.channels) {
      for (int64_t c = channels.begin; c < channels.end; ++c) grad[c] += grad_sums[c];
    }
  }

  void add(const A* grad_logits, int64_t count, const A* weights, Range channels, const A* x, A* grad,
           A* partial) const {
    int64_t c = channels.begin;
    for (; c + kLanes<A> <= channels.end; c += kLanes<A>) {
      multiply(
          grad_logits, count, weights + c, x + c, grad + c, partial + c,
          [](const A* from) DDF_ALWAYS_INLINE { return load(from); },
          [](A* to, Vector<A> value) DDF_ALWAYS_INLINE { store(to, value); });
    }
    if (c < channels.end) {
      const int64_t rest = channels.end - c;
      multiply(
          grad_logits, count, weights + c, x + c, grad + c, partial + c,
          [&](const A* from) DDF_ALWAYS_INLINE { return load_first(from, rest); },
          [&](A* to, Vector<A> value) DDF_ALWAYS_INLINE { store_first(to, value, rest); });
    }
  }

  template <typename Read, typename Write>
  DDF_NOINLINE void multiply(const A* grad_logits, int64_t count, const A* weights, const A* x, A* grad, A* partial,
                             const Read& read, const Write& write) const {
    const int64_t step = call_.stride * call_.channels;
    Vector<A> weight[kMapRows], sums[kMapRows];
    for (int row = 0; row < kMapRows; ++row) {
      weight[row] = read(weights + row * call_.channels);
      sums[row] = read(partial + row * call_.channels);
    }
    for (int64_t pixel = 0; pixel < count; ++pixel, x += step, grad += step, grad_logits += kMapRows) {
      const Vector<A> value = read(x);
      Vector<A> total = read(grad);
#pragma GCC unroll 9
      for (int row = 0; row < kMapRows; ++row) {
        const Vector<A> factor = broadcast(grad_logits[row]);
        sums[row] += factor * value;
        total += factor * weight[row];
      }
      write(grad, total);
    }
    for (int row = 0; row < kMapRows; ++row) write(partial + row * call_.channels, sums[row]);
  }

  const Call& call_;
  int64_t out_pixels_;
};

}  // namespace
}  // namespace ddf
