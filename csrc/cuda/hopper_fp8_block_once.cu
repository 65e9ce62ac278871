// Block-scaled FP8 product for SM90 and few rows in one launch: all blocks quantize the input together, then multiply.
//
//   out[m, n] = round(sum over blocks b of 128 columns: (q[m, b] . w[n, b]) * q_scale[b, m] * w_scale[n / 128, b]
//                     + bias[n])
//
// q and q_scale lie in memory as quantize_block.cu leaves them, byte for byte, and the sums are those of
// hopper_fp8_block_stream.cu with the same numbers, bit for bit.
//
// What x must be quantize_groups.cuh says. Compile-time: its numbers and those of hopper_stream.cuh.
constexpr int kGiving = 1;  // lanes of a warp that give a stage back, for all of it

#include "hopper_stream.cuh"
#include "quantize_groups.cuh"

extern "C" __global__ void __cluster_dims__(kSplit, 1, 1) __launch_bounds__(kConsumers + 32, kResident)
hopper_fp8_block_once(const __grid_constant__ TensorMap input, const __grid_constant__ TensorMap weight,
                      const __grid_constant__ TensorMap scale, const In* x, uint8_t* codes, float* scales,
                      Counters* counters, const float* weight_scale, const float* bias, Out* out, int m, int n, int k,
                      int padded, int shares, int64_t x_step) {
  extern __shared__ char raw[];
  __shared__ alignas(8) uint64_t barriers[2 * kStages];
  __shared__ uint32_t ticket;
  const Memory memory(raw, barriers);
  const Place here = place_of_block();
  const int k_blocks = (k + kDepth - 1) / kDepth;
  const int first = k_blocks * here.part / kSplit, count = k_blocks * (here.part + 1) / kSplit - first;
  const int early = min(count, kStages);
  const Producer self = {memory.at, &input, &weight, &scale, here, first};

  if (in_warp(kConsumers / 32)) {
    if (elected()) {
      prefetch_map(&weight), prefetch_map(&input), prefetch_map(&scale);
      for (int i = 0; i < kStages; ++i)
        barrier_init(memory.at.full + i * 8, 1), barrier_init(memory.at.empty + i * 8, kConsumers / 32 * kGiving);
      barrier_init_fence();
      for (int i = 0; i < early; ++i) self.fetch_weight(i);  // it was there before the kernel that makes the input
    }
  }
  if (threadIdx.x == 0) ticket = next_ticket(counters, shares);
  __syncthreads();

  Neighbours neighbours;
  const Scales weight_scales = scales_of(weight_scale, here, n, k_blocks, first, count);
  wait_for_previous();
  if (threadIdx.x >= kConsumers) {
    if (elected_in(kConsumers / 32)) {
      wait_for_shares(counters, shares);
      for (int i = 0; i < early; ++i) self.fetch_input(i);
      know_shares(counters);
      self.fetch_from(early, count);
    }
    __syncwarp();
  } else {
    neighbours = neighbours_of(nullptr, bias, n, here);
    const QuantizeGroups<kConsumers, 0> quantize = {x, codes, scales, m, k, padded, shares, x_step};
    work_shares<kConsumers>(quantize, counters, &ticket, shares);
    if (threadIdx.x == 0) let_next_start();  // this block's last ticket has been given
    multiply(memory, weight_scales, nothing_of(m));
  }
  finish(memory, neighbours, out, m, n, here);
}
