// The inner loop over planes taken as one long row. The accumulators of a register tile (channels x vectors) stay in
// registers over all taps, and every vector of the spatial filter serves all channels of the group.
//
// Most vectors of a map lie across two lines of the cache, and reading one takes as long as its two arithmetic
// instructions. So tap columns that stand next to each other share what they read: each takes its lanes from vectors
// side by side, at a place that the compiler knows. A unit for arithmetic permutes them; the last vector of a tile,
// which would need one more beside it, is read anew for each tap, so that neither that unit nor those for loads are the
// limit.
#pragma once

#include "plane_groups.h"
#include "plane_masks.h"

namespace ddf {
namespace {

#if defined(__AVX512F__)
// Where the taps of some vectors read: within their planes, so that a mask is needed only where a tap runs into the
// neighbouring row, the same for all tap rows; around them, in memory that may be read; or anywhere, so that masked
// loads alone may touch it. Those take an arithmetic instruction each.
enum class Reads { plane, neighbours, anywhere };

constexpr int kSharedTaps = 3;  // that share what they read: their spatial filter stays in registers meanwhile
constexpr int kReadBeyond = 4;  // elements that are read behind the vectors, where taps share what they read

// Adds tap row n's columns [first, first + count) to the sums. `step`: between the columns; 0 where `count` is 1.
template <Combine combine, int taps, int step, int first, int count, int vectors, Reads reads>
DDF_INLINE void add_taps(const PlaneGroup& group, const Mask* tap_masks, int64_t position, int64_t n,
                         Vector<float> (&sums)[kPlaneChannels][vectors]) {
  constexpr int lanes = kLanes<float>, permuted = vectors > 1 ? vectors - 1 : vectors;  // the first ones
  static_assert((count - 1) * step <= kReadBeyond);
  const PlaneWeights& weights = group.weights;
  const float* spatial = weights.data + position / lanes * weights.vector + n * weights.tap_row;
  Vector<float> s[count][vectors];
  Mask masks[count][vectors];
  for (int m = 0; m < count; ++m) {
    const float* at_tap = opaque(spatial + (first + m) * weights.tap_column);
    for (int v = 0; v < vectors; ++v) {
      masks[m][v] = tap_masks[((reads == Reads::plane ? 0 : n * taps) + first + m) * group.masks_tap + v];
      const float* at_vector = at_tap + v * weights.vector;
      s[m][v] = reads == Reads::anywhere ? load_masked(at_vector, masks[m][v]) : load(at_vector);
    }
  }
  const float* source = group.source + position + n * group.source_tap_row + first * group.source_tap_column;
  const float* filter = opaque(group.channel_filter + n * taps + first);
  unrolled<kPlaneChannels>([&]<int i>() DDF_ALWAYS_INLINE {
    Vector<float> x[vectors + 1];
    for (int v = 0; v < vectors; ++v) {
      const float* from = source + v * lanes;
      x[v] = reads == Reads::anywhere ? load_masked(from, masks[0][v]) : kept(load(from));
    }
    x[vectors] = step > 0 && permuted == vectors ? load_four(source + vectors * lanes) : Vector<float>{};
    unrolled<count>([&]<int m>() DDF_ALWAYS_INLINE {
      const Vector<float> c = broadcast(filter[i * taps * taps + m]);
      for (int v = 0; v < vectors; ++v) {
        const bool is_permuted = m * step == 0 || v < permuted;
        const Vector<float> value =
            is_permuted ? lanes_from<m * step>(x[v], x[v + 1]) : load(source + v * lanes + m * step);
        const Vector<float> weight = tap_weight<combine>(c, s[m][v]);
        // the centre column meets the map in all lanes
        const bool needs_no_mask = reads == Reads::plane && 2 * (first + m) + 1 == taps;
        sums[i][v] = needs_no_mask ? sums[i][v] + weight * value : add_product(sums[i][v], weight, value, masks[m][v]);
      }
    });
    source = opaque(source + group.source_channel);
  });
}

// Whether a tap row lies off the map for all of the vectors, by the masks of its centre column.
template <int vectors>
DDF_INLINE bool misses_map(const Mask* masks) {
  Mask any = 0;
  for (int v = 0; v < vectors; ++v) any |= masks[v];
  return any == 0;
}

// The sums of a tile, (channels, vectors), to outputs of type T; lanes behind the plane are left out.
template <typename T>
void store_tile(const PlaneGroup& group, int64_t position, const float* sums, int vectors) {
  T* to = static_cast<T*>(group.output) + position;
  for (int i = 0; i < kPlaneChannels; ++i, to += group.output_channel) {
    for (int v = 0; v < vectors; ++v, sums += kLanes<float>) {
      const int first = v * kLanes<float>;
      store_masked(to + first, load(sums), first_lanes(group.positions - position - first));
    }
  }
}

// The same in half precision, for any values and any number of lanes; what is common does not come here.
inline DDF_NOINLINE void store_narrow_tile(const PlaneGroup& group, int64_t position, const float* sums, int vectors) {
  if (group.dtype == Dtype::bfloat16) return store_tile<BFloat16>(group, position, sums, vectors);
  store_tile<Half>(group, position, sums, vectors);
}

// Stores two whole vectors for each channel in half precision, unless one of them holds NaN and is to be a BFloat16.
DDF_INLINE bool store_narrow_pairs(const PlaneGroup& group, int64_t position,
                                   const Vector<float> (&sums)[kPlaneChannels][2]) {
  if (group.dtype == Dtype::bfloat16) {
    if (any_nan(sums)) return false;
    unrolled<kPlaneChannels>([&]<int i>() DDF_ALWAYS_INLINE {
      store_raw(static_cast<BFloat16*>(group.output) + i * group.output_channel + position,
                narrowed_pair(sums[i][0], sums[i][1]));
    });
  } else {
    unrolled<kPlaneChannels>([&]<int i>() DDF_ALWAYS_INLINE {
      Half* to = static_cast<Half*>(group.output) + i * group.output_channel + position;
      for (int v = 0; v < 2; ++v) store(to + v * kLanes<float>, sums[i][v]);
    });
  }
  return true;
}

template <int vectors>
DDF_INLINE void store_sums(const PlaneGroup& group, int64_t position,
                           const Vector<float> (&sums)[kPlaneChannels][vectors]) {
  constexpr int lanes = kLanes<float>;
  const int64_t left = group.positions - position;
  if (group.dtype == Dtype::float32) {
    float* output = static_cast<float*>(group.output) + position;
    return unrolled<vectors>([&]<int v>() DDF_ALWAYS_INLINE {
      const Mask mask = first_lanes(left - v * lanes);
      unrolled<kPlaneChannels>([&]<int i>() DDF_ALWAYS_INLINE {
        store_masked(output + i * group.output_channel + v * lanes, sums[i][v], mask);
      });
    });
  }
  if constexpr (vectors == 2) {
    if (left >= vectors * lanes && store_narrow_pairs(group, position, sums)) return;
  }
  alignas(kVectorBytes) float tile[kPlaneChannels * vectors * lanes];
  unrolled<kPlaneChannels * vectors>(
      [&]<int k>() DDF_ALWAYS_INLINE { store(tile + k * lanes, sums[k / vectors][k % vectors]); });
  store_narrow_tile(group, position, tile, vectors);
}

template <Combine combine, int taps, int step, int vectors, Reads reads>
DDF_INLINE void gather_vectors(const PlaneGroup& group, const Mask* tap_masks, int64_t position) {
  constexpr int parts = step > 0 ? ceil_divide(taps, kSharedTaps) : taps;
  Vector<float> sums[kPlaneChannels][vectors];
  clear(sums);
  for (int64_t n = 0; n < taps; ++n) {
    if (reads != Reads::plane && misses_map<vectors>(tap_masks + (n * taps + taps / 2) * group.masks_tap)) continue;
    unrolled<parts>([&]<int part>() DDF_ALWAYS_INLINE {
      constexpr int first = part * taps / parts, count = (part + 1) * taps / parts - first;
      add_taps<combine, taps, step, first, count, vectors, reads>(group, tap_masks, position, n, sums);
    });
  }
  store_sums(group, position, sums);
}

// The same for any distance between tap columns.
template <Combine combine, int taps, int vectors, Reads reads>
DDF_NOINLINE void gather_vectors_at_any_step(const PlaneGroup& group, const Mask* tap_masks, int64_t position) {
  gather_vectors<combine, taps, 0, vectors, reads>(group, tap_masks, position);
}

constexpr int64_t kFewPositions = 2;  // at the end of a plane: taken one by one, a vector of theirs would be empty

// The positions of a plane from `position` on, in the last vector. Most of their taps miss the map.
template <Combine combine, int taps>
DDF_NOINLINE void gather_last(const PlaneGroup& group, const Mask* tap_masks, int64_t position) {
  constexpr int lanes = kLanes<float>;
  const float* at_vector = group.weights.data + position / lanes * group.weights.vector;
  alignas(kVectorBytes) float last[kPlaneChannels * lanes];
  const bool is_narrow = group.dtype != Dtype::float32;
  float* to = is_narrow ? last : static_cast<float*>(group.output) + position;
  const int64_t to_channel = is_narrow ? lanes : group.output_channel;
  for (int lane = 0; position + lane < group.positions; ++lane) {
    const float *source[taps * taps], *filter[taps * taps];
    float spatial[taps * taps];
    int64_t count = 0;
    for (int64_t m = 0; m < taps; ++m) {
      for (int64_t n = 0; n < taps; ++n) {
        if ((tap_masks[(n * taps + m) * group.masks_tap] >> lane & 1) == 0) continue;
        source[count] = group.source + position + lane + n * group.source_tap_row + m * group.source_tap_column;
        filter[count] = group.channel_filter + n * taps + m;
        spatial[count++] = at_vector[n * group.weights.tap_row + m * group.weights.tap_column + lane];
      }
    }
    for (int i = 0; i < kPlaneChannels; ++i) {
      float sum = 0;
      for (int64_t t = 0; t < count; ++t) {
        sum += tap_weight<combine>(filter[t][i * taps * taps], spatial[t]) * source[t][i * group.source_channel];
      }
      to[i * to_channel + lane] = sum;
    }
  }
  if (is_narrow) store_narrow_tile(group, position, last, 1);
}

// The vectors of a range. Those in `inner` read nothing outside of their planes. `step`: between tap columns; 0: any.
template <Combine combine, int taps, int step>
DDF_NOINLINE void gather_range(const PlaneGroup& group, Range vectors, Range inner) {
  constexpr int64_t lanes = kLanes<float>, most = kAccumulators / kPlaneChannels;
  const auto run = [&]<int count>(int64_t v) {
    const Mask* masks = group.masks + v;
    const bool is_inner = v >= inner.begin && v + count <= inner.end;
    group.prefetch.template operator()<count * lanes>(v * lanes);
    if (v < group.readable.begin || v + count > group.readable.end) {
      gather_vectors_at_any_step<combine, taps, count, Reads::anywhere>(group, masks, v * lanes);
    } else if constexpr (step == 0) {
      gather_vectors_at_any_step<combine, taps, count, Reads::neighbours>(group, masks, v * lanes);
    } else if (is_inner) {
      gather_vectors<combine, taps, step, count, Reads::plane>(group, masks, v * lanes);
    } else {
      gather_vectors<combine, taps, step, count, Reads::neighbours>(group, masks, v * lanes);
    }
  };
  const bool ends_with_few = group.positions - (vectors.end - 1) * lanes <= kFewPositions;
  if (ends_with_few) --vectors.end;
  int64_t v = vectors.begin;
  for (; v + most <= vectors.end; v += most) run.template operator()<most>(v);
  for (; v < vectors.end; ++v) run.template operator()<1>(v);
  if (ends_with_few) gather_last<combine, taps>(group, group.masks + v, v * lanes);
}

// The same for any step.
template <Combine combine, int taps>
void gather_range(const PlaneGroup& group, Range vectors, Range inner) {
  if (group.source_tap_column == 1) return gather_range<combine, taps, 1>(group, vectors, inner);
  if constexpr (taps == 3) {
    if (group.source_tap_column == 2) return gather_range<combine, taps, 2>(group, vectors, inner);
  }
  gather_range<combine, taps, 0>(group, vectors, inner);
}

// How a worker treats taps that miss the map: masks, made for each tile of vectors.
class PlaneBorders {
 public:
  static constexpr int kBehind = kReadBeyond;  // elements that are read behind the vectors

  static int64_t parts(const Call&) { return 1; }  // vectors of the packed spatial filter for each tap

  PlaneBorders(const Call&, const Axis& rows, const Axis& columns)
      : rows_(rows), columns_(columns), inner_(inner_vectors(rows, columns, kReadBeyond)) {}

  int64_t taps() const { return rows_.taps * columns_.taps; }
  int64_t scratch_size(int64_t tile_vectors) const { return ceil_divide(taps() * tile_vectors, 2); }
  int64_t packed_size(int64_t tile_vectors) const { return taps() * tile_vectors * kLanes<float>; }

  void load_tile(Range vectors, float* scratch, float*) {
    vectors_ = vectors;
    masks_ = reinterpret_cast<Mask*>(scratch);
    make_tap_masks(rows_, columns_, vectors, masks_);
  }

  // The spatial filter's part in the tile, to (vectors, taps, lanes).
  PlaneWeights pack(const PlaneWeights& weights, float* to) const {
    constexpr int64_t lanes = kLanes<float>;
    for (int64_t t = 0; t < taps(); ++t) {
      const float* plane = weights.at_tap(t / columns_.taps, t % columns_.taps) + vectors_.begin * lanes;
      const Mask* masks = masks_ + t * vectors_.size();
      for (int64_t v = 0; v < vectors_.size(); ++v) {
        store(to + (v * taps() + t) * lanes, load_masked(plane + v * lanes, masks[v]));
      }
    }
    return {to - vectors_.begin * taps() * lanes, taps() * lanes, columns_.taps * lanes, lanes};
  }

  void prepare(PlaneGroup& group) const {
    group.masks = masks_ - vectors_.begin;
    group.masks_tap = vectors_.size();
  }

  template <Combine combine>
  void gather(const PlaneGroup& group, Range vectors) const {
    if (rows_.taps == 3) return gather_range<combine, 3>(group, vectors, inner_);
    if (rows_.taps == 5) return gather_range<combine, 5>(group, vectors, inner_);
    gather_range<combine, 7>(group, vectors, inner_);
  }

 private:
  const Axis &rows_, &columns_;
  const Range inner_;  // vectors whose taps read nothing outside of their plane
  Range vectors_{};
  Mask* masks_ = nullptr;
};
#endif

}  // namespace
}  // namespace ddf
