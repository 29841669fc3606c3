// The kernels of one instruction set; compiled once for each, free of torch.
#include "kernels.h"

#include "batch_norm.h"
#include "batch_norm_gradients.h"
#include "batch_statistics.h"
#include "capability.h"
#include "pixels_filter_gradients.h"
#include "pixels_gather.h"
#include "planes_filter_gradients.h"
#include "planes_gather.h"
#include "row_tiles_gather.h"
#include "strided_rows_gather.h"
#include "transposed.h"
#include "whole_planes_filter_gradients.h"
#include "whole_planes_gather.h"

namespace ddf {
namespace {

template <typename Body>
void dispatch(const Call& call, const Body& body) {
  switch (call.dtype) {
    case Dtype::float64:
      return body(double{});
    case Dtype::float32:
      return body(float{});
    case Dtype::float16:
      return body(Half{});
    case Dtype::bfloat16:
      return body(BFloat16{});
  }
}

template <typename T>
void gather(const Call& call, const AxisSet& rows, const AxisSet& columns, const Array& source, const Array& output) {
  const auto gather_pixels = [&](const Call& part, const Array& from, const Array& to) {
    for (int64_t row_phase = 0; row_phase < rows.count; ++row_phase) {
      for (int64_t column_phase = 0; column_phase < columns.count; ++column_phase) {
        gather_all_pixels<T>(part, rows[row_phase], columns[column_phase], from, to);
      }
    }
  };
  const bool has_planes = gathers_whole_planes<T>(call, rows, columns, source, output);
  const bool transposes = gathers_transposed<T>(call, columns, source, output);
  const bool has_row_tiles = gathers_row_tiles<T>(call, rows, columns, source, output);
  if (has_pixels<T>(call, source) && has_pixels<T>(call, output)) {
    gather_pixels(call, source, output);
  } else if (gathers_strided_rows<T>(call, rows, columns, source, output)) {
    gather_strided_rows(call, rows[0], columns[0], source, output);
  } else if (has_row_tiles && !(has_planes && favours_whole_planes(columns[0]))) {
    gather_row_tiles(call, rows[0], columns[0], source, output);
  } else if (has_planes && !(transposes && favours_transposed(call))) {
    gather_whole_planes<T>(call, rows[0], columns[0], source, output);
  } else if (transposes) {
    gather_transposed<T>(call, rows, columns, source, output, gather_pixels);
  } else {
    gather_planes<T>(call, rows, columns, source, output);
  }
}

void forward(const Call& call) {
  const Axis rows = forward_rows(call), columns = forward_columns(call);
  dispatch(call,
           [&]<typename T>(T) { gather<T>(call, AxisSet(&rows, 1), AxisSet(&columns, 1), call.input, call.output); });
}

void input_gradient(const Call& call) {
  Buffer buffer;
  const int64_t row_phases = smaller(call.stride, call.height), column_phases = smaller(call.stride, call.width);
  Axis* axes = buffer.at_least<Axis>(row_phases + column_phases);
  for (int64_t phase = 0; phase < row_phases; ++phase) {
    axes[phase] = gradient_axis(call.height, call.out_height, call.kernel_size, call.dilation, call.stride, phase);
  }
  for (int64_t phase = 0; phase < column_phases; ++phase) {
    axes[row_phases + phase] =
        gradient_axis(call.width, call.out_width, call.kernel_size, call.dilation, call.stride, phase);
  }
  const AxisSet rows(axes, row_phases), columns(axes + row_phases, column_phases);
  dispatch(call, [&]<typename T>(T) { gather<T>(call, rows, columns, call.output, call.grad_input); });
}

void filter_gradients(const Call& call) {
  dispatch(call, [&]<typename T>(T) {
    if (has_pixels<T>(call, call.input) && has_pixels<T>(call, call.output)) {
      run_filter_gradients<PixelGradientWorker, T>(call);
    } else if (adds_whole_planes<T>(call) && !(adds_transposed<T>(call) && favours_transposed_gradients(call))) {
      filter_gradients_of_whole_planes(call);
    } else if (adds_transposed<T>(call)) {
      filter_gradients_transposed<T>(call);
    } else {
      run_filter_gradients<PlaneGradientWorker, T>(call);
    }
  });
}

void dynamic_filter(const Call& call, const Branches& branches) {
  DDF_NAMED(dynamic_filter_, DDF_CPU_CAPABILITY)(call, branches, forward);
}

void dynamic_filter_gradients(const Call& call, const Branches& branches, const WeightGradients& to) {
  DDF_NAMED(dynamic_filter_gradients_, DDF_CPU_CAPABILITY)(call, branches, to, input_gradient, filter_gradients);
}

// Of float32 and float64 only.
template <typename Body>
void dispatch_wide(const Call& call, const Body& body) {
  if (call.dtype == Dtype::float64) return body(double{});
  body(float{});
}

void normalized_sum(const Call& call, const NormalizedSum& sum) {
  dispatch_wide(call, [&]<typename A>(A) { normalized_sum<A>(call, sum); });
}

void normalized_sum_gradients(const Call& call, const SumGradients& to) {
  dispatch_wide(call, [&]<typename A>(A) { normalized_sum_gradients<A>(call, to); });
}

void batch_statistics(const Call& call, const Statistics& to) {
  dispatch_wide(call, [&]<typename A>(A) { batch_statistics<A>(call, to); });
}

}  // namespace

Kernels DDF_NAMED(kernels_, DDF_CPU_CAPABILITY)() {
  return {DDF_TEXT(DDF_CPU_CAPABILITY), forward,        input_gradient,           filter_gradients, dynamic_filter,
          dynamic_filter_gradients,     normalized_sum, normalized_sum_gradients, batch_statistics};
}

}  // namespace ddf
