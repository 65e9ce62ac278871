// FP8 products for SM90 with so few tiles that k has to be divided, a part of each kernel of them: a cluster takes a tile,
// and each of its KT_SPLIT blocks a part of k.
//
// The parts of a tile are added through distributed shared memory, in the order of k, so that the result is the same
// every time; each block adds its share of it. Compile-time: KT_SPLIT (2 to 8) and the numbers of hopper_tiles.cuh but
// KT_COMMON.
#pragma once

#define KT_COMMON 2
#include "hopper_tiles.cuh"

constexpr int kSplit = KT_SPLIT, kPitch = (kColumns + 31) / 32 * 32 + 8;  // floats of a row of partial sums
static_assert(kRows * kPitch * 4 <= kStages * (kInputBytes + kWeightBytes), "partial sums take the place of the stages");

// The weight was there before the kernel that makes the input: as many blocks of k as there are stages.
__device__ __forceinline__ void fetch_early(const Producer& self, const Tile& tile, int first, int early) {
  for (int i = 0; i < early; ++i) self.fetch_weight(i, first + i, tile);
}

// One lane keeps the copies of up to kStages blocks of k in flight.
__device__ void produce(const Producer& self, const Tile& tile, int first, int count, int early,
                        const Shares& shares) {
  shares.wait();
  for (int i = 0; i < early; ++i) self.fetch_input(i, first + i, tile);
  shares.know();
  int slot = 0, phase = 0;
  for (int i = early; i < count; ++i) {
    barrier_wait(self.at.empty + slot * 8, phase);
    self.fetch_weight(slot, first + i, tile);
    self.fetch_input(slot, first + i, tile);
    if (++slot == kStages) slot = 0, phase ^= 1;
  }
}

// Partial sums to shared memory, row by row.
__device__ __forceinline__ void spill(float* sums, const float (&sum)[kSums]) {
  const int thread = threadIdx.x - 128, lane = thread % 32;
  float* to = sums + (thread / 32 * 16 + lane / 4) * kPitch + 2 * (lane % 4);
#pragma unroll
  for (int j = 0; j < kColumns / 8; ++j) {
    *reinterpret_cast<float2*>(to + 8 * j) = make_float2(sum[4 * j], sum[4 * j + 1]);
    *reinterpret_cast<float2*>(to + 8 * kPitch + 8 * j) = make_float2(sum[4 * j + 2], sum[4 * j + 3]);
  }
}

struct Output {
  const float* bias;
  Out* out;
  RowScales scales;
  const float* of_weight;  // with scales of rows, at a multiple of 16 bytes
};

// This block's share of the tile: the sums of all parts in order, four columns at a time.
__device__ __forceinline__ void reduce(const float* sums, const Output& to, const Tile& tile, int m, int n, int part) {
  constexpr int kAcross = kColumns / 4;
#pragma unroll 4
  for (int v = part * kConsumers + threadIdx.x - 128; v < kRows * kAcross; v += kSplit * kConsumers) {
    const int row = v / kAcross, column = v % kAcross * 4;
    if (tile.row + row >= m || tile.column + column >= n) continue;
    const float* own = sums + row * kPitch + column;
    const uint32_t from = shared_address(own);
    float4 total = load_remote(from, 0);
#pragma unroll
    for (int other = 1; other < kSplit; ++other) {
      const float4 more = load_remote(from, other);
      total.x += more.x, total.y += more.y, total.z += more.z, total.w += more.w;
    }
    if (kRowScales) {
      const float4 w = *reinterpret_cast<const float4*>(to.of_weight + tile.column + column);
      const float scale = to.scales.of_row(tile.row + row);
      total = {total.x * scale * w.x, total.y * scale * w.y, total.z * scale * w.z, total.w * scale * w.w};
    }
    if (to.bias != nullptr) {
      const float* b = to.bias + tile.column + column;
      total.x += b[0], total.y += b[1], total.z += b[2], total.w += b[3];
    }
    store_four(to.out + static_cast<int64_t>(tile.row + row) * n + tile.column + column, total);
  }
}

// Where a block stands: its tile, and its part of the blocks of k.
struct Place {
  Tile tile;
  int part, first, count;
};

__device__ __forceinline__ Place place_of_block(int m, int k) {
  const int part = cluster_rank(), cluster = blockIdx.x / kSplit, tiles_m = (m + kRows - 1) / kRows;
  const int blocks = (k + kDepth - 1) / kDepth, first = blocks * part / kSplit;
  return {{cluster % tiles_m * kRows, cluster / tiles_m * kColumns}, part, first, blocks * (part + 1) / kSplit - first};
}

// All of a block. quantize(share) makes a share of the input, by the threads that multiply.
template <typename Quantize>
__device__ __forceinline__ void run(const Memory<>& memory, const Place& here, const Producer& self, const Output& to,
                                    int m, int n, const Shares& shares, const Quantize& quantize) {
  const int early = min(here.count, kStages);
  if (in_warp(0)) {
    if (elected()) {
      memory.start_barriers();
      fetch_early(self, here.tile, here.first, early);
      prefetch_map(self.input);
      if (!kRowScales) prefetch_map(self.scale), prefetch_map(self.weight_scale);
    }
  }
  shares.start<kFirstConsumer>(memory.shares);
  __syncthreads();
  if (threadIdx.x < kFirstConsumer) {
    give_registers<40>();
    if (in_warp(0)) {
      if (elected()) produce(self, here.tile, here.first, here.count, early, shares);
    }
    __syncwarp();
    cluster_sync();
    cluster_leave();
  } else {
    take_registers<232>();
    shares.work<kConsumers, kFirstConsumer>(quantize, memory.shares);
    Consumer consumer = memory.consumer(m);
    float sum[kSums], *sums = reinterpret_cast<float*>(memory.tiles);
#pragma unroll
    for (int i = 0; i < kSums; ++i) sum[i] = 0.0f;
    wait_for_previous();
    sum_blocks(consumer, here.tile.column, here.count, sum, [] {}, [] {});
    asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory");  // every warp has read its last tile
    spill(sums, sum);
    cluster_sync();
    reduce(sums, to, here.tile, m, n, here.part);
    cluster_leave();  // not while others read its sums
  }
}
