// The operation with the branches that predict its filters, with one instruction set; compiled once for each, free of
// torch.
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

// Images [first, first + count) of a call: their filters go to scratch, and from there into the operation.
template <typename A, typename Logits>
void filter_images(Call call, const Branches& branches, Forward forward, int64_t first, int64_t count) {
  constexpr int64_t kKeptElements = 1 << 20;  // a thread's scratch is kept, that of a large map is not
  const int64_t taps = taps_of(call), logits = logits_of(call), columns = call.out_width;
  const int64_t filter = call.channels * taps, pixels = call.out_height * columns;
  call.batch = call.channel_batch = call.spatial_batch = count;
  call.input.data = at<A>(call.input, first, 0);
  call.output.data = at<A>(call.output, first, 0);
  const Prediction<A, Logits> prediction(call, branches);
  const int64_t filters = count * (filter + logits * pixels), size = filters + prediction.scratch_size();
  Buffer buffer;
  A* scratch = size > kKeptElements ? buffer.at_least<A>(size) : thread_scratch<A, kBranches>(size);
  A* spatial = scratch + count * filter;
  call.channel_filter = {scratch, filter, taps, call.kernel_size, 1};
  call.spatial_filter = branches.channels_last ? Array{spatial, logits * pixels, 1, columns * logits, logits}
                                               : Array{spatial, logits * pixels, pixels, columns, 1};
  prediction.run(scratch + filters);
  forward(call);
}

// Where there are images enough, each thread takes some of its own from the map to the output, so that the operation
// finds them in the thread's cache; else the threads share every step. The results are the same.
template <typename A, typename Logits>
void filter_maps(const Call& call, const Branches& branches, Forward forward) {
  constexpr int64_t kGroupBytes = 512 << 10, kWantedGroups = 8;
  const int64_t image_bytes = call.channels * call.height * call.width * sizeof(A);
  const int64_t fitting = larger<int64_t>(kGroupBytes / image_bytes, 1);
  const int64_t group = smaller(fitting, ceil_divide(call.batch, kWantedGroups));
  const int64_t groups = ceil_divide(call.batch, group);
  if (groups < 2 * call.threads) return filter_images<A, Logits>(call, branches, forward, 0, call.batch);
  parallel(call, groups, [&](int64_t begin, int64_t end) {
    Call part = call;
    part.threads = 1;
    part.parallel_for = run_here;
    for (int64_t first = begin * group; first < smaller(end * group, call.batch); first += group) {
      filter_images<A, Logits>(part, branches, forward, first, smaller(group, call.batch - first));
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
