// How a call's images are spread over threads, where several kernels follow each other on each.
#pragma once

#include "scratch.h"

namespace ddf {
namespace {

inline void run_here(int64_t tasks, const void* context, RangeBody body) { body(context, 0, tasks); }

// The images [first, first + count) of a call, whose filters are one for each image.
template <typename T>
Call images_of(Call call, int64_t first, int64_t count) {
  call.batch = call.channel_batch = call.spatial_batch = count;
  for (Array* array : {&call.input, &call.channel_filter, &call.spatial_filter, &call.output, &call.grad_input}) {
    if (array->data != nullptr) array->data = at<T>(*array, first, 0);
  }
  return call;
}

// Calls body(part, first) for parts of a call, which begin with image `first`. Where there are images enough to keep
// all threads busy, each takes its own through all that the body does, a few at a time, so that a kernel finds in the
// thread's cache what the one before has left there; else the threads share every step of the body. The results are the
// same.
template <typename T, typename Body>
void in_cached_groups(const Call& call, const Body& body) {
  constexpr int64_t kCachedBytes = 512 << 10;
  const int64_t image_bytes = call.channels * call.height * call.width * sizeof(T);
  const int64_t fitting = larger<int64_t>(kCachedBytes / image_bytes, 1);
  const int64_t most = ceil_divide(call.batch, call.threads) * call.threads;  // were all threads as busy as the first
  if (call.batch < 2 * call.threads || 4 * most > 5 * call.batch) return body(call, 0);
  parallel(call, call.batch, [&](int64_t begin, int64_t end) {
    const int64_t groups = ceil_divide(end - begin, fitting);
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t first = begin + (end - begin) * group / groups;
      const int64_t last = begin + (end - begin) * (group + 1) / groups;
      Call part = images_of<T>(call, first, last - first);
      part.threads = 1;
      part.parallel_for = run_here;
      body(part, first);
    }
  });
}

}  // namespace
}  // namespace ddf
