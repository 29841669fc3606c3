// Registers the CPU kernels of torch.ops.ddf.* (their schemas are defined in Python) on the LibTorch stable ABI, so
// that one binary serves every torch from 2.11 on and every Python.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/Dispatch_v2.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <tuple>
#include <type_traits>

#include "cpu/geometry.h"
#include "cpu/kernels.h"

#ifndef DDF_BUILD_STAMP
#error "compile with `python -m ddf build`, which defines DDF_BUILD_STAMP"
#endif

// Read from the file's bytes before the library is loaded.
extern "C" __attribute__((used, visibility("default"))) const char ddf_build_stamp[] = DDF_BUILD_STAMP;

namespace {

using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void check(bool fits, const char* expected) { STD_TORCH_CHECK(fits, "ddf: ", expected); }

bool has_shape(const Tensor& tensor, IntHeaderOnlyArrayRef shape) {
  return tensor.dim() == 4 && std::equal(shape.begin(), shape.end(), tensor.sizes().begin());
}

// Shapes are checked here as well, so that a direct call of torch.ops.ddf.* cannot read outside of a tensor; the
// messages made for users are in ddf/functional.py.
ddf::Geometry make_geometry(const Tensor& input, const Tensor& channel_filter, const Tensor& spatial_filter,
                            int64_t dilation, int64_t stride, int64_t head) {
  for (const Tensor* tensor : {&input, &channel_filter, &spatial_filter}) {
    check(tensor->dim() == 4 && tensor->is_cpu(), "expected tensors of 4 dimensions on the CPU");
    check(tensor->scalar_type() == input.scalar_type(), "expected tensors of one dtype");
  }
  const int64_t batch = input.size(0), channels = input.size(1), kernel_size = channel_filter.size(3);
  check(dilation >= 1 && stride >= 1, "dilation and stride must be at least 1");
  check(head >= 1 && channels % head == 0, "head must divide the channels");
  check(kernel_size % 2 == 1 && kernel_size < (1 << 30), "the kernel size must be odd");
  check(has_shape(channel_filter, {batch, channels, kernel_size, kernel_size}),
        "channel_filter must have shape (B, C, k, k)");
  ddf::Geometry geometry(batch, channels, input.size(2), input.size(3), kernel_size, dilation, stride, head);
  const int64_t spatial_channels = spatial_filter.size(1);  // divided below: the product with head may overflow
  check(spatial_channels % geometry.taps() == 0 && spatial_channels / geometry.taps() == head &&
            has_shape(spatial_filter, {batch, spatial_channels, geometry.out_height, geometry.out_width}),
        "spatial_filter must have shape (B, head * k * k, Ho, Wo)");
  return geometry;
}

void check_grad_output(const Tensor& grad_output, const Tensor& input, const ddf::Geometry& g) {
  check(grad_output.is_cpu() && grad_output.scalar_type() == input.scalar_type(),
        "expected grad_output on the CPU and of the input's dtype");
  check(has_shape(grad_output, {g.batch, g.channels, g.out_height, g.out_width}),
        "grad_output must have shape (B, C, Ho, Wo)");
}

// The half precisions are computed in float32.
ScalarType compute_dtype(const Tensor& tensor) {
  const ScalarType dtype = tensor.scalar_type();
  return dtype == ScalarType::Half || dtype == ScalarType::BFloat16 ? ScalarType::Float : dtype;
}

Tensor computable(const Tensor& tensor) {
  return torch::stable::contiguous(torch::stable::to(tensor, compute_dtype(tensor)));
}

Tensor empty_computable(const Tensor& like, IntHeaderOnlyArrayRef shape) {
  return torch::stable::new_empty(like, shape, compute_dtype(like));
}

// channels_last and not also contiguous, judged as torch does: strides of dimensions of size 1 do not count.
bool is_channels_last(const Tensor& tensor) {
  if (tensor.is_contiguous()) return false;
  int64_t expected = 1;
  for (const int64_t dim : {1, 3, 2, 0}) {
    if (tensor.size(dim) == 1) continue;
    if (tensor.stride(dim) != expected) return false;
    expected *= tensor.size(dim);
  }
  return true;
}

Tensor converted(const Tensor& computed, ScalarType dtype, bool channels_last) {
  if (computed.scalar_type() == dtype && !channels_last) return computed;
  const auto format = channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  Tensor result = torch::stable::empty(computed.sizes(), dtype, std::nullopt, computed.device(), std::nullopt, format);
  return torch::stable::copy_(result, computed);
}

// Runs task(0) ... task(tasks - 1) on torch's threads, several to a thread where each is too small to be worth one.
struct Parallel {
  template <typename Task>
  void operator()(int64_t tasks, int64_t cost, const Task& task) const {
    const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, cost));
    torch::stable::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
      for (int64_t index = begin; index < end; ++index) task(index);
    });
  }
};

// Calls kernel(combine, zero): a compile-time Combine and a zero of the type to compute in.
template <typename Kernel>
void dispatch(ScalarType dtype, const std::string& kernel_combine, const Kernel& kernel) {
  using Mul = std::integral_constant<ddf::Combine, ddf::Combine::mul>;
  using Add = std::integral_constant<ddf::Combine, ddf::Combine::add>;
  check(kernel_combine == "mul" || kernel_combine == "add", "kernel_combine must be 'mul' or 'add'");
  THO_DISPATCH_V2(dtype, "ddf", AT_WRAP([&] {
                    if (kernel_combine == "mul") {
                      kernel(Mul{}, scalar_t(0));
                    } else {
                      kernel(Add{}, scalar_t(0));
                    }
                  }),
                  AT_EXPAND(AT_FLOATING_TYPES));
}

Tensor forward(const Tensor& input, const Tensor& channel_filter, const Tensor& spatial_filter, int64_t dilation,
               int64_t stride, int64_t head, const std::string& kernel_combine) {
  const auto g = make_geometry(input, channel_filter, spatial_filter, dilation, stride, head);
  const Tensor x = computable(input), channel = computable(channel_filter), spatial = computable(spatial_filter);
  const Tensor output = empty_computable(input, {g.batch, g.channels, g.out_height, g.out_width});
  dispatch(x.scalar_type(), kernel_combine, [&](auto combine, auto zero) {
    using T = decltype(zero);
    ddf::forward<combine()>(g, x.const_data_ptr<T>(), channel.const_data_ptr<T>(), spatial.const_data_ptr<T>(),
                            output.mutable_data_ptr<T>(), Parallel{});
  });
  return converted(output, input.scalar_type(), is_channels_last(input));
}

Tensor input_gradient(const Tensor& grad_output, const Tensor& input, const Tensor& channel_filter,
                      const Tensor& spatial_filter, int64_t dilation, int64_t stride, int64_t head,
                      const std::string& kernel_combine) {
  const auto g = make_geometry(input, channel_filter, spatial_filter, dilation, stride, head);
  check_grad_output(grad_output, input, g);
  const Tensor grad = computable(grad_output);
  const Tensor channel = computable(channel_filter), spatial = computable(spatial_filter);
  const Tensor grad_input = empty_computable(input, input.sizes());
  dispatch(grad.scalar_type(), kernel_combine, [&](auto combine, auto zero) {
    using T = decltype(zero);
    ddf::input_gradient<combine()>(g, grad.const_data_ptr<T>(), channel.const_data_ptr<T>(),
                                   spatial.const_data_ptr<T>(), grad_input.mutable_data_ptr<T>(), Parallel{});
  });
  return converted(grad_input, input.scalar_type(), is_channels_last(input));
}

std::tuple<Tensor, Tensor> filter_gradients(const Tensor& grad_output, const Tensor& input,
                                            const Tensor& channel_filter, const Tensor& spatial_filter,
                                            int64_t dilation, int64_t stride, int64_t head,
                                            const std::string& kernel_combine) {
  const auto g = make_geometry(input, channel_filter, spatial_filter, dilation, stride, head);
  check_grad_output(grad_output, input, g);
  const Tensor grad = computable(grad_output), x = computable(input);
  const Tensor channel = computable(channel_filter), spatial = computable(spatial_filter);
  const Tensor grad_channel = empty_computable(input, channel_filter.sizes());
  const Tensor grad_spatial = empty_computable(input, spatial_filter.sizes());
  dispatch(x.scalar_type(), kernel_combine, [&](auto combine, auto zero) {
    using T = decltype(zero);
    ddf::filter_gradients<combine()>(g, grad.const_data_ptr<T>(), x.const_data_ptr<T>(), channel.const_data_ptr<T>(),
                                     spatial.const_data_ptr<T>(), grad_channel.mutable_data_ptr<T>(),
                                     grad_spatial.mutable_data_ptr<T>(), Parallel{});
  });
  const ScalarType dtype = input.scalar_type();
  return {converted(grad_channel, dtype, false), converted(grad_spatial, dtype, false)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddf, CPU, m) {
  m.impl("forward", TORCH_BOX(&forward));
  m.impl("input_gradient", TORCH_BOX(&input_gradient));
  m.impl("filter_gradients", TORCH_BOX(&filter_gradients));
}
