// Block-scaled FP8 product for SM90 and few rows: the weight is streamed once, at the rate of the memory.
//
//   out[m, n] = round(sum over blocks b of 128 columns: (x[m, b] . w[n, b]) * x_scale[b, m] * w_scale[n / 128, b] + bias[n])
//
// One warp copies, a warpgroup multiplies; the compile-time numbers stand in hopper_stream.cuh.
constexpr int kGiving = 1;  // lanes of a warp that give a stage back, for all of it

#include "hopper_stream.cuh"

extern "C" __global__ void __cluster_dims__(kSplit, 1, 1) __launch_bounds__(kConsumers + 32, kResident)
hopper_fp8_block_stream(const __grid_constant__ TensorMap input, const __grid_constant__ TensorMap weight,
                        const __grid_constant__ TensorMap scale, const float* weight_scale, const float* bias, Out* out,
                        int m, int n, int k_blocks) {
  extern __shared__ char raw[];
  __shared__ alignas(8) uint64_t barriers[2 * kStages];
  const Memory memory(raw, barriers);
  const Place here = place_of_block();
  const int first = k_blocks * here.part / kSplit, count = k_blocks * (here.part + 1) / kSplit - first;

  if (elected_in(kConsumers / 32)) {
    prefetch_map(&weight), prefetch_map(&input), prefetch_map(&scale);
    start_barriers(memory.at);
  }
  __syncthreads();

  Neighbours neighbours;
  if (threadIdx.x >= kConsumers) {
    if (elected_in(kConsumers / 32)) Producer{memory.at, &input, &weight, &scale, here, first}.fetch_all(count);
    __syncwarp();
  } else {
    const Scales weight_scales = scales_of(weight_scale, here, n, k_blocks, first, count);
    wait_for_previous();
    neighbours = neighbours_of(nullptr, bias, n, here);
    multiply(memory, weight_scales, nothing_of(m));
  }
  finish(memory, neighbours, out, m, n, here);
}
