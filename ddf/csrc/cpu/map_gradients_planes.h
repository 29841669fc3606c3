// Gradients of the branches' part in contiguous maps: vectors of pixels, of a few channels at once.
#pragma once

#include "logits_planes.h"
#include "map_gradients.h"
#include "masks.h"

namespace ddf {
namespace {

// In scratch the logits' gradients of an image are (passes, vectors of pixels, kMapRows, lanes), zero at pixels that
// have no output.
template <typename A>
class PlaneMapGradients {
 public:
  explicit PlaneMapGradients(const Call& call)
      : call_(call), pixels_(call.height * call.width), vectors_(ceil_divide(pixels_, kLanes<A>)) {}

  int64_t packed_size() const { return map_passes(call_) * (call_.channels + 1) * kMapRows; }
  int64_t scratch_size() const { return map_passes(call_) * vectors_ * kMapRows * kLanes<A>; }
  int64_t block_channels() const { return 16; }

  void pack(const Branches& branches, A* packed) const {
    pack_logits(call_, branches, map_passes(call_), kMapRows, packed);
  }

  DDF_NOINLINE void prepare(const A* grad_logits, A* scratch) const {
    const int64_t out_pixels = call_.out_height * call_.out_width, lanes = kLanes<A>;
    __builtin_memset(scratch, 0, scratch_size() * sizeof(A));
    for (int64_t logit = 0; logit < logits_of(call_); ++logit, grad_logits += out_pixels) {
      A* to = scratch + (logit / kMapRows * vectors_ * kMapRows + logit % kMapRows) * lanes;
      if (call_.stride == 1) {
        for (int64_t i = 0; i < pixels_; i += lanes) {
          store(to + i * kMapRows, load_first(grad_logits + i, pixels_ - i));
        }
        continue;
      }
      const A* from = grad_logits;
      for (int64_t row = 0; row < call_.out_height; ++row) {
        int64_t pixel = row * call_.stride * call_.width;
        for (int64_t column = 0; column < call_.out_width; ++column, pixel += call_.stride) {
          to[pixel / lanes * kMapRows * lanes + pixel % lanes] = *from++;
        }
      }
    }
  }

  void run(const MapGradients<A>& gradients, const A* packed, int64_t image, Range channels, const A* scratch) const {
    int64_t c = channels.begin;
    for (; c + kTogether <= channels.end; c += kTogether) add<kTogether>(gradients, packed, image, c, scratch);
    for (; c < channels.end; ++c) add<1>(gradients, packed, image, c, scratch);
  }

  // The sums of the logits' gradients over the pixels of an image.
  void sum_logits(const A* grad_logits, A* to) const {
    const int64_t out_pixels = call_.out_height * call_.out_width;
    for (int64_t logit = 0; logit < logits_of(call_); ++logit) {
      to[logit] = PlaneLogits<A>::sum(grad_logits + logit * out_pixels, out_pixels);
    }
  }

 private:
  static constexpr int kTogether = kAccumulators >= 16 ? 2 : 1;

  template <int together>
  void add(const MapGradients<A>& gradients, const A* packed, int64_t image, int64_t channel, const A* scratch) const {
    const int64_t rows = map_passes(call_) * kMapRows;
    A* partial = gradients.partial_weights + image * rows * call_.channels + channel;
    for (int64_t pass = 0; pass < map_passes(call_); ++pass) {
      A shifts[together] = {}, sums[together * kMapRows] = {};
      if (pass == 0) {
        const A* grad_sums = gradients.grad_sums + image * call_.channels + channel;
        for (int i = 0; i < together; ++i) shifts[i] = grad_sums[i];
      }
      const A* weights = packed + (pass * (call_.channels + 1) + channel + 1) * kMapRows;
      multiply<together>(scratch + pass * vectors_ * kMapRows * kLanes<A>, weights, shifts,
                         at<const A>(call_.input, image, channel), at<A>(call_.grad_input, image, channel), sums);
      for (int row = 0; row < kMapRows; ++row, partial += call_.channels) {
        for (int i = 0; i < together; ++i) partial[i] = sums[i * kMapRows + row];
      }
    }
  }

  template <int together>
  DDF_NOINLINE void multiply(const A* grad_logits, const A* weights, const A* shifts, const A* x, A* grad,
                             A* sums) const {
    constexpr int lanes = kLanes<A>;
    Vector<A> products[together][kMapRows];
    clear(products);
    const auto take = [&](int64_t i, const auto& read, const auto& write) DDF_ALWAYS_INLINE {
      Vector<A> values[together], totals[together];
      for (int c = 0; c < together; ++c) {
        values[c] = read(x + c * pixels_ + i);
        totals[c] = read(grad + c * pixels_ + i) + broadcast(shifts[c]);
      }
#pragma GCC unroll 9
      for (int row = 0; row < kMapRows; ++row, grad_logits += lanes) {
        const Vector<A> factor = load(grad_logits);
#pragma GCC unroll 2
        for (int c = 0; c < together; ++c) {
          products[c][row] += factor * values[c];
          totals[c] += factor * broadcast(weights[c * kMapRows + row]);
        }
      }
      for (int c = 0; c < together; ++c) write(grad + c * pixels_ + i, totals[c]);
    };
    int64_t i = 0;
    for (; i + lanes <= pixels_; i += lanes) {
      take(
          i, [](const A* from) DDF_ALWAYS_INLINE { return load(from); },
          [](A* to, Vector<A> value) DDF_ALWAYS_INLINE { store(to, value); });
    }
    if (i < pixels_) {
      const int64_t rest = pixels_ - i;
      take(
          i, [&](const A* from) DDF_ALWAYS_INLINE { return load_first(from, rest); },
          [&](A* to, Vector<A> value) DDF_ALWAYS_INLINE { store_first(to, value, rest); });
    }
    for (int c = 0; c < together; ++c) add_lanes_of_rows(sums + c * kMapRows, products[c]);
  }

  DDF_INLINE static void add_lanes_of_rows(A* sums, const Vector<A> (&products)[kMapRows]) {
    constexpr int four = 4;
    for (int row = 0; row + four <= kMapRows; row += four) {
      const Vector<A> values[four] = {products[row], products[row + 1], products[row + 2], products[row + 3]};
      add_lanes<four, A>(sums + row, values);
    }
    sums[kMapRows - 1] += horizontal_sum<A>(products[kMapRows - 1]);
  }

  const Call& call_;
  int64_t pixels_, vectors_;
};

}  // namespace
}  // namespace ddf
