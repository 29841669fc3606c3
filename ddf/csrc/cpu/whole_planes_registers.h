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
struct PlaneGroup {
  const float* source;  // for position 0, tap (0, 0); what lies off the map is not read
  int64_t source_channel, source_tap_row, source_tap_column;
  SpatialView<float> spatial;   // data for the same; of its distances those between taps count
  const float* channel_filter;  // (channels, taps)
  const Mask* masks;            // for vector 0, (taps, vectors)
  int64_t masks_tap;
  float* output;
  int64_t output_channel;
  int64_t positions;   // of a plane
  bool has_neighbours;  // memory around the planes may be read, farther than any tap reaches
};

// Where the taps of some vectors read: within their planes, so that a mask is needed only where a tap runs into the
// neighbouring row, the same for all tap rows; around them, in memory that may be read; or anywhere, so that masked
// loads alone may touch it. Those take an arithmetic instruction each.
enum class Reads { plane, neighbours, anywhere };

template <Combine combine, int taps, int vectors, Reads reads>
DDF_INLINE void gather_vectors(const PlaneGroup& group, const Mask* tap_masks, int64_t position) {
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
      float* output = group.output + i * group.output_channel + position;
      if (reads == Reads::plane || left >= lanes) {
        store(output, sums[i][v]);
      } else {
        store_masked(output, sums[i][v], first_lanes(left));
      }
    }
  }
}

// The vectors of a range. Those in `inner` read nothing outside of their planes.
template <Combine combine, int taps>
DDF_NOINLINE void gather_range(const PlaneGroup& group, Range vectors, Range inner) {
  constexpr int64_t lanes = kLanes<float>, most = kAccumulators / kPlaneChannels;
  const auto run = [&]<int count>(int64_t v) {
    const Mask* masks = group.masks + v;
    if (v >= inner.begin && v + count <= inner.end) {
      gather_vectors<combine, taps, count, Reads::plane>(group, masks, v * lanes);
    } else if (group.has_neighbours) {
      gather_vectors<combine, taps, count, Reads::neighbours>(group, masks, v * lanes);
    } else {
      gather_vectors<combine, taps, count, Reads::anywhere>(group, masks, v * lanes);
    }
  };
  int64_t v = vectors.begin;
  for (; v + most <= vectors.end; v += most) run.template operator()<most>(v);
  for (; v < vectors.end; ++v) run.template operator()<1>(v);
}
#endif

}  // namespace
}  // namespace ddf
