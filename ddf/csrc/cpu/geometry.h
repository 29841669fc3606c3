// Sizes and settings of one call, and where each tap of the kernel meets the map. Free of torch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace ddf {

enum class Combine { mul, add };

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// A tap reads the map at (y * stride + row_offset, x * stride + column_offset) for the output pixel (y, x);
// `rows` and `columns` are the output pixels for which that place lies on the map.
struct Tap {
  int64_t index;  // in kernel_size * kernel_size
  int64_t row_offset, column_offset;
  Range rows, columns;
};

struct Geometry {
  int64_t batch, channels, height, width;
  int64_t kernel_size, dilation, stride, head;
  int64_t out_height, out_width;
  std::vector<Tap> touching_taps;  // taps that miss the whole map are absent, so a huge dilation costs nothing

  Geometry(int64_t batch, int64_t channels, int64_t height, int64_t width, int64_t kernel_size, int64_t dilation,
           int64_t stride, int64_t head)
      : batch(batch),
        channels(channels),
        height(height),
        width(width),
        kernel_size(kernel_size),
        dilation(bounded(dilation, height, width)),
        stride(bounded(stride, height, width)),
        head(head),
        out_height(output_size(height)),
        out_width(output_size(width)) {
    collect_taps();
  }

  int64_t taps() const { return kernel_size * kernel_size; }
  int64_t map_size() const { return height * width; }
  int64_t out_size() const { return out_height * out_width; }
  int64_t channels_per_head() const { return channels / head; }

 private:
  // A step beyond the map's extent acts as one of just that extent; the products below then cannot overflow.
  static int64_t bounded(int64_t step, int64_t height, int64_t width) {
    return std::min(step, std::max<int64_t>({height, width, 1}));
  }

  int64_t output_size(int64_t size) const { return size == 0 ? 0 : (size - 1) / stride + 1; }

  // Output positions o in [0, output_size) with 0 <= o * stride + offset < size.
  Range positions_on_map(int64_t offset, int64_t size) const {
    const int64_t begin = offset < 0 ? (-offset + stride - 1) / stride : 0;
    const int64_t end = offset < size ? (size - 1 - offset) / stride + 1 : 0;
    return {begin, std::min(end, output_size(size))};
  }

  void collect_taps() {
    for (int64_t i = 0; i < kernel_size; ++i) {
      const int64_t row_offset = (i - kernel_size / 2) * dilation;
      const Range rows = positions_on_map(row_offset, height);
      if (rows.begin >= rows.end) continue;
      for (int64_t j = 0; j < kernel_size; ++j) {
        const int64_t column_offset = (j - kernel_size / 2) * dilation;
        const Range columns = positions_on_map(column_offset, width);
        if (columns.begin >= columns.end) continue;
        touching_taps.push_back({i * kernel_size + j, row_offset, column_offset, rows, columns});
      }
    }
  }
};

}  // namespace ddf
