// Sums over all pixels of a channels_last map, of each channel.
#pragma once

#include "scratch.h"
#include "storage.h"

namespace ddf {
namespace {

// Runs of pixels, of all images one after the other: each is summed by itself, and the sums of all are added in double.
// How the map is cut does not depend on the threads, nor does any result.
struct PixelRuns {
  int64_t pixels, run, count;

  explicit PixelRuns(const Call& call) {
    constexpr int64_t kFewest = 8, kMost = 256, kRuns = 64;
    pixels = call.batch * call.height * call.width;
    run = smaller(larger(ceil_divide(pixels, kRuns), kFewest), kMost);
    count = ceil_divide(pixels, run);
  }

  Range operator[](int64_t index) const { return {index * run, smaller((index + 1) * run, pixels)}; }

  // body(index) for each run.
  template <typename Body>
  void on_threads(const Call& call, const Body& body) const {
    parallel(call, count, [&](int64_t begin, int64_t end) {
      for (int64_t index = begin; index < end; ++index) body(index);
    });
  }
};

// Calls body.operator()<V>(i) for the first of each vector of `count` elements, and for those that fill none, one by
// one. V: the vector, or the element.
template <typename A, typename Body>
DDF_INLINE void for_vectors(int64_t count, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes<A> <= count; i += kLanes<A>) body.template operator()<Vector<A>>(i);
  for (; i < count; ++i) body.template operator()<A>(i);
}

// Sums terms of each pixel of a range to sums[term][channel]. `term.operator()<V>(pixel, c, values)` sets the values of
// some channels from c on. Four pixels at a time share reading and writing the sums.
template <int terms, typename A, typename Term>
DDF_INLINE void sum_pixels(Range pixels, int64_t channels, A* sums, const Term& term) {
  const auto add = [&]<int count>(int64_t pixel) DDF_ALWAYS_INLINE {
    for_vectors<A>(channels, [&]<typename V>(int64_t c) DDF_ALWAYS_INLINE {
      V totals[terms];
      for (int t = 0; t < terms; ++t) totals[t] = load_raw<V>(sums + t * channels + c);
      for (int p = 0; p < count; ++p) {
        V values[terms];
        term.template operator()<V>(pixel + p, c, values);
        for (int t = 0; t < terms; ++t) totals[t] += values[t];
      }
      for (int t = 0; t < terms; ++t) store_raw(sums + t * channels + c, totals[t]);
    });
  };
  for (int64_t i = 0; i < terms * channels; ++i) sums[i] = 0;
  int64_t pixel = pixels.begin;
  for (; pixel + 4 <= pixels.end; pixel += 4) add.template operator()<4>(pixel);
  for (; pixel < pixels.end; ++pixel) add.template operator()<1>(pixel);
}

}  // namespace
}  // namespace ddf
