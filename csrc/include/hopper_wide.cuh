// How a warpgroup of hopper_w8a16_wide.cu widens and multiplies its part of a tile: what stages look like, and the steps
// along k, one way for each kind of scale. Compile-time: KT_INPUTS, KT_SCALES, KT_RESCALE, KT_TURNS, as there.
#pragma once
#include "hopper_widened.cuh"

constexpr int kColumns = 256, kStages = 5, kInputs = KT_INPUTS;
constexpr bool kPromotes = KT_SCALES == 1 && !KT_RESCALE;
constexpr int kSlices = kPromotes ? 2 : 1;  // of the columns
constexpr int kRows = 128, kDepth = 64, kConsumers = 256, kWarps = kConsumers / 32;
constexpr int kCodes = 64 * kDepth, kExponents = KT_SCALES == 2 ? 64 * 128 / 32 : 0;  // of a stage; of 128 of k
constexpr int kPacked = 2 * kCodes + kExponents;  // a packed tile: 64 rows, 128 of k
constexpr int kPart = kCodes + kExponents;        // of it in a stage: half the codes, all of the exponents
constexpr int kWeightBytes = 2 * kPart, kInputBytes = kColumns * kDepth * 2;
constexpr int kSlice = kColumns / kSlices;  // columns of one matrix instruction

// What one warpgroup needs to widen and multiply, and its sums.
//
// Stages are counted from 0 to 2 * kStages - 1 and again, over the ends of tiles. kStage, such a number, is a constant
// of the code: so are its slot (kStage % kStages), the parity of its barriers (kStage / kStages) and which half of a
// packed tile it has (kStage % 2), and descriptors are a warp's constants (see descriptor_of).
struct Consumer {
  uint32_t full, empty;  // barriers of slot 0
  uint32_t input;        // word of the input tile in slot 0
  const char* weights;   // slot 0, this thread's codes of this group's part
  const char* powers;    // slot 0, this thread's exponents
  int lane, group, k_blocks;
  bool last_tile;
  float sum[kColumns / 2];
  uint32_t fragments[32];  // of a stage of even number, then of the one after it

  // The codes of a stage as fragments of 4 instructions.
  template <int kStage>
  __device__ __forceinline__ void widen(uint32_t factor = kWiden) {
    constexpr int kSlot = kStage % kStages, kHalf = kStage % 2;
    barrier_wait(full + kSlot * 8, kStage / kStages % 2);
    const char* from = weights + kSlot * kWeightBytes;
#if KT_SCALES == 2
    const uint32_t exponents = *reinterpret_cast<const uint32_t*>(powers + kSlot * kWeightBytes + 4 * kHalf);
#endif
#pragma unroll
    for (int quarter = 0; quarter < 2; ++quarter) {
      const uint4 codes = *reinterpret_cast<const uint4*>(from + quarter * 2048);
      uint32_t upper = factor, lower = factor;
#if KT_SCALES == 2
      upper = widening_power_of(exponents, 2 * quarter), lower = widening_power_of(exponents, 2 * quarter + 1);
#endif
      widen_16(fragments + kHalf * 16 + quarter * 8, codes, upper, lower);
    }
  }

  // Starts the four products of a stage; the first one starts a new sum where kContinue is 0.
  template <int kStage, int kContinue>
  __device__ __forceinline__ void multiply(float (&to)[kSlice / 2], int slice = 0) {
    const uint64_t x = descriptor_of(input + ((kStage % kStages * kInputBytes + slice * kSlice * 128) >> 4));
    const uint32_t* own = fragments + kStage % 2 * 16;
    WgmmaWidened<kSlice>::template mma<kContinue>(to, own, x);
    WgmmaWidened<kSlice>::template mma<1>(to, own + 4, x + 2);
    WgmmaWidened<kSlice>::template mma<1>(to, own + 8, x + 4);
    WgmmaWidened<kSlice>::template mma<1>(to, own + 12, x + 6);
  }

  __device__ __forceinline__ void release(int stage) const {
    const uint32_t barrier = empty + stage % kStages * 8;
    __syncwarp();
    barrier_arrive(barrier);  // each lane for what it has read
    if (kInputs > 1 && lane < kInputs && lane != blockIdx.x % kInputs) barrier_arrive_at(barrier, lane);
  }

  // Whether a block of 128 of k comes after the one with this number, in this tile or the next one.
  __device__ __forceinline__ bool more_after(int block) const { return block + 1 < k_blocks || !last_tile; }
};

// A step is 128 of k, the stages kStage and kStage + 1. The fragments of the first one are widened in the step before
// it, and at the very beginning.
#if KT_SCALES == 1 && KT_RESCALE

struct Steps : Consumer {
  const float *scales, *next_scales;  // of this tile and of the next one, along k
  Unit unit;                          // of the sum, once it holds what was widened last
  float last;                         // unit of the sum

  __device__ __forceinline__ void begin() {
    unit.enter(__ldg(next_scales));
    widen<0>(unit.factor);
  }

  __device__ __forceinline__ void begin_tile() { unit.ratio = 1.0f; }

  template <int kStage>
  __device__ __forceinline__ void step(int block) {
    const float scale = __ldg(block + 1 < k_blocks ? scales + block + 1 : next_scales);
    unit.apply(sum);
    wgmma_fence();
    multiply<kStage, 1>(sum);
    wgmma_commit();
    widen<kStage + 1>(unit.factor);
    wgmma_fence();
    multiply<kStage + 1, 1>(sum);
    wgmma_commit();
    wgmma_wait<1>();
    release(kStage);
    last = unit.value;
    if (more_after(block)) {
      unit.enter(scale);
      widen<kStage + 2>(unit.factor);
    }
    wgmma_wait<0>();
#pragma unroll
    for (int j = 0; j < kColumns / 2; ++j) pin(sum[j]);
    release(kStage + 1);
  }

  __device__ __forceinline__ void end_tile(int) {}
};

#elif KT_SCALES == 1

struct Steps : Consumer {
  const float *scales, *next_scales;  // of this tile and of the next one, along k
  int turns;                          // that this block's warpgroups have left
  float part[kSlice / 2];

  // The warpgroups issue in turns: named barriers 2 and 3 are the turns of the first and the second one.
  __device__ __forceinline__ void take_turn() const {
    if (KT_TURNS) asm volatile("bar.sync %0, %1;" ::"r"(2 + group), "n"(kConsumers) : "memory");
  }
  __device__ __forceinline__ void give_turn() const {
    if (KT_TURNS) asm volatile("bar.arrive %0, %1;" ::"r"(3 - group), "n"(kConsumers) : "memory");
  }

  __device__ __forceinline__ void begin() {
    if (group == 1) give_turn();  // the first warpgroup begins
    widen<0>();
  }

  __device__ __forceinline__ void begin_tile() {}

  template <int kSliceIndex>
  __device__ __forceinline__ void promote(float scale) {
#pragma unroll
    for (int j = 0; j < kSlice / 2; ++j) {
      float& total = sum[kSliceIndex * (kSlice / 2) + j];
      total = fmaf(part[j], scale, total);
    }
  }

  // The slices of 128 of k from kSliceIndex on. The last one is left running, in two halves, so that fragments of the
  // first half can be overwritten while the second one is multiplied.
  template <int kStage, int kSliceIndex>
  __device__ __forceinline__ void slices(float scale) {
    constexpr bool kLast = kSliceIndex == kSlices - 1;
    take_turn();
    wgmma_fence();
    multiply<kStage, 0>(part, kSliceIndex);
    if (kLast) wgmma_commit();
    multiply<kStage + 1, 1>(part, kSliceIndex);
    wgmma_commit();
    if (group == 0 || --turns > 0) give_turn();
    if constexpr (!kLast) {
      wgmma_wait<0>();
#pragma unroll
      for (int j = 0; j < kSlice / 2; ++j) pin(part[j]);
      promote<kSliceIndex>(scale);
      slices<kStage, kSliceIndex + 1>(scale);
    }
  }

  template <int kStage>
  __device__ __forceinline__ void step(int block) {
    const float scale = __ldg(scales + block);
    widen<kStage + 1>();
    slices<kStage, 0>(scale);
    wgmma_wait<1>();
    if (more_after(block)) widen<kStage + 2>();
    wgmma_wait<0>();
#pragma unroll
    for (int j = 0; j < kSlice / 2; ++j) pin(part[j]);
    release(kStage), release(kStage + 1);
    promote<kSlices - 1>(scale);
  }

  __device__ __forceinline__ void end_tile(int) {}
};

#else

struct Steps : Consumer {
  __device__ __forceinline__ void begin() { widen<0>(); }

  __device__ __forceinline__ void begin_tile() {}

  // Two stages at most are being multiplied, so that the matrix unit has the next one when it ends one.
  template <int kStage>
  __device__ __forceinline__ void step(int block) {
    wgmma_fence();
    multiply<kStage, 1>(sum);
    wgmma_commit();
    wgmma_wait<1>();
    if (block > 0) release(kStage + 2 * kStages - 1);
    widen<kStage + 1>();
    wgmma_fence();
    multiply<kStage + 1, 1>(sum);
    wgmma_commit();
    wgmma_wait<1>();
    release(kStage);
    if (more_after(block)) widen<kStage + 2>();
  }

  // `next` is the number of the stage that comes next.
  __device__ __forceinline__ void end_tile(int next) {
    wgmma_wait<0>();
    release(next + 2 * kStages - 1);
#pragma unroll
    for (int j = 0; j < kColumns / 2; ++j) pin(sum[j]);
  }
};

#endif

// A whole tile. `position` is half the number of its first stage, and becomes that of the next tile's.
__device__ __forceinline__ void sum_tile(Steps& self, int& position) {
  static_assert(kStages == 5, "a case for each position");
#pragma unroll
  for (int j = 0; j < kColumns / 2; ++j) self.sum[j] = 0.0f;
  self.begin_tile();
#pragma unroll 1
  for (int block = 0; block < self.k_blocks; ++block) {
    switch (position) {
      case 0: self.step<0>(block); break;
      case 1: self.step<2>(block); break;
      case 2: self.step<4>(block); break;
      case 3: self.step<6>(block); break;
      default: self.step<8>(block);
    }
    position = position + 1 == kStages ? 0 : position + 1;
  }
  self.end_tile(2 * position);
}
