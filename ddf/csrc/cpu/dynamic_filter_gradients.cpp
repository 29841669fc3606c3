// Gradients of the operation with the branches that predict its filters, with one instruction set; compiled once for
// each, free of torch.
#include "capability.h"
#include "channel_taps_gradients.h"
#include "image_groups.h"
#include "kernels.h"
#include "map_gradients_pixels.h"
#include "map_gradients_planes.h"

namespace ddf {
namespace {

// Adds to the map's gradient, where the operation's part stands, those of the branches. A task is a block of an image's
// channels.
template <typename A, typename Layout>
void add_branches(const Call& call, const Layout& layout, const A* packed, const MapGradients<A>& gradients) {
  const int64_t block = layout.block_channels(), blocks = ceil_divide(call.channels, block);
  const int64_t logits = logits_of(call), image_logits = logits * call.out_height * call.out_width;
  parallel(call, call.batch * blocks, [&](int64_t begin, int64_t end) {
    A* scratch = thread_scratch<A>(layout.scratch_size());
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / blocks, first = task % blocks * block;
      const A* grad_logits = gradients.grad_logits + image * image_logits;
      if (task == begin || first == 0) layout.prepare(grad_logits, scratch);
      if (first == 0) layout.sum_logits(grad_logits, gradients.partial_biases + image * logits);
      layout.run(gradients, packed, image, {first, smaller(first + block, call.channels)}, scratch);
    }
  });
}

// The spatial branch's weights: sums of the images' parts.
template <typename A>
void sum_partial(const Call& call, const MapGradients<A>& gradients, const WeightGradients& to) {
  const int64_t logits = logits_of(call), weights = map_passes(call) * kMapRows * call.channels;
  const ImageVectors<const A> partial_weights{gradients.partial_weights, weights};
  const ImageVectors<const A> partial_biases{gradients.partial_biases, logits};
  sum_images(partial_weights, call.batch, {0, logits * call.channels}, static_cast<A*>(to.spatial_weight));
  sum_images(partial_biases, call.batch, {0, logits}, static_cast<A*>(to.spatial_bias));
}

template <typename A, template <typename> class MapLayout>
void gradients(Call call, const Branches& branches, const WeightGradients& to, Kernel input_gradient,
               Kernel filter_gradients) {
  const int64_t logits = logits_of(call), filters = call.channels * taps_of(call);
  const int64_t image_logits = logits * call.out_height * call.out_width;
  const int64_t image_weights = map_passes(call) * kMapRows * call.channels;
  const ChannelTapsGradients<A> channel_taps(call, branches);
  const int64_t packed_size = MapLayout<A>(call).packed_size();
  Buffer buffer;
  A* scratch = buffer.at_least<A>(call.batch * (2 * filters + image_logits + call.channels + image_weights + logits) +
                                  channel_taps.scratch_size() + packed_size);
  const auto take = [&](int64_t count) {
    scratch += count;
    return scratch - count;
  };
  A *channel_filter = take(call.batch * filters), *grad_channel = take(call.batch * filters);
  A *grad_logits = take(call.batch * image_logits), *grad_sums = take(call.batch * call.channels);
  A *packed = take(packed_size), *channel_scratch = take(channel_taps.scratch_size());
  const MapGradients<A> all{grad_logits, grad_sums, take(call.batch * image_weights), take(call.batch * logits)};

  call.channel_batch = call.spatial_batch = call.batch;
  call.channel_filter = {channel_filter, filters, taps_of(call), call.kernel_size, 1};
  call.grad_channel = {grad_channel, filters, taps_of(call), call.kernel_size, 1};
  call.spatial_filter =
      dense_array(branches.predictions.logits, logits, call.out_height, call.out_width, branches.channels_last);
  call.grad_spatial = dense_array(grad_logits, logits, call.out_height, call.out_width, branches.channels_last);
  channel_taps.normalize(channel_filter, channel_scratch);
  filter_gradients(call);
  channel_taps.run(grad_channel, channel_scratch, to, grad_sums);
  MapLayout<A>(call).pack(branches, packed);
  in_cached_groups<A>(call, [&](const Call& part, int64_t first) {
    input_gradient(part);
    add_branches(part, MapLayout<A>(part), packed,
                 MapGradients<A>{all.grad_logits + first * image_logits, all.grad_sums + first * call.channels,
                                 all.partial_weights + first * image_weights, all.partial_biases + first * logits});
  });
  sum_partial(call, all, to);
}

template <typename A>
void gradients_of_layout(const Call& call, const Branches& branches, const WeightGradients& to, Kernel input_gradient,
                         Kernel filter_gradients) {
  if (branches.channels_last) {
    gradients<A, PixelMapGradients>(call, branches, to, input_gradient, filter_gradients);
  } else {
    gradients<A, PlaneMapGradients>(call, branches, to, input_gradient, filter_gradients);
  }
}

}  // namespace

void DDF_NAMED(dynamic_filter_gradients_, DDF_CPU_CAPABILITY)(const Call& call, const Branches& branches,
                                                              const WeightGradients& to, Kernel input_gradient,
                                                              Kernel filter_gradients) {
  if (call.dtype == Dtype::float64) {
    gradients_of_layout<double>(call, branches, to, input_gradient, filter_gradients);
  } else {
    gradients_of_layout<float>(call, branches, to, input_gradient, filter_gradients);
  }
}

}  // namespace ddf
