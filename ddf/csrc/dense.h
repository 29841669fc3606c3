// Maps and weights of the operators that take in what surrounds the operation: dense, in float32 or float64.
#pragma once

#include <vector>

#include "cpu/norm.h"
#include "operators.h"

namespace ddf {

// Whether a map, which is to be dense, is channels_last; else it is contiguous.
inline bool is_dense_channels_last(const Tensor& map) {
  const Dtype dtype = dtype_of(map);
  check(dtype == Dtype::float32 || dtype == Dtype::float64, "expected float32 or float64");
  const bool channels_last = is_channels_last(map);
  check(map.numel() > 0 && (channels_last || map.is_contiguous()),
        "expected a contiguous or channels_last map that is not empty");
  return channels_last;
}

// Whether a tensor of a call with this map has this shape, and the map's type, device and layout.
inline bool is_like_map(const Tensor& tensor, const Tensor& map, bool channels_last,
                        std::initializer_list<int64_t> shape) {
  return has_shape(tensor, shape) && tensor.scalar_type() == map.scalar_type() && tensor.device() == map.device() &&
         (channels_last ? has_channels_last_strides(tensor) : tensor.is_contiguous());
}

inline bool is_like_map(const Tensor& tensor, const Tensor& map, bool channels_last) {
  return is_like_map(tensor, map, channels_last, {map.size(0), map.size(1), map.size(2), map.size(3)});
}

// Whether a weight is of the map's type and device, and dense, with `rows` rows of `columns`.
inline bool is_weight(const Tensor& weight, const Tensor& input, int64_t rows, int64_t columns) {
  return weight.dim() > 0 && weight.size(0) == rows && columns > 0 && weight.numel() / columns == rows &&
         weight.numel() % columns == 0 && weight.is_contiguous() && weight.device() == input.device() &&
         weight.scalar_type() == input.scalar_type();
}

inline void check_norm_value(const Tensor& value, const Tensor& map) {
  check(is_weight(value, map, map.size(1), 1),
        "expected dense values of a norm for each channel, of the map's type and device");
}

inline Norm make_norm(const std::vector<Tensor>& values, double eps, const Tensor& input) {
  if (values.empty()) return {};
  check(values.size() == 4, "expected weight, bias, mean and variance of a norm, or nothing");
  for (const Tensor& value : values) check_norm_value(value, input);
  return {values[0].const_data_ptr(), values[1].const_data_ptr(), values[2].const_data_ptr(),
          values[3].const_data_ptr(), eps};
}

}  // namespace ddf
