// FP8 products for SM90 and many rows, a part of each kernel of them: persistent, warp-specialized, at the rate of the
// tensor cores.
//
// A cluster is a team of one block or two; in each one warpgroup copies, and two multiply, as hopper_tiles.cuh says.
//
// Tiles of the last wave, or the last two, are divided along k among all clusters, see divided.cuh.
//
// Compile-time: KT_GROUP (row tiles of teams that share a walk over n), KT_CHUNKS (times 64 columns of a 16-bit
// output that are staged at once), KT_APART (1: warps of their own start the stores, see below) and the numbers of
// hopper_tiles.cuh.
#pragma once

#include "divided.cuh"
#include "hopper_tiles.cuh"

constexpr int kGroup = KT_GROUP;
constexpr int kChunk = 64;  // columns of 16-bit output that are stored at a time: a swizzled row of 128 bytes
constexpr int kChunkBytes = 16 * kChunk * 2;          // of the 16 rows of a warp
constexpr int kChunks = KT_OUT == 2 ? 0 : KT_CHUNKS;  // that are staged at once
constexpr int kStored = kColumns / kHalves;           // columns of a tile that are stored at a time: those of a product
constexpr bool kApart = KT_APART == 1 && kChunks > 0;
static_assert(kRowBytes % 128 == 0, "scales of columns are copied to multiples of 128 bytes");
static_assert(KT_OUT == 2 || kStored % (kChunk * kChunks) == 0, "columns are stored in rounds of chunks");

// What is multiplied, and how many teams' tiles it is down and across. inverse: of the tiles of a group.
struct Problem : Division {
  int m, n, teams_m, teams_n;
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

// --- Copying --------------------------------------------------------------------------------------------------------

// The first blocks of k of the weight, as many as there are stages: it was there before the kernel that makes the input.
__device__ void fetch_early(const Producer& self, const Problem& p, int worker) {
  Work work(p, worker);
  Segment s;
  if (!work.next(p, s)) return;
  const Tile tile = tile_at(p, s.tile, self.member);
  for (int b = 0; b < min(kStages, s.count); ++b) self.fetch_weight(b, s.first + b, tile, s.first + b > 0 ? -1 : 0);
}

__device__ void produce(const Producer& self, const Problem& p, int worker, const Shares& shares) {
  Work work(p, worker);
  Segment s;
  int phases = -1;  // a bit for each slot
  bool more = work.next(p, s);
  int begun = more ? min(kStages, s.count) : 0;  // blocks of k whose weight has been fetched
  int turn = 0;                                  // of the scales of columns
  shares.wait();
  if (more) {
    const Tile tile = tile_at(p, s.tile, self.member);
#pragma unroll 1
    for (int b = 0; b < begun; ++b) self.fetch_input(b, s.first + b, tile);
    phases ^= (1 << begun) - 1;
  }
  shares.know();
  for (; more; more = work.next(p, s), begun = 0) {
    const Tile tile = tile_at(p, s.tile, self.member);
#pragma unroll 1
    for (int b = begun, slot = begun % kStages; b < s.count; ++b) {
      barrier_wait(self.at.empty + slot * 8, phases >> slot & 1);
      self.fetch_weight(slot, s.first + b, tile, s.first + b > 0 ? -1 : turn);
      phases ^= 1 << slot;
      self.fetch_input(slot, s.first + b, tile);
      if (++slot == kStages) slot = 0;
    }
    if (s.first == 0) turn ^= 1;
  }
  if constexpr (kMembers > 1) {
    for (int slot = 0; slot < kStages; ++slot)  // the other block's consumers still arrive here: leave after them
      barrier_wait(self.at.empty + slot * 8, phases >> slot & 1);
  }
}

// --- Storing --------------------------------------------------------------------------------------------------------

// What is the same for all tiles of a consumer.
struct Output {
  const TensorMap* map;
  const float* bias;
  Out* out;
  Parts parts;
  RowScales scales;
  uint32_t staging;  // shared memory of the warp, at a multiple of 1024 bytes
};

// With kApart a warp of its own starts the stores of a warpgroup, and waits until the next columns may be staged, which
// takes about as long as a product. They meet at named barriers, since a thread that looks at one in memory again and
// again slows all others down by 3 to 15 %. Columns are staged; others may be.
__device__ __forceinline__ int staged(int group) { return 6 + group; }
__device__ __forceinline__ int taken(int group) { return 8 + group; }
__device__ __forceinline__ void meet(int barrier) { asm volatile("bar.sync %0, 160;" ::"r"(barrier) : "memory"); }
__device__ __forceinline__ void pass(int barrier) { asm volatile("bar.arrive %0, 160;" ::"r"(barrier) : "memory"); }

// By one thread: the copy engine stores what a warp has staged, from this row and column on.
__device__ __forceinline__ void start_store(const TensorMap* map, uint32_t staging, int row, int column, int m) {
  if (row >= m) return;
#pragma unroll
  for (int c = 0; c < kChunks; ++c) store_tile(map, column + c * kChunk, row, staging + c * kChunkBytes);
  stores_commit();
}

// By that warp, for the four of a group, the first of which stages at `staging`.
__device__ void store_apart(const TensorMap* map, uint32_t staging, const Problem& p, int rank, int worker, int group) {
  Work work(p, worker);
  Segment s;
  wait_for_previous();
  while (work.next(p, s)) {
    if (s.first > 0) continue;  // left to another worker
    const Tile tile = tile_at(p, s.tile, rank);
    for (int column = 0; column < kColumns; column += kChunks * kChunk) {
      pass(taken(group));
      meet(staged(group));
      if (elected()) {
#pragma unroll
        for (int warp = 0; warp < 4; ++warp)
          start_store(map, staging + warp * kChunks * kChunkBytes, tile.row + group * 64 + warp * 16,
                      tile.column + column, p.m);
        stores_wait_read();
      }
      __syncwarp();
    }
  }
}

// The scales of a thread's two rows of a tile, and where those of its first two columns are in shared memory.
struct Factors {
  float above, below;
  uint32_t columns;
};

constexpr int kTogether = 32;  // columns whose scales are read at once: more would want registers that products have

// kCount columns' sums of a thread, from `first` on in the tile, by the scales of its rows, where there are any, and of
// these columns, plus bias, which for the first of them lies at `column`.
template <int kCount>
__device__ __forceinline__ void finish(float* sum, const Factors& by, const float* bias, int column, int first, int n) {
#pragma unroll
  for (int j = 0; j < kCount / 8; ++j) {
    float2 scale = {1.0f, 1.0f}, more = {-0.0f, -0.0f};  // adding -0 changes nothing
    if (kRowScales)
      asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                   : "=f"(scale.x), "=f"(scale.y)
                   : "r"(by.columns + (first + 8 * j) * 4));
    if (bias != nullptr) {
      const int at = min(column + 8 * j, n - 2);  // what lies outside the matrix is not stored
      more = {bias[at], bias[at + 1]};
    }
    sum[4 * j] = fmaf(kRowScales ? sum[4 * j] * by.above : sum[4 * j], scale.x, more.x);
    sum[4 * j + 1] = fmaf(kRowScales ? sum[4 * j + 1] * by.above : sum[4 * j + 1], scale.y, more.y);
    sum[4 * j + 2] = fmaf(kRowScales ? sum[4 * j + 2] * by.below : sum[4 * j + 2], scale.x, more.x);
    sum[4 * j + 3] = fmaf(kRowScales ? sum[4 * j + 3] * by.below : sum[4 * j + 3], scale.y, more.y);
  }
}

// 16 rows of one warp.
#if KT_OUT == 2
__device__ __forceinline__ void store_rows(const Output& to, float* sum, const Tile& from, int half, int m, int n,
                                           const Factors& by) {
  if (kRowScales || to.bias != nullptr)
    finish<kStored>(sum, by, to.bias, from.column + 2 * (threadIdx.x % 4), half * kStored, n);
  const int row = from.row + threadIdx.x % 32 / 4;
  Out* out = to.out + static_cast<int64_t>(row) * n;
#pragma unroll
  for (int j = 0; j < kStored / 8; ++j) {
    const int column = from.column + 8 * j + 2 * (threadIdx.x % 4);
    if (column >= n) continue;
    float2 *above = reinterpret_cast<float2*>(out + column), *below = above + static_cast<int64_t>(4) * n;
    if (row < m) *above = make_float2(sum[4 * j], sum[4 * j + 1]);
    if (row + 8 < m) *below = make_float2(sum[4 * j + 2], sum[4 * j + 3]);
  }
}
#else
// Through shared memory, from where the copy engine stores them while the warp goes on.
__device__ __forceinline__ void store_rows(const Output& to, float* sum, const Tile& from, int half, int m, int n,
                                           const Factors& by) {
  const int lane = threadIdx.x % 32, group = threadIdx.x / 128 - 1;
  const uint32_t row = to.staging + lane % 16 * 128, swizzle = lane % 8 * 16;
#pragma unroll
  for (int first = 0; first < kStored / kChunk; first += kChunks) {
    if (kApart) {
      meet(taken(group));
    } else {
      if (elected()) stores_wait_read();
      __syncwarp();
    }
#pragma unroll
    for (int j = 0; j < kChunks * kChunk / 8; j += 2) {
      float* of = sum + first * (kChunk / 2) + 4 * j;
      const int column = first * kChunk + 8 * j;
      if ((kRowScales || to.bias != nullptr) && column % kTogether == 0)
        finish<kTogether>(of, by, to.bias, from.column + column + 2 * (lane % 4), half * kStored + column, n);
      store_matrices(row + j / 8 * kChunkBytes + ((j % 8 + lane / 16) * 16 ^ swizzle), pack_pair(of[0], of[1]),
                     pack_pair(of[2], of[3]), pack_pair(of[4], of[5]), pack_pair(of[6], of[7]));
    }
    copies_see_stores();
    if (kApart) {
      pass(staged(group));
    } else {
      __syncwarp();
      if (elected()) start_store(to.map, to.staging, from.row, from.column + first * kChunk, m);
    }
  }
}
#endif

// The columns of a product of a tile, whose sums are 0 afterwards.
__device__ __forceinline__ void store_part(const Output& to, float (&sum)[kSums], int index, int half, const Problem& p,
                                           int rank, const Factors& by) {
  float* own = sum + half * kPart;
  Tile from = {};
  if (!kApart || to.bias != nullptr) {
    from = tile_at(p, index, rank);
    from.row += (static_cast<int>(threadIdx.x / 32) - 4) * 16, from.column += half * kStored;
  }
  store_rows(to, own, from, half, p.m, p.n, by);
#pragma unroll
  for (int i = 0; i < kPart; ++i) own[i] = 0.0f;
}

// The tensor cores do not wait for a tile to be stored: its last columns leave beside the first product of the next one,
// and where a block of k takes two products, its first columns beside the last product of its own: 3 to 20 % for short
// k. Outputs of 32 bits leave at once; more registers than there are would be needed.
__device__ void consume(Consumer& self, const Output& to, const Problem& p, int rank, int worker, int group) {
  constexpr bool kBeside = KT_OUT != 2;
  constexpr int kLast = kHalves - 1;
  Work work(p, worker);
  Segment s;
  int left = -1;  // the tile whose last columns are still here
  Factors by = {};
  uint32_t columns = self.scale_of_columns;
  float sum[kSums];
#pragma unroll
  for (int i = 0; i < kSums; ++i) sum[i] = 0.0f;
  wait_for_previous();
  for (bool more = work.next(p, s);; more = work.next(p, s)) {
    if (left >= 0 && !(kBeside && more && s.count >= kStages)) store_part(to, sum, left, kLast, p, rank, by), left = -1;
    if (!more) break;
    // After the first block of k has arrived: the input's scales are there then, too.
    const auto read_factors = [&] {
      if (!kRowScales || s.first > 0) return;
      const int warp = static_cast<int>(threadIdx.x / 32) - 4;
      const int row = tile_at(p, s.tile, rank).row + warp * 16 + threadIdx.x % 32 / 4;
      by = {to.scales.of_row(min(row, p.m - 1)), to.scales.of_row(min(row + 8, p.m - 1)), columns};
      columns = self.other_columns(columns);
    };
    const bool beside = kBeside && kHalves == 2 && s.tile >= p.divided && s.count % kStages == 0;
    const int column = kBoundary ? tile_at(p, s.tile, rank).column : 0;
    sum_blocks(
      self, column, s.count, sum,
      [&] {
        if (kBeside && left >= 0) store_part(to, sum, left, kLast, p, rank, by);
        read_factors();
      },
      [&] { if (beside) store_part(to, sum, s.tile, 0, p, rank, by); });
    if (s.count < kStages) read_factors();
    left = -1;
    if (s.first > 0) {
      to.parts.leave(group, sum);
#pragma unroll
      for (int i = 0; i < kSums; ++i) sum[i] = 0.0f;
      continue;
    }
    if (!beside) {
      to.parts.add(p, s, worker, kMembers, rank, group, sum);
      if (kHalves == 2) store_part(to, sum, s.tile, 0, p, rank, by);
    }
    left = s.tile;
  }
  if (kChunks > 0 && !kApart && elected()) stores_wait_read();  // the block's memory
}

// --- A block --------------------------------------------------------------------------------------------------------

using TileMemory = Memory<8 * kChunks * kChunkBytes>;

struct Sizes {
  int m, n, k, divided;

  __device__ __forceinline__ Problem problem() const {
    const int teams_m = (m + kTeamRows - 1) / kTeamRows, teams_n = (n + kTeamColumns - 1) / kTeamColumns;
    const Division division = {(k + kDepth - 1) / kDepth, teams_m * teams_n, divided,
                               static_cast<int>(gridDim.x) / kMembers};
    return {division, m, n, teams_m, teams_n, 1.0f / (kGroup * teams_n)};
  }
};

__device__ __forceinline__ int rank_in_team() { return kMembers == 1 ? 0 : cluster_rank(); }

// All of a block. quantize(share) makes a share of the input, by the threads that multiply. Each role works out the problem
// for itself: one that all have would be a register too many while some quantize.
template <typename Quantize>
__device__ __forceinline__ void run(const TileMemory& memory, const Sizes& sizes, const Producer& producer, Output to,
                                    const Shares& shares, const Quantize& quantize) {
  const int rank = producer.member, worker = static_cast<int>(gridDim.x - 1 - blockIdx.x) / kMembers;
  if (in_warp(0)) {
    if (elected()) {
      memory.start_barriers();
      if (!kCommonWeight) fetch_early(producer, sizes.problem(), worker);
      prefetch_map(producer.input), prefetch_map(producer.weight_scale), prefetch_map(to.map);
      if (!kRowScales) prefetch_map(producer.scale);
    }
  }
  shares.start<kFirstConsumer>(memory.shares);
  if (kMembers == 1) __syncthreads();
  else cluster_sync();  // the other block's barriers are ready too
  const int warp = uniform(threadIdx.x / 32);
  const auto staging_of = [&](int one) { return memory.staging + one * kChunks * kChunkBytes; };
  if (warp < 4) {
    give_registers<40>();
    if (warp == 0) {
      if (elected()) {
        const Problem p = sizes.problem();
        if (kCommonWeight) fetch_early(producer, p, worker);
        produce(producer, p, worker, shares);
      }
    } else if (kApart && warp <= 2) {
      store_apart(to.map, staging_of(4 * (warp - 1)), sizes.problem(), rank, worker, warp - 1);
    }
  } else {
    take_registers<232>();
    shares.work<kConsumers, kFirstConsumer>(quantize, memory.shares);
    Consumer self = memory.consumer(sizes.m);
    to.staging = staging_of(warp - 4);
    consume(self, to, sizes.problem(), rank, worker, warp / 4 - 1);
  }
}
