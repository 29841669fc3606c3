// Gradients of the channel branch, from that of the channel filter: FilterNorm, the second layer, the first one.
#pragma once

#include "channel_taps.h"
#include "masks.h"

namespace ddf {
namespace {

// A linear layer's rows [rows.begin, rows.end) and columns [columns.begin, columns.end): writes the gradients of those
// weights, and adds what the rows give to the gradients of the layer's vectors, whose columns those are. `grads` are of
// the layer's outputs.
template <typename A>
struct LinearGradients {
  int64_t length, images;
  const A* weights;
  ImageVectors<const A> vectors, grads;
  A* grad_weights;
  ImageVectors<A> grad_vectors;

  static constexpr int kImages = kAccumulators / 2;  // each with a vector, and a sum

  void run(Range rows, Range columns) const {
    for (int64_t column = columns.begin; column < columns.end; column += kLanes<A>) {
      const int64_t count = columns.end - column;
      int64_t image = 0;
      for (; image + kImages <= images; image += kImages) multiply<kImages>(rows, column, count, image);
      for (; image < images; ++image) multiply<1>(rows, column, count, image);
    }
  }

 private:
  template <int together>
  DDF_NOINLINE void multiply(Range rows, int64_t column, int64_t count, int64_t image) const {
    Vector<A> values[together], sums[together];
    const A* factors[together];
    for (int i = 0; i < together; ++i) {
      values[i] = load_first(vectors[image + i] + column, count);
      sums[i] = load_first<A>(grad_vectors[image + i] + column, count);
      factors[i] = grads[image + i];
    }
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const Vector<A> weight = load_first(weights + row * length + column, count);
      A* to = grad_weights + row * length + column;
      Vector<A> total = image == 0 ? Vector<A>{} : load_first<A>(to, count);
#pragma GCC unroll 8
      for (int i = 0; i < together; ++i) {
        const Vector<A> factor = broadcast(factors[i][row]);
        total += factor * values[i];
        sums[i] += factor * weight;
      }
      store_first(to, total, count);
    }
    for (int i = 0; i < together; ++i) store_first(grad_vectors[image + i] + column, sums[i], count);
  }
};

// to[row]: the sum over the images.
template <typename A>
void sum_images(const ImageVectors<const A>& values, int64_t images, Range rows, A* to) {
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    to[row] = values[0][row];
    for (int64_t image = 1; image < images; ++image) to[row] += values[image][row];
  }
}

// The channel branch of all images of a call; the arrays that it keeps for itself are (batch, channels * taps).
template <typename A>
class ChannelTapsGradients {
 public:
  ChannelTapsGradients(const Call& call, const Branches& branches)
      : call_(call), branches_(branches), taps_(taps_of(call)), blocks_(ceil_divide(call.channels, kLanes<A>)) {}

  int64_t scratch_size() const { return call_.batch * (filter() + (blocks_ + 1) * branches_.hidden); }

  // Writes the channel filter, from its taps before FilterNorm. `scratch` is to be kept for `run`.
  void normalize(A* filters, A* scratch) const {
    parallel(call_, blocks_, [&](int64_t begin, int64_t end) {
      A* turned = thread_scratch<A>(taps_ * kLanes<A>);
      __builtin_memset(turned, 0, taps_ * kLanes<A> * sizeof(A));
      for (int64_t block = begin; block < end; ++block) {
        for (int64_t image = 0; image < call_.batch; ++image) {
          const Block part = block_of(block, image);
          A* normalized = scratch + part.place;
          copy(normalized, excited() + part.place, part.rows.size());
          normalize_channels(normalized, part.channels, taps_, scale() + part.rows.begin, turned, filters + part.place);
        }
      }
    });
  }

  // From the gradient of the channel filter, which it changes, to those of the weights and of the channels' sums.
  void run(A* grads, A* scratch, const WeightGradients& to, A* grad_sums) const {
    A *partial = scratch + call_.batch * filter(), *grad_hidden = partial + blocks_ * call_.batch * branches_.hidden;
    __builtin_memset(partial, 0, blocks_ * call_.batch * branches_.hidden * sizeof(A));
    parallel(call_, blocks_, [&](int64_t begin, int64_t end) {
      A* turned = thread_scratch<A>(2 * taps_ * kLanes<A>);
      __builtin_memset(turned, 0, 2 * taps_ * kLanes<A> * sizeof(A));
      for (int64_t block = begin; block < end; ++block) {
        excite(block, grads, scratch, partial + block * call_.batch * branches_.hidden, to, turned);
      }
    });
    sum_partial(partial, grad_hidden);
    squeeze(grad_hidden, to, grad_sums);
  }

 private:
  // A vector of channels of an image: where its taps lie among those of all images, and among those of one.
  struct Block {
    int64_t channels, place;
    Range rows;
  };

  int64_t filter() const { return call_.channels * taps_; }
  const A* excited() const { return static_cast<const A*>(branches_.predictions.excited); }
  const A* scale() const { return static_cast<const A*>(branches_.scale); }

  Block block_of(int64_t block, int64_t image) const {
    const int64_t first = block * kLanes<A>, channels = smaller<int64_t>(kLanes<A>, call_.channels - first);
    return {channels, image * filter() + first * taps_, {first * taps_, (first + channels) * taps_}};
  }

  void excite(int64_t block, A* grads, const A* normalized, A* grad_hidden, const WeightGradients& to,
              A* turned) const {
    const int64_t hidden = branches_.hidden;
    const Range rows = block_of(block, 0).rows;
    A* grad_scale = static_cast<A*>(to.scale);
    for (int64_t row = rows.begin; row < rows.end; ++row) grad_scale[row] = 0;
    for (int64_t image = 0; image < call_.batch; ++image) {
      const Block part = block_of(block, image);
      for (int64_t i = 0; i < part.rows.size(); ++i) {
        grad_scale[rows.begin + i] += grads[part.place + i] * normalized[part.place + i];
        grads[part.place + i] *= scale()[rows.begin + i];
      }
      A *turned_taps = turned, *turned_grads = turned + taps_ * kLanes<A>;
      transpose(turned_taps, kLanes<A>, excited() + part.place, taps_, part.channels, taps_);
      transpose(turned_grads, kLanes<A>, grads + part.place, taps_, part.channels, taps_);
      normalize_row_gradient(turned_taps, turned_grads, taps_, kLanes<A>, A{1}, false);
      transpose(grads + part.place, taps_, turned_grads, kLanes<A>, taps_, part.channels);
    }
    const ImageVectors<const A> outputs{grads, filter()}, inputs{hidden_of_all(), hidden};
    sum_images(outputs, call_.batch, rows, static_cast<A*>(to.excite_bias));
    const LinearGradients<A> layer{hidden,
                                   call_.batch,
                                   static_cast<const A*>(branches_.excite_weight),
                                   inputs,
                                   outputs,
                                   static_cast<A*>(to.excite_weight),
                                   {grad_hidden, hidden}};
    layer.run(rows, {0, hidden});
  }

  const A* hidden_of_all() const { return static_cast<const A*>(branches_.predictions.hidden); }

  // The blocks' parts, in one order, through the ReLU.
  void sum_partial(const A* partial, A* grad_hidden) const {
    const int64_t count = call_.batch * branches_.hidden;
    copy(grad_hidden, partial, count);
    for (int64_t block = 1; block < blocks_; ++block) {
      for (int64_t i = 0; i < count; ++i) grad_hidden[i] += partial[block * count + i];
    }
    const A* hidden = hidden_of_all();
    for (int64_t i = 0; i < count; ++i) grad_hidden[i] = hidden[i] <= 0 ? 0 : grad_hidden[i];  // NaN lets it pass
  }

  void squeeze(const A* grad_hidden, const WeightGradients& to, A* grad_sums) const {
    const int64_t hidden = branches_.hidden, channels = call_.channels;
    const A pixels = static_cast<A>(call_.height * call_.width);
    const ImageVectors<const A> outputs{grad_hidden, hidden};
    const ImageVectors<const A> inputs{static_cast<const A*>(branches_.predictions.means), channels};
    sum_images(outputs, call_.batch, {0, hidden}, static_cast<A*>(to.squeeze_bias));
    __builtin_memset(grad_sums, 0, call_.batch * channels * sizeof(A));
    const LinearGradients<A> layer{channels,
                                   call_.batch,
                                   static_cast<const A*>(branches_.squeeze_weight),
                                   inputs,
                                   outputs,
                                   static_cast<A*>(to.squeeze_weight),
                                   {grad_sums, channels}};
    parallel(call_, blocks_, [&](int64_t begin, int64_t end) {
      const Range columns{begin * kLanes<A>, smaller(end * kLanes<A>, channels)};
      layer.run({0, hidden}, columns);
      for (int64_t image = 0; image < call_.batch; ++image) {
        for (int64_t c = columns.begin; c < columns.end; ++c) grad_sums[image * channels + c] /= pixels;
      }
    });
  }

  const Call& call_;
  const Branches& branches_;
  int64_t taps_, blocks_;
};

}  // namespace
}  // namespace ddf
