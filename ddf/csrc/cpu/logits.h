// The spatial filter's logits and the sums over the map, what both layouts share: a task is a run of an image's pixels,
// of which it takes the logits, and a part of each channel's sum. The runs depend on the shapes alone, and the parts
// are added in one order, so the results do not depend on the number of threads.
#pragma once

#include "branches.h"
#include "scratch.h"
#include "storage.h"

namespace ddf {
namespace {

// How an image is cut: runs of its output pixels, and as many runs of all its pixels for the sums; the same where those
// are the same pixels.
struct LogitRuns {
  int64_t pixels, out_pixels;  // of an image
  int64_t length, count;

  explicit LogitRuns(const Call& call)
      : pixels(call.height * call.width), out_pixels(call.out_height * call.out_width) {
    constexpr int64_t kWantedRuns = 8, kShortest = 32, kLongest = 512;  // the longest fits the second cache
    length = smaller(round_up(ceil_divide(out_pixels, kWantedRuns), kShortest), kLongest);
    count = ceil_divide(out_pixels, length);
  }

  Range outputs(int64_t run) const { return {run * length, smaller((run + 1) * length, out_pixels)}; }
  Range summed(int64_t run) const {
    return pixels == out_pixels ? outputs(run) : Range{summed_before(run), summed_before(run + 1)};
  }

 private:
  int64_t summed_before(int64_t run) const {
    constexpr int64_t kWhole = 16;  // pixels, which fill vectors
    return smaller(round_up(pixels * run / count, kWhole), pixels);
  }
};

inline int64_t logits_of(const Call& call) { return call.head * taps_of(call); }  // of a pixel

// Where an output pixel's input stands among the pixels of its image.
inline int64_t sampled_pixel(const Call& call, int64_t pixel) {
  if (call.stride == 1) return pixel;
  const int64_t row = pixel / call.out_width, column = pixel % call.out_width;
  return row * call.stride * call.width + column * call.stride;
}

// The spatial branch's biases and weights as (groups, 1 + channels, rows), with zeros for rows that are not there.
template <typename A>
void pack_logits(const Call& call, const Branches& branches, int64_t groups, int64_t rows, A* packed) {
  const A *weight = static_cast<const A*>(branches.spatial_weight),
          *bias = static_cast<const A*>(branches.spatial_bias);
  for (int64_t row = 0; row < groups * rows; ++row) {
    A* to = packed + row / rows * (call.channels + 1) * rows + row % rows;
    const bool is_there = row < logits_of(call);
    to[0] = is_there ? bias[row] : 0;
    for (int64_t c = 0; c < call.channels; ++c) to[(c + 1) * rows] = is_there ? weight[row * call.channels + c] : 0;
  }
}

}  // namespace
}  // namespace ddf
