// Gradients of both filters in float16 and bfloat16.
#include "launch_filter_gradients.cuh"

namespace ddf::cuda {

template int64_t workspace_bytes<__half>(const Call&);
template const char* filter_gradients<__half>(const Call&, void*, void*);
template int64_t workspace_bytes<__nv_bfloat16>(const Call&);
template const char* filter_gradients<__nv_bfloat16>(const Call&, void*, void*);

}  // namespace ddf::cuda
