// What the streaming FP8 products for SM90 share: a tile of 64 rows of the weight times KT_COLUMNS rows of the input over
// a part of k, its sums, and adding the parts of the blocks of a cluster.
//
// The weight's rows are the rows of the matrix instruction and the input's rows its columns, so a tile wastes nothing
// when m is small. The KT_SPLIT blocks of a cluster take a part of k each; the parts are added through distributed
// shared memory in rank order, so the result is the same every time.
//
// Compile-time: KT_COLUMNS (8, 16, 32, 64), KT_STAGES, KT_SPLIT (at most 8), KT_OUT, KT_ROW_SCALES (1: the only scales
// are of whole rows, and sums are multiplied by them when all parts are added).
#pragma once

#ifndef KT_ROW_SCALES
#define KT_ROW_SCALES 0
#endif

#include "hopper.cuh"
#include "scale_run.cuh"
#include "store.cuh"

constexpr int kRows = 64, kDepth = 128, kConsumers = 128;
constexpr int kColumns = KT_COLUMNS, kStages = KT_STAGES, kSplit = KT_SPLIT, kSums = kColumns / 2;
constexpr int kWeightBytes = kRows * kDepth, kInputBytes = kColumns * kDepth;
constexpr int kScaleBytes = kColumns * 4, kScaleSlot = (kScaleBytes + 127) / 128 * 128;
constexpr bool kRowScales = KT_ROW_SCALES == 1;
constexpr int kResident = 3;  // blocks that a multiprocessor always has registers for

#include "hopper_split.cuh"

// The weight's scales of a block's rows and its part of k.
#if KT_ROW_SCALES
struct Scales {
  int count;  // of blocks of k
  __device__ __forceinline__ float of(int) const { return 1.0f; }
};
#else
using Scales = ScaleRun<true>;
#endif

struct Pipeline {
  uint32_t weight, input, scale;  // shared addresses of stage 0
  uint32_t full, empty;           // barriers of stage 0
};

// A product that runs, and the scales of its columns: those are read before it starts where registers hold them, else
// when it has ended. 2112 x 7168 at one row 5.3 instead of 5.5 us; with more columns fewer blocks would find room.
constexpr bool kScalesFirst = kColumns <= 16 && !kRowScales;
struct Part {
  float sums[kSums];
  float2 of_input[kScalesFirst ? kColumns / 8 : 1];
};

// What a warpgroup needs to multiply a block of k, and to add it to its sums with its scales.
struct Consumer {
  uint32_t full, empty;    // barriers of slot 0
  uint32_t weight, input;  // words of the tiles of slot 0
  uint32_t scales;         // shared address of the thread's first two of slot 0
  Scales weight_scales;
  int lane;
  uint32_t nothing;  // see `after`
  int slot, phase;  // of the block that is started next
  int done;         // slot of the block that is added next

  // Those of columns 8 * j on.
  __device__ __forceinline__ float2 scales_of(int slot, int j) const {
    float2 two;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                 : "=f"(two.x), "=f"(two.y) : "r"(scales + slot * kScaleSlot + 32 * j) : "memory");
    return two;
  }

  __device__ __forceinline__ void start(Part& part) {
    barrier_wait(full + slot * 8, phase);
    if constexpr (kScalesFirst) {
#pragma unroll
      for (int j = 0; j < kColumns / 8; ++j) part.of_input[j] = scales_of(slot, j);
    }
    multiply_tiles(part.sums, weight + slot * (kWeightBytes >> 4), input + slot * (kInputBytes >> 4));
    if (++slot == kStages) slot = 0, phase ^= 1;
  }

  // kPending products were started after this one, of block i.
  template <int kPending>
  __device__ __forceinline__ void add(int i, Part& part, float (&sum)[kSums]) {
    const float of_weight = weight_scales.of(i);
    wgmma_wait<kPending>();
    uint32_t barrier = empty + done * 8;
#pragma unroll
    for (int j = 0; j < kSums; ++j) pin(part.sums[j]);
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j) {
      if (kRowScales) {
#pragma unroll
        for (int e = 4 * j; e < 4 * j + 4; ++e) sum[e] += part.sums[e];
        continue;
      }
      const float2 of_input = kScalesFirst ? part.of_input[j] : scales_of(done, j);
      const float left = of_input.x * of_weight, right = of_input.y * of_weight;
      barrier = after(barrier, nothing, of_input.x);
      sum[4 * j + 0] = fmaf(part.sums[4 * j + 0], left, sum[4 * j + 0]);
      sum[4 * j + 1] = fmaf(part.sums[4 * j + 1], right, sum[4 * j + 1]);
      sum[4 * j + 2] = fmaf(part.sums[4 * j + 2], left, sum[4 * j + 2]);
      sum[4 * j + 3] = fmaf(part.sums[4 * j + 3], right, sum[4 * j + 3]);
    }
    __syncwarp();
    if (lane < kGiving) barrier_arrive(barrier);
    if (++done == kStages) done = 0;
  }
};

// Two blocks a turn: the products of one run while those of the other are added.
__device__ __forceinline__ void consume(Consumer& self, int count, float (&sum)[kSums]) {
  Part even, odd;
#pragma unroll
  for (int i = 0; i < kSums; ++i) sum[i] = 0.0f;
  if (count % 2 == 1) {
    self.start(odd);
    self.add<0>(0, odd, sum);
  }
  if (count == 1) return;
  self.start(even);
  for (int i = count % 2;; i += 2) {
    self.start(odd);
    self.add<1>(i, even, sum);
    self.add<0>(i + 1, odd, sum);
    if (i + 2 >= count) return;
    self.start(even);
  }
}

// Shared memory of a block: `tiles` begins the stages at a multiple of 1024 bytes, then the scales of all stages.
struct Memory {
  char *tiles, *scales;
  Pipeline at;

  __device__ __forceinline__ Memory(char* raw, uint64_t* barriers) {
    const uint32_t misfit = shared_address(raw) % 1024;
    tiles = raw + (misfit == 0 ? 0 : 1024 - misfit);
    scales = tiles + kStages * (kWeightBytes + kInputBytes);
    at = {shared_address(tiles), shared_address(tiles) + kStages * kWeightBytes, shared_address(scales),
          shared_address(barriers), shared_address(barriers + kStages)};
  }
};

__device__ __forceinline__ Place place_of_block() {
  return {static_cast<int>(blockIdx.x / kSplit) * kRows, static_cast<int>(blockIdx.y) * kColumns,
          static_cast<int>(blockIdx.x % kSplit)};
}

// One lane keeps the copies of up to kStages blocks of k in flight, of quantized inputs that lie in memory.
struct Producer {
  const Pipeline& at;
  const TensorMap *input, *weight, *scale;
  const Place& here;
  int first;  // block of k

  __device__ __forceinline__ void fetch_weight(int i) const {
    const int stage = i % kStages;
    barrier_expect(at.full + stage * 8, kWeightBytes + kInputBytes + (kRowScales ? 0 : kScaleBytes));
    copy_tile(at.weight + stage * kWeightBytes, weight, (first + i) * kDepth, here.row, at.full + stage * 8);
  }

  __device__ __forceinline__ void fetch_input(int i) const {
    const int stage = i % kStages;
    copy_tile(at.input + stage * kInputBytes, input, (first + i) * kDepth, here.column, at.full + stage * 8);
    if (!kRowScales) copy_tile(at.scale + stage * kScaleSlot, scale, here.column, first + i, at.full + stage * 8);
  }

  // What there are no free stages for at the beginning.
  __device__ __forceinline__ void fetch_from(int early, int count) const {
    for (int i = early; i < count; ++i) {
      barrier_wait(at.empty + i % kStages * 8, (i / kStages - 1) & 1);
      fetch_weight(i);
      fetch_input(i);
    }
  }

  // All of `count` blocks of k.
  __device__ __forceinline__ void fetch_all(int count) const {
    const int early = min(count, kStages);
    for (int i = 0; i < early; ++i) fetch_weight(i);  // it was there before the kernel that makes the input
    wait_for_previous();
    let_next_start();
    for (int i = 0; i < early; ++i) fetch_input(i);
    fetch_from(early, count);
  }
};

// By one thread, before the block meets.
__device__ __forceinline__ void start_barriers(const Pipeline& at) {
  for (int i = 0; i < kStages; ++i)
    barrier_init(at.full + i * 8, 1), barrier_init(at.empty + i * 8, kConsumers / 32 * kGiving);
  barrier_init_fence();
}

#if !KT_ROW_SCALES
__device__ __forceinline__ Scales scales_of(const float* weight_scale, const Place& here, int n, int k_blocks, int first,
                                              int count) {
  const int block = min(here.row / 128, (n + 127) / 128 - 1);
  return {weight_scale + static_cast<int64_t>(block) * k_blocks + first, count};
}
#endif

// What the threads below kConsumers do: all products of the block, to its partial sums in shared memory.
__device__ void multiply(const Memory& memory, const Scales& weight_scales, uint32_t nothing) {
  Consumer self = {uniform(memory.at.full), uniform(memory.at.empty),
                   uniform(tile_word(memory.at.weight)), uniform(tile_word(memory.at.input)),
                   memory.at.scale + threadIdx.x % 4 * 8, weight_scales, static_cast<int>(threadIdx.x % 32), nothing,
                   0, 0, 0};
  float sum[kSums];
  consume(self, weight_scales.count, sum);
  asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory");  // every warp has read its last tile
  spill(reinterpret_cast<float*>(memory.tiles), sum);
}

// After the partial sums of the block are there: all threads add those of the cluster and store. of_columns as reduce()
// has it.
__device__ __forceinline__ void finish(const Memory& memory, const Neighbours& neighbours, Out* out, int m, int n,
                                       const Place& here, const float* of_columns = nullptr) {
  if (kSplit > 1) cluster_sync();
  else __syncthreads();
  if (threadIdx.x < kConsumers) reduce(reinterpret_cast<float*>(memory.tiles), neighbours, out, m, n, here, of_columns);
  if (kSplit > 1) cluster_leave();  // not while others read its sums
}
