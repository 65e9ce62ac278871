// What the FP8 products for SM90 with 128 rows of the input in a block share: tiles in shared memory, two warpgroups that
// multiply 64 rows by KT_COLUMNS columns each, and the promotion of their sums.
//
// The tensor cores keep about 14 bits of an FP8 sum, so each block of 128 of k is promoted to float32 with its scales,
// while the products of the next block run. Two blocks of a cluster, a pair, have one of their two tiles in common: each
// fetches half of it for both, since the L2 cache cannot feed every multiprocessor tiles of its own.
//
// Compile-time: KT_COLUMNS (a multiple of 16, at most 192), KT_COMMON (0: the pair shares its weight tile, 1: its input
// tile), KT_STAGES, KT_OUT.
#pragma once

#include "hopper.cuh"
#include "store.cuh"

constexpr int kRows = 128, kColumns = KT_COLUMNS, kDepth = 128, kStages = KT_STAGES;
constexpr bool kCommonInput = KT_COMMON == 1;
constexpr int kPairRows = kCommonInput ? kRows : 2 * kRows, kPairColumns = kCommonInput ? 2 * kColumns : kColumns;
constexpr int kInputBytes = kRows * kDepth, kWeightBytes = kColumns * kDepth, kScaleBytes = kRows * 4;
constexpr int kSums = kColumns / 2;  // float32 sums of a thread
constexpr int kGrain = kColumns % 128 == 0 ? 128 : kColumns % 64 == 0 ? 64 : kColumns % 32 == 0 ? 32 : 16;
constexpr bool kOneScale = 128 % kColumns == 0;  // of the weight for a tile, in a block of k; else two
static_assert(kColumns <= 128 + kGrain, "a tile that starts anywhere has two scales at most");
constexpr bool kDouble = kColumns <= 128;         // registers for two products: one runs while the other is added

struct Pipeline {
  uint32_t input, weight, scale;
  uint32_t full, empty;
};

struct Tile {
  int row, column;
};

// --- Copying --------------------------------------------------------------------------------------------------------

// `member`: which block of the pair this one is; `pair`: the pair's first rank in the cluster.
struct Producer {
  Pipeline at;
  const TensorMap *input, *weight, *scale;
  int member, pair;

  // This block's half of a tile, to both blocks.
  __device__ __forceinline__ void share(uint32_t to, int bytes, const TensorMap* map, int column, int row, int rows,
                                        uint32_t full) const {
    copy_tile_to(to + member * bytes, map, column, row + member * rows, full, static_cast<unsigned short>(3 << pair));
  }

  __device__ __forceinline__ void fetch_weight(int slot, int b, const Tile& tile) const {
    const uint32_t full = at.full + slot * 8, to = at.weight + slot * kWeightBytes;
    barrier_expect(full, kInputBytes + kWeightBytes + kScaleBytes);
    if (kCommonInput) copy_tile(to, weight, b * kDepth, tile.column, full);
    else share(to, kWeightBytes / 2, weight, b * kDepth, tile.column, kColumns / 2, full);
  }

  __device__ __forceinline__ void fetch_input(int slot, int b, const Tile& tile) const {
    const uint32_t full = at.full + slot * 8, to = at.input + slot * kInputBytes;
    if (!kCommonInput) copy_tile(to, input, b * kDepth, tile.row, full);
    else share(to, kInputBytes / 2, input, b * kDepth, tile.row, kRows / 2, full);
    copy_tile(at.scale + slot * kScaleBytes, scale, tile.row, b, full);
  }
};

// --- Multiplying ----------------------------------------------------------------------------------------------------

// Weight scales of a tile along k: of its columns before a boundary, and of those from there on.
struct WeightScales {
  const float *low, *high;
  int boundary;  // in kGrain columns

  __device__ __forceinline__ WeightScales(const float* scales, int column, int n, int k_blocks, int first) {
    const int last = (n + 127) / 128 - 1, block = min(column / 128, last);
    low = scales + static_cast<int64_t>(block) * k_blocks + first;
    high = scales + static_cast<int64_t>(min(block + 1, last)) * k_blocks + first;
    boundary = ((block + 1) * 128 - column) / kGrain;
  }

  __device__ __forceinline__ float2 next() {
    if constexpr (kOneScale) return make_float2(__ldg(low++), 0.0f);
    else return make_float2(__ldg(low++), __ldg(high++));
  }
};

// A product that runs: its sums, and the scales of the thread's two rows.
struct Part {
  float sums[kSums];
  float2 of_input;
};

// What one warpgroup needs to multiply a block of k, and to add it to its sums with its scales.
//
// Slots are constants where these functions are called, in loops that are unrolled: then addresses and descriptors are a
// warp's constants too, and four products follow each other at once.
struct Consumer {
  uint32_t full;           // barrier of slot 0
  uint32_t input, weight;  // words of the tiles of slot 0
  uint32_t scale;          // shared address of the thread's first scale in slot 0; its second is 8 floats on
  uint32_t given;          // of two lanes: where the barrier `empty` of slot 0 is in one block of the pair
  int lane;
  int boundary;            // of the weight's scales
  int phases;              // a bit for each slot
  bool ready;              // the block that is started next is known to be there

  __device__ __forceinline__ void start(Part& part, int slot) {
    if (!ready) barrier_wait(full + slot * 8, phases >> slot & 1);
    phases ^= 1 << slot;
    const uint32_t from = scale + slot * kScaleBytes;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(part.of_input.x) : "r"(from));
    asm volatile("ld.shared.f32 %0, [%1+32];" : "=f"(part.of_input.y) : "r"(from));
    multiply_tiles(part.sums, input + slot * (kInputBytes >> 4), weight + slot * (kWeightBytes >> 4));
  }

  // kPending products were started after this one; `next` is the slot of the block that is started next.
  template <int kPending>
  __device__ __forceinline__ void add(Part& part, const float2& of_weight, float (&sum)[kSums], int slot, int next) {
    wgmma_wait<kPending>();
    ready = barrier_test(full + next * 8, phases >> next & 1);
#pragma unroll
    for (int i = 0; i < kSums; ++i) pin(part.sums[i]);
    __syncwarp();
    if (lane < 2) barrier_arrive_remote(given + slot * 8);
    const float above_low = part.of_input.x * of_weight.x, below_low = part.of_input.y * of_weight.x;
    const float above_high = part.of_input.x * of_weight.y, below_high = part.of_input.y * of_weight.y;
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j) {
      const bool low = kOneScale || 8 * j / kGrain < boundary;
      const float above = low ? above_low : above_high, below = low ? below_low : below_high;
      sum[4 * j + 0] = fmaf(part.sums[4 * j + 0], above, sum[4 * j + 0]);
      sum[4 * j + 1] = fmaf(part.sums[4 * j + 1], above, sum[4 * j + 1]);
      sum[4 * j + 2] = fmaf(part.sums[4 * j + 2], below, sum[4 * j + 2]);
      sum[4 * j + 3] = fmaf(part.sums[4 * j + 3], below, sum[4 * j + 3]);
    }
  }
};

// `count` blocks of one tile, one after the other; the first is in slot 0.
__device__ __forceinline__ void sum_single(Consumer& self, WeightScales& scales, int count, float (&sum)[kSums]) {
  Part part;
  float2 next = scales.next();
  for (int first = 0; first < count; first += kStages) {
#pragma unroll
    for (int slot = 0; slot < kStages; ++slot) {
      if (first + slot >= count) break;
      const float2 now = next;
      if (first + slot + 1 < count) next = scales.next();
      self.start(part, slot);
      self.add<0>(part, now, sum, slot, (slot + 1) % kStages);
    }
  }
}

// The same; the products of the next block run while those of this one are added.
__device__ __forceinline__ void sum_double(Consumer& self, WeightScales& scales, int count, float (&sum)[kSums]) {
  static_assert(!kDouble || kStages % 2 == 0, "even blocks of k have even slots");
  Part even, odd;
  float2 of_even = scales.next(), of_odd;
  self.start(even, 0);
  self.ready = false;
  int b = 0;
  for (; b + kStages < count; b += kStages) {
#pragma unroll
    for (int slot = 0; slot < kStages; slot += 2) {
      of_odd = scales.next();
      self.start(odd, slot + 1);
      self.add<1>(even, of_even, sum, slot, (slot + 2) % kStages);
      of_even = scales.next();
      self.start(even, (slot + 2) % kStages);
      self.add<1>(odd, of_odd, sum, slot + 1, (slot + 3) % kStages);
    }
  }
  int slot = 0, next = 1, after = 2 % kStages;  // of the block that is added, and of the next ones
  auto advance = [&] { slot = next, next = after, after = after + 1 == kStages ? 0 : after + 1; };
  for (; b + 2 < count; b += 2) {
    of_odd = scales.next();
    self.start(odd, next);
    self.add<1>(even, of_even, sum, slot, after);
    advance();
    of_even = scales.next();
    self.start(even, next);
    self.add<1>(odd, of_odd, sum, slot, after);
    advance();
  }
  if (b + 1 < count) {
    of_odd = scales.next();
    self.start(odd, next);
    self.add<1>(even, of_even, sum, slot, after);
    self.add<0>(odd, of_odd, sum, next, after);
  } else {
    self.add<0>(even, of_even, sum, slot, next);
  }
}

// `count` blocks of a tile from where `scales` begins, to sums that start at 0.
__device__ __forceinline__ void sum_blocks(Consumer& self, WeightScales& scales, int count, float (&sum)[kSums]) {
#pragma unroll
  for (int i = 0; i < kSums; ++i) sum[i] = 0.0f;
  self.ready = false, self.boundary = scales.boundary;
  if constexpr (kDouble) sum_double(self, scales, count, sum);
  else sum_single(self, scales, count, sum);
}

// --- A block --------------------------------------------------------------------------------------------------------

// Shared memory: `tiles` begins the stages at a multiple of 1024 bytes, then come the scales of all stages, then `rest`.
struct Memory {
  char *tiles, *rest;
  Pipeline at;

  __device__ __forceinline__ Memory(char* raw, uint64_t* barriers) {
    const uint32_t misfit = shared_address(raw) % 1024;
    tiles = raw + (misfit == 0 ? 0 : 1024 - misfit);
    char* scales = tiles + kStages * (kInputBytes + kWeightBytes);
    rest = scales + kStages * kScaleBytes;
    at = {shared_address(tiles), shared_address(tiles) + kStages * kInputBytes, shared_address(scales),
          shared_address(barriers), shared_address(barriers + kStages)};
  }

  // By one thread, before the cluster meets.
  __device__ __forceinline__ void start_barriers() const {
    for (int i = 0; i < kStages; ++i) barrier_init(at.full + i * 8, 1), barrier_init(at.empty + i * 8, 16);
    barrier_init_fence();
  }

  // Of a thread of one of the warpgroups that multiply, the first of which begins at thread 128.
  __device__ __forceinline__ Consumer consumer(int pair) const {
    const int lane = threadIdx.x % 32, warp = uniform(threadIdx.x / 32) - 4;
    Consumer self;
    self.full = uniform(at.full), self.weight = uniform(tile_word(at.weight));
    self.input = uniform(tile_word(at.input + warp / 4 * 64 * kDepth));
    self.scale = at.scale + (warp * 16 + lane / 4) * 4;
    self.given = address_at(at.empty, pair + lane % 2);
    self.lane = lane, self.phases = 0, self.ready = false;
    return self;
  }
};
