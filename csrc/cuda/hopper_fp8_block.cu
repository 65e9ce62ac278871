// Block-scaled FP8 product for SM90 and many rows: persistent, warp-specialized, at the rate of the tensor cores.
//
//   out[m, n] = round(sum over blocks b of 128 columns: (x[m, b] . w[n, b]) * x_scale[b, m] * w_scale[n / 128, b] + bias[n])
//
// One warpgroup copies, two multiply: 64 rows by KT_COLUMNS columns each, from the same tile of the weight. The tensor
// cores keep about 14 bits of an FP8 sum, so each block of 128 is promoted to float32 with its scales, while the
// products of the next block run. Two neighbouring blocks form a cluster and have one of their two tiles in common: each
// fetches half of it for both, since the L2 cache cannot feed every multiprocessor tiles of its own.
//
// Tiles that would leave a part of the chip idle at the end are divided along k among all clusters. Who has the first
// part of such a tile adds the others', in the order of k, so that the result is the same every time.
//
// Compile-time: KT_COLUMNS (128 or 192), KT_COMMON (0: the pair shares its weight tile, 1: its input tile), KT_STAGES,
// KT_GROUP (row tiles, or pairs of them, that share a walk over n), KT_OUT.
#include "hopper.cuh"
#include "store.cuh"

constexpr int kRows = 128, kColumns = KT_COLUMNS, kDepth = 128;
constexpr int kStages = KT_STAGES, kGroup = KT_GROUP;
constexpr bool kCommonInput = KT_COMMON == 1;
constexpr int kPairRows = kCommonInput ? kRows : 2 * kRows, kPairColumns = kCommonInput ? 2 * kColumns : kColumns;
constexpr int kInputBytes = kRows * kDepth, kWeightBytes = kColumns * kDepth, kScaleBytes = kRows * 4;
constexpr int kSums = kColumns / 2;  // float32 sums of a thread
constexpr int kChunk = 64;           // columns that are staged for output at a time
constexpr int kPitch = kChunk + 8;   // 16-bit elements of a staged output row: rows start four banks apart
constexpr int kRuns = kColumns % 128 == 0 ? 1 : kColumns / 64;  // of columns that have one weight scale
constexpr bool kDouble = kColumns == 128;  // registers for two products: one runs while the other is added

struct Pipeline {
  uint32_t input, weight, scale;
  uint32_t full, empty;
};

// What is multiplied, in blocks of k, and in tiles of a pair of blocks; the first `divided` tiles are divided along k.
struct Problem {
  int m, n, k_blocks;
  int pairs_m, pairs_n, divided;
};

struct Tile {
  int row, column;
};

// Row tiles in groups of kGroup, so that the clusters that run together share their inputs in the L2 cache.
__device__ __forceinline__ Tile tile_at(const Problem& p, int index, int rank) {
  const int group = index / (kGroup * p.pairs_n), first = group * kGroup;
  const int height = min(kGroup, p.pairs_m - first), inside = index - group * kGroup * p.pairs_n;
  const int row = (first + inside % height) * kPairRows, column = inside / height * kPairColumns;
  return {kCommonInput ? row : row + rank * kRows, kCommonInput ? column + rank * kColumns : column};
}

// --- Which cluster computes what ------------------------------------------------------------------------------------

// A run of blocks of k of one tile.
struct Segment {
  int tile, first, count;
};

// The blocks of k of all divided tiles, one after the other, are dealt out in equal runs: where that of a worker begins.
__device__ __forceinline__ int first_unit(const Problem& p, int worker, int workers) {
  return static_cast<int>(static_cast<int64_t>(p.divided) * p.k_blocks * worker / workers);
}

// What a worker (a cluster) computes: its run of the divided tiles, then whole tiles.
struct Work {
  int unit, end, whole;

  __device__ __forceinline__ Work(const Problem& p, int worker, int workers)
      : unit(first_unit(p, worker, workers)), end(first_unit(p, worker + 1, workers)), whole(p.divided + worker) {}

  __device__ __forceinline__ bool next(const Problem& p, int workers, Segment& s) {
    if (unit < end) {
      s.tile = unit / p.k_blocks, s.first = unit % p.k_blocks, s.count = min(end - unit, p.k_blocks - s.first);
      unit += s.count;
      return true;
    }
    if (whole >= p.pairs_m * p.pairs_n) return false;
    s.tile = whole, s.first = 0, s.count = p.k_blocks;
    whole += workers;
    return true;
  }
};

// --- Copying --------------------------------------------------------------------------------------------------------

struct Producer {
  Pipeline at;
  const TensorMap *input, *weight, *scale;
  int rank;

  __device__ __forceinline__ void fetch_weight(int slot, int b, const Tile& tile) const {
    const uint32_t full = at.full + slot * 8, to = at.weight + slot * kWeightBytes;
    barrier_expect(full, kInputBytes + kWeightBytes + kScaleBytes);
    if (kCommonInput) copy_tile(to, weight, b * kDepth, tile.column, full);
    else copy_tile_to(to + rank * (kWeightBytes / 2), weight, b * kDepth, tile.column + rank * (kColumns / 2), full, 3);
  }

  __device__ __forceinline__ void fetch_input(int slot, int b, const Tile& tile) const {
    const uint32_t full = at.full + slot * 8, to = at.input + slot * kInputBytes;
    if (!kCommonInput) copy_tile(to, input, b * kDepth, tile.row, full);
    else copy_tile_to(to + rank * (kInputBytes / 2), input, b * kDepth, tile.row + rank * (kRows / 2), full, 3);
    copy_tile(at.scale + slot * kScaleBytes, scale, tile.row, b, full);
  }
};

__device__ void produce(const Producer& self, const Problem& p, int worker, int workers) {
  Work work(p, worker, workers);
  Segment s;
  int slot = 0, phase = 1, early = 0;
  bool started = false;
  while (work.next(p, workers, s)) {
    const Tile tile = tile_at(p, s.tile, self.rank);
    if (!started) {  // the weight was there before the kernel that makes the input
      early = min(kStages, s.count);
      for (int b = 0; b < early; ++b) self.fetch_weight(b, s.first + b, tile);
      wait_for_previous();
      let_next_start();
      started = true;
    }
    for (int b = 0; b < s.count; ++b) {
      if (early > 0) {
        --early;
      } else {
        barrier_wait(self.at.empty + slot * 8, phase);
        self.fetch_weight(slot, s.first + b, tile);
      }
      self.fetch_input(slot, s.first + b, tile);
      if (++slot == kStages) slot = 0, phase ^= 1;
    }
  }
  if (!started) wait_for_previous(), let_next_start();
  for (int i = 0; i < kStages; ++i) {  // the other block's consumers still arrive here: leave after them
    barrier_wait(self.at.empty + slot * 8, phase);
    if (++slot == kStages) slot = 0, phase ^= 1;
  }
}

// --- Multiplying ----------------------------------------------------------------------------------------------------

// Weight scales of each run of columns of a tile, along k.
struct WeightScales {
  const float* of[kRuns];

  __device__ __forceinline__ void next(float (&to)[kRuns]) {
#pragma unroll
    for (int c = 0; c < kRuns; ++c) to[c] = __ldg(of[c]++);
  }
};

// A product that runs: its sums, and the scales of the thread's two rows.
struct Part {
  float sums[kSums];
  float2 of_input;
};

// What one warpgroup needs to multiply a block of k, and to add it to its sums with its scales.
struct Consumer {
  uint32_t full, empty;    // barriers of slot 0
  uint32_t input, weight;  // words of the tiles of slot 0
  uint32_t scale;          // shared address of the thread's first scale in slot 0; its second is 8 floats on
  int lane;
  int slot, phase;         // of the block that is started next
  int done;                // slot of the block that is added next
  bool ready;              // the block that is started next is known to be there

  __device__ __forceinline__ void start(Part& part) {
    if (!ready) barrier_wait(full + slot * 8, phase);
    multiply_tiles(part.sums, input + slot * (kInputBytes >> 4), weight + slot * (kWeightBytes >> 4));
    const uint32_t from = scale + slot * kScaleBytes;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(part.of_input.x) : "r"(from));
    asm volatile("ld.shared.f32 %0, [%1+32];" : "=f"(part.of_input.y) : "r"(from));
    if (++slot == kStages) slot = 0, phase ^= 1;
  }

  // kPending products were started after this one.
  template <int kPending>
  __device__ __forceinline__ void add(Part& part, const float (&of_weight)[kRuns], float (&sum)[kSums]) {
    wgmma_wait<kPending>();
    ready = barrier_test(full + slot * 8, phase);
#pragma unroll
    for (int i = 0; i < kSums; ++i) pin(part.sums[i]);
    __syncwarp();
    if (lane < 2) barrier_arrive_at(empty + done * 8, lane);
    if (++done == kStages) done = 0;
#pragma unroll
    for (int c = 0; c < kRuns; ++c) {
      const float above = part.of_input.x * of_weight[c], below = part.of_input.y * of_weight[c];
#pragma unroll
      for (int j = c * (kSums / 4 / kRuns); j < (c + 1) * (kSums / 4 / kRuns); ++j) {
        sum[4 * j + 0] = fmaf(part.sums[4 * j + 0], above, sum[4 * j + 0]);
        sum[4 * j + 1] = fmaf(part.sums[4 * j + 1], above, sum[4 * j + 1]);
        sum[4 * j + 2] = fmaf(part.sums[4 * j + 2], below, sum[4 * j + 2]);
        sum[4 * j + 3] = fmaf(part.sums[4 * j + 3], below, sum[4 * j + 3]);
      }
    }
  }
};

// `count` blocks of one tile, one after the other.
__device__ __forceinline__ void sum_single(Consumer& self, WeightScales& scales, int count, float (&sum)[kSums]) {
  Part part;
  float now[kRuns], next[kRuns];
  scales.next(next);
  for (int b = 0; b < count; ++b) {
#pragma unroll
    for (int c = 0; c < kRuns; ++c) now[c] = next[c];
    if (b + 1 < count) scales.next(next);
    self.start(part);
    self.add<0>(part, now, sum);
  }
}

// The same; the products of the next block run while those of this one are added.
__device__ __forceinline__ void sum_double(Consumer& self, WeightScales& scales, int count, float (&sum)[kSums]) {
  Part even, odd;
  float of_even[kRuns], of_odd[kRuns];
  scales.next(of_even);
  self.start(even);
  self.ready = false;
  int b = 0;
  for (; b + 2 < count; b += 2) {
    scales.next(of_odd);
    self.start(odd);
    self.add<1>(even, of_even, sum);
    scales.next(of_even);
    self.start(even);
    self.add<1>(odd, of_odd, sum);
  }
  if (b + 1 < count) {
    scales.next(of_odd);
    self.start(odd);
    self.add<1>(even, of_even, sum);
    self.add<0>(odd, of_odd, sum);
  } else {
    self.add<0>(even, of_even, sum);
  }
}

// --- Divided tiles --------------------------------------------------------------------------------------------------

__device__ __forceinline__ void group_sync(int group) { asm volatile("bar.sync %0, 128;" ::"r"(1 + group) : "memory"); }

// What blocks leave for each other: sums in the order of their registers, and one flag for each warpgroup, set when the
// sums are there and zero again when they are added. All flags are zero between launches.
struct Parts {
  float4* sums;
  uint32_t* flags;

  __device__ __forceinline__ float4* of(int block, int group) const {
    return sums + (static_cast<int64_t>(block) * 2 + group) * (kSums / 4 * 128) + threadIdx.x % 128;
  }

  __device__ void leave(int block, int group, const float (&sum)[kSums]) const {
    float4* to = of(block, group);
#pragma unroll
    for (int i = 0; i < kSums / 4; ++i)
      __stcg(to + i * 128, make_float4(sum[4 * i], sum[4 * i + 1], sum[4 * i + 2], sum[4 * i + 3]));
    __threadfence();
    group_sync(group);
    if (threadIdx.x % 128 == 0)
      asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flags + block * 2 + group), "r"(1) : "memory");
  }

  __device__ void add(int block, int group, float (&sum)[kSums]) const {
    uint32_t* flag = flags + block * 2 + group;
    if (threadIdx.x % 128 == 0) {
      uint32_t set = 0;
      while (set == 0) asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(set) : "l"(flag) : "memory");
      *flag = 0;
    }
    group_sync(group);
    const float4* from = of(block, group);
#pragma unroll
    for (int i = 0; i < kSums / 4; ++i) {
      const float4 more = __ldcg(from + i * 128);
      sum[4 * i] += more.x, sum[4 * i + 1] += more.y, sum[4 * i + 2] += more.z, sum[4 * i + 3] += more.w;
    }
  }
};

// --- Storing --------------------------------------------------------------------------------------------------------

// 16 rows of one warp, 64 columns: through shared memory, so that a row leaves as 128 bytes in a piece.
__device__ __forceinline__ void store_chunk(char* staging, const float* sum, const float* bias, Out* out, int row0,
                                            int column0, int m, int n) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < kChunk / 8; ++j) {
    const int column = 8 * j + 2 * (lane % 4);
    float left = 0.0f, right = 0.0f;
    if (bias != nullptr && column0 + column < n) left = bias[column0 + column], right = bias[column0 + column + 1];
#if KT_OUT == 2
    const int row = row0 + lane / 4;
    Out* to = out + static_cast<int64_t>(row) * n + column0 + column;
    if (row < m && column0 + column < n)
      *reinterpret_cast<float2*>(to) = make_float2(sum[4 * j] + left, sum[4 * j + 1] + right);
    if (row + 8 < m && column0 + column < n)
      *reinterpret_cast<float2*>(to + static_cast<int64_t>(8) * n) =
        make_float2(sum[4 * j + 2] + left, sum[4 * j + 3] + right);
  }
#else
    uint32_t* to = reinterpret_cast<uint32_t*>(reinterpret_cast<Out*>(staging) + (lane / 4) * kPitch + column);
    to[0] = pack_pair(sum[4 * j + 0] + left, sum[4 * j + 1] + right);
    to[8 * kPitch / 2] = pack_pair(sum[4 * j + 2] + left, sum[4 * j + 3] + right);
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = 4 * i + lane / 8, column = lane % 8 * 8;
    if (row0 + row < m && column0 + column < n)
      *reinterpret_cast<uint4*>(out + static_cast<int64_t>(row0 + row) * n + column0 + column) =
        *reinterpret_cast<const uint4*>(reinterpret_cast<Out*>(staging) + row * kPitch + column);
  }
  __syncwarp();
#endif
}

// What is the same for all tiles of a consumer.
struct Output {
  char* staging;
  const float *weight_scale, *bias;
  Out* out;
  Parts parts;
};

__device__ void consume(Consumer& self, const Output& to, const Problem& p, int rank, int worker, int workers) {
  const int warp = uniform(threadIdx.x / 32) - 4, group = warp / 4, last_block = (p.n + 127) / 128 - 1;
  char* staging = to.staging + warp * 16 * kPitch * 2;
  Work work(p, worker, workers);
  Segment s;
  wait_for_previous();
  while (work.next(p, workers, s)) {
    const Tile tile = tile_at(p, s.tile, rank);
    WeightScales scales;
#pragma unroll
    for (int c = 0; c < kRuns; ++c) {
      const int block = min((tile.column + c * 64) / 128, last_block);
      scales.of[c] = to.weight_scale + static_cast<int64_t>(block) * p.k_blocks + s.first;
    }
    float sum[kSums];
#pragma unroll
    for (int i = 0; i < kSums; ++i) sum[i] = 0.0f;
    self.ready = false;
    if constexpr (kDouble) sum_double(self, scales, s.count, sum);
    else sum_single(self, scales, s.count, sum);
    // Workers stand in the grid in reverse: who waits, waits for blocks that the grid started earlier.
    if (s.first > 0) {
      to.parts.leave(2 * (workers - 1 - worker) + rank, group, sum);
      continue;
    }
    const int end = (s.tile + 1) * p.k_blocks;
    for (int unit = end - p.k_blocks + s.count, other = worker + 1; s.tile < p.divided && unit < end; ++other) {
      const int until = first_unit(p, other + 1, workers);
      if (until <= unit) continue;
      to.parts.add(2 * (workers - 1 - other) + rank, group, sum);
      unit = until;
    }
#pragma unroll
    for (int c = 0; c < kColumns / kChunk; ++c)
      store_chunk(staging, sum + c * 32, to.bias, to.out, tile.row + warp * 16, tile.column + c * kChunk, p.m, p.n);
  }
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1)
hopper_fp8_block(const __grid_constant__ TensorMap input, const __grid_constant__ TensorMap weight,
                 const __grid_constant__ TensorMap scale, const float* weight_scale, const float* bias, Out* out,
                 float4* part_sums, uint32_t* part_flags, int m, int n, int k_blocks, int divided) {
  extern __shared__ char raw[];
  __shared__ alignas(8) uint64_t barriers[2 * kStages];
  const uint32_t misfit = shared_address(raw) % 1024;
  char* tiles = raw + (misfit == 0 ? 0 : 1024 - misfit);
  char* scales = tiles + kStages * (kInputBytes + kWeightBytes);
  const Pipeline at = {shared_address(tiles), shared_address(tiles) + kStages * kInputBytes, shared_address(scales),
                       shared_address(barriers), shared_address(barriers + kStages)};
  const int pairs_m = (m + kPairRows - 1) / kPairRows, pairs_n = (n + kPairColumns - 1) / kPairColumns;
  const Problem p = {m, n, k_blocks, pairs_m, pairs_n, divided};
  const int rank = cluster_rank(), workers = gridDim.x / 2, worker = workers - 1 - static_cast<int>(blockIdx.x / 2);
  if (threadIdx.x == 0) {
    prefetch_map(&input), prefetch_map(&weight), prefetch_map(&scale);
    for (int i = 0; i < kStages; ++i) barrier_init(at.full + i * 8, 1), barrier_init(at.empty + i * 8, 16);
    barrier_init_fence();
  }
  cluster_sync();  // the other block's barriers are ready too
  if (threadIdx.x < 128) {
    give_registers<40>();
    const Producer self = {at, &input, &weight, &scale, rank};
    if (threadIdx.x == 0) produce(self, p, worker, workers);
  } else {
    take_registers<232>();
    const int lane = threadIdx.x % 32, warp = uniform(threadIdx.x / 32) - 4;
    Consumer self;
    self.full = uniform(at.full), self.empty = uniform(at.empty), self.weight = uniform(tile_word(at.weight));
    self.input = uniform(tile_word(at.input + warp / 4 * 64 * kDepth));
    self.scale = at.scale + (warp * 16 + lane / 4) * 4;
    self.lane = lane, self.slot = 0, self.phase = 0, self.done = 0, self.ready = false;
    const Output to = {scales + kStages * kScaleBytes, weight_scale, bias, out, {part_sums, part_flags}};
    consume(self, to, p, rank, worker, workers);
  }
}
