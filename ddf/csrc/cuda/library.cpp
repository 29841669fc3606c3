// Registers the CUDA kernels of torch.ops.ddf.* beside those of the CPU. Loads where there is no GPU, and under a torch
// built without CUDA.

#include <torch/csrc/stable/accelerator.h>

#include "../operators.h"
#include "launch.h"

// Weak: a torch without CUDA does not have it, and the stable header offers the stream from torch 2.13 on.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace ddf {
namespace {

void* current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  check(aoti_torch_get_current_cuda_stream != nullptr, "this torch was built without CUDA");
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return stream;
}

void check_launch(const char* error) {
  STD_TORCH_CHECK(error == nullptr, "ddf: a CUDA kernel was not launched: ", error);
}

class Cuda {
 public:
  explicit Cuda(const Tensor& input) : guard_(input.get_device_index()), stream_(current_stream(input)) {}
  static bool is_device(const Tensor& tensor) { return tensor.is_cuda(); }

  void forward(const Call& call) const { check_launch(cuda::forward(call, stream_)); }
  void input_gradient(const Call& call) const { check_launch(cuda::input_gradient(call, stream_)); }
  void filter_gradients(const Call& call, const Tensor& like) const {
    const int64_t bytes = cuda::filter_gradients_workspace(call);
    const Tensor workspace = torch::stable::empty({bytes}, ScalarType::Byte, std::nullopt, like.device());
    check_launch(cuda::filter_gradients(call, workspace.mutable_data_ptr(), stream_));
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_;
};

}  // namespace
}  // namespace ddf

STABLE_TORCH_LIBRARY_IMPL(ddf, CUDA, m) {
  m.impl("forward", TORCH_BOX(&ddf::forward<ddf::Cuda>));
  m.impl("input_gradient", TORCH_BOX(&ddf::input_gradient<ddf::Cuda>));
  m.impl("filter_gradients", TORCH_BOX(&ddf::filter_gradients<ddf::Cuda>));
}
