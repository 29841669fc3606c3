// Working memory of the kernels, and how they spread their tasks over threads.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

#include "axis.h"
#include "storage.h"

namespace ddf {
namespace {

// Memory that grows and never shrinks, freed with its owner.
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }

  template <typename A>
  A* at_least(int64_t count) {
    const int64_t bytes = round_up(count * static_cast<int64_t>(sizeof(A)), 64);
    if (bytes > bytes_) {
      std::free(data_);
      data_ = std::aligned_alloc(64, bytes);
      bytes_ = data_ != nullptr ? bytes : 0;
      if (data_ == nullptr) throw std::bad_alloc();
    }
    return static_cast<A*>(data_);
  }

 private:
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

// Who uses a thread's scratch: a kernel, or what runs kernels on maps of its own.
constexpr int kKernel = 0, kTransposed = 1, kBranches = 2;

// One thread's scratch of `count` elements, valid until its user's next call. Kept between calls of the operators,
// since fresh pages cost more than the work of a small map.
template <typename A, int user = kKernel>
A* thread_scratch(int64_t count) {
  static thread_local Buffer buffer;
  return buffer.at_least<A>(count);
}

// Runs body(begin, end) over [0, tasks) on the caller's threads.
template <typename Body>
void parallel(const Call& call, int64_t tasks, const Body& body) {
  call.parallel_for(tasks, &body, [](const void* context, int64_t begin, int64_t end) {
    (*static_cast<const Body*>(context))(begin, end);
  });
}

// How often each of `tasks` is divided, by groups of channels: few tasks would leave threads idle, or uneven loads; two
// to four a thread are wanted.
inline int64_t chunks_for_threads(const Call& call, int64_t tasks, int64_t groups) {
  return tasks >= 2 * call.threads ? 1 : smaller(groups, ceil_divide(4 * call.threads, tasks));
}

constexpr int64_t kCached = 1 << 20;  // elements of a map that the second caches serve

// Whether a map is too large for the second caches.
inline bool exceeds_caches(const Call& call, int64_t positions, int64_t cached = kCached) {
  return call.batch * call.channels * positions > cached;
}

// How far ahead, in elements, the lines of a map are asked for; 0 for one that the second caches hold.
inline int64_t prefetch_distance(const Call& call, int64_t positions, int64_t distance) {
  return exceeds_caches(call, positions) ? distance : 0;
}

// Calls body with the call's Combine as a template argument. The inner loops are made for each, what is around them
// once.
template <typename Body>
void with_combine(const Call& call, const Body& body) {
  if (call.combine == Combine::mul) {
    body.template operator()<Combine::mul>();
  } else {
    body.template operator()<Combine::add>();
  }
}

template <Combine combine, typename V>
DDF_INLINE V tap_weight(V channel, V spatial) {
  if constexpr (combine == Combine::mul) {
    return channel * spatial;
  } else {
    return channel + spatial;
  }
}

inline int64_t taps_of(const Call& call) { return call.kernel_size * call.kernel_size; }
inline int64_t channels_per_head(const Call& call) { return call.channels / call.head; }

template <typename T>
T* at(const Array& array, int64_t batch, int64_t channel) {
  return static_cast<T*>(array.data) + batch * array.batch + channel * array.channel;
}

// A dense array in one of both layouts.
inline Array dense_array(void* data, int64_t channels, int64_t rows, int64_t columns, bool channels_last) {
  const int64_t image = channels * rows * columns;
  return channels_last ? Array{data, image, 1, columns * channels, channels}
                       : Array{data, image, rows * columns, columns, 1};
}

// The channel filter's element for tap (n, m) of both axes, seen from its first one.
template <typename T>
const T* at_tap(const Array& filter, const T* first, const Axis& rows, const Axis& columns, int64_t n, int64_t m) {
  return first + (rows.first_tap + n * rows.tap_step) * filter.row +
         (columns.first_tap + m * columns.tap_step) * filter.column;
}

}  // namespace
}  // namespace ddf
