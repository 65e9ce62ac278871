// FP8 product for SM90 and few rows, with one scale for each row of the input and one for each row of the weight: the
// weight is streamed once, at the rate of the memory.
//
//   out[m, n] = round((x[m] . w[n]) * x_scale[m] * w_scale[n] + bias[n])
//
// The tensor cores keep about 14 bits of an FP8 sum, so it is added to one in float32 every 128 of k. One warp copies, a
// warpgroup multiplies; scale_step is 0 where all rows of the input have one scale. Compile-time: the numbers of
// hopper_stream.cuh.
#define KT_ROW_SCALES 1
constexpr int kGiving = 1;  // lanes of a warp that give a stage back, for all of it

#include "hopper_stream.cuh"

extern "C" __global__ void __cluster_dims__(kSplit, 1, 1) __launch_bounds__(kConsumers + 32, kResident)
hopper_fp8_rowwise(const __grid_constant__ TensorMap input, const __grid_constant__ TensorMap weight,
                   const float* scale, const float* weight_scale, const float* bias, Out* out, int scale_step, int m,
                   int n, int k_blocks) {
  extern __shared__ char raw[];
  __shared__ alignas(8) uint64_t barriers[2 * kStages];
  __shared__ float of_columns[kColumns];
  const Memory memory(raw, barriers);
  const Place here = place_of_block();
  const int first = k_blocks * here.part / kSplit, count = k_blocks * (here.part + 1) / kSplit - first;

  if (elected_in(kConsumers / 32)) {
    prefetch_map(&weight), prefetch_map(&input);
    start_barriers(memory.at);
  }
  __syncthreads();

  Neighbours neighbours;
  if (threadIdx.x >= kConsumers) {
    if (elected_in(kConsumers / 32)) Producer{memory.at, &input, &weight, nullptr, here, first}.fetch_all(count);
    __syncwarp();
  } else {
    wait_for_previous();
    neighbours = neighbours_of(weight_scale, bias, n, here);
    const int row = here.column + static_cast<int>(threadIdx.x);
    if (threadIdx.x < kColumns) of_columns[threadIdx.x] = row < m ? scale[static_cast<int64_t>(row) * scale_step] : 0.0f;
    multiply(memory, {count}, nothing_of(m));
  }
  finish(memory, neighbours, out, m, n, here, of_columns);
}
