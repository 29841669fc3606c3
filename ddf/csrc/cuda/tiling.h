// The sizes that the kernels are cut to, in one place: launches, tests and documentation read them here.
#pragma once

#include <cstdint>

namespace ddf::cuda {

inline constexpr int kVectorBytes = 16;         // of one access, where the layout allows it
inline constexpr int kPlaneThreads = 128;       // a block of the kernels for contiguous maps: pixels in linear order
inline constexpr int kPixelThreads = 128;       // a block of the kernels for channels_last maps
inline constexpr int kTileColumns = 8;          // pixels of a channels_last tile, and at most so many rows
inline constexpr int kTileRows = 8;
inline constexpr int kPixelsPerThread = 4;      // neighbours in a row that a thread of these computes at once
inline constexpr int kLargestGroup = 64;        // channels that one reading of the spatial filter serves (planes)
inline constexpr int kFilterBytes = 8 << 10;    // of shared memory, for their filters
inline constexpr int kLargestSum = 128;         // channels, or pixels, that a block adds up for the filters' gradients
inline constexpr int kSmallestSum = 16;         // fewer would write more partial sums than they read of the maps
inline constexpr int kSumBytes = 16 << 10;      // of shared memory, for the filters of those
inline constexpr int kGeneralThreads = 256;
inline constexpr int kWarp = 32;
inline constexpr int64_t kSharedBytes = 48 << 10;  // that a block may have on every architecture without asking

// Taps up to this size of kernel stay in registers, those of larger ones in shared memory.
inline constexpr int kRegisterKernel = 3;
inline constexpr int kScalarRegisterKernel = 5;  // where a thread owns a single pixel

// Elements of 16 stored bytes; with taps in shared memory, of 16 accumulated bytes, since arithmetic bounds those.
constexpr int vector_length(int stored_bytes, int accumulated_bytes, int kernel_size) {
  return kVectorBytes / (kernel_size <= kRegisterKernel ? stored_bytes : accumulated_bytes);
}

// Threads of a block for planes: the taps of each take k*k*16 bytes of shared memory above kRegisterKernel.
constexpr int plane_threads(int kernel_size, int vector) {
  if (vector == 1 || kernel_size <= kRegisterKernel) return kernel_size == 7 ? 64 : kPlaneThreads;
  return kernel_size == 5 ? 64 : 32;
}

// Blocks that a multiprocessor should hold: what bounds the registers of a thread, here to 128, which nothing spills
// from, but for vectors of eight pixels (168) and what needs more in float64 or at k = 5 and 7.
constexpr int plane_blocks(int kernel_size, int vector, int accumulated_bytes) {
  if (accumulated_bytes == 8) return 1;
  if (kernel_size == 5 && vector == 1) return 3;
  if (kernel_size == kRegisterKernel && vector == 8) return 3;
  return 512 / plane_threads(kernel_size, vector);
}
constexpr int pixel_blocks(int kernel_size, int accumulated_bytes) {
  return accumulated_bytes == 8 ? 2 : kernel_size == 7 ? 3 : 4;
}
constexpr int sum_blocks(int kernel_size, int accumulated_bytes) {
  return kernel_size == 7 ? 1 : (accumulated_bytes == 8 ? 8 : 16) / kernel_size;
}
inline constexpr int kGeneralBlocks = 2;

struct Limits {
  int64_t blocks = 1024;               // wanted: several for each of 108 to 132 multiprocessors
  int64_t offset = (int64_t{1} << 31) - 1;  // the largest distance of 32-bit indices, in elements
  int64_t grid = (int64_t{1} << 31) - 1;    // of blocks in a launch
};

#ifdef DDF_ADJUSTABLE_LIMITS
inline Limits limits;
#else
inline constexpr Limits limits;
#endif

}  // namespace ddf::cuda
