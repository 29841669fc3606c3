// Forward and the gradient of the input in float16 and bfloat16.
#include "launch_gather.cuh"

template const char* ddf::cuda::gather<__half>(const Call&, bool, void*);
template const char* ddf::cuda::gather<__nv_bfloat16>(const Call&, bool, void*);
