// Forward and the gradient of the input in float64 and float32.
#include "launch_gather.cuh"

template const char* ddf::cuda::gather<double>(const Call&, bool, void*);
template const char* ddf::cuda::gather<float>(const Call&, bool, void*);
