// FP8 product for SM90 and few rows with scales of rows, in one launch: all blocks quantize the input together, a row a
// share (shares.cuh), then multiply. With a `common` scale, that of the largest number of all rows, m shares before those
// look for it.
//
//   out[m, n] = round((q[m] . w[n]) * q_scale[m] * w_scale[n] + bias[n])
//
// q and q_scale lie in memory as quantize_token.cu leaves them, byte for byte, or as quantize_tensor.cu does with one scale
// for all rows; the sums are those of hopper_fp8_rowwise.cu with the same numbers, bit for bit.
//
// k is a multiple of 16, and x and its rows begin at multiples of 16 bytes. given: the scale of all rows, or nullptr where
// it comes from their numbers, at most *upper unless that is nullptr. Compile-time: the numbers of hopper_stream.cuh,
// KT_IN, KT_WIDTH (quantize.cuh; 8 or 4).
#define KT_ROW_SCALES 1
constexpr int kGiving = 1;  // lanes of a warp that give a stage back, for all of it

#include "hopper_stream.cuh"
#include "numbers.cuh"
#include "quantize.cuh"
#include "shares.cuh"

constexpr int kHeld = KT_IN == 2 ? 4 : 8;  // vectors of a thread that stay in registers until codes are written

// Rows of x, `step` elements apart, and where they go.
struct Rows {
  const In* x;
  const float *given, *upper;
  uint8_t* codes;
  float* scales;
  Counters* counters;
  int m, k;
  bool common;
  int64_t step;
  uint32_t* room;  // of a number a warp, in shared memory

  // Of a row whose first kHeld vectors of each thread are `held`.
  __device__ __forceinline__ uint32_t largest_of_row(const In* from, const Vector (&held)[kHeld]) const {
    uint32_t magnitudes = 0;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) magnitudes = larger(magnitudes, held[i]);
#pragma unroll 2
    for (int at = threadIdx.x + kHeld * kConsumers; at < k / kWidth; at += kConsumers)
      magnitudes = larger(magnitudes, load(from + at * kWidth, true));
    const uint32_t own = __reduce_max_sync(0xffffffffu, float_bits(magnitudes));
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = own;
    asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory");
    uint32_t bits = 0;
#pragma unroll
    for (int warp = 0; warp < kConsumers / 32; ++warp) bits = max(bits, room[warp]);
    return bits;
  }

  __device__ __forceinline__ uint32_t largest_of_all() const {
    while (load_acquire(&counters->done) < m) {}
    return load_relaxed(&counters->largest);
  }

  __device__ __forceinline__ void operator()(int share) const {
    const int row = share < m ? share : share - m;
    const In* from = x + row * step;
    Vector held[kHeld];
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int at = threadIdx.x + i * kConsumers;
      held[i] = load(from + at * kWidth, at < k / kWidth);
    }
    float scale;
    if (given != nullptr) {
      scale = *given;
    } else {
      const uint32_t bits = share < m ? largest_of_row(from, held) : largest_of_all();
      if (common && share < m) {
        if (threadIdx.x == 0) atomicMax(&counters->largest, bits);
        return;
      }
      scale = scale_of(bits, upper);
      if (threadIdx.x == 0) scales[row] = scale;
    }
    quantize(row, from, held, Divisor(scale));
  }

  __device__ __forceinline__ void quantize(int row, const In* from, const Vector (&held)[kHeld],
                                           const Divisor& divisor) const {
    uint8_t* to = codes + static_cast<int64_t>(row) * k;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int at = threadIdx.x + i * kConsumers;
      if (at < k / kWidth) store_quotients<false>(to + at * kWidth, held[i], divisor);
    }
#pragma unroll 1
    for (int at = threadIdx.x + kHeld * kConsumers; at < k / kWidth; at += kConsumers)
      store_quotients<false>(to + at * kWidth, load(from + at * kWidth, true), divisor);
  }
};

extern "C" __global__ void __cluster_dims__(kSplit, 1, 1) __launch_bounds__(kConsumers + 32, kResident)
hopper_fp8_rowwise_once(const __grid_constant__ TensorMap input, const __grid_constant__ TensorMap weight, const In* x,
                        const float* given, const float* upper, uint8_t* codes, float* scales, Counters* counters,
                        const float* weight_scale, const float* bias, Out* out, int m, int n, int k, int common,
                        int64_t x_step) {
  extern __shared__ char raw[];
  __shared__ alignas(8) uint64_t barriers[2 * kStages];
  __shared__ uint32_t ticket, room[kConsumers / 32];
  __shared__ float of_columns[kColumns];
  const Memory memory(raw, barriers);
  const Place here = place_of_block();
  const int k_blocks = (k + kDepth - 1) / kDepth;
  const int first = k_blocks * here.part / kSplit, count = k_blocks * (here.part + 1) / kSplit - first;
  const int early = min(count, kStages), shares = common ? 2 * m : m;
  const Producer self = {memory.at, &input, &weight, nullptr, here, first};

  if (in_warp(kConsumers / 32)) {
    if (elected()) {
      prefetch_map(&weight), prefetch_map(&input);
      start_barriers(memory.at);
      for (int i = 0; i < early; ++i) self.fetch_weight(i);  // it was there before the kernel that makes the input
    }
  }
  if (threadIdx.x == 0) ticket = next_ticket(counters, shares);
  __syncthreads();

  Neighbours neighbours;
  wait_for_previous();
  if (threadIdx.x >= kConsumers) {
    if (elected_in(kConsumers / 32)) {
      wait_for_shares(counters, shares);
      for (int i = 0; i < early; ++i) self.fetch_input(i);
      if (know_shares(counters) && common) counters->largest = 0;
      self.fetch_from(early, count);
    }
    __syncwarp();
    for (int column = threadIdx.x % 32; column < kColumns; column += 32) {
      const int row = here.column + column;
      of_columns[column] = row >= m ? 0.0f : given != nullptr ? *given : __uint_as_float(load_relaxed(scales + row));
    }
  } else {
    neighbours = neighbours_of(weight_scale, bias, n, here);
    const Rows rows = {x, given, upper, codes, scales, counters, m, k, common != 0, x_step, room};
    work_shares<kConsumers>(rows, counters, &ticket, shares);
    if (threadIdx.x == 0) let_next_start();  // this block's last ticket has been given
    multiply(memory, {count}, nothing_of(m));
  }
  finish(memory, neighbours, out, m, n, here, of_columns);
}
