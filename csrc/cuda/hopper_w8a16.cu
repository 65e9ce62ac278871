// FP8 weights, 16-bit inputs, for SM90: the weight's codes are widened in registers and multiplied with `wgmma`.
//
//   out[m, n] = round(sum over k: x[m, k] * w[n, k] * scale + bias[n])
//
// KT_SCALES names what a scale covers: 0 a row of the weight (float32, applied to the sum), 1 a block of 128 x 128
// (float32, applied to the partial sum of each 128 of k), 2 a row's 32 columns (e8m0, applied to the widened weight,
// exactly). The weight is packed in tiles of 64 rows and 128 columns, in the order in which a thread needs its codes
// (kernels/hopper_w8a16.py), so that it is read once, in whole lines, by bulk copies.
//
// The weight's rows are the rows of the matrix instruction and the input's rows its columns. A cluster shares work as in
// hopper_fp8_block_stream.cu: KT_SPLIT blocks split k, KT_INPUTS blocks fetch a common input tile.
//
// Compile-time: KT_GROUPS (1 or 2), KT_COLUMNS (8 to 256), KT_STAGES, KT_SPLIT, KT_INPUTS, KT_SCALES, KT_IN, KT_OUT.
#include "hopper_widened.cuh"
#include "store.cuh"

constexpr int kGroups = KT_GROUPS, kRows = 64 * kGroups, kDepth = 128, kConsumers = 128 * kGroups;
constexpr int kColumns = KT_COLUMNS, kStages = KT_STAGES;
constexpr int kSplit = KT_SPLIT, kInputs = KT_INPUTS, kWeights = 1, kAcross = kSplit * kInputs, kSharers = kInputs;
constexpr int kTileBytes = 64 * kDepth + (KT_SCALES == 2 ? 64 * kDepth / 32 : 0);
constexpr int kWeightBytes = kGroups * kTileBytes, kInputBytes = kColumns * kDepth * 2;
constexpr bool kMoveRegisters = kGroups == 2 && kColumns >= 128;  // from a producing warpgroup to the consuming ones
constexpr int kThreads = kConsumers + (kMoveRegisters ? 128 : 32);
constexpr int kPitch = kRows + 4;  // floats of one column of partial sums: 16-byte aligned, spread over the banks

struct Pipeline {
  uint32_t weight, input;  // shared addresses of stage 0
  uint32_t full, empty;    // barriers of stage 0
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
__device__ void produce(const Pipeline& at, const char* weight, const TensorMap* input, const Place& here, int n,
                        int k_blocks, int first, int count) {
  unsigned short to_inputs = 0;
  for (int i = 0; i < kInputs; ++i) to_inputs |= 1 << (here.part + kSplit * i);
  const int column = here.input * (kColumns / kInputs), tiles = (n + 63) / 64;
  for (int i = 0; i < count; ++i) {
    const int stage = i % kStages;
    const uint32_t full = at.full + stage * 8;
    if (i >= kStages) barrier_wait(at.empty + stage * 8, (i / kStages - 1) & 1);
    barrier_expect(full, kWeightBytes + kInputBytes);
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const int tile = min(here.row / 64 + g, tiles - 1);
      copy_bytes(at.weight + stage * kWeightBytes + g * kTileBytes,
                 weight + (static_cast<int64_t>(tile) * k_blocks + first + i) * kTileBytes, kTileBytes, full);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t to = at.input + stage * kInputBytes + half * (kInputBytes / 2) + column * 128;
      const int k = (first + i) * kDepth + half * 64;
      if (kInputs == 1) copy_tile(to, input, k, here.column, full);
      else copy_tile_to(to, input, k, here.column + column, full, to_inputs);
    }
  }
}

// What one warpgroup needs to widen and multiply a block of k.
struct Consumer {
  Pipeline at;
  const char* weights;        // stage 0, this thread's part of this group's tile
  const float* weight_scale;  // KT_SCALES 1: of these 128 rows, along k
  int lane, sharer;
  int slot, phase;            // of the block that is widened next
  int done;                   // slot of the block that is given back next

  // The codes of a block as fragments of 8 instructions, 4 registers each.
  __device__ __forceinline__ void widen(uint32_t (&fragments)[32]) {
    barrier_wait(at.full + slot * 8, phase);
    const char* from = weights + slot * kWeightBytes;
#if KT_SCALES == 2
    const uint2 exponents = *reinterpret_cast<const uint2*>(weights_scales + slot * kWeightBytes);
#endif
#pragma unroll
    for (int quarter = 0; quarter < 4; ++quarter) {
      const uint4 codes = *reinterpret_cast<const uint4*>(from + quarter * 2048);
      const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
      uint32_t upper = kWiden, lower = kWiden;
#if KT_SCALES == 2
      const uint32_t both = (quarter < 2 ? exponents.x : exponents.y) >> (quarter % 2 * 16);
      upper = ((both & 0xff) + kBias) << kShift, lower = ((both >> 8 & 0xff) + kBias) << kShift;
      upper |= upper << 16, lower |= lower << 16;
#endif
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        fragments[quarter * 8 + 2 * i] = times(spread(words[i]), upper);
        fragments[quarter * 8 + 2 * i + 1] = times(spread(words[i] << 8), lower);
      }
    }
  }

  template <int kContinue>
  __device__ __forceinline__ void issue(const uint32_t (&fragments)[32], float (&part)[kColumns / 2]) {
    const uint64_t x = tile_descriptor(at.input + slot * kInputBytes);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < 8; ++step) {
      const uint64_t b = x + (step / 4) * (kInputBytes / 2 >> 4) + step % 4 * 2;
      if (step == 0) WgmmaWidened<kColumns>::template mma<kContinue>(part, fragments, b);
      else WgmmaWidened<kColumns>::template mma<1>(part, fragments + 4 * step, b);
    }
    wgmma_commit();
    if (++slot == kStages) slot = 0, phase ^= 1;
  }

  __device__ __forceinline__ void release() {
    __syncwarp();
    if (kSharers == 1 && lane == 0) barrier_arrive(at.empty + done * 8);
    if (kSharers > 1 && lane < kSharers) barrier_arrive_at(at.empty + done * 8, sharer);
    if (++done == kStages) done = 0;
  }
#if KT_SCALES == 2
  const char* weights_scales;
#if KT_IN == 1
  static constexpr uint32_t kBias = 0xffffff98u, kShift = 10;  // 2^(code - 127 + 8) as f16: exponent field code - 104
#else
  static constexpr uint32_t kBias = 120, kShift = 7;           // 2^(code - 127 + 120) as bf16: exponent field code + 120
#endif
#endif
};

// Ends the products of a block. With scales of blocks they are a partial sum, which is added with its scale.
__device__ __forceinline__ void finish(Consumer& self, int i, float (&part)[kColumns / 2], float (&sum)[kColumns / 2]) {
#if KT_SCALES == 1
  const float scale = __ldg(self.weight_scale + i);
  wgmma_wait<0>();
#pragma unroll
  for (int j = 0; j < kColumns / 2; ++j) pin(part[j]);
  self.release();
#pragma unroll
  for (int j = 0; j < kColumns / 2; ++j) sum[j] = fmaf(part[j], scale, sum[j]);
#else
  wgmma_wait<0>();
  self.release();
#endif
}

// The next block is widened while this one is multiplied. With few columns and scales of blocks it is not: other blocks
// of threads fill the gap, and fewer registers let more of them run.
__device__ __forceinline__ void consume(Consumer& self, int count, float (&sum)[kColumns / 2]) {
  constexpr int kContinue = KT_SCALES == 1 ? 0 : 1;
  constexpr bool kAhead = KT_SCALES != 1 || kColumns >= 128;
  uint32_t even[32], odd[32];
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i) sum[i] = 0.0f;
#if KT_SCALES == 1
  float part[kColumns / 2];
#else
  float(&part)[kColumns / 2] = sum;
#endif
  for (int i = 0; i < (kAhead ? 0 : count); ++i) {
    self.widen(odd);
    self.issue<kContinue>(odd, part);
    finish(self, i, part, sum);
  }
  if (kAhead) self.widen(even);
  for (int i = 0; i < (kAhead ? count : 0); i += 2) {
    self.issue<kContinue>(even, part);
    if (i + 1 < count) self.widen(odd);
    finish(self, i, part, sum);
    if (i + 1 == count) break;
    self.issue<kContinue>(odd, part);
    if (i + 2 < count) self.widen(even);
    finish(self, i + 1, part, sum);
  }
#pragma unroll
  for (int j = 0; j < kColumns / 2; ++j) pin(sum[j]);
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
__device__ void reduce(const float* sums, const float* row_scale, const float* bias, Out* out,
                       int m, int n, const Place& here) {
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
#if KT_SCALES == 0
    const float* scale = row_scale + here.row + row;
    total.x *= scale[0], total.y *= scale[1], total.z *= scale[2], total.w *= scale[3];
#endif
    if (bias != nullptr) {
      const float* b = bias + here.row + row;
      total.x += b[0], total.y += b[1], total.z += b[2], total.w += b[3];
    }
    store_four(out + static_cast<int64_t>(here.column + column) * n + here.row + row, total);
  }
}

extern "C" __global__ void __cluster_dims__(kAcross, 1, 1) __launch_bounds__(kThreads, 1)
hopper_w8a16(const __grid_constant__ TensorMap input, const char* weight, const float* weight_scale, const float* bias,
             Out* out, int m, int n, int k_blocks) {
  extern __shared__ char raw[];
  __shared__ alignas(8) uint64_t barriers[2 * kStages];
  const uint32_t misfit = shared_address(raw) % 1024;
  char* inputs = raw + (misfit == 0 ? 0 : 1024 - misfit);
  char* weights = inputs + kStages * kInputBytes;
  const Pipeline at = {shared_address(weights), shared_address(inputs), shared_address(barriers),
                       shared_address(barriers + kStages)};
  const Place here = place();
  const int first = k_blocks * here.part / kSplit, count = k_blocks * (here.part + 1) / kSplit - first;

  if (threadIdx.x == kConsumers) {
    prefetch_map(&input);
    for (int i = 0; i < kStages; ++i)
      barrier_init(at.full + i * 8, 1), barrier_init(at.empty + i * 8, kConsumers / 32 * kSharers);
    barrier_init_fence();
  }
  __syncthreads();
  if (kSharers > 1) cluster_sync();  // the barriers of the others are ready too

  float* sums = reinterpret_cast<float*>(inputs);
  if (threadIdx.x >= kConsumers) {
    if (kMoveRegisters) give_registers<40>();
    if (threadIdx.x == kConsumers) produce(at, weight, &input, here, n, k_blocks, first, count);
    __syncwarp();
  } else {
    if (kMoveRegisters) take_registers<232>();
    const int lane = threadIdx.x % 32, group = threadIdx.x / 128, warp = threadIdx.x % 128 / 32;
    Consumer self;
    self.at = at, self.lane = lane, self.slot = 0, self.phase = 0, self.done = 0;
    self.sharer = lane < kSharers ? sharer(here, lane) : 0;
    self.weights = weights + group * kTileBytes + warp * 512 + lane * 16;
#if KT_SCALES == 1
    self.weight_scale =
      weight_scale + static_cast<int64_t>(min(here.row / 128, (n + 127) / 128 - 1)) * k_blocks + first;
#elif KT_SCALES == 2
    self.weights_scales = weights + group * kTileBytes + 8192 + (warp * 8 + lane / 4) * 8;
#endif
    float sum[kColumns / 2];
    consume(self, count, sum);
    asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory");  // every warp has read its last tile
    spill(sums, sum);
  }
  __syncthreads();
  if (kAcross > 1) cluster_sync();
  if (threadIdx.x < kConsumers) reduce(sums, weight_scale, bias, out, m, n, here);
  if (kAcross > 1) cluster_sync();  // nobody leaves while others read its sums
}
