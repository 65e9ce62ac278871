// FP8 weights, 16-bit inputs, for SM90: the weight's codes are widened in registers and multiplied with `wgmma`.
//
//   out[m, n] = round(sum over k: x[m, k] * w[n, k] * scale + bias[n])
//
// KT_SCALES names what a scale covers: 0 a row of the weight (float32, applied to the sum), 1 a block of 128 x 128
// (float32, applied to the partial sum of each 128 of k), 2 a row's 32 columns (e8m0, applied to the widened weight,
// exactly). The weight is packed in tiles of 64 rows and 128 columns, in the order in which a thread needs its codes
// (ops/fragment_tiles.py), so that it is read once, in whole lines, by bulk copies.
//
// The weight's rows are the rows of the matrix instruction and the input's rows its columns. The KT_SPLIT blocks of a
// cluster split k. The first copies of the weight run while the kernel before this one still does (see overlap.cuh),
// and its first tiles are widened then: a launch waits 0.5 to 2.6 us for the input, and then until all that has come
// meanwhile is widened.
//
// Compile-time: KT_GROUPS (1 to 4), KT_COLUMNS (8 to 128), KT_STAGES, KT_SPLIT, KT_ONCE (1: what is read of the weight
// makes room in the L2 cache first), KT_SCALES, KT_IN, KT_OUT.
#include "hopper_widened.cuh"
#include "scale_run.cuh"
#include "store.cuh"

constexpr int kGroups = KT_GROUPS, kRows = 64 * kGroups, kDepth = 128, kConsumers = 128 * kGroups;
constexpr int kColumns = KT_COLUMNS, kStages = KT_STAGES, kSplit = KT_SPLIT;
constexpr int kTileBytes = 64 * kDepth + (KT_SCALES == 2 ? 64 * kDepth / 32 : 0);
constexpr int kWeightBytes = kGroups * kTileBytes, kInputBytes = kColumns * kDepth * 2;
constexpr bool kMoveRegisters = kGroups == 2 && kColumns >= 128;  // from a producing warpgroup to the consuming ones
constexpr int kThreads = kConsumers + (kMoveRegisters ? 128 : 32);
constexpr bool kAhead = kColumns >= 128;  // the next block is widened while one is multiplied
// With few columns five blocks of five warps share a multiprocessor (of 16 columns with three stages, as there is room
// for). They leave a thread 72 registers, as 896 threads do.
constexpr bool kFive = kGroups == 1 && (kColumns == 8 || (kColumns == 16 && kStages == 3));
constexpr int kBoundThreads = kFive ? 448 : kThreads, kBoundBlocks = kFive ? 2 : 1;
using Scales = ScaleRun<KT_SCALES == 1 && kColumns <= 32>;

#include "hopper_split.cuh"

struct Pipeline {
  uint32_t weight, input;  // shared addresses of stage 0
  uint32_t full, empty;    // barriers of stage 0
  uint32_t first;          // barrier of the first weights in stage 0, which come before its input
};

__device__ __forceinline__ Place place() {
  return {static_cast<int>(blockIdx.x) / kSplit * kRows, static_cast<int>(blockIdx.y) * kColumns,
          static_cast<int>(blockIdx.x) % kSplit};
}

// One lane keeps the copies of up to kStages blocks of k in flight.
__device__ void produce(const Pipeline& at, const char* weight, const TensorMap* input, const Place& here, int n,
                        int k_blocks, int first, int count) {
  const int tiles = (n + 63) / 64;
  const auto fetch_weight = [&](int i, uint32_t full, int bytes) {
    const int stage = i % kStages;
    barrier_expect(full, bytes);
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const int tile = min(here.row / 64 + g, tiles - 1);
      const char* from = weight + (static_cast<int64_t>(tile) * k_blocks + first + i) * kTileBytes;
      const uint32_t to = at.weight + stage * kWeightBytes + g * kTileBytes;
      if (KT_ONCE) copy_bytes_once(to, from, kTileBytes, full);
      else copy_bytes(to, from, kTileBytes, full);
    }
  };
  constexpr int kBytes = kWeightBytes + kInputBytes;
  fetch_weight(0, at.first, kWeightBytes);
  for (int i = 1; i < min(count, kStages); ++i) fetch_weight(i, at.full + i * 8, kBytes);
  wait_for_previous();  // it may write the input, but never the weight
  let_next_start();
  barrier_expect(at.full, kInputBytes);
  for (int i = 0; i < count; ++i) {
    const int stage = i % kStages;
    if (i >= kStages) {
      barrier_wait(at.empty + stage * 8, (i / kStages - 1) & 1);
      fetch_weight(i, at.full + stage * 8, kBytes);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half)
      copy_tile(at.input + stage * kInputBytes + half * (kInputBytes / 2), input, (first + i) * kDepth + half * 64,
                here.column, at.full + stage * 8);
  }
}

// What one warpgroup needs to widen and multiply a block of k.
struct Consumer {
  uint32_t full, empty;       // barriers of slot 0
  uint32_t input;             // word of the input tile of slot 0
  const char* weights;        // slot 0, this thread's part of this group's tile
  const char* powers;         // KT_SCALES 2: slot 0, this thread's exponents
  Scales scales;              // KT_SCALES 1: of these 64 rows

  // The codes of a block, which is there, as fragments of 8 instructions, 4 registers each.
  __device__ __forceinline__ void widen(int slot, uint32_t (&fragments)[32]) const {
    const char* from = weights + slot * kWeightBytes;
#if KT_SCALES == 2
    const uint2 exponents = *reinterpret_cast<const uint2*>(powers + slot * kWeightBytes);
#endif
#pragma unroll
    for (int quarter = 0; quarter < 4; ++quarter) {
      const uint4 codes = *reinterpret_cast<const uint4*>(from + quarter * 2048);
      uint32_t upper = kWiden, lower = kWiden;
#if KT_SCALES == 2
      const uint32_t word = quarter < 2 ? exponents.x : exponents.y;
      upper = widening_power_of(word, quarter % 2 * 2), lower = widening_power_of(word, quarter % 2 * 2 + 1);
#endif
      widen_16(fragments + quarter * 8, codes, upper, lower);
    }
  }

  __device__ __forceinline__ void wait_and_widen(int slot, int phase, uint32_t (&fragments)[32]) const {
    barrier_wait(full + slot * 8, phase);
    widen(slot, fragments);
  }

  // A descriptor's word that is a warp's constant lets products follow each other at once.
  template <int kContinue>
  __device__ __forceinline__ void issue(int slot, const uint32_t (&fragments)[32], float (&part)[kColumns / 2]) const {
    const uint64_t x = descriptor_of(input + slot * (kInputBytes >> 4));
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < 8; ++step) {
      const uint64_t b = x + step / 4 * (kInputBytes / 2 >> 4) + step % 4 * 2;
      if (step == 0) WgmmaWidened<kColumns>::template mma<kContinue>(part, fragments, b);
      else WgmmaWidened<kColumns>::template mma<1>(part, fragments + 4 * step, b);
    }
    wgmma_commit();
  }

  // Ends the products of a block. With scales of blocks they are a partial sum, which is added with its scale.
  __device__ __forceinline__ void finish(int slot, int i, float (&part)[kColumns / 2], float (&sum)[kColumns / 2]) {
#if KT_SCALES == 1
    const float scale = scales.of(i);
#endif
    wgmma_wait<0>();
#if KT_SCALES == 1
#pragma unroll
    for (int j = 0; j < kColumns / 2; ++j) pin(part[j]);
#endif
    barrier_arrive(empty + slot * 8);  // each lane for what it has read
#if KT_SCALES == 1
#pragma unroll
    for (int j = 0; j < kColumns / 2; ++j) sum[j] = fmaf(part[j], scale, sum[j]);
#endif
  }
};

// All blocks of k, of which the first one is widened. With many columns the next one is widened while this one is
// multiplied. With few it is not: other blocks of threads fill the gap, and fewer registers let more of them run.
__device__ __forceinline__ void consume(Consumer& self, int count, uint32_t (&even)[32], float (&sum)[kColumns / 2]) {
  constexpr int kContinue = KT_SCALES == 1 ? 0 : 1;
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i) sum[i] = 0.0f;
#if KT_SCALES == 1
  float part[kColumns / 2];
#else
  float(&part)[kColumns / 2] = sum;
#endif
  static_assert(!kAhead || kStages % 2 == 0, "even blocks of k have even slots");
  if constexpr (kAhead) {
    uint32_t odd[32];
    barrier_wait(self.full, 0);
    for (int first = 0, phase = 0; first < count; first += kStages, phase ^= 1) {
#pragma unroll
      for (int slot = 0; slot < kStages; slot += 2) {
        const int i = first + slot;
        if (i >= count) break;
        self.issue<kContinue>(slot, even, part);
        if (i + 1 < count) self.wait_and_widen(slot + 1, phase, odd);
        self.finish(slot, i, part, sum);
        if (i + 1 >= count) break;
        self.issue<kContinue>(slot + 1, odd, part);
        if (i + 2 < count) self.wait_and_widen((slot + 2) % kStages, slot + 2 < kStages ? phase : phase ^ 1, even);
        self.finish(slot + 1, i + 1, part, sum);
      }
    }
  } else {
#pragma unroll 1
    for (int i = 0, slot = 0, phase = 0; i < count; ++i) {
      barrier_wait(self.full + slot * 8, phase);
      if (i > 0) self.widen(slot, even);
      self.issue<kContinue>(slot, even, part);
      self.finish(slot, i, part, sum);
      if (++slot == kStages) slot = 0, phase ^= 1;
    }
  }
#pragma unroll
  for (int j = 0; j < kColumns / 2; ++j) pin(sum[j]);
}

extern "C" __global__ void __cluster_dims__(kSplit, 1, 1) __launch_bounds__(kBoundThreads, kBoundBlocks)
hopper_w8a16(const __grid_constant__ TensorMap input, const char* weight, const float* weight_scale, const float* bias,
             Out* out, int m, int n, int k_blocks) {
  extern __shared__ char raw[];
  __shared__ alignas(8) uint64_t barriers[2 * kStages + 1];
  const uint32_t misfit = shared_address(raw) % 1024;
  char* inputs = raw + (misfit == 0 ? 0 : 1024 - misfit);
  char* weights = inputs + kStages * kInputBytes;
  const Pipeline at = {shared_address(weights), shared_address(inputs), shared_address(barriers),
                       shared_address(barriers + kStages), shared_address(barriers + 2 * kStages)};
  const Place here = place();
  const int first = k_blocks * here.part / kSplit, count = k_blocks * (here.part + 1) / kSplit - first;

  if (elected_in(kConsumers / 32)) {
    prefetch_map(&input);
    for (int i = 0; i < kStages; ++i)
      barrier_init(at.full + i * 8, 1), barrier_init(at.empty + i * 8, kConsumers);
    barrier_init(at.first, 1);
    barrier_init_fence();
  }
  __syncthreads();

  float* sums = reinterpret_cast<float*>(inputs);
  Neighbours neighbours;
  if (threadIdx.x >= kConsumers) {
    if (kMoveRegisters) give_registers<40>();
    if (elected_in(kConsumers / 32)) produce(at, weight, &input, here, n, k_blocks, first, count);
    __syncwarp();
  } else {
    if (kMoveRegisters) take_registers<232>();
    const int lane = threadIdx.x % 32, group = threadIdx.x / 128, warp = threadIdx.x % 128 / 32;
    const int block = min(here.row + group * 64, n - 1) / 128;
    const Scales scales(weight_scale + static_cast<int64_t>(block) * k_blocks + first, count);
    Consumer self = {uniform(at.full), uniform(at.empty), uniform(tile_word(at.input)),
                     weights + group * kTileBytes + warp * 512 + lane * 16,
                     weights + group * kTileBytes + 8192 + (warp * 8 + lane / 4) * 8, scales};
    uint32_t fragments[32];
    barrier_wait(at.first, 0);
    self.widen(0, fragments);
    wait_for_previous();  // every thread that reads what was written for this call, and writes, has waited itself
    neighbours = neighbours_of(KT_SCALES == 0 ? weight_scale : nullptr, bias, n, here);
    float sum[kColumns / 2];
    consume(self, count, fragments, sum);
    asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory");  // every warp has read its last tile
    spill(sums, sum);
  }
  if (kSplit > 1) cluster_sync();
  else __syncthreads();
  if (threadIdx.x < kConsumers) reduce(sums, neighbours, out, m, n, here);
  if (kSplit > 1) cluster_leave();  // nobody leaves while others read its sums
}
