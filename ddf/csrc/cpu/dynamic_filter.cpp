// The operation with the branches that predict its filters, with one instruction set; compiled once for each, free of
// torch.
#include "affine.h"
#include "capability.h"
#include "channel_taps.h"
#include "image_groups.h"
#include "kernels.h"
#include "logits_pixels.h"
#include "logits_planes.h"

namespace ddf {
namespace {

// Writes channel_filter and spatial_filter, the latter before its normalisation.
template <typename A, typename Logits>
class Prediction {
 public:
  Prediction(const Call& call, const Branches& branches)
      : call_(call), branches_(branches), logits_(call), runs_(call) {}

  int64_t scratch_size() const {
    return logits_.packed_size() + call_.batch * (runs_.count * call_.channels + branches_.hidden);
  }

  void run(A* packed) const {
    A *sums = packed + logits_.packed_size(), *hidden = sums + call_.batch * runs_.count * call_.channels;
    logits_.pack(branches_, packed);
    parallel(call_, call_.batch * runs_.count, [&](int64_t begin, int64_t end) {
      A* scratch = thread_scratch<A>(logits_.scratch_size());
      for (int64_t task = begin; task < end; ++task) {
        const int64_t image = task / runs_.count, run = task % runs_.count;
        logits_.run(packed, image, runs_.summed(run), runs_.outputs(run), sums + task * call_.channels, scratch);
      }
    });
    squeeze(call_, branches_, sums, runs_.count, hidden);
    excite(call_, branches_, hidden);
    const Predictions& kept = branches_.predictions;
    if (kept.means != nullptr) keep(sums, hidden, static_cast<A*>(kept.means), static_cast<A*>(kept.hidden));
  }

 private:
  void keep(const A* sums, const A* hidden, A* kept_means, A* kept_hidden) const {
    for (int64_t image = 0; image < call_.batch; ++image) {
      copy(kept_means + image * call_.channels, sums + image * runs_.count * call_.channels, call_.channels);
    }
    copy(kept_hidden, hidden, call_.batch * branches_.hidden);
  }

  const Call& call_;
  const Branches& branches_;
  Logits logits_;
  LogitRuns runs_;
};

template <typename A>
struct Affines {
  Affine<A> before, after;
};

// The place of an image's predictions.
template <typename A>
Predictions predictions_from(const Call& call, const Branches& branches, int64_t image) {
  const auto from = [&](void* data, int64_t elements) -> void* {
    return data == nullptr ? nullptr : static_cast<A*>(data) + image * elements;
  };
  const Predictions& all = branches.predictions;
  return {from(all.logits, logits_of(call) * call.out_height * call.out_width), from(all.means, call.channels),
          from(all.hidden, branches.hidden), from(all.excited, call.channels * taps_of(call))};
}

// The images of a call, those from `first` on of the whole: their filters go to scratch, and from there into the
// operation; so does the map where it changes before. Logits that are kept go to their own place.
template <typename A, typename Logits>
void filter_images(Call call, Branches branches, const Affines<A>& affines, Kernel forward, int64_t first) {
  constexpr int64_t kKeptElements = 1 << 20;  // a thread's scratch is kept, that of a large map is not
  const int64_t taps = taps_of(call), logits = logits_of(call), pixels = call.height * call.width;
  const int64_t filter = call.channels * taps, out_pixels = call.out_height * call.out_width;
  const bool channels_last = branches.channels_last;
  branches.predictions = predictions_from<A>(call, branches, first);
  A* kept_logits = static_cast<A*>(branches.predictions.logits);
  call.channel_batch = call.spatial_batch = call.batch;
  const Prediction<A, Logits> prediction(call, branches);
  const int64_t map = affines.before.scale != nullptr ? round_up(call.batch * call.channels * pixels, kLanes<A>) : 0;
  const int64_t filters = call.batch * (filter + (kept_logits == nullptr ? logits * out_pixels : 0));
  const int64_t size = map + filters + prediction.scratch_size();
  Buffer buffer;
  A* scratch = size > kKeptElements ? buffer.at_least<A>(size) : thread_scratch<A, kBranches>(size);
  if (map > 0) {
    apply(call, affines.before, channels_last, pixels, static_cast<const A*>(call.input.data), scratch);
    call.input = dense_array(scratch, call.channels, call.height, call.width, channels_last);
  }
  call.channel_filter = {scratch + map, filter, taps, call.kernel_size, 1};
  call.spatial_filter = dense_array(kept_logits == nullptr ? scratch + map + call.batch * filter : kept_logits, logits,
                                    call.out_height, call.out_width, channels_last);
  prediction.run(scratch + map + filters);
  forward(call);
  if (affines.after.scale != nullptr) {
    A* output = static_cast<A*>(call.output.data);
    apply(call, affines.after, channels_last, out_pixels, output, output);
  }
}

template <typename A, typename Logits>
void filter_maps(const Call& call, const Branches& branches, Kernel forward) {
  Buffer buffer;
  const int64_t before = Affine<A>::size(branches.before, call.channels);
  A* scales = buffer.at_least<A>(before + Affine<A>::size(branches.after, call.channels));
  const Affines<A> affines{{branches.before, call.channels, scales}, {branches.after, call.channels, scales + before}};
  in_cached_groups<A>(call, [&](const Call& part, int64_t first) {
    filter_images<A, Logits>(part, branches, affines, forward, first);
  });
}

template <typename A>
void filter_layout(const Call& call, const Branches& branches, Kernel forward) {
  if (branches.channels_last) {
    filter_maps<A, PixelLogits<A>>(call, branches, forward);
  } else {
    filter_maps<A, PlaneLogits<A>>(call, branches, forward);
  }
}

}  // namespace

void DDF_NAMED(dynamic_filter_, DDF_CPU_CAPABILITY)(const Call& call, const Branches& branches, Kernel forward) {
  if (call.dtype == Dtype::float64) {
    filter_layout<double>(call, branches, forward);
  } else {
    filter_layout<float>(call, branches, forward);
  }
}

}  // namespace ddf
