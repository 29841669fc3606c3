// The inner loop over planes taken as one long row. The accumulators of a register tile (channels x vectors) stay in
// registers over all taps, and every vector of the spatial filter serves all channels of the group.
#pragma once

#include "plane_masks.h"
#include "spatial_rows.h"

namespace ddf {
namespace {

constexpr int kPlaneChannels = 8;  // that share every load of the spatial filter

#if defined(__AVX512F__)
// A group of channels. Positions count from the first of a plane; distances in elements.
template <typename T>
struct PlaneGroup {
  const float* source;  // for position 0, tap (0, 0); what lies off the map is not read
  int64_t source_channel, source_tap_row, source_tap_column;
  SpatialView<float> spatial;   // data for the same; of its distances those between taps count
  const float* channel_filter;  // (channels, taps)
  const Mask* masks;            // for vector 0, (taps, vectors)
  int64_t masks_tap;
  T* output;
  int64_t output_channel;
  const T* upcoming;  // what is to be in the first cache when position 0 is done; nullptr: nothing
  int64_t upcoming_channel;
  int64_t positions;    // of a plane
  bool has_neighbours;  // memory around the planes may be read, farther than any tap reaches
};

// Where the taps of some vectors read: within their planes, so that a mask is needed only where a tap runs into the
// neighbouring row, the same for all tap rows; around them, in memory that may be read; or anywhere, so that masked
// loads alone may touch it. Those take an arithmetic instruction each.
enum class Reads { plane, neighbours, anywhere };

template <Combine combine, int taps, int vectors, Reads reads, typename T>
DDF_INLINE void gather_vectors(const PlaneGroup<T>& group, const Mask* tap_masks, int64_t position) {
  constexpr int lanes = kLanes<float>;
  Vector<float> sums[kPlaneChannels][vectors];
  clear(sums);
  for (int64_t m = 0; m < taps; ++m) {
    const float* source = group.source + position + m * group.source_tap_column;
    const float* weights = group.spatial.data + position + m * group.spatial.tap_column;
    Mask masks[vectors];
    for (int v = 0; v < vectors; ++v) masks[v] = tap_masks[m * group.masks_tap + v];
#pragma GCC unroll 7
    for (int n = 0; n < taps; ++n) {
      const float* x = opaque(source + n * group.source_tap_row);
      const float* s = opaque(weights + n * group.spatial.tap_row);
      Vector<float> c[kPlaneChannels];
      for (int i = 0; i < kPlaneChannels; ++i) c[i] = broadcast(group.channel_filter[(i * taps + n) * taps + m]);
      for (int v = 0; v < vectors; ++v) {
        if constexpr (reads != Reads::plane) masks[v] = tap_masks[(n * taps + m) * group.masks_tap + v];
        const float* at_vector = s + v * lanes;
        const Vector<float> spatial = reads == Reads::plane ? load(at_vector) : load_masked(at_vector, masks[v]);
        for (int i = 0; i < kPlaneChannels; ++i) {
          const float* from = x + i * group.source_channel + v * lanes;
          const Vector<float> value = reads == Reads::anywhere ? load_masked(from, masks[v]) : load(from);
          sums[i][v] = add_product(sums[i][v], tap_weight<combine>(c[i], spatial), value, masks[v]);
        }
      }
    }
  }
  for (int v = 0; v < vectors; ++v, position += lanes) {
    const int64_t left = group.positions - position;
    for (int i = 0; i < kPlaneChannels; ++i) {
      T* output = group.output + i * group.output_channel + position;
      if (reads == Reads::plane || left >= lanes) {
        store(output, sums[i][v]);
      } else {
        store_first(output, sums[i][v], left);
      }
    }
  }
}

// Asks for the lines that the outputs will be written to, while their sums are taken, and for as many of what is
// upcoming.
template <int vectors, typename T>
DDF_INLINE void prefetch(const PlaneGroup<T>& group, int64_t position) {
  constexpr int64_t line = 64 / sizeof(T), lines = ceil_divide(vectors * kLanes<float>, line);
  for (int i = 0; i < kPlaneChannels; ++i) {
    T* output = group.output + i * group.output_channel + position;
    for (int64_t l = 0; l < lines; ++l) __builtin_prefetch(output + l * line, 1);
    if (group.upcoming == nullptr) continue;
    const T* upcoming = group.upcoming + i * group.upcoming_channel + position;
    for (int64_t l = 0; l < lines; ++l) __builtin_prefetch(upcoming + l * line);
  }
}

constexpr int64_t kFewPositions = 2;  // at the end of a plane: taken one by one, a vector of theirs would be empty

// The positions of a plane from `position` on, in the last vector. Most of their taps miss the map.
template <Combine combine, int taps, typename T>
DDF_NOINLINE void gather_last(const PlaneGroup<T>& group, const Mask* tap_masks, int64_t position) {
  for (int lane = 0; position + lane < group.positions; ++lane) {
    const float *source[taps * taps], *filter[taps * taps];
    float spatial[taps * taps];
    int64_t count = 0;
    for (int64_t m = 0; m < taps; ++m) {
      for (int64_t n = 0; n < taps; ++n) {
        if ((tap_masks[(n * taps + m) * group.masks_tap] >> lane & 1) == 0) continue;
        source[count] = group.source + position + lane + n * group.source_tap_row + m * group.source_tap_column;
        filter[count] = group.channel_filter + n * taps + m;
        spatial[count++] =
            group.spatial.data[position + lane + n * group.spatial.tap_row + m * group.spatial.tap_column];
      }
    }
    for (int i = 0; i < kPlaneChannels; ++i) {
      float sum = 0;
      for (int64_t t = 0; t < count; ++t) {
        sum += tap_weight<combine>(filter[t][i * taps * taps], spatial[t]) * source[t][i * group.source_channel];
      }
      Conversion<T, 1>::store(group.output + i * group.output_channel + position + lane, sum);
    }
  }
}

// The vectors of a range. Those in `inner` read nothing outside of their planes.
template <Combine combine, int taps, typename T>
DDF_NOINLINE void gather_range(const PlaneGroup<T>& group, Range vectors, Range inner) {
  constexpr int64_t lanes = kLanes<float>, most = kAccumulators / kPlaneChannels;
  const auto run = [&]<int count>(int64_t v) {
    const Mask* masks = group.masks + v;
    if (count > 1) prefetch<count>(group, v * lanes);
    if (v >= inner.begin && v + count <= inner.end) {
      gather_vectors<combine, taps, count, Reads::plane>(group, masks, v * lanes);
    } else if (!__is_same(T, float) || group.has_neighbours) {
      gather_vectors<combine, taps, count, Reads::neighbours>(group, masks, v * lanes);
    } else {
      gather_vectors<combine, taps, count, Reads::anywhere>(group, masks, v * lanes);
    }
  };
  const bool ends_with_few = group.positions - (vectors.end - 1) * lanes <= kFewPositions;
  if (ends_with_few) --vectors.end;
  int64_t v = vectors.begin;
  for (; v + most <= vectors.end; v += most) run.template operator()<most>(v);
  for (; v < vectors.end; ++v) run.template operator()<1>(v);
  if (ends_with_few) gather_last<combine, taps>(group, group.masks + v, v * lanes);
}
#endif

}  // namespace
}  // namespace ddf
