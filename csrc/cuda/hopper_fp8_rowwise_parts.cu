// FP8 product for SM90 with scales of rows and so few tiles that k has to be divided (hopper_parted.cuh).
//
//   out[m, n] = round((q[m] . w[n]) * q_scale[m] * w_scale[n] + bias[n])
//
// q and q_scale (scale_step apart, 0: one for all) are there, as quantize_token.cu or quantize_tensor.cu leave them; or with
// `shares` of the work all blocks quantize x together before they multiply, and leave the same bytes. given, upper and
// common as quantize_rows.cuh has them.
//
// Compile-time: the numbers of hopper_parted.cuh and quantize_rows.cuh.
#define KT_ROW_SCALES 1
#include "hopper_parted.cuh"
#include "quantize_rows.cuh"

extern "C" __global__ void __cluster_dims__(kSplit, 1, 1) __launch_bounds__(384, 1)
hopper_fp8_rowwise_parts(const __grid_constant__ TensorMap input, const __grid_constant__ TensorMap weight,
                         const In* x, const float* given, const float* upper, uint8_t* codes, float* scales,
                         Counters* counters, const float* weight_scale, const float* bias, Out* out, int scale_step,
                         int m, int n, int k, int common, int warps, int shares, int64_t x_step) {
  extern __shared__ __align__(1024) char raw[];
  const Memory<> memory(raw);
  const Producer producer = {memory.at, &input, &weight, nullptr, nullptr, 0};
  run(memory, place_of_block(m, k), producer, Output{bias, out, {scales, scale_step}, weight_scale}, m, n,
      Shares{counters, common ? 2 * shares : shares},
      QuantizeRows<kConsumers, kFirstConsumer>{x, given, upper, codes, scales, counters, memory.shares + 1, m, k,
                                               warps, shares, common != 0, x_step});
}
