// The functions that the host calls: to the kernels of the call's dtype.
#include "launch.h"

#include "operators.h"
#include "scalar.cuh"

namespace ddf::cuda {

namespace {

template <typename Run>
auto dispatch(Dtype dtype, const Run& run) {
  switch (dtype) {
    case Dtype::float64:
      return run(double());
    case Dtype::float32:
      return run(float());
    case Dtype::float16:
      return run(__half());
    default:
      return run(__nv_bfloat16());
  }
}

}  // namespace

const char* forward(const Call& call, void* stream) {
  return dispatch(call.dtype, [&]<typename T>(T) { return gather<T>(call, false, stream); });
}

const char* input_gradient(const Call& call, void* stream) {
  return dispatch(call.dtype, [&]<typename T>(T) { return gather<T>(call, true, stream); });
}

int64_t filter_gradients_workspace(const Call& call) {
  return dispatch(call.dtype, [&]<typename T>(T) { return workspace_bytes<T>(call); });
}

const char* filter_gradients(const Call& call, void* workspace, void* stream) {
  return dispatch(call.dtype, [&]<typename T>(T) { return filter_gradients<T>(call, workspace, stream); });
}

}  // namespace ddf::cuda
