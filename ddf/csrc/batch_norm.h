// torch.ops.ddf.normalized_sum_ and batch_statistics_ on the LibTorch stable ABI: BatchNorm around the operation.
//
// A Device is one of operators.h that has normalized_sum(call, sum) and batch_statistics(call, statistics), too.
#pragma once

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
    check(is_like_map(other, map, channels_last, {call.batch, call.channels, call.height, call.width}),
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

// Mean and variance of each channel of a contiguous map, towards which the running ones are moved.
template <typename Device>
std::tuple<Tensor, Tensor> batch_statistics(const Tensor& map, const Tensor& running_mean,
                                            const Tensor& running_variance, double momentum) {
  Call call = make_map_call<Device>(map);
  check(!is_dense_channels_last(map), "expected a contiguous map");
  check(is_weight(running_mean, map, call.channels, 1) && is_weight(running_variance, map, call.channels, 1),
        "expected dense running values for each channel, of the map's type and device");
  const Device device(map);
  Tensor mean = torch::stable::new_empty(map, {call.channels});
  Tensor variance = torch::stable::new_empty(map, {call.channels});
  device.batch_statistics(call, {mean.mutable_data_ptr(), variance.mutable_data_ptr(), running_mean.mutable_data_ptr(),
                                 running_variance.mutable_data_ptr(), momentum});
  return {mean, variance};
}

}  // namespace ddf
