// An input quantized in groups of 128 columns by all blocks of a launch together (shares.cuh): codes and scales lie in
// memory as quantize_block.cu leaves them, byte for byte. Wants hopper.cuh before it.
//
// k is a multiple of 16, and x and its rows begin at multiples of 16 bytes. Compile-time: KT_IN, KT_WIDTH (quantize.cuh; 8
// or 4).
#pragma once

#include "numbers.cuh"
#include "quantize.cuh"
#include "shares.cuh"

// kThreads threads of each block, from kFirst on, have a unit each kLanes of them: 128 columns of a row. Rows of x are
// `step` elements apart; codes go row by row, the scales of a group of columns together, `padded` for each.
template <int kThreads, int kFirst>
struct QuantizeGroups {
  static constexpr int kColumns = 128, kLanes = kColumns / kWidth, kUnits = kThreads / kLanes;
  static constexpr int kBatch = 4;  // units that are on their way at a time; a thread has a vector of each
  static_assert(kLanes <= 32, "lanes of a warp find the largest of a unit");

  const In* x;
  uint8_t* codes;
  float* scales;
  int m, k, padded, shares;
  int64_t step;

  __device__ __forceinline__ void operator()(int share) const {
    const int groups = (k + kColumns - 1) / kColumns, units = m * groups, thread = threadIdx.x - kFirst;
    const int lane = thread % kLanes, own = thread / kLanes;
#pragma unroll 1
    for (int first = share; first * kUnits < units; first += kBatch * shares) {
      Vector vector[kBatch];
      int row[kBatch], group[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int unit = (first + i * shares) * kUnits + own;
        row[i] = unit / groups, group[i] = unit % groups;
        const int column = group[i] * kColumns + lane * kWidth;
        vector[i] = load(x + row[i] * step + column, unit < units && column < k);
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if ((first + i * shares) * kUnits >= units) break;
        uint32_t bits = float_bits(larger(0, vector[i]));
#pragma unroll
        for (int other = kLanes / 2; other > 0; other /= 2) bits = max(bits, __shfl_xor_sync(0xffffffffu, bits, other));
        if (row[i] >= m) continue;
        const float scale = scale_of(bits, nullptr);
        const int column = group[i] * kColumns + lane * kWidth;
        if (lane == 0) scales[static_cast<int64_t>(group[i]) * padded + row[i]] = scale;
        if (column < k)
          store_quotients<true>(codes + static_cast<int64_t>(row[i]) * k + column, vector[i],
                                Divisor(bits == 0 ? 1.0f : scale));  // zeros are zeros by any scale
      }
    }
  }
};
