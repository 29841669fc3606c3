// Mean and variance of each channel of a batch, for BatchNorm in training.
#pragma once

#include "affine.h"
#include "pixel_runs.h"

namespace ddf {
namespace {

// The sum of a term of each element; `term` takes vectors and elements.
template <typename A, typename Term>
DDF_INLINE double sum_of(const A* from, int64_t count, const Term& term) {
  constexpr int vectors = 4;
  constexpr int64_t lanes = kLanes<A>;
  Vector<A> sums[vectors];
  clear(sums);
  int64_t i = 0;
  for (; i + vectors * lanes <= count; i += vectors * lanes) {
    for (int v = 0; v < vectors; ++v) sums[v] += term(load(from + i + v * lanes));
  }
  for (; i + lanes <= count; i += lanes) sums[0] += term(load(from + i));
  double sum = horizontal_sum<A>((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < count; ++i) sum += term(from[i]);
  return sum;
}

// From the first one on: what lies far from zero, or is always the same, would be rounded with each addition.
template <typename A>
DDF_NOINLINE double sum_of_plane(const A* from, int64_t count) {
  const A first = from[0];
  return count * static_cast<double>(first) + sum_of(from, count, [&](const auto& x) { return x - first; });
}

template <typename A>
DDF_NOINLINE double sum_of_squares(const A* from, int64_t count, A mean) {
  return sum_of(from, count, [&](const auto& x) { return (x - mean) * (x - mean); });
}

// Keeps what was found of a channel: its mean, and the sum of the squares of its deviations from there.
template <typename A>
void keep_statistics(const Statistics& to, int64_t c, double mean, double squares, double count) {
  const auto at = [&](void* data) -> A& { return static_cast<A*>(data)[c]; };
  const auto move = [&](A& value, double towards) { value += to.momentum * (towards - value); };
  at(to.mean) = mean;
  at(to.variance) = squares / count;
  move(at(to.running_mean), mean);
  move(at(to.running_variance), squares / (count - 1));
}

// The planes of a channel are read twice, the second time from the caches.
template <typename A>
void statistics_of_planes(const Call& call, const A* map, const Statistics& to) {
  const int64_t pixels = call.height * call.width;
  const double count = call.batch * pixels;
  parallel(call, call.channels, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const auto over_images = [&](const auto& of_plane) {
        double sum = 0;
        for (int64_t b = 0; b < call.batch; ++b) sum += of_plane(map + (b * call.channels + c) * pixels);
        return sum;
      };
      const double mean = over_images([&](const A* plane) { return sum_of_plane(plane, pixels); }) / count;
      const auto rounded = static_cast<A>(mean);
      const double error = mean - rounded;
      const double squares = over_images([&](const A* plane) { return sum_of_squares(plane, pixels, rounded); });
      keep_statistics<A>(to, c, mean, squares - count * error * error, count);
    }
  });
}

// Sums of a run of pixels of a channels_last map, (3, channels): the mean, rounded, and of the deviations from there
// the sum and that of their squares.
template <typename A>
DDF_NOINLINE void sum_run(const A* map, Range run, int64_t channels, A* to) {
  const A *first = map + run.begin * channels, *means = to;
  sum_pixels<1>(run, channels, to, [&]<typename V>(int64_t pixel, int64_t c, V(&values)[1]) DDF_ALWAYS_INLINE {
    values[0] = load_raw<V>(map + pixel * channels + c) - load_raw<V>(first + c);
  });
  for (int64_t c = 0; c < channels; ++c) to[c] = first[c] + to[c] / run.size();
  sum_pixels<2>(run, channels, to + channels,
                [&]<typename V>(int64_t pixel, int64_t c, V(&values)[2]) DDF_ALWAYS_INLINE {
                  values[0] = load_raw<V>(map + pixel * channels + c) - load_raw<V>(means + c);
                  values[1] = values[0] * values[0];
                });
}

// The runs are read twice, the second time from the caches.
template <typename A>
void statistics_of_pixels(const Call& call, const A* map, const Statistics& to) {
  const PixelRuns runs(call);
  const int64_t channels = call.channels;
  Buffer buffer;
  A* sums = buffer.at_least<A>(runs.count * 3 * channels);
  runs.on_threads(call, [&](int64_t run) { sum_run(map, runs[run], channels, sums + run * 3 * channels); });
  const auto statistics_of = [&](int64_t c) {
    const auto sum_of = [&](const auto& term) {
      double sum = 0;
      for (int64_t run = 0; run < runs.count; ++run) {
        const A* of_run = sums + run * 3 * channels + c;
        const double size = runs[run].size(), rest = of_run[channels] / size;
        sum += term(size, of_run[0] + rest, of_run[2 * channels] - rest * rest * size);
      }
      return sum;
    };
    const double first = map[c], count = runs.pixels;  // counted from there, the mean of equal values is exact
    const double mean =
        first + sum_of([&](double size, double of_run, double) { return (of_run - first) * size; }) / count;
    const double squares = sum_of([&](double size, double of_run, double squares_of_run) {
      return squares_of_run + (of_run - mean) * (of_run - mean) * size;
    });
    keep_statistics<A>(to, c, mean, squares, count);
  };
  parallel(call, channels, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) statistics_of(c);
  });
}

template <typename A>
void batch_statistics(const Call& call, const Statistics& to) {
  const A* map = static_cast<const A*>(call.input.data);
  if (to.channels_last) return statistics_of_pixels(call, map, to);
  statistics_of_planes(call, map, to);
}

}  // namespace
}  // namespace ddf
