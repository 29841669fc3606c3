// Logits and sums of channels_last maps: vectors of logits, each of which serves several pixels.
#pragma once

#include "logits.h"
#include "masks.h"

namespace ddf {
namespace {

template <typename A>
class PixelLogits {
 public:
  explicit PixelLogits(const Call& call)
      : call_(call), logits_(logits_of(call)), pitch_(round_up(logits_, kLanes<A>)) {}

  // Elements that `pack` writes, and that a thread's `run` needs.
  int64_t packed_size() const { return (call_.channels + 1) * pitch_; }
  int64_t scratch_size() const { return 0; }

  void pack(const Branches& branches, A* packed) const { pack_logits(call_, branches, 1, pitch_, packed); }

  // Writes the channels' sums over the pixels `summed` to `sums`, and the logits of the pixels `outputs`.
  void run(const A* packed, int64_t image, Range summed, Range outputs, A* sums, A*) const {
    const A* source = at<const A>(call_.input, image, 0);
    sum(source + summed.begin * call_.channels, summed.size(), sums);
    A* to = at<A>(call_.spatial_filter, image, 0);
    for (int64_t row = 0; row < logits_;) {
      if (logits_ - row > kLanes<A>) {
        multiply<2>(packed, source, outputs, row, to);
        row += 2 * kLanes<A>;
      } else {
        multiply<1>(packed, source, outputs, row, to);
        row += kLanes<A>;
      }
    }
  }

 private:
  DDF_NOINLINE void sum(const A* source, int64_t pixels, A* sums) const {
    constexpr int lanes = kLanes<A>, parts = 4;
    int64_t c = 0;
    for (; c + parts * lanes <= call_.channels; c += parts * lanes) sum_vectors<parts>(source + c, pixels, sums + c);
    for (; c + lanes <= call_.channels; c += lanes) sum_vectors<1>(source + c, pixels, sums + c);
    for (; c < call_.channels; ++c) {
      sums[c] = 0;
      for (int64_t pixel = 0; pixel < pixels; ++pixel) sums[c] += source[pixel * call_.channels + c];
    }
  }

  template <int vectors>
  DDF_INLINE void sum_vectors(const A* source, int64_t pixels, A* to) const {
    Vector<A> sums[vectors];
    clear(sums);
    for (int64_t pixel = 0; pixel < pixels; ++pixel, source += call_.channels) {
      for (int v = 0; v < vectors; ++v) sums[v] += load(source + v * kLanes<A>);
    }
    for (int v = 0; v < vectors; ++v) store(to + v * kLanes<A>, sums[v]);
  }

  // The logits [row, row + vectors * lanes) of a run of pixels.
  template <int vectors>
  DDF_NOINLINE void multiply(const A* packed, const A* source, Range outputs, int64_t row, A* to) const {
    constexpr int lanes = kLanes<A>, block = smaller(kAccumulators / vectors, 8);  // pixels, each with its pointer
    for (int64_t pixel = outputs.begin; pixel < outputs.end; pixel += block) {
      const A* places[block];
      for (int p = 0; p < block; ++p) {  // the last ones again where the run ends
        places[p] = source + sampled_pixel(call_, smaller(pixel + p, outputs.end - 1)) * call_.channels;
      }
      Vector<A> sums[block][vectors];
      const A* weights = packed + row;
      for (int p = 0; p < block; ++p) {
        for (int v = 0; v < vectors; ++v) sums[p][v] = load(weights + v * lanes);
      }
      for (int64_t c = 0; c < call_.channels; ++c) {
        weights += pitch_;
        Vector<A> weight[vectors];
        for (int v = 0; v < vectors; ++v) weight[v] = load(weights + v * lanes);
#pragma GCC unroll 8
        for (int p = 0; p < block; ++p) {
          const Vector<A> x = broadcast(places[p][c]);
          for (int v = 0; v < vectors; ++v) sums[p][v] += x * weight[v];
        }
      }
#pragma GCC unroll 8
      for (int p = 0; p < block; ++p) {  // unrolled, so that no sum has to have an address
        if (pixel + p >= outputs.end) break;
        for (int v = 0; v < vectors; ++v) {
          const int64_t first = row + v * lanes;
          store_first(to + (pixel + p) * logits_ + first, sums[p][v], logits_ - first);
        }
      }
    }
  }

  const Call& call_;
  int64_t logits_, pitch_;
};

}  // namespace
}  // namespace ddf
