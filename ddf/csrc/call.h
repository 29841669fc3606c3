// What a call of a kernel is made of. Plain data: this header is read by files compiled for different instruction sets
// and devices.
#pragma once

#include <cstdint>

namespace ddf {

enum class Combine { mul, add };
enum class Dtype { float64, float32, float16, bfloat16 };

// Where the elements of a 4-dimensional array lie; strides in elements, 0 where one element serves a whole dimension.
struct Array {
  void* data = nullptr;
  int64_t batch = 0, channel = 0, row = 0, column = 0;
};

// Calls body(context, begin, end) for disjoint ranges that make up [0, tasks), on one or more threads.
using RangeBody = void (*)(const void* context, int64_t begin, int64_t end);
using ParallelFor = void (*)(int64_t tasks, const void* context, RangeBody body);

struct Call {
  Dtype dtype;
  Combine combine;
  int64_t batch, channels, height, width;
  int64_t kernel_size, dilation, stride, head;
  int64_t out_height, out_width;
  int64_t channel_batch, spatial_batch;  // 1 where one filter serves every image, else `batch`
  bool normalize;                        // spatial_filter holds logits: they pass FilterNorm with this gain first
  double norm_gain;
  Array input, channel_filter, spatial_filter;  // of the filters' arrays row and column are those of the tap or pixel
  Array output;                                 // in the gradients: grad_output
  Array grad_input, grad_channel, grad_spatial;
  int64_t threads;  // this and the next: on the CPU only
  ParallelFor parallel_for;
};

}  // namespace ddf
