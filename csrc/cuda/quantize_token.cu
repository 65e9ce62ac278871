// Rows of numbers to e4m3 codes with one float32 scale a row: the bytes of ops/torch_fp8.quantize_token.
//
// A block of threads takes a row. Its first KT_HELD * blockDim.x vectors stay in registers between finding the largest
// magnitude and writing the codes; what is beyond is read twice. A whole small tensor is quantized as one row.
//
// Compile-time: KT_IN, KT_WIDTH (quantize.cuh), KT_HELD, KT_CAPPED (1: *upper limits the scale). Any architecture from
// SM89 on.
#include "numbers.cuh"
#include "overlap.cuh"
#include "quantize.cuh"

constexpr int kHeld = KT_HELD;

extern "C" __global__ void __launch_bounds__(1024)
quantize_token(const In* x, const float* upper, uint8_t* codes, float* scales, int64_t k, int64_t x_step) {
  __shared__ uint32_t room[32];
  wait_for_previous();
  let_next_start();
  const int64_t row = blockIdx.x, vectors = k / kWidth, held = static_cast<int64_t>(kHeld) * blockDim.x;
  const In* from = x + row * x_step;
  uint8_t* to = codes + row * k;
  Vector vector[kHeld];
  uint32_t magnitudes = 0;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int at = threadIdx.x + i * blockDim.x;
    vector[i] = load(from + static_cast<int64_t>(at) * kWidth, at < vectors);
  }
#pragma unroll
  for (int i = 0; i < kHeld; ++i) magnitudes = larger(magnitudes, vector[i]);
  for (int64_t at = threadIdx.x + held; at < vectors; at += blockDim.x) {
    magnitudes = larger(magnitudes, load(from + at * kWidth, true));
  }
  const Divisor divisor(scale_of(largest_of_block(float_bits(magnitudes), room), KT_CAPPED ? upper : nullptr));
  if (threadIdx.x == 0) scales[row] = divisor.scale;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int at = threadIdx.x + i * blockDim.x;
    if (at < vectors) store_quotients<!KT_CAPPED>(to + static_cast<int64_t>(at) * kWidth, vector[i], divisor);
  }
  for (int64_t at = threadIdx.x + held; at < vectors; at += blockDim.x) {
    store_quotients<!KT_CAPPED>(to + at * kWidth, load(from + at * kWidth, true), divisor);
  }
}
