// Groups of channels whose planes are taken as one long row, as the inner loops see them.
#pragma once

#include "masks.h"
#include "scratch.h"

namespace ddf {
namespace {

constexpr int kPlaneChannels = kAccumulators / 2;  // that share every load of the spatial filter

// Where the spatial filter's part in a tile lies: data for vector 0 and tap (0, 0), and distances.
struct PlaneWeights {
  const float* data;
  int64_t vector, tap_row, tap_column;

  const float* at_tap(int64_t n, int64_t m) const { return data + n * tap_row + m * tap_column; }
};

// The lines of a group of channels that are asked for while sums are taken: those that the outputs will be written to,
// and as many that lie ahead of what is read; at the end of the tile, those of the next group. In bytes, since maps may
// be in half precision.
class PlanePrefetch {
 public:
  const char *output, *upcoming;  // the first channel's; or none
  int64_t output_channel, upcoming_channel, ahead, element;
  Range tile;

  template <int positions>
  DDF_INLINE void operator()(int64_t position) const {
    if (element == sizeof(float)) return ask<positions * sizeof(float)>(position * element);
    ask<positions * sizeof(float) / 2>(position * element);
  }

 private:
  // Where planes do not begin with a line, outputs end in one that nothing has asked for.
  template <int bytes>
  DDF_INLINE void ask(int64_t begin) const {
    constexpr int line = 64;
    const char* to = output + begin + line - 1;
    for (int i = 0; i < kPlaneChannels && output != nullptr; ++i, to += output_channel) {
      for (int b = 0; b < bytes; b += line) __builtin_prefetch(to + b, 1);
    }
    if (upcoming == nullptr) return;
    const char* from = upcoming + begin + ahead;
    if (begin + ahead >= tile.end) from += kPlaneChannels * upcoming_channel - tile.size();
    for (int i = 0; i < kPlaneChannels; ++i, from += upcoming_channel) {
      for (int b = 0; b < bytes; b += line) __builtin_prefetch(from + b, 0, 2);
    }
  }
};

// A group of channels. Positions count from the first of a plane; distances in elements.
struct PlaneGroup {
  const float* source;  // for position 0, tap (0, 0); what lies off the map counts for nothing
  int64_t source_channel, source_tap_row, source_tap_column;
  PlaneWeights weights;
  const float* channel_filter;  // (channels, taps)
#if defined(__AVX512F__)
  const Mask* masks;  // for vector 0, (taps, vectors)
  int64_t masks_tap;
#endif
  void* output;
  int64_t output_channel;
  bool streams;
  Dtype dtype;        // of the outputs
  int64_t positions;  // of a plane
  Range readable;     // vectors for which whole ones may be read at every tap, on the map or not
  PlanePrefetch prefetch;
};

}  // namespace
}  // namespace ddf
