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
inline constexpr int kLargestTile = 1024;       // pixels that a block of the general kernel adds up for them
inline constexpr int kGeneralThreads = 256;
inline constexpr int kWarp = 32;
inline constexpr int64_t kSharedBytes = 48 << 10;  // that a block may have on every architecture without asking

// Taps up to this size of kernel stay in registers, those of larger ones in shared memory.
inline constexpr int kRegisterKernel = 3;
inline constexpr int kScalarRegisterKernel = 5;  // where a thread owns a single pixel

// Elements of 16 stored bytes; above kRegisterKernel, of 16 accumulated bytes: arithmetic bounds those, and what the
// filters' gradients keep for 8 halves would not fit in registers (docs/cuda.md).
constexpr int vector_length(int stored_bytes, int accumulated_bytes, int kernel_size) {
  return kVectorBytes / (kernel_size <= kRegisterKernel ? stored_bytes : accumulated_bytes);
}

// Of half as many bytes, for rows that hold no whole number of those; 1: there are none.
constexpr int half_vector_length(int stored_bytes, int kernel_size) {
  return kernel_size == kRegisterKernel ? kVectorBytes / 2 / stored_bytes : 1;
}

// Threads of a block for planes: the taps of each take k*k*16 bytes of shared memory above kRegisterKernel.
constexpr int plane_threads(int kernel_size, int vector) {
  if (vector == 1 || kernel_size <= kRegisterKernel) return kernel_size == 7 ? 64 : kPlaneThreads;
  return kernel_size == 5 ? 64 : 32;
}

// Blocks of each kernel that the registers of a multiprocessor are to hold: the compiler keeps to 128 a thread for 16
// warps, to 168 for 12, and nothing spills from them. Shared memory and an architecture's limits may allow fewer.
constexpr int plane_blocks(int kernel_size, int vector, int accumulated_bytes) {
  if (kernel_size == kScalarRegisterKernel && vector == 1) return accumulated_bytes == 8 ? 2 : 3;
  const bool many = vector == 8 || accumulated_bytes == 8;  // sums and weights of a thread
  return kernel_size == kRegisterKernel && many ? 3 : 512 / plane_threads(kernel_size, vector);
}
constexpr int pixel_blocks(int kernel_size, int accumulated_bytes) {
  return kernel_size > (accumulated_bytes == 8 ? 3 : 5) ? 3 : 4;
}
constexpr int sum_blocks(int kernel_size) { return 16 / kernel_size; }  // a block is a warp for each row of taps
constexpr int pixel_sum_blocks(int kernel_size) { return kernel_size == 7 ? 1 : sum_blocks(kernel_size); }
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
