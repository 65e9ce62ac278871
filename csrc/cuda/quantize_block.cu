// Rows of numbers to e4m3 codes with one scale for each KT_GROUP columns; the last group may be short.
//
// KT_GROUP 128: float32 scales, the bytes of ops/torch_fp8.quantize_block: max(amax / 448, 2^-126), IEEE divisions.
// KT_GROUP 32: e8m0 scales, the bytes of ops/torch_mx.quantize_mx: the exponent of amax less 8; NaN and infinity make
// the group NaN (0xff).
// A few lanes take a group of KT_ROWS neighbouring rows, loaded all at once, and share out the work for the rows' scales.
// The scale of a row and group lies at row * row_step + group * group_step, so products find them in the order in which
// they read them. Rows from m to `rows` are padding: codes 0. Block 0 clears `words` words at `cleared`: flags that the
// product after this launch starts from.
//
// Compile-time: KT_IN, KT_WIDTH (quantize.cuh), KT_GROUP, KT_ROWS. Any architecture from SM89 on.
#include "numbers.cuh"
#include "overlap.cuh"
#include "quantize.cuh"

constexpr int kGroup = KT_GROUP, kRows = KT_ROWS;
constexpr int kLanes = kGroup / kWidth < 32 ? kGroup / kWidth : 32, kParts = kGroup / (kLanes * kWidth);
constexpr int kShare = kLanes / kRows;  // neighbouring lanes that have the scale of one row

// The scale of a group as it is stored, and how numbers are divided by it. `bits`: of the largest magnitude, as float32.
#if KT_GROUP == 32
using Scale = uint8_t;

struct Ratio {
  int exponent;
  float inverse;

  __device__ __forceinline__ explicit Ratio(uint32_t bits) : exponent(static_cast<int>(bits >> 23)) {
    exponent = exponent == 0xff ? 0xff : max(exponent - 8, 0);
    inverse = __uint_as_float(exponent == 0xff ? 0x7fc00000u : static_cast<uint32_t>(254 - exponent) << 23);
  }

  __device__ __forceinline__ Scale stored() const { return static_cast<Scale>(exponent); }
  __device__ __forceinline__ bool plain() const { return false; }
  __device__ __forceinline__ float divisor() const { return 1.0f; }
  __device__ __forceinline__ Ratio of_lane(int lane) const {
    Ratio other = *this;
    other.inverse = __shfl_sync(0xffffffffu, inverse, lane);
    return other;
  }
  __device__ __forceinline__ float of(float x) const { return x * inverse; }
};
#else
using Scale = float;

struct Ratio {
  Scale scale;
  Divisor by;

  __device__ __forceinline__ explicit Ratio(uint32_t bits)
      : scale(scale_of(bits, nullptr)), by(bits == 0 ? 1.0f : scale) {}  // zeros are zeros by any scale

  __device__ __forceinline__ Scale stored() const { return scale; }
  __device__ __forceinline__ bool plain() const { return by.plain; }
  __device__ __forceinline__ float divisor() const { return by.scale; }
  __device__ __forceinline__ Ratio of_lane(int lane) const {
    Ratio other = *this;
    other.by = by.of_lane(lane);
    return other;
  }
  __device__ __forceinline__ float of(float x) const { return by.divide<true>(x); }
};
#endif

extern "C" __global__ void __launch_bounds__(256)
quantize_block(const In* x, uint8_t* codes, Scale* scales, int m, int rows, int k, int64_t x_step, int row_step,
               int group_step, uint32_t* cleared, int words) {
  const int groups = (k + kGroup - 1) / kGroup, lane = threadIdx.x % kLanes, first_lane = threadIdx.x % 32 - lane;
  const uint32_t unit = (blockIdx.x * 256u + threadIdx.x) / kLanes;  // fewer than 2^32: each has 32 codes and more
  const int first = static_cast<int>(unit / groups) * kRows, group = static_cast<int>(unit % groups);
  const int column = group * kGroup + lane * kWidth;
  wait_for_previous();
  let_next_start();
  if (blockIdx.x == 0) {
#pragma unroll 1
    for (int i = threadIdx.x; i < words; i += 256) cleared[i] = 0;
  }
  const In* from = x + first * x_step + column;
  uint8_t* to = codes + static_cast<int64_t>(first) * k + column;
  Vector vector[kRows][kParts];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      const int at = p * kLanes * kWidth;
      vector[r][p] = load(from + r * x_step + at, first + r < m && column + at < k);
    }
  }
  uint32_t bits[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    uint32_t magnitudes = 0;
#pragma unroll
    for (int p = 0; p < kParts; ++p) magnitudes = larger(magnitudes, vector[r][p]);
    bits[r] = float_bits(magnitudes);
  }
  const Ratio own(largest_of_rows<kLanes>(bits));
  const int row = first + lane / kShare;
  if (lane % kShare == 0 && row < rows)
    scales[static_cast<int64_t>(row) * row_step + static_cast<int64_t>(group) * group_step] = own.stored();
  if (__any_sync(0xffffffffu, own.plain())) {
#pragma unroll 1
    for (int i = 0; i < kRows * kParts; ++i) {
      const int r = i / kParts, at = i % kParts * kLanes * kWidth;
      const float divisor = __shfl_sync(0xffffffffu, own.divisor(), first_lane + r * kShare);
      if (first + r < rows && column + at < k)
        store_plainly(to + static_cast<int64_t>(r) * k + at, load(from + r * x_step + at, first + r < m), divisor);
    }
    return;
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const Ratio ratio = own.of_lane(first_lane + r * kShare);
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      const int at = p * kLanes * kWidth;
      if (first + r < rows && column + at < k) store_codes(to + static_cast<int64_t>(r) * k + at, vector[r][p], ratio);
    }
  }
}
