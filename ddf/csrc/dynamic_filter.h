// torch.ops.ddf.dynamic_filter on the LibTorch stable ABI: the operation with the branches that predict its filters.
//
// A Device is one of operators.h that has dynamic_filter(call, branches), too.
#pragma once

#include "cpu/branches.h"
#include "dense.h"

namespace ddf {

// The weights, in the order of the operators' arguments: weight and bias of the spatial branch, and of the two layers
// of the channel branch; the scale of its FilterNorm.
struct Weights {
  const Tensor &spatial_weight, &spatial_bias, &squeeze_weight, &squeeze_bias, &excite_weight, &excite_bias, &scale;
};

// A call of the operation, and the branches that it has its filters from.
struct ModuleCall {
  Call call;
  Branches branches;
};

// The map is contiguous or channels_last, in float32 or float64, and not empty.
template <typename Device>
ModuleCall make_module_call(const Tensor& input, const Weights& weights, int64_t kernel_size, int64_t dilation,
                            int64_t stride, int64_t head, const std::string& kernel_combine,
                            std::optional<double> norm_gain) {
  check(Device::is_device(input), "expected the input on the operator's device");
  const Call call = make_call(input, kernel_size, dilation, stride, head, kernel_combine, norm_gain);
  Branches branches{};
  branches.channels_last = is_dense_channels_last(input);
  const int64_t squares = call.kernel_size * call.kernel_size;
  const int64_t taps = weights.scale.numel(), logits = weights.spatial_bias.numel();
  branches.hidden = weights.squeeze_bias.numel();
  check(
      taps % squares == 0 && taps / squares == call.channels && logits % squares == 0 && logits / squares == call.head,
      "expected a scale for each tap of each channel, and a logit for each tap of each head");
  check(is_weight(weights.spatial_weight, input, logits, call.channels) &&
            is_weight(weights.spatial_bias, input, logits, 1) &&
            is_weight(weights.squeeze_weight, input, branches.hidden, call.channels) &&
            is_weight(weights.squeeze_bias, input, branches.hidden, 1) &&
            is_weight(weights.excite_weight, input, taps, branches.hidden) &&
            is_weight(weights.excite_bias, input, taps, 1) && is_weight(weights.scale, input, taps, 1),
        "expected dense weights of matching shapes, of the map's type and device");
  branches.spatial_weight = weights.spatial_weight.const_data_ptr();
  branches.spatial_bias = weights.spatial_bias.const_data_ptr();
  branches.squeeze_weight = weights.squeeze_weight.const_data_ptr();
  branches.squeeze_bias = weights.squeeze_bias.const_data_ptr();
  branches.excite_weight = weights.excite_weight.const_data_ptr();
  branches.excite_bias = weights.excite_bias.const_data_ptr();
  branches.scale = weights.scale.const_data_ptr();
  return {call, branches};
}

template <typename Device>
Tensor dynamic_filter(const Tensor& input, const Tensor& spatial_weight, const Tensor& spatial_bias,
                      const Tensor& squeeze_weight, const Tensor& squeeze_bias, const Tensor& excite_weight,
                      const Tensor& excite_bias, const Tensor& scale, int64_t kernel_size, int64_t dilation,
                      int64_t stride, int64_t head, const std::string& kernel_combine, std::optional<double> norm_gain,
                      const std::vector<Tensor>& input_norm, const std::vector<Tensor>& output_norm, double input_eps,
                      double output_eps) {
  auto [call, branches] = make_module_call<Device>(
      input, {spatial_weight, spatial_bias, squeeze_weight, squeeze_bias, excite_weight, excite_bias, scale},
      kernel_size, dilation, stride, head, kernel_combine, norm_gain);
  branches.before = make_norm(input_norm, input_eps, input);
  branches.after = make_norm(output_norm, output_eps, input);
  const Device device(input);
  const Tensor output = empty_like(input, {call.batch, call.channels, call.out_height, call.out_width});
  call.output = array_of(output);
  device.dynamic_filter(call, branches);
  return output;
}

// The output, and what the gradients need besides the arguments: logits, means, hidden, excited (see Predictions).
template <typename Device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> dynamic_filter_predictions(
    const Tensor& input, const Tensor& spatial_weight, const Tensor& spatial_bias, const Tensor& squeeze_weight,
    const Tensor& squeeze_bias, const Tensor& excite_weight, const Tensor& excite_bias, const Tensor& scale,
    int64_t kernel_size, int64_t dilation, int64_t stride, int64_t head, const std::string& kernel_combine,
    std::optional<double> norm_gain) {
  auto [call, branches] = make_module_call<Device>(
      input, {spatial_weight, spatial_bias, squeeze_weight, squeeze_bias, excite_weight, excite_bias, scale},
      kernel_size, dilation, stride, head, kernel_combine, norm_gain);
  const Device device(input);
  const Tensor output = empty_like(input, {call.batch, call.channels, call.out_height, call.out_width});
  Tensor logits = empty_like(input, {call.batch, spatial_bias.numel(), call.out_height, call.out_width});
  Tensor means = torch::stable::new_empty(input, {call.batch, call.channels});
  Tensor hidden = torch::stable::new_empty(input, {call.batch, branches.hidden});
  Tensor excited = torch::stable::new_empty(input, {call.batch, scale.numel()});
  call.output = array_of(output);
  branches.predictions = {logits.mutable_data_ptr(), means.mutable_data_ptr(), hidden.mutable_data_ptr(),
                          excited.mutable_data_ptr()};
  device.dynamic_filter(call, branches);
  return {output, logits, means, hidden, excited};
}

// Gradients of the input and of the weights, in the order of the arguments.
template <typename Device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> dynamic_filter_gradients(
    const Tensor& grad_output, const Tensor& input, const Tensor& spatial_weight, const Tensor& spatial_bias,
    const Tensor& squeeze_weight, const Tensor& squeeze_bias, const Tensor& excite_weight, const Tensor& excite_bias,
    const Tensor& scale, const Tensor& logits, const Tensor& means, const Tensor& hidden, const Tensor& excited,
    int64_t kernel_size, int64_t dilation, int64_t stride, int64_t head, const std::string& kernel_combine,
    std::optional<double> norm_gain) {
  auto [call, branches] = make_module_call<Device>(
      input, {spatial_weight, spatial_bias, squeeze_weight, squeeze_bias, excite_weight, excite_bias, scale},
      kernel_size, dilation, stride, head, kernel_combine, norm_gain);
  set_grad_output(call, grad_output, input);
  check(is_like_map(logits, input, branches.channels_last,
                    {call.batch, spatial_bias.numel(), call.out_height, call.out_width}),
        "expected logits for each pixel of the output, of the map's type, device and layout");
  check(is_weight(means, input, call.batch, call.channels) && is_weight(hidden, input, call.batch, branches.hidden) &&
            is_weight(excited, input, call.batch, scale.numel()),
        "expected means, hidden channels and taps of each image");
  branches.predictions = {const_cast<void*>(logits.const_data_ptr()), const_cast<void*>(means.const_data_ptr()),
                          const_cast<void*>(hidden.const_data_ptr()), const_cast<void*>(excited.const_data_ptr())};
  const Device device(input);
  const auto like = [](const Tensor& tensor) { return torch::stable::new_empty(tensor, tensor.sizes()); };
  Tensor grad_input = empty_like(input, input.sizes());
  Tensor spatial[] = {like(spatial_weight), like(spatial_bias)}, squeeze[] = {like(squeeze_weight), like(squeeze_bias)};
  Tensor excite[] = {like(excite_weight), like(excite_bias)}, grad_scale = like(scale);
  call.grad_input = array_of(grad_input);
  device.dynamic_filter_gradients(
      call, branches,
      {spatial[0].mutable_data_ptr(), spatial[1].mutable_data_ptr(), squeeze[0].mutable_data_ptr(),
       squeeze[1].mutable_data_ptr(), excite[0].mutable_data_ptr(), excite[1].mutable_data_ptr(),
       grad_scale.mutable_data_ptr()});
  return {grad_input, spatial[0], spatial[1], squeeze[0], squeeze[1], excite[0], excite[1], grad_scale};
}

}  // namespace ddf
