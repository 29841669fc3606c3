// The operation with the branches that predict its filters, with one instruction set; compiled once for each, free of
// torch.
#include "affine.h"
#include "capability.h"
#include "channel_taps.h"
#include "kernels.h"
#include "logits_pixels.h"
#include "logits_planes.h"

namespace ddf {
namespace {

using Forward = void (*)(const Call&);

void run_here(int64_t tasks, const void* context, RangeBody body) { body(context, 0, tasks); }

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
  }

 private:
  const Call& call_;
  const Branches& branches_;
  Logits logits_;
  LogitRuns runs_;
};

template <typename A>
struct Affines {
  Affine<A> before, after;
};

// Images [first, first + count) of a call: their filters go to scratch, and from there into the operation; so does the
// map where it changes before.
template <typename A, typename Logits>
void filter_images(Call call, const Branches& branches, const Affines<A>& affines, Forward forward, int64_t first,
                   int64_t count) {
  constexpr int64_t kKeptElements = 1 << 20;  // a thread's scratch is kept, that of a large map is not
  const int64_t taps = taps_of(call), logits = logits_of(call), pixels = call.height * call.width;
  const int64_t filter = call.channels * taps, out_pixels = call.out_height * call.out_width;
  const bool channels_last = branches.channels_last;
  const auto dense = [&](A* data, int64_t channels, int64_t rows, int64_t columns) {
    return channels_last ? Array{data, channels * rows * columns, 1, columns * channels, channels}
                         : Array{data, channels * rows * columns, rows * columns, columns, 1};
  };
  call.batch = call.channel_batch = call.spatial_batch = count;
  call.input.data = at<A>(call.input, first, 0);
  call.output.data = at<A>(call.output, first, 0);
  const Prediction<A, Logits> prediction(call, branches);
  const int64_t map = affines.before.scale != nullptr ? round_up(count * call.channels * pixels, kLanes<A>) : 0;
  const int64_t filters = count * (filter + logits * out_pixels), size = map + filters + prediction.scratch_size();
  Buffer buffer;
  A* scratch = size > kKeptElements ? buffer.at_least<A>(size) : thread_scratch<A, kBranches>(size);
  if (map > 0) {
    apply(call, affines.before, channels_last, pixels, static_cast<const A*>(call.input.data), scratch);
    call.input = dense(scratch, call.channels, call.height, call.width);
  }
  call.channel_filter = {scratch + map, filter, taps, call.kernel_size, 1};
  call.spatial_filter = dense(scratch + map + count * filter, logits, call.out_height, call.out_width);
  prediction.run(scratch + map + filters);
  forward(call);
  if (affines.after.scale != nullptr) {
    A* output = static_cast<A*>(call.output.data);
    apply(call, affines.after, channels_last, out_pixels, output, output);
  }
}

// Where there are images enough to keep all threads busy, each takes its own from the map to the output, a few at a
// time, so that the operation finds them in the thread's cache; else the threads share every step. The results are the
// same.
template <typename A, typename Logits>
void filter_maps(const Call& call, const Branches& branches, Forward forward) {
  constexpr int64_t kCachedBytes = 512 << 10;
  const int64_t image_bytes = call.channels * call.height * call.width * sizeof(A);
  const int64_t fitting = larger<int64_t>(kCachedBytes / image_bytes, 1);
  Buffer buffer;
  const int64_t before = Affine<A>::size(branches.before, call.channels);
  A* scales = buffer.at_least<A>(before + Affine<A>::size(branches.after, call.channels));
  const Affines<A> affines{{branches.before, call.channels, scales}, {branches.after, call.channels, scales + before}};
  const int64_t most = ceil_divide(call.batch, call.threads) * call.threads;  // were all threads as busy as the first
  if (call.batch < 2 * call.threads || 4 * most > 5 * call.batch) {
    return filter_images<A, Logits>(call, branches, affines, forward, 0, call.batch);
  }
  parallel(call, call.batch, [&](int64_t begin, int64_t end) {
    Call part = call;
    part.threads = 1;
    part.parallel_for = run_here;
    const int64_t groups = ceil_divide(end - begin, fitting);
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t first = begin + (end - begin) * group / groups;
      const int64_t last = begin + (end - begin) * (group + 1) / groups;
      filter_images<A, Logits>(part, branches, affines, forward, first, last - first);
    }
  });
}

template <typename A>
void filter_layout(const Call& call, const Branches& branches, Forward forward) {
  if (branches.channels_last) {
    filter_maps<A, PixelLogits<A>>(call, branches, forward);
  } else {
    filter_maps<A, PlaneLogits<A>>(call, branches, forward);
  }
}

}  // namespace

void DDF_NAMED(dynamic_filter_, DDF_CPU_CAPABILITY)(const Call& call, const Branches& branches, Forward forward) {
  if (call.dtype == Dtype::float64) {
    filter_layout<double>(call, branches, forward);
  } else {
    filter_layout<float>(call, branches, forward);
  }
}

}  // namespace ddf
