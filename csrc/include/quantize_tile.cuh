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

// The largest bits of each row. Lanes share the rows out: those of vector i are with the lanes from i * kShare on.
__device__ __forceinline__ uint32_t largest_of_rows(const Vector (&vector)[kVectors]) {
  uint32_t bits[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) bits[i] = float_bits(larger(0, vector[i]));
  int rows = kVectors;
#pragma unroll
  for (int other = kLanes / 2; other > 0; other /= 2) {
    const bool upper = (threadIdx.x & other) != 0;
    const int kept = rows > 1 ? rows / 2 : 1;
#pragma unroll
    for (int i = 0; i < kept; ++i) {
      const uint32_t given = rows > 1 && !upper ? bits[i + rows / 2] : bits[i];
      const uint32_t own = rows > 1 && upper ? bits[i + rows / 2] : bits[i];
      bits[i] = max(own, __shfl_xor_sync(0xffffffffu, given, other));
    }
    rows = kept;
  }
  return bits[0];
}

// The codes of a vector, each number divided by itself: for scales that Divisor does not take (NaN, infinity, below
// 2^-60). They are rare, so this is short and not fast: word by word, always the first one of a vector that moves up.
__device__ __forceinline__ void store_plainly(uint8_t* tile, Vector vector, float scale, int row, int column) {
  constexpr int kEach = kWidth / kWords;  // numbers of a word
#pragma unroll 1
  for (int i = 0; i < kWidth; i += kEach) {
#pragma unroll
    for (int j = 0; j < kEach; ++j)
      tile[swizzled(row, column + i) + j] = static_cast<uint8_t>(encode(__fdiv_rn(vector.number(j), scale), 0.0f));
#pragma unroll
    for (int j = 0; j + 1 < kWords; ++j) vector.word[j] = vector.word[j + 1];
  }
}

// What Rows::get gave, from `read` on, to the tiles. One division makes the scales of all: each lane that of its row.
//
// Tiles: tile(i) and scales(i) say where they are, empty(i) returns when they may be written, filled(i) is called
// when this warp has done its share of tile i. All lanes call each of them.
template <typename Tiles>
__device__ __forceinline__ void quantize_rows(Tiles& tiles, const Rows& rows, const Vector (&vector)[kVectors],
                                              int read) {
  const int lane = threadIdx.x % 32, column = lane % kLanes * kWidth, asked = lane / kLanes * kLanes;
  const int end = rows.reads();
  const uint32_t largest = largest_of_rows(vector);
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
    Divisor of_row = own;
    of_row.scale = __shfl_sync(0xffffffffu, own.scale, asked + i * kShare);
    of_row.inverse = __shfl_sync(0xffffffffu, own.inverse, asked + i * kShare);
    of_row.rest = __shfl_sync(0xffffffffu, own.rest, asked + i * kShare);
    of_row.plain = false;
    if (plain) store_plainly(codes, vector[i], of_row.scale, row, column);
    else store_codes(codes + swizzled(row, column), vector[i], Quotient<true>{of_row});
    if (i + 1 == kVectors || rows.begins(read + 1)) tiles.filled(tile);
  }
}
