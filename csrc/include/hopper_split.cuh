// The partial sums of a cluster whose blocks split k: a tile of kRows rows of the weight by kColumns rows of the input.
//
// Wants kRows, kColumns, kConsumers (threads that hold sums, 64 rows of the weight a warpgroup) and kSplit before it, and
// hopper.cuh and store.cuh.
#pragma once

constexpr int kPitch = kRows + 4;  // floats of one column of partial sums: 16-byte aligned, spread over the banks

// Where a block stands: its tile, and the part of k that is its rank in the cluster.
struct Place {
  int row, column, part;
};

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

// Each of the blocks that split k adds its share of the tile over all parts, in order, and stores it. With kScaled the
// sum of a row of the weight is multiplied by row_scale.
template <bool kScaled>
__device__ void reduce(const float* sums, const float* row_scale, const float* bias, Out* out, int m, int n,
                       const Place& here) {
  for (int v = here.part * kConsumers + threadIdx.x; v < kColumns * kRows / 4; v += kSplit * kConsumers) {
    const int column = v / (kRows / 4), row = v % (kRows / 4) * 4;
    if (here.column + column >= m || here.row + row >= n) continue;
    const float* own = sums + column * kPitch + row;
    float4 total = *reinterpret_cast<const float4*>(own);
    if (kSplit > 1) {
      total = load_remote(shared_address(own), 0);
      for (int part = 1; part < kSplit; ++part) {
        const float4 more = load_remote(shared_address(own), part);
        total.x += more.x, total.y += more.y, total.z += more.z, total.w += more.w;
      }
    }
    if constexpr (kScaled) {
      const float* scale = row_scale + here.row + row;
      total.x *= scale[0], total.y *= scale[1], total.z *= scale[2], total.w *= scale[3];
    }
    if (bias != nullptr) {
      const float* b = bias + here.row + row;
      total.x += b[0], total.y += b[1], total.z += b[2], total.w += b[3];
    }
    store_four(out + static_cast<int64_t>(here.column + column) * n + here.row + row, total);
  }
}
