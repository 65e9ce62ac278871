// Block-scaled FP8 product for SM90 with so few tiles that k has to be divided (hopper_parted.cuh).
//
//   out[m, n] = round(sum over blocks b of 128 columns: (q[m, b] . w[n, b]) * q_scale[b, m] * w_scale[n / 128, b] + bias[n])
//
// q and q_scale are there, as quantize_block.cu leaves them; or with `shares` of the work all blocks quantize x together
// before they multiply, and leave the same bytes.
//
// Compile-time: the numbers of hopper_parted.cuh and quantize_groups.cuh.
#include "hopper_parted.cuh"
#include "quantize_groups.cuh"

extern "C" __global__ void __cluster_dims__(kSplit, 1, 1) __launch_bounds__(384, 1)
hopper_fp8_block_parts(const __grid_constant__ TensorMap input, const __grid_constant__ TensorMap weight,
                       const __grid_constant__ TensorMap scale, const __grid_constant__ TensorMap weight_scale,
                       const In* x, uint8_t* codes, float* scales, Counters* counters, const float* bias, Out* out,
                       int m, int n, int k, int padded, int shares, int64_t x_step) {
  extern __shared__ __align__(1024) char raw[];
  const Memory<> memory(raw);
  const Producer producer = {memory.at, &input, &weight, &scale, &weight_scale, 0};
  run(memory, place_of_block(m, k), producer, Output{bias, out, {}, nullptr}, m, n, Shares{counters, shares},
      QuantizeGroups<kConsumers, kFirstConsumer>{x, codes, scales, m, k, padded, shares, x_step});
}
