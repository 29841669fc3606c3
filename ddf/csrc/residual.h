// torch.ops.ddf.add_residual_ on the LibTorch stable ABI: the end of a residual block, in evaluation.
//
// A Device is one of operators.h that has add_residual(call, residual), too.
#pragma once

#include "dense.h"

namespace ddf {

// Writes relu(norm(map) + shortcut_norm(shortcut)) over the map.
template <typename Device>
void add_residual(const Tensor& map, const std::vector<Tensor>& norm, const Tensor& shortcut,
                  const std::vector<Tensor>& shortcut_norm, double eps, double shortcut_eps) {
  check(Device::is_device(map), "expected the map on the operator's device");
  Call call = make_call(map, 1, 1, 1, 1, "mul", std::nullopt);
  call.output = call.input;
  const bool channels_last = is_dense_channels_last(map);
  check(has_shape(shortcut, {call.batch, call.channels, call.height, call.width}) &&
            shortcut.scalar_type() == map.scalar_type() && shortcut.device() == map.device() &&
            (channels_last ? has_channels_last_strides(shortcut) : shortcut.is_contiguous()),
        "expected a shortcut of the map's shape, type, device and layout");
  check(!norm.empty(), "expected a norm of the map");
  const Residual residual{shortcut.const_data_ptr(), make_norm(norm, eps, map),
                          make_norm(shortcut_norm, shortcut_eps, map), channels_last};
  const Device device(map);
  device.add_residual(call, residual);
}

}  // namespace ddf
