// torch.ops.ddf.normalized_sum_, its gradients in training and batch_statistics_ on the LibTorch stable ABI: BatchNorm
// around the operation.
//
// A Device is one of operators.h that has normalized_sum(call, sum), normalized_sum_gradients(call, gradients) and
// batch_statistics(call, statistics), too.
#pragma once

#include <array>

#include "dense.h"

namespace ddf {

// A call that reads a map, and nothing of filters.
template <typename Device>
Call make_map_call(const Tensor& map) {
  check(Device::is_device(map), "expected the map on the operator's device");
  return make_call(map, 1, 1, 1, 1, "mul", std::nullopt);
}

// Writes relu(norm(map) + shortcut_norm(shortcut)) to output, which may be the map.
template <typename Device>
void normalized_sum(const Tensor& output, const Tensor& map, const std::vector<Tensor>& norm,
                    const std::optional<Tensor>& shortcut, const std::vector<Tensor>& shortcut_norm, double eps,
                    double shortcut_eps) {
  Call call = make_map_call<Device>(map);
  const bool channels_last = is_dense_channels_last(map);
  const auto check_like_map = [&](const Tensor& other) {
    check(is_like_map(other, map, channels_last),
          "expected output and shortcut of the map's shape, type, device and layout");
  };
  check_like_map(output);
  if (shortcut.has_value()) check_like_map(*shortcut);
  check(!norm.empty(), "expected a norm of the map");
  const NormalizedSum sum{make_norm(norm, eps, map), shortcut.has_value() ? shortcut->const_data_ptr() : nullptr,
                          make_norm(shortcut_norm, shortcut_eps, map), channels_last};
  const Device device(map);
  call.output = array_of(output);
  device.normalized_sum(call, sum);
}

// Gradients of a norm by the statistics of the batch, to new tensors: of the map, weight and bias.
inline NormGradients make_norm_gradients(const std::vector<Tensor>& norm, const Tensor& like, bool channels_last,
                                         std::array<Tensor, 3>& to) {
  check(norm.size() == 4, "expected map, weight, mean and inverse standard deviation of a norm");
  check(is_like_map(norm[0], like, channels_last), "expected maps of the output's shape, type, device and layout");
  for (size_t i = 1; i < norm.size(); ++i) check_norm_value(norm[i], like);
  to = {empty_like(like, like.sizes()), torch::stable::new_empty(like, {like.size(1)}),
        torch::stable::new_empty(like, {like.size(1)})};
  return {norm[0].const_data_ptr(), norm[1].const_data_ptr(), norm[2].const_data_ptr(), norm[3].const_data_ptr(),
          to[0].mutable_data_ptr(), to[1].mutable_data_ptr(), to[2].mutable_data_ptr()};
}

// Of normalized_sum with norms by the statistics of the batch, given as map, weight, mean and inverse standard
// deviation: gradients of map, weight and bias, and the same of the shortcut; what there is not, is empty.
template <typename Device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> normalized_sum_gradients(
    const Tensor& grad_output, const Tensor& output, const std::vector<Tensor>& norm,
    const std::vector<Tensor>& shortcut_norm, bool adds_shortcut) {
  Call call = make_map_call<Device>(output);
  const bool channels_last = is_dense_channels_last(output);
  check(is_like_map(grad_output, output, channels_last),
        "expected a gradient of the output's shape, type, device and layout");
  const auto nothing = [&] { return torch::stable::new_empty(output, {0}); };
  std::array<Tensor, 3> of_map, of_shortcut{nothing(), nothing(), nothing()};
  SumGradients to{grad_output.const_data_ptr(), output.const_data_ptr(), {}, 1, nullptr, channels_last};
  to.norms[0] = make_norm_gradients(norm, output, channels_last, of_map);
  if (!shortcut_norm.empty()) {
    to.norms[to.norm_count++] = make_norm_gradients(shortcut_norm, output, channels_last, of_shortcut);
  } else if (adds_shortcut) {
    of_shortcut[0] = empty_like(output, output.sizes());
    to.grad_sum = of_shortcut[0].mutable_data_ptr();
  }
  const Device device(output);
  device.normalized_sum_gradients(call, to);
  return std::tuple_cat(std::move(of_map), std::move(of_shortcut));
}

// Mean and variance of each channel of a map, towards which the running ones are moved.
template <typename Device>
std::tuple<Tensor, Tensor> batch_statistics(const Tensor& map, const Tensor& running_mean,
                                            const Tensor& running_variance, double momentum) {
  Call call = make_map_call<Device>(map);
  const bool channels_last = is_dense_channels_last(map);
  check(is_weight(running_mean, map, call.channels, 1) && is_weight(running_variance, map, call.channels, 1),
        "expected dense running values for each channel, of the map's type and device");
  const Device device(map);
  Tensor mean = torch::stable::new_empty(map, {call.channels});
  Tensor variance = torch::stable::new_empty(map, {call.channels});
  device.batch_statistics(call, {mean.mutable_data_ptr(), variance.mutable_data_ptr(), running_mean.mutable_data_ptr(),
                                 running_variance.mutable_data_ptr(), momentum, channels_last});
  return {mean, variance};
}

}  // namespace ddf
