// The inner loop over planes taken as one long row, where masks would cost instructions.
//
// The spatial filter lies in scratch in the order in which it is read, with zeros in the lanes in which a tap misses
// the map: what is read there counts for nothing. So vectors are full whatever the width, no instruction is spent on
// borders, and maps are read and written where they lie. For `add`, where a channel's part of the weight has to vanish
// too, vectors of ones and zeros lie beside the filter's and multiply it. Zero times infinity or NaN is NaN: vectors in
// which a sum is NaN are taken again, position by position.
#pragma once

#include "long_rows.h"
#include "plane_groups.h"
#include "planes.h"
#include "streaming.h"

namespace ddf {
namespace {

#if !defined(__AVX512F__)
// Vectors for each tap: the spatial filter, and for `add` the ones and zeros.
template <Combine combine>
constexpr int64_t kPackedParts = combine == Combine::add ? 2 : 1;

// The weight in the lanes on the map, zero in others.
template <Combine combine>
DDF_INLINE Vector<float> packed_weight(Vector<float> channel, Vector<float> spatial, Vector<float> ones) {
  if constexpr (combine == Combine::mul) {
    return channel * spatial;
  } else {
    return channel * ones + spatial;
  }
}

// Stores sums, (channels, vectors), as type T, and nothing behind the plane.
template <typename T, int vectors>
DDF_INLINE void store_packed_sums(const PlaneGroup& group, int64_t position,
                                  const Vector<float> (&sums)[kPlaneChannels][vectors]) {
  constexpr int lanes = kLanes<float>;
  const int64_t left = group.positions - position;
  T* output = static_cast<T*>(group.output) + position;
  for (int i = 0; i < kPlaneChannels; ++i, output += group.output_channel) {
    for (int v = 0; v < vectors; ++v) {
      if constexpr (__is_same(T, BFloat16) && vectors == 2) {
        if (left >= vectors * lanes) {
          store_raw(output, narrowed_pair(sums[i][0], sums[i][1]));
          break;
        }
      }
      if (left >= (v + 1) * lanes) {
        T* to = output + v * lanes;
        group.streams ? stream(to, sums[i][v]) : store(to, sums[i][v]);
        continue;
      }
      T last[lanes];
      store(last, sums[i][v]);
      for (int64_t lane = 0; v * lanes + lane < left; ++lane) output[v * lanes + lane] = last[lane];
    }
  }
}

// The sums of some vectors; false, and nothing stored, where one of them is NaN.
template <Combine combine, int taps, int vectors>
DDF_NOINLINE bool gather_packed(const PlaneGroup& group, int64_t position) {
  constexpr int lanes = kLanes<float>;
  constexpr int64_t tap_size = kPackedParts<combine> * lanes, vector_size = taps * taps * tap_size;
  Vector<float> sums[kPlaneChannels][vectors];
  clear(sums);
  const float *weights = group.weights.data + position * (vector_size / lanes), *filter = group.channel_filter;
  const float* source = group.source + position;
  for (int64_t n = 0; n < taps; ++n) {
    const float* at_tap = source;
    unrolled<taps>([&]<int m>() DDF_ALWAYS_INLINE {
      Vector<float> spatial[vectors], ones[vectors]{};
      for (int v = 0; v < vectors; ++v) {
        spatial[v] = load(weights + v * vector_size + m * tap_size);
        if constexpr (combine == Combine::add) ones[v] = load(weights + v * vector_size + m * tap_size + lanes);
      }
      const float* x = at_tap;
      for (int i = 0; i < kPlaneChannels; ++i, x = opaque(x + group.source_channel)) {
        const Vector<float> channel = broadcast(filter[i * taps * taps + m]);
        for (int v = 0; v < vectors; ++v) {
          sums[i][v] += packed_weight<combine>(channel, spatial[v], ones[v]) * load(x + v * lanes);
        }
      }
      at_tap = opaque(at_tap + group.source_tap_column);
    });
    source += group.source_tap_row;
    weights = opaque(weights + taps * tap_size);
    filter = opaque(filter + taps);
  }
  if (__builtin_expect(any_nan(sums), false)) return false;
  if (group.dtype == Dtype::float32) {
    store_packed_sums<float>(group, position, sums);
  } else if (group.dtype == Dtype::bfloat16) {
    store_packed_sums<BFloat16>(group, position, sums);
  } else {
    store_packed_sums<Half>(group, position, sums);
  }
  return true;
}

// A position of a plane, and the taps that meet the map there.
struct PlanePosition {
  int64_t index;
  Range tap_rows, tap_columns;

  PlanePosition() = default;
  PlanePosition(const Axis& rows, const Axis& columns, int64_t index)
      : index(index),
        tap_rows(taps_on_map(rows, index / columns.outputs)),
        tap_columns(taps_on_map(columns, index % columns.outputs)) {}
};

template <Combine combine, int taps>
DDF_NOINLINE void gather_position(const PlaneGroup& group, const PlanePosition& at) {
  constexpr int64_t lanes = kLanes<float>, tap_size = kPackedParts<combine> * lanes;
  const float* weights = group.weights.data + at.index / lanes * taps * taps * tap_size + at.index % lanes;
  float sums[kPlaneChannels];
  clear(sums);
  for (int64_t n = at.tap_rows.begin; n < at.tap_rows.end; ++n) {
    for (int64_t m = at.tap_columns.begin; m < at.tap_columns.end; ++m) {
      const float weight = weights[(n * taps + m) * tap_size];
      const float* filter = group.channel_filter + n * taps + m;
      const float* source = group.source + at.index + n * group.source_tap_row + m * group.source_tap_column;
      unrolled<kPlaneChannels>([&]<int i>() DDF_ALWAYS_INLINE {
        sums[i] += tap_weight<combine>(filter[i * taps * taps], weight) * *source;
        source = opaque(source + group.source_channel);
      });
    }
  }
  for (int64_t i = 0; i < kPlaneChannels; ++i) {
    const int64_t to = i * group.output_channel + at.index;
    if (group.dtype == Dtype::float32) {
      static_cast<float*>(group.output)[to] = sums[i];
    } else if (group.dtype == Dtype::bfloat16) {
      Conversion<BFloat16, 1>::store(static_cast<BFloat16*>(group.output) + to, sums[i]);
    } else {
      Conversion<Half, 1>::store(static_cast<Half*>(group.output) + to, sums[i]);
    }
  }
}

// The positions of vectors in which a sum is NaN.
template <Combine combine, int taps>
DDF_NOINLINE void gather_one_by_one(const PlaneGroup& group, const Axis& rows, const Axis& columns, Range positions) {
  for (int64_t index = positions.begin; index < smaller(positions.end, group.positions); ++index) {
    gather_position<combine, taps>(group, {rows, columns, index});
  }
}

// The positions at the end of a plane, where they are few: one by one, since most of a vector of theirs would be empty,
// and most of their taps miss the map.
struct LastPositions {
  static constexpr int64_t kMost = 2;

  PlanePosition positions[kMost];
  int64_t count;

  LastPositions(const Axis& rows, const Axis& columns) {
    const int64_t size = rows.outputs * columns.outputs, last = size % kLanes<float>;
    count = rows.taps > 3 && last <= kMost ? last : 0;
    for (int64_t i = 0; i < count; ++i) positions[i] = PlanePosition(rows, columns, size - count + i);
  }
};

// The vectors of a range, for which whole ones may be read at every tap.
template <Combine combine, int taps>
DDF_NOINLINE void gather_packed_range(const PlaneGroup& group, const Axis& rows, const Axis& columns,
                                      const LastPositions& last, Range vectors) {
  constexpr int64_t lanes = kLanes<float>, most = kAccumulators / kPlaneChannels;
  const auto run = [&]<int count>(int64_t v) {
    group.prefetch.template operator()<count * lanes>(v * lanes);
    if (gather_packed<combine, taps, count>(group, v * lanes)) return;
    gather_one_by_one<combine, taps>(group, rows, columns, {v * lanes, (v + count) * lanes});
  };
  const bool ends_with_few = last.count > 0 && vectors.end * lanes > group.positions;
  if (ends_with_few) --vectors.end;
  int64_t v = vectors.begin;
  for (; v + most <= vectors.end; v += most) run.template operator()<most>(v);
  for (; v < vectors.end; ++v) run.template operator()<1>(v);
  for (int64_t i = 0; ends_with_few && i < last.count; ++i) gather_position<combine, taps>(group, last.positions[i]);
}

// Writes to scratch, for the vectors of a tile, one of the parts of a tap: the values of `plane`, counted from position
// 0, or ones without it; and zeros in the lanes in which the tap misses the map. `vector`: from one of the vectors to
// the next. The values may stand where they are written to.
inline DDF_NOINLINE void pack_tap(const Axis& rows, const Axis& columns, int64_t n, int64_t m, Range vectors,
                                  const float* plane, int64_t vector, float* to) {
  constexpr int64_t lanes = kLanes<float>;
  const int64_t width = columns.outputs, positions = rows.outputs * width;
  const int64_t distance = tap_distance(rows, columns, n, m);
  const Range on_plane{larger<int64_t>(-distance, 0), smaller(positions - distance, positions)};
  for (int64_t v = vectors.begin; v < vectors.end; ++v) {
    const int64_t position = v * lanes;
    float* at_vector = to + (v - vectors.begin) * vector;
    if (position >= on_plane.begin && position + lanes <= on_plane.end) {
      store(at_vector, plane == nullptr ? broadcast(1.0f) : load(plane + position));
      continue;
    }
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const bool is_on_plane = position + lane >= on_plane.begin && position + lane < on_plane.end;
      at_vector[lane] = !is_on_plane ? 0 : plane == nullptr ? 1 : plane[position + lane];
    }
  }
  const int64_t right = columns.source_origin + m * columns.source_tap_step;
  const Range off_columns =
      right < 0 ? Range{0, smaller(-right, width)} : Range{larger<int64_t>(width - right, 0), width};
  const Range tile{vectors.begin * lanes, smaller(vectors.end * lanes, positions)};
  for (int64_t row = tile.begin / width; row * width < tile.end; ++row) {
    for (int64_t column = off_columns.begin; column < off_columns.end; ++column) {
      // before the tile this is a huge number
      const auto place = static_cast<uint64_t>(row * width + column - tile.begin);
      if (place < static_cast<uint64_t>(tile.size())) to[place / lanes * vector + place % lanes] = 0;
    }
  }
}

// How a worker treats taps that miss the map: zeros in the packed spatial filter.
class PlaneBorders {
 public:
  static constexpr int kBehind = 0;  // elements that are read behind the vectors

  // Vectors of the packed spatial filter for each tap.
  static int64_t parts(const Call& call) {
    return call.combine == Combine::add ? kPackedParts<Combine::add> : kPackedParts<Combine::mul>;
  }

  PlaneBorders(const Call& call, const Axis& rows, const Axis& columns)
      : rows_(rows), columns_(columns), last_(rows, columns), parts_(parts(call)) {}

  int64_t scratch_size(int64_t) const { return 0; }
  int64_t packed_size(int64_t tile_vectors) const { return tile_vectors * vector_size(); }

  void load_tile(Range vectors, float*, float* packed) {
    vectors_ = vectors;
    if (parts_ > 1) pack_taps(nullptr, packed + kLanes<float>);
  }

  // The spatial filter's part in the tile, to (vectors, taps, parts, lanes).
  PlaneWeights pack(const PlaneWeights& weights, float* to) const {
    pack_taps(&weights, to);
    return {to - vectors_.begin * vector_size(), vector_size(), columns_.taps * tap_size(), tap_size()};
  }

  void prepare(PlaneGroup&) const {}

  template <Combine combine>
  void gather(const PlaneGroup& group, Range vectors) const {
    if (rows_.taps == 3) return gather_packed_range<combine, 3>(group, rows_, columns_, last_, vectors);
    if constexpr (kMostKnownTaps >= 7) {
      if (rows_.taps == 5) return gather_packed_range<combine, 5>(group, rows_, columns_, last_, vectors);
      gather_packed_range<combine, 7>(group, rows_, columns_, last_, vectors);
    }
  }

 private:
  int64_t tap_size() const { return parts_ * kLanes<float>; }
  int64_t vector_size() const { return rows_.taps * columns_.taps * tap_size(); }

  // One of the parts of all taps: the filter's, or without one that of ones.
  void pack_taps(const PlaneWeights* weights, float* to) const {
    for (int64_t n = 0; n < rows_.taps; ++n) {
      for (int64_t m = 0; m < columns_.taps; ++m, to += tap_size()) {
        pack_tap(rows_, columns_, n, m, vectors_, weights == nullptr ? nullptr : weights->at_tap(n, m), vector_size(),
                 to);
      }
    }
  }

  const Axis &rows_, &columns_;
  const LastPositions last_;
  const int64_t parts_;
  Range vectors_{};
};
#endif

}  // namespace
}  // namespace ddf
