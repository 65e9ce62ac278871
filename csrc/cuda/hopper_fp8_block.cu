// Block-scaled FP8 product for SM90 and many rows: persistent, warp-specialized, at the rate of the tensor cores.
//
//   out[m, n] = round(sum over blocks b of 128 columns: (x[m, b] . w[n, b]) * x_scale[b, m] * w_scale[n / 128, b] + bias[n])
//
// One warpgroup copies, two multiply: 64 rows by KT_COLUMNS columns each, from the same tile of the weight. The tensor
// cores keep about 14 bits of an FP8 sum, so each block of 128 is promoted to float32 with its scales; while one
// warpgroup promotes, the other one's products run. Two neighbouring blocks form a cluster and have one of their two tiles
// in common: each fetches half of it for both, since the L2 cache cannot feed every multiprocessor tiles of its own.
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
constexpr int kChunk = 64;          // columns that have one weight scale, and that are staged for output at a time
constexpr int kPitch = kChunk + 8;  // 16-bit elements of a staged output row: rows start four banks apart

struct Pipeline {
  uint32_t input, weight, scale;
  uint32_t full, empty;
};

// What a block computes next.
struct Tile {
  int row, column;
};

// Row tiles in groups of kGroup, so that the clusters that run together share their inputs in the L2 cache.
__device__ __forceinline__ Tile tile_at(int index, int pairs_m, int pairs_n, int rank) {
  const int group = index / (kGroup * pairs_n), first = group * kGroup;
  const int height = min(kGroup, pairs_m - first), inside = index - group * kGroup * pairs_n;
  const int row = (first + inside % height) * kPairRows, column = inside / height * kPairColumns;
  return {kCommonInput ? row : row + rank * kRows, kCommonInput ? column + rank * kColumns : column};
}

__device__ void produce(const Pipeline& at, const TensorMap* input, const TensorMap* weight, const TensorMap* scale,
                        int rank, int pairs_m, int pairs_n, int k_blocks) {
  constexpr int kHalf = (kCommonInput ? kRows : kColumns) / 2;
  int slot = 0, phase = 1;
  for (int index = blockIdx.x / 2; index < pairs_m * pairs_n; index += gridDim.x / 2) {
    const Tile tile = tile_at(index, pairs_m, pairs_n, rank);
    for (int b = 0; b < k_blocks; ++b) {
      const uint32_t full = at.full + slot * 8, half = rank * kHalf * kDepth;
      const uint32_t to_input = at.input + slot * kInputBytes, to_weight = at.weight + slot * kWeightBytes;
      barrier_wait(at.empty + slot * 8, phase);
      barrier_expect(full, kInputBytes + kWeightBytes + kScaleBytes);
      if (kCommonInput) {
        copy_tile(to_weight, weight, b * kDepth, tile.column, full);
        copy_tile_to(to_input + half, input, b * kDepth, tile.row + rank * kHalf, full, 3);
      } else {
        copy_tile(to_input, input, b * kDepth, tile.row, full);
        copy_tile_to(to_weight + half, weight, b * kDepth, tile.column + rank * kHalf, full, 3);
      }
      copy_tile(at.scale + slot * kScaleBytes, scale, tile.row, b, full);
      if (++slot == kStages) slot = 0, phase ^= 1;
    }
  }
  for (int i = 0; i < kStages; ++i) {  // the other block's consumers still arrive here: leave after them
    barrier_wait(at.empty + slot * 8, phase);
    if (++slot == kStages) slot = 0, phase ^= 1;
  }
}

// 16 rows of one warp, 64 columns: through shared memory, so that a row leaves as 128 bytes in a piece.
__device__ __forceinline__ void store_chunk(char* staging, const float* sum, const float* bias, Out* out, int row0,
                                            int column0, int m, int n) {
  const int lane = threadIdx.x % 32;
  Out* mine = reinterpret_cast<Out*>(staging);
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
    uint32_t* to = reinterpret_cast<uint32_t*>(mine + (lane / 4) * kPitch + column);
    to[0] = pack_pair(sum[4 * j + 0] + left, sum[4 * j + 1] + right);
    to[8 * kPitch / 2] = pack_pair(sum[4 * j + 2] + left, sum[4 * j + 3] + right);
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = 4 * i + lane / 8, column = lane % 8 * 8;
    if (row0 + row < m && column0 + column < n)
      *reinterpret_cast<uint4*>(out + static_cast<int64_t>(row0 + row) * n + column0 + column) =
        *reinterpret_cast<const uint4*>(mine + row * kPitch + column);
  }
  __syncwarp();
#endif
}

// What one warpgroup needs to multiply a block of k, and to add it to its sums with its scales.
struct Consumer {
  static constexpr int kChunks = kColumns / kChunk;
  Pipeline at;
  const char* scales;
  const float* of_chunk[kChunks];  // weight scales of each 64 columns of the tile, along k
  int lane, group, row;            // row within the tile; the thread also holds row + 8
  int slot, phase;                 // of the block that is issued next
  int done;                        // slot of the block that is promoted next

  __device__ __forceinline__ void issue(float (&part)[kColumns / 2]) {
    barrier_wait(at.full + slot * 8, phase);
    const uint64_t x = tile_descriptor(at.input + slot * kInputBytes + group * (kInputBytes / 2));
    const uint64_t w = tile_descriptor(at.weight + slot * kWeightBytes);
    multiply_block<kColumns>(part, x, w);
    if (++slot == kStages) slot = 0, phase ^= 1;
  }

  __device__ __forceinline__ void promote(int b, float (&part)[kColumns / 2], float (&sum)[kColumns / 2]) {
    const float* of_input = reinterpret_cast<const float*>(scales + done * kScaleBytes);
    const float upper = of_input[row], lower = of_input[row + 8];
#pragma unroll
    for (int i = 0; i < kColumns / 2; ++i) pin(part[i]);
    __syncwarp();
    if (lane < 2) barrier_arrive_at(at.empty + done * 8, lane);
    if (++done == kStages) done = 0;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const float of_weight = __ldg(of_chunk[c] + b);
      const float above = upper * of_weight, below = lower * of_weight;
#pragma unroll
      for (int j = c * 8; j < c * 8 + 8; ++j) {
        sum[4 * j + 0] = fmaf(part[4 * j + 0], above, sum[4 * j + 0]);
        sum[4 * j + 1] = fmaf(part[4 * j + 1], above, sum[4 * j + 1]);
        sum[4 * j + 2] = fmaf(part[4 * j + 2], below, sum[4 * j + 2]);
        sum[4 * j + 3] = fmaf(part[4 * j + 3], below, sum[4 * j + 3]);
      }
    }
  }
};

// The two warpgroups take turns at the tensor cores; else their products interleave, end together, and the tensor cores
// stand still while both promote. Group 1 gives group 0 its first turn.
__device__ __forceinline__ void wait_for_turn(int group) { asm volatile("bar.sync %0, 256;" ::"r"(2 + group) : "memory"); }
__device__ __forceinline__ void pass_turn(int group) { asm volatile("bar.arrive %0, 256;" ::"r"(3 - group) : "memory"); }

// One tile. The products of the next block run while those of this one are added, if there are registers for both.
__device__ __forceinline__ void sum_tile(Consumer& self, int k_blocks, float (&sum)[kColumns / 2]) {
  float even[kColumns / 2];
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i) sum[i] = 0.0f;
#if KT_COLUMNS > 128
  for (int b = 0; b < k_blocks; ++b) {
    wait_for_turn(self.group);
    self.issue(even);
    wgmma_wait<0>();
    pass_turn(self.group);
    self.promote(b, even, sum);
  }
#else
  float odd[kColumns / 2];
  self.issue(even);
  int b = 0;
  for (; b + 2 < k_blocks; b += 2) {
    self.issue(odd);
    wgmma_wait<1>();
    self.promote(b, even, sum);
    self.issue(even);
    wgmma_wait<1>();
    self.promote(b + 1, odd, sum);
  }
  if (b + 1 < k_blocks) {
    self.issue(odd);
    wgmma_wait<1>();
    self.promote(b, even, sum);
    wgmma_wait<0>();
    self.promote(b + 1, odd, sum);
  } else {
    wgmma_wait<0>();
    self.promote(b, even, sum);
  }
#endif
}

__device__ void consume(const Pipeline& at, const char* scales, char* staging, const float* weight_scale,
                        const float* bias, Out* out, int m, int n, int rank, int pairs_m, int pairs_n, int k_blocks) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 - 4;
  const int last_block = (n + 127) / 128 - 1;
  char* mine = staging + warp * 16 * kPitch * 2;
  Consumer self;
  self.at = at, self.scales = scales, self.lane = lane, self.group = warp / 4, self.row = warp * 16 + lane / 4;
  self.slot = 0, self.phase = 0, self.done = 0;
  if (kColumns > 128 && self.group == 1) pass_turn(1);
  for (int index = blockIdx.x / 2; index < pairs_m * pairs_n; index += gridDim.x / 2) {
    const Tile tile = tile_at(index, pairs_m, pairs_n, rank);
#pragma unroll
    for (int c = 0; c < Consumer::kChunks; ++c)
      self.of_chunk[c] =
        weight_scale + static_cast<int64_t>(min((tile.column + c * kChunk) / 128, last_block)) * k_blocks;
    float sum[kColumns / 2];
    sum_tile(self, k_blocks, sum);
#pragma unroll
    for (int c = 0; c < Consumer::kChunks; ++c)
      store_chunk(mine, sum + c * 32, bias, out, tile.row + warp * 16, tile.column + c * kChunk, m, n);
  }
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1)
hopper_fp8_block(const __grid_constant__ TensorMap input, const __grid_constant__ TensorMap weight,
                 const __grid_constant__ TensorMap scale, const float* weight_scale, const float* bias, Out* out, int m,
                 int n, int k_blocks) {
  extern __shared__ char raw[];
  __shared__ alignas(8) uint64_t barriers[2 * kStages];
  const uint32_t misfit = shared_address(raw) % 1024;
  char* tiles = raw + (misfit == 0 ? 0 : 1024 - misfit);
  char* scales = tiles + kStages * (kInputBytes + kWeightBytes);
  const Pipeline at = {shared_address(tiles), shared_address(tiles) + kStages * kInputBytes, shared_address(scales),
                       shared_address(barriers), shared_address(barriers + kStages)};
  const int pairs_m = (m + kPairRows - 1) / kPairRows, pairs_n = (n + kPairColumns - 1) / kPairColumns;
  const int rank = cluster_rank();
  if (threadIdx.x == 0) {
    prefetch_map(&input), prefetch_map(&weight), prefetch_map(&scale);
    for (int i = 0; i < kStages; ++i) barrier_init(at.full + i * 8, 1), barrier_init(at.empty + i * 8, 16);
    barrier_init_fence();
  }
  cluster_sync();  // the other block's barriers are ready too
  if (threadIdx.x < 128) {
    give_registers<40>();
    if (threadIdx.x == 0) produce(at, &input, &weight, &scale, rank, pairs_m, pairs_n, k_blocks);
  } else {
    take_registers<232>();
    consume(at, scales, scales + kStages * kScaleBytes, weight_scale, bias, out, m, n, rank, pairs_m, pairs_n, k_blocks);
  }
}
