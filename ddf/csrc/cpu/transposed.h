// Small contiguous maps, through the kernels for channels_last ones: rows of a few pixels would leave most lanes of a
// vector idle, channels fill them.
//
// A task is some channels of one image and head. Their map is transposed into scratch, (pixels, channels); the kernels
// for channels_last maps run on it as on a call of its own; what they leave in scratch is transposed back. Filters are
// read where they lie. Which maps go this way depends on shapes and strides alone, so the bits of a result do not
// depend on the number of threads.
#pragma once

#include "pixels_filter_gradients.h"
#include "pixels_gather.h"
#include "planes.h"
#include "transpose.h"

namespace ddf {
namespace {

// Where channels fill vectors so much better than the columns of a plane that two transpositions pay: measured on one
// processor with AVX-512.
template <typename T>
bool is_small_plane(const Call& call, int64_t width) {
  constexpr int64_t kFewestChannels = larger<int64_t>(kLanes<typename Computed<T>::type>, 16);
  return channels_per_head(call) >= kFewestChannels && width <= (call.kernel_size >= 7 ? 28 : 7);
}

// Whether forward pass and gradient of the input of small planes go this way rather than that of whole planes. Without
// masks taps that miss the map cost the latter as much as others, and of kernels of 7 many do.
inline bool favours_transposed(const Call& call) { return !kHasMasks && call.kernel_size >= 7; }

// The same for the gradients of the filters; with masks, too, as measured with AVX-512.
inline bool favours_transposed_gradients(const Call& call) { return kHasMasks || favours_transposed(call); }

inline void run_serially(int64_t tasks, const void* context, RangeBody body) { body(context, 0, tasks); }

// The part of a call that lies in `channels` of one image and head, as a call of one image and one head.
template <typename T>
Call part_of(const Call& call, int64_t image, int64_t head, Range channels) {
  const auto from = [](Array array, int64_t batch, int64_t channel) {
    array.data = at<T>(array, batch, channel);
    return array;
  };
  Call part = call;
  part.batch = part.channel_batch = part.spatial_batch = part.head = 1;
  part.channels = channels.size();
  part.channel_filter = from(call.channel_filter, image, channels.begin);
  part.spatial_filter = from(call.spatial_filter, image, head * taps_of(call));
  if (call.grad_channel.data != nullptr) part.grad_channel = from(call.grad_channel, image, channels.begin);
  if (call.grad_spatial.data != nullptr) part.grad_spatial = from(call.grad_spatial, image, head * taps_of(call));
  part.threads = 1;
  part.parallel_for = run_serially;
  return part;
}

// A map of one image as (pixels, channels) in scratch.
template <typename T>
Array pixels_in_scratch(T* scratch, int64_t channels, int64_t width) {
  return {scratch, 0, 1, width * channels, channels};
}

// Tasks of a head: about as many channels in each as leave their filters, and rows of their map, in the first cache.
inline int64_t channel_chunks(const Call& call) {
  constexpr int64_t kChannels = 64;
  return larger<int64_t>(channels_per_head(call) / kChannels, 1);
}

// Where forward pass and gradient of the input go this way.
template <typename T>
bool gathers_transposed(const Call& call, const AxisSet& columns, const Array& source, const Array& output) {
  const int64_t width = columns.weights_at_source() ? call.width : call.out_width;
  return has_whole_planes(source, columns[0].source_size) && has_whole_planes(output, width) &&
         is_small_plane<T>(call, smaller(width, columns[0].source_size));
}

// `gather_part(call, source, output)` runs a call of one image on maps in scratch.
template <typename T, typename GatherPart>
void gather_transposed(const Call& call, const AxisSet& rows, const AxisSet& columns, const Array& source,
                       const Array& output, const GatherPart& gather_part) {
  const bool is_gradient = rows.weights_at_source();
  const int64_t width = is_gradient ? call.width : call.out_width;
  const int64_t pixels = (is_gradient ? call.height : call.out_height) * width;
  const int64_t source_width = columns[0].source_size, source_pixels = rows[0].source_size * source_width;
  const int64_t per_head = channels_per_head(call), chunks = channel_chunks(call);
  parallel(call, call.batch * call.head * chunks, [&](int64_t begin, int64_t end) {
    const int64_t most = ceil_divide(per_head, chunks) + kLanes<T>;
    T* source_scratch = thread_scratch<T, kTransposed>((source_pixels + pixels) * most);
    T* output_scratch = source_scratch + source_pixels * most;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t chunk = task % chunks, head = task / chunks % call.head, image = task / chunks / call.head;
      const auto bound = [&](int64_t index) {  // whole vectors, all but the last
        return head * per_head + (index == chunks ? per_head : per_head * index / chunks / kLanes<T> * kLanes<T>);
      };
      const Range channels{bound(chunk), bound(chunk + 1)};
      const int64_t count = channels.size();
      transpose(source_scratch, count, at<const T>(source, image, channels.begin), source.channel, count,
                source_pixels);
      gather_part(part_of<T>(call, image, head, channels), pixels_in_scratch(source_scratch, count, source_width),
                  pixels_in_scratch(output_scratch, count, width));
      transpose(at<T>(output, image, channels.begin), output.channel, output_scratch, count, pixels, count);
    }
  });
}

// Where the gradients of the filters go this way: each image has filters of its own, and there are images for several
// threads.
template <typename T>
bool adds_transposed(const Call& call) {
  constexpr int64_t kFewestTasks = 4;
  return has_whole_planes(call.input, call.width) && has_whole_planes(call.output, call.out_width) &&
         is_small_plane<T>(call, call.out_width) && call.channel_batch == call.batch &&
         call.spatial_batch == call.batch && call.batch * call.head >= kFewestTasks;
}

template <typename T>
void filter_gradients_transposed(const Call& call) {
  const int64_t pixels = call.height * call.width, out_pixels = call.out_height * call.out_width;
  const int64_t per_head = channels_per_head(call);
  parallel(call, call.batch * call.head, [&](int64_t begin, int64_t end) {
    T* input = thread_scratch<T, kTransposed>((pixels + out_pixels) * per_head);
    T* grad_output = input + pixels * per_head;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / call.head, head = task % call.head, first = head * per_head;
      transpose(input, per_head, at<const T>(call.input, image, first), call.input.channel, per_head, pixels);
      transpose(grad_output, per_head, at<const T>(call.output, image, first), call.output.channel, per_head,
                out_pixels);
      Call part = part_of<T>(call, image, head, {first, first + per_head});
      part.input = pixels_in_scratch(input, per_head, call.width);
      part.output = pixels_in_scratch(grad_output, per_head, call.out_width);
      run_filter_gradients<PixelGradientWorker, T>(part);
    }
  });
}

}  // namespace
}  // namespace ddf
