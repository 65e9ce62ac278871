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

// Four neighbours of a row of the output are a thread's, and the same columns in every row: what they are multiplied by,
// and what is added to them. Read before the products, so that nobody waits for memory behind them.
struct Neighbours {
  int row;  // of the weight, in the tile
  float4 scale, bias;
};

// row_scale and bias: nullptr for none. After wait_for_previous(): bias may have been written for this call.
__device__ __forceinline__ Neighbours neighbours_of(const float* row_scale, const float* bias, int n,
                                                    const Place& here) {
  const int row = threadIdx.x % (kRows / 4) * 4;
  Neighbours of = {row, {1.0f, 1.0f, 1.0f, 1.0f}, {-0.0f, -0.0f, -0.0f, -0.0f}};  // adding -0 changes nothing
  if (here.row + row >= n) return of;
  const float *scale = row_scale + here.row + row, *b = bias + here.row + row;
  if (row_scale != nullptr) of.scale = make_float4(scale[0], scale[1], scale[2], scale[3]);
  if (bias != nullptr) of.bias = make_float4(b[0], b[1], b[2], b[3]);
  return of;
}

// Each of the blocks that split k adds its share of the tile over all parts, in order, and stores it. of_columns: what the
// tile's rows of the input are multiplied by, in shared memory; nullptr for none.
__device__ void reduce(const float* sums, const Neighbours& of, Out* out, int m, int n, const Place& here,
                       const float* of_columns = nullptr) {
  static_assert(kConsumers % (kRows / 4) == 0, "a thread keeps its columns");
  if (here.row + of.row >= n) return;
  for (int v = here.part * kConsumers + threadIdx.x; v < kColumns * kRows / 4; v += kSplit * kConsumers) {
    const int column = v / (kRows / 4);
    if (here.column + column >= m) return;
    const float* own = sums + column * kPitch + of.row;
    float4 total = *reinterpret_cast<const float4*>(own);
    if (kSplit > 1) {
      total = load_remote(shared_address(own), 0);
#pragma unroll
      for (int part = 1; part < kSplit; ++part) {
        const float4 more = load_remote(shared_address(own), part);
        total.x += more.x, total.y += more.y, total.z += more.z, total.w += more.w;
      }
    }
    if (of_columns != nullptr) {
      const float scale = of_columns[column];
      total.x *= scale, total.y *= scale, total.z *= scale, total.w *= scale;
    }
    total.x = fmaf(total.x, of.scale.x, of.bias.x), total.y = fmaf(total.y, of.scale.y, of.bias.y);
    total.z = fmaf(total.z, of.scale.z, of.bias.z), total.w = fmaf(total.w, of.scale.w, of.bias.w);
    store_four(out + static_cast<int64_t>(here.column + column) * n + here.row + of.row, total);
  }
}
