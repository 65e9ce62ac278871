// Rows of the input quantized by a warp into tiles of shared memory, one for each 128 columns: e4m3 codes in the order
// of copies with the 128-byte swizzle, and a float32 scale a row. Codes and scales are those of quantize_block.cu.
//
// A lane holds kVectors vectors. With its others at the same place, lane by lane, a vector is one read of the warp: the
// 128 columns of kTogether neighbouring rows. The reads of a part of the input are counted tile by tile, 2^shift for
// each; a warp takes kVectors neighbouring ones at a time, which are several tiles of few rows, or some rows of one.
//
// Compile-time: KT_IN, KT_WIDTH (quantize.cuh; 8 or 4). Wants numbers.cuh before it.
#pragma once

#include "quantize.cuh"

constexpr int kVectors = 4, kGroup = 128, kLanes = kGroup / kWidth, kTogether = 32 / kLanes;
constexpr int kShare = kLanes / kVectors;  // neighbouring lanes that have the scale of one row and group
static_assert(kWidth > 1 && kLanes <= 32, "a warp reads whole rows of a tile");

// 2^shift reads have at least m rows.
__device__ __forceinline__ int shift_of(int m) {
  int shift = 0;
  while (kTogether << shift < m) ++shift;
  return shift;
}

// Where the code of a row and a column of a tile lies: chunks of 16 bytes change places within the row.
__device__ __forceinline__ int swizzled(int row, int column) {
  return row * 128 + (column / 16 ^ row % 8) * 16 + column % 16;
}

// m rows of some columns, x_step elements apart; what lies beyond both is 0.
struct Rows {
  const In* x;
  int64_t x_step;
  int m, columns, shift;

  __device__ __forceinline__ int tile(int read) const { return read >> shift; }
  __device__ __forceinline__ int row(int read) const {
    return (read & ((1 << shift) - 1)) * kTogether + threadIdx.x % 32 / kLanes;
  }
  __device__ __forceinline__ bool begins(int read) const { return (read & ((1 << shift) - 1)) == 0; }
  __device__ __forceinline__ int reads() const { return ((columns + kGroup - 1) / kGroup) << shift; }
  __device__ __forceinline__ void get(Vector (&vector)[kVectors], int read) const {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int at = row(read + i), column = tile(read + i) * kGroup + threadIdx.x % kLanes * kWidth;
      vector[i] = load(x + at * x_step + column, at < m && column < columns);
    }
  }
};

// What Rows::get gave, from `read` on, to the tiles. One division makes the scales of all: each lane that of its row.
//
// Tiles: tile(i) and scales(i) say where they are, empty(i) returns when they may be written, filled(i) is called
// when this warp has done its share of tile i. All lanes call each of them.
template <typename Tiles>
__device__ __forceinline__ void quantize_rows(Tiles& tiles, const Rows& rows, const Vector (&vector)[kVectors],
                                              int read) {
  const int lane = threadIdx.x % 32, column = lane % kLanes * kWidth, asked = lane / kLanes * kLanes;
  const int end = rows.reads();
  uint32_t bits[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) bits[i] = float_bits(larger(0, vector[i]));
  const uint32_t largest = largest_of_rows<kLanes>(bits);
  const float scale = scale_of(largest, nullptr);
  const Divisor own(largest == 0 ? 1.0f : scale);  // zeros are zeros by any scale
  const bool plain = __any_sync(0xffffffffu, own.plain);
#pragma unroll
  for (int i = 0; i < kVectors; ++i, ++read) {
    if (read >= end) return;
    const int tile = rows.tile(read), row = rows.row(read);
    if (i == 0 || rows.begins(read)) tiles.empty(tile);
    uint8_t* codes = tiles.tile(tile);
    if (lane % kLanes == i * kShare) tiles.scales(tile)[row] = scale;
    uint8_t* to = codes + swizzled(row, column);
    if (plain) store_plainly(to, vector[i], __shfl_sync(0xffffffffu, own.scale, asked + i * kShare));
    else store_codes(to, vector[i], Quotient<true>{own.of_lane(asked + i * kShare)});
    if (i + 1 == kVectors || rows.begins(read + 1)) tiles.filled(tile);
  }
}
