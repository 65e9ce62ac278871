// What the FP8 products for SM90 with 128 rows of the input in a block share: tiles in shared memory, two warpgroups that
// multiply 64 rows by KT_COLUMNS columns each, and the promotion of their sums.
//
// The tensor cores keep about 14 bits of an FP8 sum, so each block of 128 of k is promoted to float32 with its scales,
// while other products run: those of the next block where registers hold two (up to 128 columns), else those of the other
// warpgroup. A team is a block alone, or two of a cluster that have one of their two tiles in common: each fetches half
// of it for both. They wait for each other, but from 129 rows on that costs less than to fetch twice as much from the L2
// cache.
//
// Between the end of a product and the start of the next one stand its promotion and next to nothing else: scales of the
// weight come with the tiles, and loops are unrolled over the stages.
//
// Compile-time: KT_COLUMNS (a multiple of 16, at most 192, or 256), KT_COMMON (0: a team shares its weight tile, 1: its
// input tile, 2: a block alone), KT_STAGES, KT_OUT, KT_ROW_SCALES (1: the only scales are of whole rows, and sums are
// multiplied by them when a tile is stored).
#pragma once

#ifndef KT_ROW_SCALES
#define KT_ROW_SCALES 0
#endif

#include "hopper.cuh"
#include "shares.cuh"
#include "store.cuh"

constexpr int kRows = 128, kColumns = KT_COLUMNS, kDepth = 128, kStages = KT_STAGES;
constexpr bool kCommonWeight = KT_COMMON == 0, kCommonInput = KT_COMMON == 1;
constexpr int kConsumers = 256, kFirstConsumer = 128;      // threads that multiply
constexpr int kMembers = kCommonWeight || kCommonInput ? 2 : 1;  // blocks of a team
constexpr int kTeamRows = kCommonWeight ? 2 * kRows : kRows, kTeamColumns = kCommonInput ? 2 * kColumns : kColumns;
constexpr int kInputBytes = kRows * kDepth, kWeightBytes = kColumns * kDepth, kScaleBytes = kRows * 4;
constexpr int kFactorBytes = 16, kFactorSlot = 128;  // of a scale of the weight, the first of four numbers; of two of them
constexpr bool kRowScales = KT_ROW_SCALES == 1;
constexpr int kSums = kColumns / 2;  // float32 sums of a thread
constexpr int kGrain = kColumns % 128 == 0 ? 128 : kColumns % 64 == 0 ? 64 : kColumns % 32 == 0 ? 32 : 16;
constexpr bool kOneScale = 128 % kColumns == 0;  // of the weight for a tile, in a block of k; else two
constexpr int kScalesBytes = kRowScales ? 0 : kScaleBytes + kFactorBytes * (kOneScale ? 1 : 2);  // of a block of k
constexpr int kHalves = kColumns == 256 ? 2 : 1;  // products that a block of k takes, one after the other
constexpr int kPart = kSums / kHalves;            // float32 sums of a product
static_assert(kColumns <= 128 + kGrain || kHalves == 2, "a tile has two scales at most");
constexpr bool kBoundary = !kRowScales && !kOneScale && kHalves == 1;  // a product's columns may have two scales
constexpr bool kDouble = kColumns <= 128;         // two products at a time: one runs while the other is added

struct Pipeline {
  uint32_t input, weight, scale, factors;
  uint32_t full, empty;
};

struct Tile {
  int row, column;
};

// --- Copying --------------------------------------------------------------------------------------------------------

// With scales of rows, those of a tile's columns come with its first block of k, to one of two places in turn: in the one
// before them are those of the tile before, which may still be stored.
constexpr int kRowBytes = kRowScales ? kColumns * 4 : 0;
static_assert(2 * kRowBytes <= kStages * kScaleBytes, "they take the place of the input's scales of blocks");

// `member`: which block of the team this one is. `scale` is nullptr with scales of rows.
struct Producer {
  Pipeline at;
  const TensorMap *input, *weight, *scale, *weight_scale;
  int member;

  // This block's half of a tile, to both blocks.
  __device__ __forceinline__ void share(uint32_t to, int bytes, const TensorMap* map, int column, int row, int rows,
                                        uint32_t full) const {
    copy_tile_to(to + member * bytes, map, column, row + member * rows, full, 3);
  }

  // `turn`: where the scales of the tile's columns go, 0 or 1; less than 0: they come with another block of k, or never.
  __device__ __forceinline__ void fetch_weight(int slot, int b, const Tile& tile, int turn = -1) const {
    const uint32_t full = at.full + slot * 8, to = at.weight + slot * kWeightBytes;
    const bool rows = kRowScales && turn >= 0;
    barrier_expect(full, kInputBytes + kWeightBytes + kScalesBytes + (rows ? kRowBytes : 0));
    if (rows) copy_tile(at.scale + turn * kRowBytes, weight_scale, tile.column, 0, full);
    if (!kCommonWeight) copy_tile(to, weight, b * kDepth, tile.column, full);
    else share(to, kWeightBytes / 2, weight, b * kDepth, tile.column, kColumns / 2, full);
    if (!kRowScales) copy_tile(at.factors + slot * kFactorSlot, weight_scale, 4 * b, tile.column / 128, full);
  }

  __device__ __forceinline__ void fetch_input(int slot, int b, const Tile& tile) const {
    const uint32_t full = at.full + slot * 8, to = at.input + slot * kInputBytes;
    if (!kCommonInput) copy_tile(to, input, b * kDepth, tile.row, full);
    else share(to, kInputBytes / 2, input, b * kDepth, tile.row, kRows / 2, full);
    if (!kRowScales) copy_tile(at.scale + slot * kScaleBytes, scale, tile.row, b, full);
  }
};

// --- Multiplying ----------------------------------------------------------------------------------------------------

// A product that runs: its sums, the scales of the thread's two rows, and those of the weight: of the tile's columns
// before a boundary, and of those from there on.
struct Part {
  float sums[kPart];
  float2 of_input, of_weight;
};

// What one warpgroup needs to multiply a block of k, and to add it to its sums with its scales.
//
// Slots are constants where these functions are called, in loops that are unrolled: then addresses and descriptors are a
// warp's constants too, and four products follow each other at once.
struct Consumer {
  uint32_t full;           // barrier of slot 0
  uint32_t input, weight;  // words of the tiles of slot 0
  uint32_t scale;          // shared address of the thread's first scale in slot 0; its second is 8 floats on
  uint32_t factors;        // shared address of the weight's scales in slot 0
  uint32_t given;          // of a lane for each member: where the barrier `empty` of slot 0 is in that block
  uint32_t nothing;        // see `after`
  uint32_t scale_of_columns;  // with scales of rows: shared address of the thread's first column's, of the first tile
  int lane;
  int boundary;            // of the weight's scales, in kGrain columns
  int phases;              // a bit for each slot

  // Where those of the tile after one are.
  __device__ __forceinline__ uint32_t other_columns(uint32_t one) const {
    return one == scale_of_columns ? one + kRowBytes : scale_of_columns;
  }

  // Waits for a block of k, and reads its scales.
  __device__ __forceinline__ void take(Part& part, int slot) {
    barrier_wait(full + slot * 8, phases >> slot & 1);
    phases ^= 1 << slot;
    if (kRowScales) return;
    const uint32_t from = scale + slot * kScaleBytes, factor = factors + slot * kFactorSlot;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(part.of_input.x) : "r"(from));
    asm volatile("ld.shared.f32 %0, [%1+32];" : "=f"(part.of_input.y) : "r"(from));
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(part.of_weight.x) : "r"(factor));
    if (!kOneScale) asm volatile("ld.shared.f32 %0, [%1+16];" : "=f"(part.of_weight.y) : "r"(factor));
  }

  __device__ __forceinline__ void multiply(Part& part, int slot, int half) {
    multiply_tiles(part.sums, input + slot * (kInputBytes >> 4),
                   weight + slot * (kWeightBytes >> 4) + half * (kWeightBytes / kHalves >> 4));
  }

  // `given`, once the scales of a product are there. Of two halves the first one's sums have taken theirs before the second
  // one overwrites them.
  __device__ __forceinline__ uint32_t given_after(const Part& part) const {
    if (kRowScales) return given;
    if (kHalves == 2) return after(given, nothing, part.of_weight.y);
    const uint32_t barrier = after(given, nothing, part.of_input.x, part.of_input.y, part.of_weight.x);
    return kOneScale ? barrier : after(barrier, nothing, part.of_weight.y);
  }

  // The warp has read the last of a slot; `barrier` is what given_after() says.
  __device__ __forceinline__ void give(uint32_t barrier, int slot) {
    __syncwarp();
    if (lane >= kMembers) return;
    if (kMembers == 1) barrier_arrive(barrier + slot * 8);
    else barrier_arrive_remote(barrier + slot * 8);
  }

  __device__ __forceinline__ void start(Part& part, int slot) {
    take(part, slot);
    multiply(part, slot, 0);
  }

  // sum += part, by its scales; where a block takes two products, their columns lie in two blocks of the weight's scales.
  __device__ __forceinline__ void promote(Part& part, float* sum, int half) const {
#pragma unroll
    for (int i = 0; i < kPart; ++i) pin(part.sums[i]);
    if constexpr (kRowScales) {
#pragma unroll
      for (int i = 0; i < kPart; ++i) sum[i] += part.sums[i];
      return;
    }
    const float first = half == 0 ? part.of_weight.x : part.of_weight.y;
    const float above_low = part.of_input.x * first, below_low = part.of_input.y * first;
    const float above_high = part.of_input.x * part.of_weight.y, below_high = part.of_input.y * part.of_weight.y;
#pragma unroll
    for (int j = 0; j < kPart / 4; ++j) {
      const bool low = kOneScale || kHalves == 2 || 8 * j / kGrain < boundary;
      const float above = low ? above_low : above_high, below = low ? below_low : below_high;
      sum[4 * j + 0] = fmaf(part.sums[4 * j + 0], above, sum[4 * j + 0]);
      sum[4 * j + 1] = fmaf(part.sums[4 * j + 1], above, sum[4 * j + 1]);
      sum[4 * j + 2] = fmaf(part.sums[4 * j + 2], below, sum[4 * j + 2]);
      sum[4 * j + 3] = fmaf(part.sums[4 * j + 3], below, sum[4 * j + 3]);
    }
  }

  // kPending products were started after this one.
  template <int kPending>
  __device__ __forceinline__ void add(Part& part, float (&sum)[kSums], int slot) {
    const uint32_t barrier = given_after(part);
    wgmma_wait<kPending>();
    give(barrier, slot);
    promote(part, sum, 0);
  }

  // A block of k from beginning to end. `early` runs beside its first product, `late` beside the second one of two.
  template <typename Early, typename Late>
  __device__ __forceinline__ void step(Part& part, float (&sum)[kSums], int slot, Early early, Late late) {
    start(part, slot);
    if constexpr (kHalves == 2) {
      const uint32_t barrier = given_after(part);
      early();
      wgmma_wait<0>();
      promote(part, sum, 0);
      multiply(part, slot, 1);
      late();
      wgmma_wait<0>();
      give(barrier, slot);
      promote(part, sum + kPart, 1);
    } else {
      early();
      add<0>(part, sum, slot);
    }
  }
};

// `count` blocks of one tile, one after the other; the first is in slot 0. `early` runs beside the first product if
// there are kStages blocks at least. `late` runs beside the last one if their number is a multiple of kStages and a
// block takes two products: the sums of the first one are whole then.
template <typename Early, typename Late>
__device__ __forceinline__ void sum_single(Consumer& self, int count, float (&sum)[kSums], Early early, Late late) {
  Part part;
  int b = 0;
  for (; b + kStages <= count; b += kStages) {
#pragma unroll
    for (int slot = 0; slot < kStages; ++slot)
      self.step(
        part, sum, slot, [&] { if (slot == 0 && b == 0) early(); },
        [&] { if (slot == kStages - 1 && b + kStages == count) late(); });
  }
#pragma unroll 1
  for (int slot = 0; b < count; ++b, ++slot) self.step(part, sum, slot, [] {}, [] {});
}

// The same; the products of the next block run while those of this one are added.
template <typename Early>
__device__ __forceinline__ void sum_double(Consumer& self, int count, float (&sum)[kSums], Early early) {
  static_assert(!kDouble || kStages % 2 == 0, "even blocks of k have even slots");
  Part even, odd;
  self.start(even, 0);
  if (count >= kStages) early();
  int b = 0;
  for (; b + kStages < count; b += kStages) {
#pragma unroll
    for (int slot = 0; slot < kStages; slot += 2) {
      self.start(odd, slot + 1);
      self.add<1>(even, sum, slot);
      self.start(even, (slot + 2) % kStages);
      self.add<1>(odd, sum, slot + 1);
    }
  }
  int slot = 0, next = 1;  // of the block that is added, and of the one after it
  auto advance = [&] { slot = next, next = next + 1 == kStages ? 0 : next + 1; };
  for (; b + 2 < count; b += 2) {
    self.start(odd, next);
    self.add<1>(even, sum, slot);
    advance();
    self.start(even, next);
    self.add<1>(odd, sum, slot);
    advance();
  }
  if (b + 1 < count) {
    self.start(odd, next);
    self.add<1>(even, sum, slot);
    self.add<0>(odd, sum, next);
  } else {
    self.add<0>(even, sum, slot);
  }
}

// `count` blocks of a tile that starts at a column, added to the sums; `early` and `late` as sum_single says.
template <typename Early, typename Late>
__device__ __forceinline__ void sum_blocks(Consumer& self, int column, int count, float (&sum)[kSums], Early early,
                                           Late late) {
  if (kBoundary) self.boundary = (128 - column % 128) / kGrain;
  if constexpr (kDouble) sum_double(self, count, sum, early);
  else sum_single(self, count, sum, early, late);
}

// --- A block --------------------------------------------------------------------------------------------------------

// Scales of rows of the input, `step` apart (0: one for all). They may have been written by other blocks of this launch,
// whose codes have arrived.
struct RowScales {
  const float* of_input;
  int step;

  __device__ __forceinline__ float of_row(int row) const {
    return __uint_as_float(load_relaxed(of_input + static_cast<int64_t>(row) * step));
  }
};

// Shared memory, which starts at a multiple of 1024 bytes: the stages' tiles, kStaging bytes, a multiple of it too, the
// scales, the barriers, and 128 bytes for who shares work out.
template <int kStaging = 0>
struct Memory {
  char* tiles;
  Pipeline at;
  uint32_t staging;
  uint32_t* shares;

  __device__ __forceinline__ explicit Memory(char* raw) : tiles(raw) {
    if (shared_address(raw) % 1024 != 0) __trap();
    const uint32_t first = shared_address(raw), scales = first + kStages * (kInputBytes + kWeightBytes) + kStaging;
    const uint32_t factors = scales + kStages * kScaleBytes, full = factors + kStages * kFactorSlot;
    at = {first, first + kStages * kInputBytes, scales, factors, full, full + kStages * 8};
    staging = scales - kStaging;
    shares = reinterpret_cast<uint32_t*>(raw + (at.empty + kStages * 8 - first));
  }

  // By one thread, before the cluster meets.
  __device__ __forceinline__ void start_barriers() const {
    for (int i = 0; i < kStages; ++i) barrier_init(at.full + i * 8, 1), barrier_init(at.empty + i * 8, 8 * kMembers);
    barrier_init_fence();
  }

  // Of a thread of one of the warpgroups that multiply, the first of which begins at thread 128.
  __device__ __forceinline__ Consumer consumer(int m) const {
    const int lane = threadIdx.x % 32, warp = uniform(threadIdx.x / 32) - 4;
    Consumer self;
    self.full = uniform(at.full), self.weight = uniform(tile_word(at.weight));
    self.input = uniform(tile_word(at.input + warp / 4 * 64 * kDepth));
    self.scale = at.scale + (warp * 16 + lane / 4) * 4;
    self.given = kMembers == 1 ? at.empty : address_at(at.empty, lane % 2);
    self.factors = at.factors, self.scale_of_columns = at.scale + lane % 4 * 8;
    self.lane = lane, self.phases = 0, self.nothing = nothing_of(m);
    return self;
  }
};
