// Gradients of both filters in float64 and float32.
#include "launch_filter_gradients.cuh"

namespace ddf::cuda {

template int64_t workspace_bytes<double>(const Call&);
template const char* filter_gradients<double>(const Call&, void*, void*);
template int64_t workspace_bytes<float>(const Call&);
template const char* filter_gradients<float>(const Call&, void*, void*);

}  // namespace ddf::cuda
