// Block-scaled FP8 product for SM90 and many rows, by the tiles of hopper_tiled.cuh.
//
//   out[m, n] = round(sum over blocks b of 128 columns: (q[m, b] . w[n, b]) * q_scale[b, m] * w_scale[n / 128, b] + bias[n])
//
// q and q_scale are there, as quantize_block.cu leaves them; or with `shares` of the work all blocks quantize x together
// before they multiply, and leave the same bytes.
//
// Compile-time: the numbers of hopper_tiled.cuh and quantize_groups.cuh.
#include "hopper_tiled.cuh"
#include "quantize_groups.cuh"

extern "C" __global__ void __cluster_dims__(kMembers, 1, 1) __launch_bounds__(384, 1)
hopper_fp8_block(const __grid_constant__ TensorMap input, const __grid_constant__ TensorMap weight,
                 const __grid_constant__ TensorMap scale, const __grid_constant__ TensorMap weight_scale,
                 const __grid_constant__ TensorMap output, const In* x, uint8_t* codes, float* scales,
                 Counters* counters, const float* bias, Out* out, int m, int n, int k, int padded, int shares,
                 int64_t x_step, int divided, float4* part_sums, uint32_t* part_flags) {
  extern __shared__ __align__(1024) char raw[];
  const TileMemory memory(raw);
  const Producer producer = {memory.at, &input, &weight, &scale, &weight_scale, rank_in_team()};
  const Output to = {&output, bias, out, {part_sums, part_flags}, {}, 0};
  run(memory, Sizes{m, n, k, divided}, producer, to, Shares{counters, shares},
      QuantizeGroups<kConsumers, kFirstConsumer>{x, codes, scales, m, k, padded, shares, x_step});
}
