// Logits and sums of contiguous maps: vectors of pixels, each of which serves several logits.
#pragma once

#include "logits.h"

namespace ddf {
namespace {

constexpr int kLogitRows = 9;  // that a register tile takes at once: all of k = 3
constexpr int kLogitVectors = kAccumulators >= 16 ? 2 : 1;

template <typename A>
class PlaneLogits {
 public:
  explicit PlaneLogits(const Call& call)
      : call_(call), logits_(logits_of(call)), groups_(ceil_divide(logits_, kLogitRows)) {}

  // Elements that `pack` writes, and that a thread's `run` needs.
  int64_t packed_size() const { return groups_ * (call_.channels + 1) * kLogitRows; }
  int64_t scratch_size() const { return (call_.channels + kLogitRows) * kBlock + call_.channels * kLanes<A>; }

  void pack(const Branches& branches, A* packed) const { pack_logits(call_, branches, groups_, kLogitRows, packed); }

  // Writes the channels' sums over the pixels `summed` to `sums`, and the logits of the pixels `outputs`. Where those
  // are the same, they are read once.
  void run(const A* packed, int64_t image, Range summed, Range outputs, A* sums, A* scratch) const {
    const int64_t plane = call_.height * call_.width, out_plane = call_.out_height * call_.out_width;
    const A* source = at<const A>(call_.input, image, 0);
    A *to = at<A>(call_.spatial_filter, image, 0), *block = scratch + call_.channels * kBlock;
    A* lane_sums = block + kLogitRows * kBlock;  // (channels, lanes)
    const bool is_whole = call_.stride == 1;     // every pixel is an output's
    if (is_whole) {
      __builtin_memset(lane_sums, 0, call_.channels * kLanes<A> * sizeof(A));
    } else {
      for (int64_t c = 0; c < call_.channels; ++c) sums[c] = sum(source + c * plane + summed.begin, summed.size());
    }
    for (int64_t pixel = outputs.begin; pixel < outputs.end; pixel += kBlock) {
      const int64_t count = smaller<int64_t>(kBlock, outputs.end - pixel);
      const bool in_place = is_whole && count == kBlock;
      if (!in_place) collect(source, pixel, count, scratch);
      const A* from = in_place ? source + pixel : scratch;
      const int64_t from_channel = in_place ? plane : kBlock;
      for (int64_t group = 0; group < groups_; ++group) {
        const A* weights = packed + group * (call_.channels + 1) * kLogitRows;
        if (is_whole && group == 0) {
          multiply<true>(from, from_channel, weights, block, lane_sums);
        } else {
          multiply<false>(from, from_channel, weights, block, nullptr);
        }
        const int64_t first = group * kLogitRows, rows = smaller<int64_t>(kLogitRows, logits_ - first);
        for (int64_t row = 0; row < rows; ++row) {
          copy(to + (first + row) * out_plane + pixel, block + row * kBlock, count);
        }
      }
    }
    if (is_whole) add_up(lane_sums, sums);
  }

  static DDF_NOINLINE A sum(const A* values, int64_t count) {
    constexpr int lanes = kLanes<A>, parts = 4;
    Vector<A> sums[parts];
    clear(sums);
    int64_t i = 0;
    for (; i + parts * lanes <= count; i += parts * lanes) {
      for (int part = 0; part < parts; ++part) sums[part] += load(values + i + part * lanes);
    }
    for (; i + lanes <= count; i += lanes) sums[0] += load(values + i);
    A total = horizontal_sum<A>((sums[0] + sums[1]) + (sums[2] + sums[3]));
    for (; i < count; ++i) total += values[i];
    return total;
  }

 private:
  static constexpr int kBlock = kLogitVectors * kLanes<A>;  // pixels

  // A block's pixels as (channels, kBlock), with zeros behind them.
  DDF_NOINLINE void collect(const A* source, int64_t first, int64_t count, A* to) const {
    for (int64_t c = 0; c < call_.channels; ++c, source += call_.height * call_.width, to += kBlock) {
      for (int64_t i = count; i < kBlock; ++i) to[i] = 0;
      if (call_.stride == 1) {
        copy(to, source + first, count);
        continue;
      }
      for (int64_t i = 0; i < count;) {
        const int64_t left = call_.out_width - (first + i) % call_.out_width;  // in this row of the output
        const int64_t length = smaller(left, count - i);
        copy_strided(to + i, 1, source + sampled_pixel(call_, first + i), call_.stride, length);
        i += length;
      }
    }
  }

  // The sums of all channels, from those of their lanes.
  DDF_NOINLINE void add_up(const A* lane_sums, A* sums) const {
    __builtin_memset(sums, 0, call_.channels * sizeof(A));
    int64_t c = 0;
    for (; c + 4 <= call_.channels; c += 4) {
      Vector<A> values[4];
      for (int i = 0; i < 4; ++i) values[i] = load(lane_sums + (c + i) * kLanes<A>);
      add_lanes<4, A>(sums + c, values);
    }
    for (; c < call_.channels; ++c) sums[c] = horizontal_sum<A>(load(lane_sums + c * kLanes<A>));
  }

  // A block of one group of logits, (kLogitRows, kBlock). `sums_up`: the block's pixels are added to `lane_sums`, too;
  // what is a block behind the next, in planes that no prefetcher follows all at once, is asked for.
  template <bool sums_up>
  DDF_NOINLINE void multiply(const A* source, int64_t source_channel, const A* weights, A* to, A* lane_sums) const {
    Vector<A> sums[kLogitRows][kLogitVectors];
    for (int row = 0; row < kLogitRows; ++row) {
      for (int v = 0; v < kLogitVectors; ++v) sums[row][v] = broadcast(weights[row]);
    }
    for (int64_t c = 0; c < call_.channels; ++c, source += source_channel) {
      weights += kLogitRows;
      Vector<A> x[kLogitVectors];
      for (int v = 0; v < kLogitVectors; ++v) x[v] = load(source + v * kLanes<A>);
      if constexpr (sums_up) {
        for (int v = 0; v < kLogitVectors; ++v) __builtin_prefetch(source + 2 * kBlock + v * kLanes<A>, 0, 2);
        A* lane_sum = lane_sums + c * kLanes<A>;
        Vector<A> sum = load(lane_sum);
        for (int v = 0; v < kLogitVectors; ++v) sum += x[v];
        store(lane_sum, sum);
      }
#pragma GCC unroll 9
      for (int row = 0; row < kLogitRows; ++row) {
        const Vector<A> weight = broadcast(weights[row]);
        for (int v = 0; v < kLogitVectors; ++v) sums[row][v] += weight * x[v];
      }
    }
    for (int row = 0; row < kLogitRows; ++row) {
      for (int v = 0; v < kLogitVectors; ++v) store(to + row * kBlock + v * kLanes<A>, sums[row][v]);
    }
  }

  const Call& call_;
  int64_t logits_, groups_;
};

}  // namespace
}  // namespace ddf
