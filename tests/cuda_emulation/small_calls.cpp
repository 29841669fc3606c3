// A program of a few small calls in float32, for ThreadSanitizer: contiguous and channels_last, of a kernel that is
// compiled and one that is not, normalised, with the gradients. Exit status 0, or what the sanitizer says.
#include <algorithm>
#include <cstdio>
#include <vector>

#include "../../ddf/csrc/cuda/launch.h"

namespace {

constexpr int64_t kBatch = 2, kChannels = 8, kHeight = 5, kWidth = 8;

ddf::Array map_of(std::vector<float>& values, int64_t channels, bool channels_last) {
  const int64_t image = channels * kHeight * kWidth;
  values.assign(kBatch * image, 0.5f);
  for (size_t index = 0; index < values.size(); ++index) values[index] += static_cast<float>(index % 7);
  if (channels_last) return {values.data(), image, 1, kWidth * channels, channels};
  return {values.data(), image, kHeight * kWidth, kWidth, 1};
}

bool run(int64_t kernel_size, bool channels_last) {
  const int64_t taps = kernel_size * kernel_size;
  std::vector<float> input, output, grad_input, spatial, grad_spatial, channel(kBatch * kChannels * taps, 0.25f);
  std::vector<float> grad_channel(channel);
  ddf::Call call{};
  call.dtype = ddf::Dtype::float32;
  call.batch = call.channel_batch = call.spatial_batch = kBatch;
  call.channels = kChannels;
  call.height = call.out_height = kHeight;
  call.width = call.out_width = kWidth;
  call.kernel_size = kernel_size;
  call.dilation = call.stride = call.head = 1;
  call.normalize = true;
  call.norm_gain = 0.5;
  call.input = map_of(input, kChannels, channels_last);
  call.output = map_of(output, kChannels, channels_last);
  call.grad_input = map_of(grad_input, kChannels, channels_last);
  call.spatial_filter = map_of(spatial, taps, channels_last);
  call.grad_spatial = map_of(grad_spatial, taps, channels_last);
  call.channel_filter = {channel.data(), kChannels * taps, taps, kernel_size, 1};
  call.grad_channel = {grad_channel.data(), kChannels * taps, taps, kernel_size, 1};
  std::vector<double> workspace(ddf::cuda::filter_gradients_workspace(call) / sizeof(double) + 1);
  for (const char* failure : {ddf::cuda::forward(call, nullptr), ddf::cuda::input_gradient(call, nullptr),
                              ddf::cuda::filter_gradients(call, workspace.data(), nullptr)}) {
    if (failure != nullptr) {
      std::puts(failure);
      return false;
    }
  }
  return true;
}

}  // namespace

int main() { return run(3, false) && run(3, true) && run(9, false) ? 0 : 1; }
