// FP8 product for SM90 and many rows with scales of rows, by the tiles of hopper_tiled.cuh.
//
//   out[m, n] = round((q[m] . w[n]) * q_scale[m] * w_scale[n] + bias[n])
//
// q and q_scale (scale_step apart, 0: one for all) are there, as quantize_token.cu or quantize_tensor.cu leave them; or with
// `shares` of the work all blocks quantize x together before they multiply, and leave the same bytes. given, upper and
// common as quantize_rows.cuh has them.
//
// Compile-time: the numbers of hopper_tiled.cuh and quantize_rows.cuh.
#define KT_ROW_SCALES 1
#include "hopper_tiled.cuh"
#include "quantize_rows.cuh"

extern "C" __global__ void __cluster_dims__(kMembers, 1, 1) __launch_bounds__(384, 1)
hopper_fp8_rowwise_tiled(const __grid_constant__ TensorMap input, const __grid_constant__ TensorMap weight,
                         const __grid_constant__ TensorMap weight_scale, const __grid_constant__ TensorMap output,
                         const In* x, const float* given, const float* upper, uint8_t* codes, float* scales,
                         Counters* counters, const float* bias, Out* out, int scale_step, int m, int n, int k, int common,
                         int warps, int shares, int64_t x_step, int divided, float4* part_sums,
                         uint32_t* part_flags) {
  extern __shared__ __align__(1024) char raw[];
  const TileMemory memory(raw);
  const Producer producer = {memory.at, &input, &weight, nullptr, &weight_scale, rank_in_team()};
  const Output to = {&output, bias, out, {part_sums, part_flags}, {scales, scale_step}, 0};
  run(memory, Sizes{m, n, k, divided}, producer, to, Shares{counters, common ? 2 * shares : shares},
      QuantizeRows<kConsumers, kFirstConsumer>{x, given, upper, codes, scales, counters, memory.shares + 1, m, k,
                                               warps, shares, common != 0, x_step});
}
