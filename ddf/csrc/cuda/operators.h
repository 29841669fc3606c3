// The operators for one type of element: each .cu file compiles some of them.
#pragma once

#include "../call.h"

namespace ddf::cuda {

template <typename T>
const char* gather(const Call& call, bool gradient, void* stream);
template <typename T>
int64_t workspace_bytes(const Call& call);
template <typename T>
const char* filter_gradients(const Call& call, void* workspace, void* stream);

}  // namespace ddf::cuda
