// torch.ops.ddf.dynamic_filter on the LibTorch stable ABI: the operation with the branches that predict its filters.
//
// A Device is one of operators.h that has dynamic_filter(call, branches), too.
#pragma once

#include <vector>

#include "cpu/branches.h"
#include "operators.h"

namespace ddf {

// Whether a weight is of the map's type and device, and dense, with `rows` rows of `columns`.
inline bool is_weight(const Tensor& weight, const Tensor& input, int64_t rows, int64_t columns) {
  return weight.dim() > 0 && weight.size(0) == rows && columns > 0 && weight.numel() / columns == rows &&
         weight.numel() % columns == 0 && weight.is_contiguous() && weight.device() == input.device() &&
         weight.scalar_type() == input.scalar_type();
}

inline Norm make_norm(const std::vector<Tensor>& values, double eps, const Tensor& input) {
  if (values.empty()) return {};
  check(values.size() == 4, "expected weight, bias, mean and variance of a norm, or nothing");
  for (const Tensor& value : values) {
    check(is_weight(value, input, input.size(1), 1),
          "expected dense values of a norm for each channel, of the map's type and device");
  }
  return {values[0].const_data_ptr(), values[1].const_data_ptr(), values[2].const_data_ptr(),
          values[3].const_data_ptr(), eps};
}

// Weights and biases of the spatial branch, of the two layers of the channel branch, and of its FilterNorm; the norms
// before and after, if any. The map is contiguous or channels_last, in float32 or float64, and not empty.
template <typename Device>
Tensor dynamic_filter(const Tensor& input, const Tensor& spatial_weight, const Tensor& spatial_bias,
                      const Tensor& squeeze_weight, const Tensor& squeeze_bias, const Tensor& excite_weight,
                      const Tensor& excite_bias, const Tensor& scale, int64_t kernel_size, int64_t dilation,
                      int64_t stride, int64_t head, const std::string& kernel_combine, std::optional<double> norm_gain,
                      const std::vector<Tensor>& input_norm, const std::vector<Tensor>& output_norm, double input_eps,
                      double output_eps) {
  check(Device::is_device(input), "expected the input on the operator's device");
  auto call = make_call(input, kernel_size, dilation, stride, head, kernel_combine, norm_gain);
  check(call.dtype == Dtype::float32 || call.dtype == Dtype::float64, "expected float32 or float64");
  Branches branches{};
  branches.channels_last = is_channels_last(input);
  check(input.numel() > 0 && (branches.channels_last || input.is_contiguous()),
        "expected a contiguous or channels_last map that is not empty");
  const int64_t squares = kernel_size * kernel_size, taps = scale.numel(), logits = spatial_bias.numel();
  branches.hidden = squeeze_bias.numel();
  check(taps % squares == 0 && taps / squares == call.channels && logits % squares == 0 && logits / squares == head,
        "expected a scale for each tap of each channel, and a logit for each tap of each head");
  check(is_weight(spatial_weight, input, logits, call.channels) && is_weight(spatial_bias, input, logits, 1) &&
            is_weight(squeeze_weight, input, branches.hidden, call.channels) &&
            is_weight(squeeze_bias, input, branches.hidden, 1) &&
            is_weight(excite_weight, input, taps, branches.hidden) && is_weight(excite_bias, input, taps, 1) &&
            is_weight(scale, input, taps, 1),
        "expected dense weights of matching shapes, of the map's type and device");
  branches.spatial_weight = spatial_weight.const_data_ptr();
  branches.spatial_bias = spatial_bias.const_data_ptr();
  branches.squeeze_weight = squeeze_weight.const_data_ptr();
  branches.squeeze_bias = squeeze_bias.const_data_ptr();
  branches.excite_weight = excite_weight.const_data_ptr();
  branches.excite_bias = excite_bias.const_data_ptr();
  branches.scale = scale.const_data_ptr();
  branches.before = make_norm(input_norm, input_eps, input);
  branches.after = make_norm(output_norm, output_eps, input);
  const Device device(input);
  const Tensor output = empty_like(input, {call.batch, call.channels, call.out_height, call.out_width});
  call.output = array_of(output);
  device.dynamic_filter(call, branches);
  return output;
}

}  // namespace ddf
