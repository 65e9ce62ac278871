// Block-scaled FP8 product for SM90 and few rows: the weight is streamed once, at the rate of the memory.
//
//   out[m, n] = round(sum over blocks b of 128 columns: (x[m, b] . w[n, b]) * x_scale[b, m] * w_scale[n / 128, b] + bias[n])
//
// The weight's rows are the rows of the matrix instruction and the input's rows its columns (KT_COLUMNS of them), so a
// tile wastes nothing when m is small. A cluster shares work in three ways: KT_SPLIT blocks take a part of k each, and
// the parts are added through distributed shared memory in rank order, so the result is the same every time; KT_INPUTS
// blocks with neighbouring weight tiles fetch one input tile together; KT_WEIGHTS blocks with neighbouring input tiles
// fetch one weight tile together. Each fetches its share once, for all (multicast).
//
// Compile-time: KT_GROUPS (warpgroups of 64 weight rows: 1 or 2), KT_COLUMNS (8, 16, 32, 64, 128), KT_STAGES, KT_SPLIT,
// KT_INPUTS, KT_WEIGHTS (product at most 8), KT_OUT.
#include "hopper.cuh"
#include "store.cuh"

constexpr int kGroups = KT_GROUPS, kRows = 64 * kGroups, kDepth = 128, kConsumers = 128 * kGroups;
constexpr int kColumns = KT_COLUMNS, kStages = KT_STAGES;
constexpr int kSplit = KT_SPLIT, kInputs = KT_INPUTS, kWeights = KT_WEIGHTS, kAcross = kSplit * kInputs;
constexpr int kSharers = kInputs + kWeights - 1;  // blocks that fetch something for this one, itself included
constexpr int kWeightBytes = kRows * kDepth, kInputBytes = kColumns * kDepth;
constexpr int kScaleBytes = kColumns * 4, kScaleSlot = (kScaleBytes + 127) / 128 * 128;
constexpr int kPitch = kRows + 4;  // floats of one column of partial sums: 16-byte aligned, spread over the banks

struct Pipeline {
  uint32_t weight, input, scale;  // shared addresses of stage 0
  uint32_t full, empty;           // barriers of stage 0
};

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

// One lane keeps the copies of up to kStages blocks of k in flight.
__device__ void produce(const Pipeline& at, const TensorMap* weight, const TensorMap* input, const TensorMap* scale,
                        const Place& here, int first, int count) {
  unsigned short to_weights = 0, to_inputs = 0;
  for (int i = 0; i < kWeights; ++i) to_weights |= 1 << (here.part + kSplit * here.input + kAcross * i);
  for (int i = 0; i < kInputs; ++i) to_inputs |= 1 << (here.part + kSplit * i + kAcross * here.weight);
  const int row = here.weight * (kRows / kWeights), column = here.input * (kColumns / kInputs);
  for (int i = 0; i < count; ++i) {
    const int stage = i % kStages;
    const uint32_t full = at.full + stage * 8;
    if (i >= kStages) barrier_wait(at.empty + stage * 8, (i / kStages - 1) & 1);
    barrier_expect(full, kWeightBytes + kInputBytes + kScaleBytes);
    const uint32_t to_weight = at.weight + stage * kWeightBytes + row * kDepth;
    const uint32_t to_input = at.input + stage * kInputBytes + column * kDepth;
    if (kWeights == 1) copy_tile(to_weight, weight, (first + i) * kDepth, here.row, full);
    else copy_tile_to(to_weight, weight, (first + i) * kDepth, here.row + row, full, to_weights);
    if (kInputs == 1) copy_tile(to_input, input, (first + i) * kDepth, here.column, full);
    else copy_tile_to(to_input, input, (first + i) * kDepth, here.column + column, full, to_inputs);
    copy_tile(at.scale + stage * kScaleSlot, scale, here.column, first + i, full);
  }
}

// What one warpgroup needs to multiply a block of k, and to add it to its sums with its scales.
struct Consumer {
  Pipeline at;
  const char* scales;
  const float* weight_scale;
  int lane, group, sharer;
  int slot, phase;  // of the block that is issued next
  int done;         // slot of the block that is promoted next

  __device__ __forceinline__ void issue(float (&part)[kColumns / 2]) {
    barrier_wait(at.full + slot * 8, phase);
    const uint64_t a = tile_descriptor(at.weight + slot * kWeightBytes + group * 64 * kDepth);
    const uint64_t b = tile_descriptor(at.input + slot * kInputBytes);
    multiply_block<kColumns>(part, a, b);
    if (++slot == kStages) slot = 0, phase ^= 1;
  }

  __device__ __forceinline__ void promote(int i, float (&part)[kColumns / 2], float (&sum)[kColumns / 2]) {
    const float of_weight = __ldg(weight_scale + i);
    const float2* of_column = reinterpret_cast<const float2*>(scales + done * kScaleSlot) + lane % 4;
#pragma unroll
    for (int j = 0; j < kColumns / 2; ++j) pin(part[j]);
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j) {
      const float2 of_input = of_column[4 * j];
      const float left = of_input.x * of_weight, right = of_input.y * of_weight;
      sum[4 * j + 0] = fmaf(part[4 * j + 0], left, sum[4 * j + 0]);
      sum[4 * j + 1] = fmaf(part[4 * j + 1], right, sum[4 * j + 1]);
      sum[4 * j + 2] = fmaf(part[4 * j + 2], left, sum[4 * j + 2]);
      sum[4 * j + 3] = fmaf(part[4 * j + 3], right, sum[4 * j + 3]);
    }
    __syncwarp();
    if (kSharers == 1 && lane == 0) barrier_arrive(at.empty + done * 8);
    if (kSharers > 1 && lane < kSharers) barrier_arrive_at(at.empty + done * 8, sharer);
    if (++done == kStages) done = 0;
  }
};

// Two blocks a turn where there are registers for both: the products of one run while those of the other are added.
__device__ __forceinline__ void consume(Consumer& self, int count, float (&sum)[kColumns / 2]) {
  constexpr bool kOverlap = kColumns <= 64;
  float even[kColumns / 2], odd[kColumns / 2];
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i) sum[i] = 0.0f;
  for (int i = 0; i < (kOverlap ? count % 2 : count); ++i) {
    self.issue(odd);
    wgmma_wait<0>();
    self.promote(i, odd, sum);
  }
  if (!kOverlap || count == 1) return;
  self.issue(even);
  for (int i = count % 2;; i += 2) {
    self.issue(odd);
    wgmma_wait<1>();
    self.promote(i, even, sum);
    wgmma_wait<0>();
    self.promote(i + 1, odd, sum);
    if (i + 2 >= count) return;
    self.issue(even);
  }
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

// Each of the blocks that split k adds its share of the tile over all parts, in order, and stores it.
__device__ void reduce(const float* sums, const float* bias, Out* out, int m, int n, const Place& here) {
  const int base = kSplit * here.input + kAcross * here.weight;
  for (int v = here.part * kConsumers + threadIdx.x; v < kColumns * kRows / 4; v += kSplit * kConsumers) {
    const int column = v / (kRows / 4), row = v % (kRows / 4) * 4;
    if (here.column + column >= m || here.row + row >= n) continue;
    const float* own = sums + column * kPitch + row;
    float4 total = *reinterpret_cast<const float4*>(own);
    if (kSplit > 1) {
      total = load_remote(shared_address(own), base);
      for (int part = 1; part < kSplit; ++part) {
        const float4 more = load_remote(shared_address(own), base + part);
        total.x += more.x, total.y += more.y, total.z += more.z, total.w += more.w;
      }
    }
    if (bias != nullptr) {
      const float* b = bias + here.row + row;
      total.x += b[0], total.y += b[1], total.z += b[2], total.w += b[3];
    }
    store_four(out + static_cast<int64_t>(here.column + column) * n + here.row + row, total);
  }
}

extern "C" __global__ void __cluster_dims__(kAcross, kWeights, 1) __launch_bounds__(kConsumers + 32)
hopper_fp8_block_stream(const __grid_constant__ TensorMap weight, const __grid_constant__ TensorMap input,
                        const __grid_constant__ TensorMap scale, const float* weight_scale, const float* bias, Out* out,
                        int m, int n, int k_blocks) {
  extern __shared__ char raw[];
  __shared__ alignas(8) uint64_t barriers[2 * kStages];
  const uint32_t misfit = shared_address(raw) % 1024;
  char* tiles = raw + (misfit == 0 ? 0 : 1024 - misfit);
  char* scales = tiles + kStages * (kWeightBytes + kInputBytes);
  const Pipeline at = {shared_address(tiles), shared_address(tiles) + kStages * kWeightBytes, shared_address(scales),
                       shared_address(barriers), shared_address(barriers + kStages)};
  const Place here = place();
  const int first = k_blocks * here.part / kSplit, count = k_blocks * (here.part + 1) / kSplit - first;
  const bool alone = kAcross * kWeights == 1;

  if (threadIdx.x == kConsumers) {
    prefetch_map(&weight), prefetch_map(&input), prefetch_map(&scale);
    for (int i = 0; i < kStages; ++i)
      barrier_init(at.full + i * 8, 1), barrier_init(at.empty + i * 8, kConsumers / 32 * kSharers);
    barrier_init_fence();
  }
  __syncthreads();
  if (kSharers > 1) cluster_sync();  // the barriers of the others are ready too

  float* sums = reinterpret_cast<float*>(tiles);
  if (threadIdx.x >= kConsumers) {
    if (threadIdx.x == kConsumers) produce(at, &weight, &input, &scale, here, first, count);
    __syncwarp();
  } else {
    float sum[kColumns / 2];
    const int block = min(here.row / 128, (n + 127) / 128 - 1);
    const int lane = threadIdx.x % 32;
    const float* of_block = weight_scale + static_cast<int64_t>(block) * k_blocks + first;
    Consumer self = {at, scales, of_block, lane, static_cast<int>(threadIdx.x / 128),
                     lane < kSharers ? sharer(here, lane) : 0, 0, 0, 0};
    consume(self, count, sum);
    asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory");  // every warp has read its last tile
    spill(sums, sum);
  }
  __syncthreads();
  if (!alone) cluster_sync();
  if (threadIdx.x < kConsumers) reduce(sums, bias, out, m, n, here);
  if (!alone) cluster_sync();  // nobody leaves while others read its sums
}
