// The operators of torch.ops.ddf.* on the LibTorch stable ABI, for any device: checks, the call of a kernel, results.
//
// A Device gives `is_device(tensor)` and an object, made for the input once it is checked, that is alive while kernels
// run: forward(call), input_gradient(call), filter_gradients(call, like).
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <tuple>

#include "call.h"

namespace ddf {

using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check(bool fits, const char* expected) { STD_TORCH_CHECK(fits, "ddf: ", expected); }

inline bool has_shape(const Tensor& tensor, std::initializer_list<int64_t> shape) {
  return tensor.dim() == 4 && std::equal(shape.begin(), shape.end(), tensor.sizes().begin());
}

inline Dtype dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Double:
      return Dtype::float64;
    case ScalarType::Float:
      return Dtype::float32;
    case ScalarType::Half:
      return Dtype::float16;
    case ScalarType::BFloat16:
      return Dtype::bfloat16;
    default:
      check(false, "expected float64, float32, float16 or bfloat16");
      return Dtype::float64;
  }
}

// The kernels write through grad_* and output only.
inline Array array_of(const Tensor& tensor) {
  const auto stride = [&](int64_t dim) { return tensor.size(dim) > 1 ? tensor.stride(dim) : 0; };
  return {const_cast<void*>(tensor.const_data_ptr()), stride(0), stride(1), tensor.stride(2), tensor.stride(3)};
}

// Shapes are checked here as well, so that a direct call of torch.ops.ddf.* cannot read outside of a tensor; the
// messages made for users are in ddf/functional.py.
inline Call make_call(const Tensor& input, int64_t kernel_size, int64_t dilation, int64_t stride, int64_t head,
                      const std::string& kernel_combine, std::optional<double> norm_gain) {
  check(input.dim() == 4, "expected a map of 4 dimensions");
  check(kernel_combine == "mul" || kernel_combine == "add", "kernel_combine must be 'mul' or 'add'");
  check(dilation >= 1 && stride >= 1, "dilation and stride must be at least 1");
  Call call{};
  call.dtype = dtype_of(input);
  call.combine = kernel_combine == "mul" ? Combine::mul : Combine::add;
  call.batch = input.size(0);
  call.channels = input.size(1);
  call.height = input.size(2);
  call.width = input.size(3);
  call.kernel_size = kernel_size;
  call.dilation = dilation;
  call.stride = stride;
  call.head = head;
  const auto output_size = [&](int64_t size) { return size == 0 ? 0 : (size - 1) / stride + 1; };
  call.out_height = output_size(call.height);
  call.out_width = output_size(call.width);
  call.normalize = norm_gain.has_value();
  call.norm_gain = norm_gain.value_or(1.0);
  check(head >= 1 && call.channels % head == 0, "head must divide the channels");
  check(kernel_size >= 1 && kernel_size % 2 == 1 && kernel_size < (1 << 15),
        "the kernel size must be odd and below 32768");
  check(!call.normalize || kernel_size > 1, "norm_gain needs a kernel size of at least 2");
  call.input = array_of(input);
  return call;
}

inline Call make_call(const Tensor& input, const Tensor& channel_filter, const Tensor& spatial_filter, int64_t dilation,
                      int64_t stride, int64_t head, const std::string& kernel_combine,
                      std::optional<double> norm_gain) {
  for (const Tensor* tensor : {&input, &channel_filter, &spatial_filter}) {
    check(tensor->dim() == 4 && tensor->device() == input.device(), "expected tensors of 4 dimensions on one device");
    check(tensor->scalar_type() == input.scalar_type(), "expected tensors of one dtype");
  }
  Call call = make_call(input, channel_filter.size(3), dilation, stride, head, kernel_combine, norm_gain);
  call.channel_batch = channel_filter.size(0);
  call.spatial_batch = spatial_filter.size(0);
  const auto serves = [&](int64_t batch) { return batch == 1 || batch == call.batch; };
  check(serves(call.channel_batch) &&
            has_shape(channel_filter, {call.channel_batch, call.channels, call.kernel_size, call.kernel_size}),
        "channel_filter must have shape (B or 1, C, k, k)");
  const int64_t taps = call.kernel_size * call.kernel_size;
  const int64_t spatial_channels = spatial_filter.size(1);  // divided below: the product with head may overflow
  check(spatial_channels % taps == 0 && spatial_channels / taps == head && serves(call.spatial_batch) &&
            has_shape(spatial_filter, {call.spatial_batch, spatial_channels, call.out_height, call.out_width}),
        "spatial_filter must have shape (B or 1, head * k * k, Ho, Wo)");
  call.channel_filter = array_of(channel_filter);
  call.spatial_filter = array_of(spatial_filter);
  return call;
}

inline void set_grad_output(Call& call, const Tensor& grad_output, const Tensor& input) {
  check(grad_output.device() == input.device() && grad_output.scalar_type() == input.scalar_type(),
        "expected grad_output on the input's device and of its dtype");
  check(has_shape(grad_output, {call.batch, call.channels, call.out_height, call.out_width}),
        "grad_output must have shape (B, C, Ho, Wo)");
  call.output = array_of(grad_output);
}

// Dense as channels_last, judged as torch does: strides of dimensions of size 1 do not count.
inline bool has_channels_last_strides(const Tensor& tensor) {
  int64_t expected = 1;
  for (const int64_t dim : {1, 3, 2, 0}) {
    if (tensor.size(dim) == 1) continue;
    if (tensor.stride(dim) != expected) return false;
    expected *= tensor.size(dim);
  }
  return true;
}

// channels_last and not also contiguous.
inline bool is_channels_last(const Tensor& tensor) {
  return !tensor.is_contiguous() && has_channels_last_strides(tensor);
}

inline Tensor empty_like(const Tensor& like, IntHeaderOnlyArrayRef shape) {
  const auto format = is_channels_last(like) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  return torch::stable::empty(shape, like.scalar_type(), std::nullopt, like.device(), std::nullopt, format);
}

template <typename Device>
Tensor forward(const Tensor& input, const Tensor& channel_filter, const Tensor& spatial_filter, int64_t dilation,
               int64_t stride, int64_t head, const std::string& kernel_combine, std::optional<double> norm_gain) {
  check(Device::is_device(input), "expected the input on the operator's device");
  auto call = make_call(input, channel_filter, spatial_filter, dilation, stride, head, kernel_combine, norm_gain);
  const Device device(input);
  const Tensor output = empty_like(input, {call.batch, call.channels, call.out_height, call.out_width});
  call.output = array_of(output);
  if (output.numel() > 0) device.forward(call);
  return output;
}

template <typename Device>
Tensor input_gradient(const Tensor& grad_output, const Tensor& input, const Tensor& channel_filter,
                      const Tensor& spatial_filter, int64_t dilation, int64_t stride, int64_t head,
                      const std::string& kernel_combine, std::optional<double> norm_gain) {
  check(Device::is_device(input), "expected the input on the operator's device");
  auto call = make_call(input, channel_filter, spatial_filter, dilation, stride, head, kernel_combine, norm_gain);
  set_grad_output(call, grad_output, input);
  const Device device(input);
  const Tensor grad_input = empty_like(input, input.sizes());
  call.grad_input = array_of(grad_input);
  if (grad_input.numel() > 0) device.input_gradient(call);
  return grad_input;
}

template <typename Device>
std::tuple<Tensor, Tensor> filter_gradients(const Tensor& grad_output, const Tensor& input,
                                            const Tensor& channel_filter, const Tensor& spatial_filter,
                                            int64_t dilation, int64_t stride, int64_t head,
                                            const std::string& kernel_combine, std::optional<double> norm_gain) {
  check(Device::is_device(input), "expected the input on the operator's device");
  auto call = make_call(input, channel_filter, spatial_filter, dilation, stride, head, kernel_combine, norm_gain);
  set_grad_output(call, grad_output, input);
  const Device device(input);
  Tensor grad_channel = torch::stable::new_empty(channel_filter, channel_filter.sizes());
  Tensor grad_spatial = empty_like(spatial_filter, spatial_filter.sizes());
  call.grad_channel = array_of(grad_channel);
  call.grad_spatial = array_of(grad_spatial);
  if (grad_output.numel() > 0) {
    device.filter_gradients(call, grad_spatial);
  } else {
    torch::stable::zero_(grad_channel);
    torch::stable::zero_(grad_spatial);
  }
  return {grad_channel, grad_spatial};
}

}  // namespace ddf
