// The CUDA kernels as the host calls them: each function launches on a stream and waits for nothing. Free of torch and of
// the CUDA runtime, so that whatever registers or emulates them includes this alone.
//
// The arrays of a Call lie on the device. Functions that launch return nullptr, or what the CUDA runtime says of a launch
// that failed.
#pragma once

#include <cstdint>

#include "../call.h"

namespace ddf::cuda {

const char* forward(const Call& call, void* stream);         // writes output
const char* input_gradient(const Call& call, void* stream);  // writes grad_input

// Bytes of device memory, aligned to 256, that filter_gradients keeps its partial sums in; may be 0.
int64_t filter_gradients_workspace(const Call& call);
// Writes grad_channel (contiguous) and grad_spatial.
const char* filter_gradients(const Call& call, void* workspace, void* stream);

}  // namespace ddf::cuda
