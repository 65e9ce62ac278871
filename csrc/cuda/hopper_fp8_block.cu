// Block-scaled FP8 product for SM90 and many rows: persistent, warp-specialized, at the rate of the tensor cores.
//
//   out[m, n] = round(sum over blocks b of 128 columns: (x[m, b] . w[n, b]) * x_scale[b, m] * w_scale[n / 128, b] + bias[n])
//
// A cluster is a team of one block or two; in each one warpgroup copies, and two multiply, as hopper_tiles.cuh says.
//
// Tiles that would leave a part of the chip idle at the end are divided along k among all clusters. Who has the first
// part of such a tile adds the others', in the order of k, so that the result is the same every time.
//
// Compile-time: KT_GROUP (row tiles of teams that share a walk over n), KT_CHUNKS (times 64 columns of a 16-bit
// output that are staged at once) and the numbers of hopper_tiles.cuh.
#include "hopper_tiles.cuh"

constexpr int kGroup = KT_GROUP;
constexpr int kChunk = 64;  // columns of 16-bit output that are stored at a time: a swizzled row of 128 bytes
constexpr int kChunkBytes = 16 * kChunk * 2;          // of the 16 rows of a warp
constexpr int kChunks = KT_OUT == 2 ? 0 : KT_CHUNKS;  // that are staged at once
static_assert(KT_OUT == 2 || kColumns % (kChunk * kChunks) == 0, "a tile is stored in whole rounds of chunks");

// What is multiplied, in blocks of k, and in tiles of a team; the first `divided` tiles are divided along k.
// inverse: of the tiles of a group.
struct Problem {
  int m, n, k_blocks;
  int teams_m, teams_n, divided;
  float inverse;
};

// a / b for a below 2^24, as tiles are (more would be a terabyte of output); a tenth of the instructions of a division.
__device__ __forceinline__ int divide(int a, int b, float inverse) {
  const int q = __float2int_rz(__int2float_rn(a) * inverse), rest = a - q * b;
  return q + (rest >= b ? 1 : rest < 0 ? -1 : 0);
}

// Row tiles in groups of kGroup, so that the clusters that run together share their inputs in the L2 cache.
__device__ __forceinline__ Tile tile_at(const Problem& p, int index, int rank) {
  const int size = kGroup * p.teams_n, group = divide(index, size, p.inverse), first = group * kGroup;
  const int height = min(kGroup, p.teams_m - first), inside = index - group * size;
  const int across = height == kGroup ? inside / kGroup : inside / height;
  const int row = (first + inside - across * height) * kTeamRows, column = across * kTeamColumns;
  return {kCommonWeight ? row + rank * kRows : row, kCommonInput ? column + rank * kColumns : column};
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
    if (whole >= p.teams_m * p.teams_n) return false;
    s.tile = whole, s.first = 0, s.count = p.k_blocks;
    whole += workers;
    return true;
  }
};

// --- Copying --------------------------------------------------------------------------------------------------------

// The first blocks of k of the weight, as many as there are stages: it was there before the kernel that makes the input.
__device__ void fetch_early(const Producer& self, const Problem& p, int worker, int workers) {
  Work work(p, worker, workers);
  Segment s;
  if (!work.next(p, workers, s)) return;
  const Tile tile = tile_at(p, s.tile, self.member);
  for (int b = 0; b < min(kStages, s.count); ++b) self.fetch_weight(b, s.first + b, tile);
}

__device__ void produce(const Producer& self, const Problem& p, int worker, int workers) {
  Work work(p, worker, workers);
  Segment s;
  int phases = -1;  // a bit for each slot
  bool more = work.next(p, workers, s);
  int early = more ? min(kStages, s.count) : 0;
  wait_for_previous();
  let_next_start();
  for (; more; more = work.next(p, workers, s)) {
    const Tile tile = tile_at(p, s.tile, self.member);
    for (int b = 0, slot = 0; b < s.count; ++b) {
      if (early > 0) {
        --early;
      } else {
        barrier_wait(self.at.empty + slot * 8, phases >> slot & 1);
        self.fetch_weight(slot, s.first + b, tile);
      }
      phases ^= 1 << slot;
      self.fetch_input(slot, s.first + b, tile);
      if (++slot == kStages) slot = 0;
    }
  }
  if constexpr (kMembers > 1) {
    for (int slot = 0; slot < kStages; ++slot)  // the other block's consumers still arrive here: leave after them
      barrier_wait(self.at.empty + slot * 8, phases >> slot & 1);
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
      __stcg(to + i * 128, make_float4(sum[at(i, 0)], sum[at(i, 1)], sum[at(i, 2)], sum[at(i, 3)]));
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
      sum[at(i, 0)] += more.x, sum[at(i, 1)] += more.y, sum[at(i, 2)] += more.z, sum[at(i, 3)] += more.w;
    }
  }

  // Four neighbours, the first of them an odd one: registers of sums then lie in the other bank than those of products,
  // so that both are read at once.
  static constexpr __device__ int at(int i, int j) { return (4 * i + 1 + j) % kSums; }
};

// --- Storing --------------------------------------------------------------------------------------------------------

// What is the same for all tiles of a consumer.
struct Output {
  const TensorMap* map;
  uint32_t staging;  // shared memory of the warp, at a multiple of 1024 bytes
  const float* bias;
  Out* out;
  Parts parts;
};

__device__ __forceinline__ void add_bias(float (&sum)[kSums], const float* bias, int column, int n) {
#pragma unroll
  for (int j = 0; j < kColumns / 8; ++j) {
    if (column + 8 * j >= n) continue;
    const float left = bias[column + 8 * j], right = bias[column + 8 * j + 1];
    sum[4 * j] += left, sum[4 * j + 1] += right, sum[4 * j + 2] += left, sum[4 * j + 3] += right;
  }
}

// 16 rows of one warp, all columns of the tile.
#if KT_OUT == 2
__device__ __forceinline__ void store_rows(const Output& to, const float (&sum)[kSums], int row0, int column0, int m,
                                           int n) {
  const int row = row0 + threadIdx.x % 32 / 4;
  Out* out = to.out + static_cast<int64_t>(row) * n;
#pragma unroll
  for (int j = 0; j < kColumns / 8; ++j) {
    const int column = column0 + 8 * j + 2 * (threadIdx.x % 4);
    if (column >= n) continue;
    float2 *above = reinterpret_cast<float2*>(out + column), *below = above + static_cast<int64_t>(4) * n;
    if (row < m) *above = make_float2(sum[4 * j], sum[4 * j + 1]);
    if (row + 8 < m) *below = make_float2(sum[4 * j + 2], sum[4 * j + 3]);
  }
}
#else
// Through shared memory, from where the copy engine stores them while the warp goes on.
__device__ __forceinline__ void store_rows(const Output& to, const float (&sum)[kSums], int row0, int column0, int m,
                                           int n) {
  const int lane = threadIdx.x % 32;
  const uint32_t row = to.staging + lane % 16 * 128, swizzle = lane % 8 * 16;
#pragma unroll
  for (int first = 0; first < kColumns / kChunk; first += kChunks) {
    if (lane == 0) stores_wait_read();
    __syncwarp();
#pragma unroll
    for (int j = 0; j < kChunks * kChunk / 8; j += 2) {
      const float* of = sum + first * (kChunk / 2) + 4 * j;
      store_matrices(row + j / 8 * kChunkBytes + ((j % 8 + lane / 16) * 16 ^ swizzle), pack_pair(of[0], of[1]),
                     pack_pair(of[2], of[3]), pack_pair(of[4], of[5]), pack_pair(of[6], of[7]));
    }
    copies_see_stores();
    __syncwarp();
    if (lane == 0 && row0 < m) {
#pragma unroll
      for (int c = 0; c < kChunks; ++c)
        store_tile(to.map, column0 + (first + c) * kChunk, row0, to.staging + c * kChunkBytes);
      stores_commit();
    }
  }
}
#endif

__device__ void consume(Consumer& self, const Output& to, const Problem& p, int rank, int worker, int workers) {
  const int warp = uniform(threadIdx.x / 32) - 4, group = warp / 4;
  Work work(p, worker, workers);
  Segment s;
  wait_for_previous();
  while (work.next(p, workers, s)) {
    const Tile tile = tile_at(p, s.tile, rank);
    float sum[kSums];
    sum_blocks(self, tile.column, s.count, sum);
    // Workers stand in the grid in reverse: who waits, waits for blocks that the grid started earlier.
    if (s.first > 0) {
      to.parts.leave(kMembers * (workers - 1 - worker) + rank, group, sum);
      continue;
    }
    const int end = (s.tile + 1) * p.k_blocks;
    for (int unit = end - p.k_blocks + s.count, other = worker + 1; s.tile < p.divided && unit < end; ++other) {
      const int until = first_unit(p, other + 1, workers);
      if (until <= unit) continue;
      to.parts.add(kMembers * (workers - 1 - other) + rank, group, sum);
      unit = until;
    }
    if (to.bias != nullptr) add_bias(sum, to.bias, tile.column + 2 * (threadIdx.x % 4), p.n);
    store_rows(to, sum, tile.row + warp * 16, tile.column, p.m, p.n);
  }
  if (kChunks > 0 && threadIdx.x % 32 == 0) stores_wait_read();  // the block's memory
}

extern "C" __global__ void __cluster_dims__(kMembers, 1, 1) __launch_bounds__(384, 1)
hopper_fp8_block(const __grid_constant__ TensorMap input, const __grid_constant__ TensorMap weight,
                 const __grid_constant__ TensorMap scale, const __grid_constant__ TensorMap weight_scale,
                 const __grid_constant__ TensorMap output, const float* bias, Out* out, float4* part_sums,
                 uint32_t* part_flags, int m, int n, int k_blocks, int divided) {
  extern __shared__ __align__(1024) char raw[];
  const Memory<8 * kChunks * kChunkBytes> memory(raw);
  const int teams_m = (m + kTeamRows - 1) / kTeamRows, teams_n = (n + kTeamColumns - 1) / kTeamColumns;
  const Problem p = {m, n, k_blocks, teams_m, teams_n, divided, 1.0f / (kGroup * teams_n)};
  const int rank = kMembers == 1 ? 0 : cluster_rank(), workers = gridDim.x / kMembers;
  const int worker = workers - 1 - static_cast<int>(blockIdx.x / kMembers);
  const Producer producer = {memory.at, &input, &weight, &scale, &weight_scale, rank};
  if (threadIdx.x == 0) {
    memory.start_barriers();
    if (!kCommonWeight) fetch_early(producer, p, worker, workers);
    prefetch_map(&input), prefetch_map(&scale), prefetch_map(&weight_scale), prefetch_map(&output);
  }
  if (kMembers == 1) __syncthreads();
  else cluster_sync();  // the other block's barriers are ready too
  if (threadIdx.x < 128) {
    give_registers<40>();
    if (threadIdx.x == 0) {
      if (kCommonWeight) fetch_early(producer, p, worker, workers);
      produce(producer, p, worker, workers);
    }
  } else {
    take_registers<232>();
    Consumer self = memory.consumer();
    const uint32_t staging = memory.staging + (threadIdx.x / 32 - 4) * kChunks * kChunkBytes;
    const Output to = {&output, staging, bias, out, {part_sums, part_flags}};
    consume(self, to, p, rank, worker, workers);
  }
}
