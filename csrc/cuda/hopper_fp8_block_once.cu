// Block-scaled FP8 product for SM90 and few rows in one launch: all blocks quantize the input together, then multiply.
//
//   out[m, n] = round(sum over blocks b of 128 columns: (q[m, b] . w[n, b]) * q_scale[b, m] * w_scale[n / 128, b]
//                     + bias[n])
//
// q and q_scale lie in memory as quantize_block.cu leaves them, byte for byte, and the sums are those of
// hopper_fp8_block_stream.cu with the same numbers, bit for bit.
//
// k is a multiple of 16, and x and its rows begin at multiples of 16 bytes. Compile-time: the numbers of
// hopper_stream.cuh, KT_IN, KT_WIDTH (quantize.cuh; 8 or 4).
constexpr int kGiving = 1;  // lanes of a warp that give a stage back, for all of it

#include "hopper_stream.cuh"
#include "numbers.cuh"
#include "quantize.cuh"
#include "shares.cuh"

constexpr int kLanes = kDepth / kWidth, kUnits = kConsumers / kLanes, kBatch = 4;
static_assert(kLanes <= 32, "lanes of a warp find the largest of a row and 128 columns, a unit");

// Rows of x, `step` elements apart, and where they go: codes row by row, the scales of a block of k together.
struct Rows {
  const In* x;
  uint8_t* codes;
  float* scales;
  int m, k, padded;
  int64_t step;
};

// kBatch units are on their way at a time; a thread has a vector of each.
__device__ __forceinline__ void quantize(const Rows& rows, int share, int shares) {
  const int groups = (rows.k + kDepth - 1) / kDepth, units = rows.m * groups, lane = threadIdx.x % kLanes;
  const int own = threadIdx.x / kLanes;
#pragma unroll 1
  for (int first = share; first * kUnits < units; first += kBatch * shares) {
    Vector vector[kBatch];
    int row[kBatch], group[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int unit = (first + i * shares) * kUnits + own, column = unit % groups * kDepth + lane * kWidth;
      row[i] = unit / groups, group[i] = unit % groups;
      vector[i] = load(rows.x + row[i] * rows.step + column, unit < units && column < rows.k);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if ((first + i * shares) * kUnits >= units) break;
      uint32_t bits = float_bits(larger(0, vector[i]));
#pragma unroll
      for (int other = kLanes / 2; other > 0; other /= 2) bits = max(bits, __shfl_xor_sync(0xffffffffu, bits, other));
      if (row[i] >= rows.m) continue;
      const float scale = scale_of(bits, nullptr);
      const int column = group[i] * kDepth + lane * kWidth;
      if (lane == 0) rows.scales[static_cast<int64_t>(group[i]) * rows.padded + row[i]] = scale;
      if (column < rows.k)
        store_quotients<true>(rows.codes + static_cast<int64_t>(row[i]) * rows.k + column, vector[i],
                              Divisor(bits == 0 ? 1.0f : scale));  // zeros are zeros by any scale
    }
  }
}

struct Quantize {
  const Rows& rows;
  int shares;
  __device__ __forceinline__ void operator()(int share) const { quantize(rows, share, shares); }
};

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

  if (threadIdx.x == 0) ticket = next_ticket(counters, shares);
  if (elected_in(kConsumers / 32)) {
    prefetch_map(&weight), prefetch_map(&input), prefetch_map(&scale);
    for (int i = 0; i < kStages; ++i)
      barrier_init(memory.at.full + i * 8, 1), barrier_init(memory.at.empty + i * 8, kConsumers / 32 * kGiving);
    barrier_init_fence();
    for (int i = 0; i < early; ++i) self.fetch_weight(i);  // it was there before the kernel that makes the input
  }
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
    const Rows rows = {x, codes, scales, m, k, padded, x_step};
    work_shares<kConsumers>(Quantize{rows, shares}, counters, &ticket, shares);
    if (threadIdx.x == 0) let_next_start();  // this block's last ticket has been given
    multiply(memory, weight_scales, nothing_of(m));
  }
  finish(memory, neighbours, out, m, n, here);
}
