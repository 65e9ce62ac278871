// Tiles that would leave a part of the chip idle at the end, divided along k among all workers: blocks or clusters that
// stay. Who has the first part of such a tile adds the others', in the order of k: the result is the same every time.
//
// Workers stand in the grid in reverse: who waits, waits for blocks that the grid started earlier.
#pragma once

#include "hopper.cuh"

// What is computed, in blocks of k and in tiles of a worker; the first `divided` tiles are divided along k.
struct Division {
  int k_blocks, tiles, divided, workers;
};

// A run of blocks of k of one tile.
struct Segment {
  int tile, first, count;
};

__device__ __forceinline__ int worker_of_block(const Division& d, int members) {
  return d.workers - 1 - static_cast<int>(blockIdx.x) / members;
}

// The blocks of k of all divided tiles, one after the other, are dealt out in equal runs: where that of a worker begins.
__device__ __forceinline__ int first_unit(const Division& d, int worker) {
  return static_cast<int>(static_cast<int64_t>(d.divided) * d.k_blocks * worker / d.workers);
}

// What a worker computes: its run of the divided tiles, then whole tiles.
struct Work {
  int unit, end, whole;

  __device__ __forceinline__ Work(const Division& d, int worker)
      : unit(first_unit(d, worker)), end(first_unit(d, worker + 1)), whole(d.divided + worker) {}

  __device__ __forceinline__ bool next(const Division& d, Segment& s) {
    if (unit < end) {
      s.tile = unit / d.k_blocks, s.first = unit % d.k_blocks, s.count = min(end - unit, d.k_blocks - s.first);
      unit += s.count;
      return true;
    }
    if (whole >= d.tiles) return false;
    s.tile = whole, s.first = 0, s.count = d.k_blocks;
    whole += d.workers;
    return true;
  }

  // Blocks of k of all that is left.
  __device__ __forceinline__ int left(const Division& d) const {
    return end - unit + (whole < d.tiles ? (d.tiles - 1 - whole) / d.workers + 1 : 0) * d.k_blocks;
  }
};

// One of two warpgroups; other barriers have numbers up to 3.
__device__ __forceinline__ void group_sync(int group) { asm volatile("bar.sync %0, 128;" ::"r"(4 + group) : "memory"); }

// What blocks of two warpgroups leave for each other: sums in the order of their registers, and one flag for each
// warpgroup, set when the sums are there and zero again when they are added. All flags are zero between launches.
struct Parts {
  float4* sums;
  uint32_t* flags;

  template <int kSums>
  __device__ __forceinline__ float4* of(int block, int group) const {
    return sums + (static_cast<int64_t>(block) * 2 + group) * (kSums / 4 * 128) + threadIdx.x % 128;
  }

  // This block's, of a segment that is not the first of its tile.
  template <int kSums>
  __device__ __forceinline__ void leave(int group, const float (&sum)[kSums]) const {
    float4* to = of<kSums>(blockIdx.x, group);
#pragma unroll
    for (int i = 0; i < kSums / 4; ++i)
      __stcg(to + i * 128, make_float4(sum[at<kSums>(i, 0)], sum[at<kSums>(i, 1)], sum[at<kSums>(i, 2)],
                                       sum[at<kSums>(i, 3)]));
    group_sync(group);
    if (threadIdx.x % 128 == 0)  // releases what all have stored before they met
      asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flags + blockIdx.x * 2 + group), "r"(1) : "memory");
  }

  // Those of the others that have a part of the tile whose first part is this worker's. `members` blocks are a worker;
  // this is the one with this rank.
  template <int kSums>
  __device__ __forceinline__ void add(const Division& d, const Segment& s, int worker, int members, int rank, int group,
                                      float (&sum)[kSums]) const {
    const int end = (s.tile + 1) * d.k_blocks;
    for (int unit = end - d.k_blocks + s.count, other = worker + 1; s.tile < d.divided && unit < end; ++other) {
      const int until = first_unit(d, other + 1);
      if (until <= unit) continue;
      add_one(members * (d.workers - 1 - other) + rank, group, sum);
      unit = until;
    }
  }

  template <int kSums>
  __device__ void add_one(int block, int group, float (&sum)[kSums]) const {
    uint32_t* flag = flags + block * 2 + group;
    if (threadIdx.x % 128 == 0) {
      uint32_t set = 0;
      while (set == 0) asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(set) : "l"(flag) : "memory");
      *flag = 0;
    }
    group_sync(group);
    const float4* from = of<kSums>(block, group);
#pragma unroll
    for (int i = 0; i < kSums / 4; ++i) {
      const float4 more = __ldcg(from + i * 128);
      sum[at<kSums>(i, 0)] += more.x, sum[at<kSums>(i, 1)] += more.y;
      sum[at<kSums>(i, 2)] += more.z, sum[at<kSums>(i, 3)] += more.w;
    }
  }

  // Four neighbours, the first of them an odd one: registers of sums then lie in the other bank than those of products,
  // so that both are read at once.
  template <int kSums>
  static constexpr __device__ int at(int i, int j) { return (4 * i + 1 + j) % kSums; }
};
