// Rows of numbers to e4m3 codes with one scale for each KT_GROUP columns; the last group may be short.
//
// KT_GROUP 128: float32 scales, the bytes of ops/torch_fp8.quantize_block: max(amax / 448, 2^-126), IEEE divisions.
// KT_GROUP 32: e8m0 scales, the bytes of ops/torch_mx.quantize_mx: the exponent of amax less 8; NaN and infinity make
// the group NaN (0xff).
// A few lanes take a group of KT_ROWS neighbouring rows, loaded all at once. The scale of a row and group lies at
// row * row_step + group * group_step, so products find them in the order in which they read them. Rows from m to `rows`
// are padding: codes 0. Block 0 clears `words` words at `cleared`: flags that the product after this launch starts from.
//
// Compile-time: KT_IN, KT_WIDTH (quantize.cuh), KT_GROUP, KT_ROWS. Any architecture from SM89 on.
#include "numbers.cuh"
#include "overlap.cuh"
#include "quantize.cuh"

constexpr int kGroup = KT_GROUP, kRows = KT_ROWS;
constexpr int kLanes = kGroup / kWidth < 32 ? kGroup / kWidth : 32, kParts = kGroup / (kLanes * kWidth);

// The scale of a group as it is stored, and how a number is divided by it. `bits`: of the largest magnitude, as float32.
#if KT_GROUP == 32
using Scale = uint8_t;

struct Ratio {
  Scale stored;
  float inverse;

  __device__ __forceinline__ explicit Ratio(uint32_t bits) {
    const int biased = static_cast<int>(bits >> 23), exponent = biased == 0xff ? 0xff : max(biased - 8, 0);
    stored = static_cast<Scale>(exponent);
    inverse = __uint_as_float(exponent == 0xff ? 0x7fc00000u : static_cast<uint32_t>(254 - exponent) << 23);
  }

  __device__ __forceinline__ float of(float x) const { return x * inverse; }
};
#else
using Scale = float;

struct Ratio {
  Divisor divisor;
  Scale stored;

  __device__ __forceinline__ explicit Ratio(uint32_t bits) : divisor(scale_of(bits, nullptr)), stored(divisor.scale) {}

  __device__ __forceinline__ float of(float x) const { return divisor.divide<true>(x); }
};
#endif

__device__ __forceinline__ uint32_t largest_of_lanes(uint32_t bits) {
#pragma unroll
  for (int other = kLanes / 2; other > 0; other /= 2) bits = max(bits, __shfl_xor_sync(0xffffffffu, bits, other));
  return bits;
}

extern "C" __global__ void __launch_bounds__(256)
quantize_block(const In* x, uint8_t* codes, Scale* scales, int m, int rows, int k, int64_t x_step, int row_step,
               int group_step, uint32_t* cleared, int words) {
  const int groups = (k + kGroup - 1) / kGroup, lane = threadIdx.x % kLanes;
  const uint32_t unit = (blockIdx.x * 256u + threadIdx.x) / kLanes;  // fewer than 2^32: each has 32 codes and more
  const int first = static_cast<int>(unit / groups) * kRows, group = static_cast<int>(unit % groups);
  const int column = group * kGroup + lane * kWidth;
  wait_for_previous();
  let_next_start();
  if (blockIdx.x == 0) {
#pragma unroll 1
    for (int i = threadIdx.x; i < words; i += 256) cleared[i] = 0;
  }
  Vector vector[kRows][kParts];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      const int at = column + p * kLanes * kWidth;
      vector[r][p] = load(x + (first + r) * x_step + at, first + r < m && at < k);
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int row = first + r;
    uint32_t magnitudes = 0;
#pragma unroll
    for (int p = 0; p < kParts; ++p) magnitudes = larger(magnitudes, vector[r][p]);
    const uint32_t bits = largest_of_lanes(float_bits(magnitudes));
    Scale* to = scales + static_cast<int64_t>(row) * row_step + static_cast<int64_t>(group) * group_step;
    const Ratio ratio(bits);
    if (lane == 0 && row < rows) *to = ratio.stored;
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      const int at = column + p * kLanes * kWidth;
      if (row < rows && at < k) store_codes(codes + static_cast<int64_t>(row) * k + at, vector[r][p], ratio);
    }
  }
}
