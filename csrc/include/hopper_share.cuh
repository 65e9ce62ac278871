// What the streaming kernels of Hopper share: blocks of a cluster that split k or fetch a tile together, and the way of a
// tile of sums through shared memory. The source that includes this says first: kRows, kColumns (of a tile), kSplit,
// kInputs, kWeights, kAcross = kSplit * kInputs, kSharers, and kPitch (floats from one column of sums to the next).
#pragma once
#include "hopper.cuh"

// Where a block stands: in the grid, and in its cluster (rank = across + kAcross * up).
struct Place {
  int row, column;   // of its tile
  int part;          // of k
  int input, weight; // which share of the common input and weight tile it fetches
};

__device__ __forceinline__ Place place() {
  const int across = blockIdx.x % kAcross, input = across / kSplit;
  return {static_cast<int>(blockIdx.x / kAcross * kInputs + input) * kRows, static_cast<int>(blockIdx.y) * kColumns,
          across % kSplit, input, static_cast<int>(blockIdx.y) % kWeights};
}

// The rank of the i-th block that shares with this one: first those with the same weight tile, then the other inputs.
__device__ __forceinline__ int sharer(const Place& here, int i) {
  if (i < kWeights) return here.part + kSplit * here.input + kAcross * i;
  const int other = i - kWeights, input = other < here.input ? other : other + 1;
  return here.part + kSplit * input + kAcross * here.weight;
}

// Partial sums to shared memory, column by column, so that neighbours along n are neighbours in memory.
__device__ void spill(float* sums, const float (&sum)[kColumns / 2]) {
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
#pragma unroll
  for (int j = 0; j < kColumns / 8; ++j) {
    float* column = sums + (8 * j + 2 * (lane % 4)) * kPitch + row;
    column[0] = sum[4 * j + 0];
    column[kPitch] = sum[4 * j + 1];
    column[8] = sum[4 * j + 2];
    column[kPitch + 8] = sum[4 * j + 3];
  }
}

// Four neighbours of a column of sums, added over the blocks that split k (ranks from `base` on), in order.
__device__ __forceinline__ float4 sum_of_parts(const float* own, int base) {
  float4 total = *reinterpret_cast<const float4*>(own);
  if (kSplit > 1) {
    total = load_remote(shared_address(own), base);
    for (int part = 1; part < kSplit; ++part) {
      const float4 more = load_remote(shared_address(own), base + part);
      total.x += more.x, total.y += more.y, total.z += more.z, total.w += more.w;
    }
  }
  return total;
}
