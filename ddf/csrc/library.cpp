// Registers the CPU kernels of torch.ops.ddf.* (their schemas are defined in Python) on the LibTorch stable ABI, so
// that one binary serves every torch from 2.11 on and every Python.

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "batch_norm.h"
#include "cpu/kernels.h"
#include "dynamic_filter.h"
#include "operators.h"

#ifndef DDF_BUILD_STAMP
#error "compile with `python -m ddf build`, which defines DDF_BUILD_STAMP"
#endif

// Read from the file's bytes before the library is loaded.
extern "C" __attribute__((used, visibility("default"))) const char ddf_build_stamp[] = DDF_BUILD_STAMP;

namespace ddf {
namespace {

// The kernels for this processor; DDF_CPU_CAPABILITY=default, avx2 or avx512 asks for less than it has.
Kernels choose_kernels() {
#if defined(DDF_HAS_X86_KERNELS)
  const char* wanted = std::getenv("DDF_CPU_CAPABILITY");
  const auto at_most = [&](const char* name) { return wanted == nullptr || std::strcmp(wanted, name) == 0; };
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && at_most("avx512")) return kernels_avx512();
  if (avx2 && (at_most("avx2") || at_most("avx512"))) return kernels_avx2();
#endif
  return kernels_default();
}

const Kernels kernels = choose_kernels();

void run_parallel(int64_t tasks, const void* context, RangeBody body) {
  torch::stable::parallel_for(0, tasks, 1, [=](int64_t begin, int64_t end) { body(context, begin, end); });
}

struct Cpu {
  explicit Cpu(const Tensor&) {}
  static bool is_device(const Tensor& tensor) { return tensor.is_cpu(); }

  void forward(Call& call) const { kernels.forward(on_threads(call)); }
  void input_gradient(Call& call) const { kernels.input_gradient(on_threads(call)); }
  void filter_gradients(Call& call, const Tensor&) const { kernels.filter_gradients(on_threads(call)); }
  void dynamic_filter(Call& call, const Branches& branches) const {
    kernels.dynamic_filter(on_threads(call), branches);
  }
  void dynamic_filter_gradients(Call& call, const Branches& branches, const WeightGradients& to) const {
    kernels.dynamic_filter_gradients(on_threads(call), branches, to);
  }
  void normalized_sum(Call& call, const NormalizedSum& sum) const { kernels.normalized_sum(on_threads(call), sum); }
  void normalized_sum_gradients(Call& call, const SumGradients& to) const {
    kernels.normalized_sum_gradients(on_threads(call), to);
  }
  void batch_statistics(Call& call, const Statistics& to) const { kernels.batch_statistics(on_threads(call), to); }

 private:
  static const Call& on_threads(Call& call) {
    call.threads = torch::stable::get_num_threads();
    call.parallel_for = run_parallel;
    return call;
  }
};

}  // namespace
}  // namespace ddf

extern "C" __attribute__((used, visibility("default"))) const char* ddf_cpu_capability() {
  return ddf::kernels.capability;
}

STABLE_TORCH_LIBRARY_IMPL(ddf, CPU, m) {
  m.impl("forward", TORCH_BOX(&ddf::forward<ddf::Cpu>));
  m.impl("input_gradient", TORCH_BOX(&ddf::input_gradient<ddf::Cpu>));
  m.impl("filter_gradients", TORCH_BOX(&ddf::filter_gradients<ddf::Cpu>));
  m.impl("dynamic_filter", TORCH_BOX(&ddf::dynamic_filter<ddf::Cpu>));
  m.impl("dynamic_filter_predictions", TORCH_BOX(&ddf::dynamic_filter_predictions<ddf::Cpu>));
  m.impl("dynamic_filter_gradients", TORCH_BOX(&ddf::dynamic_filter_gradients<ddf::Cpu>));
  m.impl("normalized_sum_", TORCH_BOX(&ddf::normalized_sum<ddf::Cpu>));
  m.impl("normalized_sum_gradients", TORCH_BOX(&ddf::normalized_sum_gradients<ddf::Cpu>));
  m.impl("batch_statistics_", TORCH_BOX(&ddf::batch_statistics<ddf::Cpu>));
}
