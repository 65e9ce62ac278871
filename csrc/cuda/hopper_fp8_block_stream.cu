// Block-scaled FP8 product for SM90 and few rows: the weight is streamed once, at the rate of the memory.
//
//   out[m, n] = round(sum over blocks b of 128 columns: (x[m, b] . w[n, b]) * x_scale[b, m] * w_scale[n / 128, b] + bias[n])
//
// The weight's rows are the rows of the matrix instruction and the input's rows its columns (KT_COLUMNS of them), so a
// tile wastes nothing when m is small. The KT_SPLIT blocks of a cluster take a part of k each; the parts are added
// through distributed shared memory in rank order, so the result is the same every time.
//
// Compile-time: KT_COLUMNS (8, 16, 32, 64, 128), KT_STAGES, KT_SPLIT (at most 8), KT_OUT.
#include "hopper.cuh"
#include "store.cuh"

constexpr int kRows = 64, kDepth = 128, kConsumers = 128;
constexpr int kColumns = KT_COLUMNS, kStages = KT_STAGES, kSplit = KT_SPLIT, kSums = kColumns / 2;
constexpr int kWeightBytes = kRows * kDepth, kInputBytes = kColumns * kDepth;
constexpr int kScaleBytes = kColumns * 4, kScaleSlot = (kScaleBytes + 127) / 128 * 128;
constexpr int kPitch = kRows + 4;  // floats of one column of partial sums: 16-byte aligned, spread over the banks

struct Pipeline {
  uint32_t weight, input, scale;  // shared addresses of stage 0
  uint32_t full, empty;           // barriers of stage 0
};

// Where a block stands: its tile, and its part of k.
struct Place {
  int row, column, part;
};

// One lane keeps the copies of up to kStages blocks of k in flight.
__device__ void produce(const Pipeline& at, const TensorMap* weight, const TensorMap* input, const TensorMap* scale,
                        const Place& here, int first, int count) {
  auto fetch_weight = [&](int i) {
    const int stage = i % kStages;
    barrier_expect(at.full + stage * 8, kWeightBytes + kInputBytes + kScaleBytes);
    copy_tile(at.weight + stage * kWeightBytes, weight, (first + i) * kDepth, here.row, at.full + stage * 8);
  };
  auto fetch_input = [&](int i) {
    const int stage = i % kStages;
    copy_tile(at.input + stage * kInputBytes, input, (first + i) * kDepth, here.column, at.full + stage * 8);
    copy_tile(at.scale + stage * kScaleSlot, scale, here.column, first + i, at.full + stage * 8);
  };
  const int early = min(count, kStages);
  for (int i = 0; i < early; ++i) fetch_weight(i);  // it was there before the kernel that makes the input
  wait_for_previous();
  let_next_start();
  for (int i = 0; i < early; ++i) fetch_input(i);
  for (int i = early; i < count; ++i) {
    barrier_wait(at.empty + i % kStages * 8, (i / kStages - 1) & 1);
    fetch_weight(i);
    fetch_input(i);
  }
}

// What the warpgroup needs to multiply a block of k, and to add it to its sums with its scales.
struct Consumer {
  uint32_t full, empty;    // barriers of slot 0
  uint32_t weight, input;  // words of the tiles of slot 0
  const char* scales;
  const float* weight_scale;
  int lane;
  int slot, phase;  // of the block that is started next
  int done;         // slot of the block that is added next

  __device__ __forceinline__ void start(float (&part)[kSums]) {
    barrier_wait(full + slot * 8, phase);
    multiply_tiles(part, weight + slot * (kWeightBytes >> 4), input + slot * (kInputBytes >> 4));
    if (++slot == kStages) slot = 0, phase ^= 1;
  }

  // kPending products were started after this one, of block i.
  template <int kPending>
  __device__ __forceinline__ void add(int i, float (&part)[kSums], float (&sum)[kSums]) {
    const float of_weight = __ldg(weight_scale + i);
    wgmma_wait<kPending>();
    const float2* of_column = reinterpret_cast<const float2*>(scales + done * kScaleSlot) + lane % 4;
#pragma unroll
    for (int j = 0; j < kSums; ++j) pin(part[j]);
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
    if (lane == 0) barrier_arrive(empty + done * 8);
    if (++done == kStages) done = 0;
  }
};

// Two blocks a turn where there are registers for both: the products of one run while those of the other are added.
__device__ __forceinline__ void consume(Consumer& self, int count, float (&sum)[kSums]) {
  constexpr bool kOverlap = kColumns <= 64;
  float even[kSums], odd[kSums];
#pragma unroll
  for (int i = 0; i < kSums; ++i) sum[i] = 0.0f;
  for (int i = 0; i < (kOverlap ? count % 2 : count); ++i) {
    self.start(odd);
    self.add<0>(i, odd, sum);
  }
  if (!kOverlap || count == 1) return;
  self.start(even);
  for (int i = count % 2;; i += 2) {
    self.start(odd);
    self.add<1>(i, even, sum);
    self.add<0>(i + 1, odd, sum);
    if (i + 2 >= count) return;
    self.start(even);
  }
}

// Partial sums to shared memory, column by column, so that neighbours along n are neighbours in memory.
__device__ void spill(float* sums, const float (&sum)[kSums]) {
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
    if (bias != nullptr) {
      const float* b = bias + here.row + row;
      total.x += b[0], total.y += b[1], total.z += b[2], total.w += b[3];
    }
    store_four(out + static_cast<int64_t>(here.column + column) * n + here.row + row, total);
  }
}

extern "C" __global__ void __cluster_dims__(kSplit, 1, 1) __launch_bounds__(kConsumers + 32)
hopper_fp8_block_stream(const __grid_constant__ TensorMap input, const __grid_constant__ TensorMap weight,
                        const __grid_constant__ TensorMap scale, const float* weight_scale, const float* bias, Out* out,
                        int m, int n, int k_blocks) {
  extern __shared__ char raw[];
  __shared__ alignas(8) uint64_t barriers[2 * kStages];
  const uint32_t misfit = shared_address(raw) % 1024;
  char* tiles = raw + (misfit == 0 ? 0 : 1024 - misfit);
  char* scales = tiles + kStages * (kWeightBytes + kInputBytes);
  const Pipeline at = {shared_address(tiles), shared_address(tiles) + kStages * kWeightBytes, shared_address(scales),
                       shared_address(barriers), shared_address(barriers + kStages)};
  const Place here = {static_cast<int>(blockIdx.x / kSplit) * kRows, static_cast<int>(blockIdx.y) * kColumns,
                      static_cast<int>(blockIdx.x % kSplit)};
  const int first = k_blocks * here.part / kSplit, count = k_blocks * (here.part + 1) / kSplit - first;

  if (threadIdx.x == kConsumers) {
    prefetch_map(&weight), prefetch_map(&input), prefetch_map(&scale);
    for (int i = 0; i < kStages; ++i) barrier_init(at.full + i * 8, 1), barrier_init(at.empty + i * 8, kConsumers / 32);
    barrier_init_fence();
  }
  __syncthreads();

  float* sums = reinterpret_cast<float*>(tiles);
  if (threadIdx.x >= kConsumers) {
    if (threadIdx.x == kConsumers) produce(at, &weight, &input, &scale, here, first, count);
    __syncwarp();
  } else {
    float sum[kSums];
    const int block = min(here.row / 128, (n + 127) / 128 - 1), lane = threadIdx.x % 32;
    const float* of_block = weight_scale + static_cast<int64_t>(block) * k_blocks + first;
    Consumer self = {uniform(at.full), uniform(at.empty), uniform(tile_word(at.weight)), uniform(tile_word(at.input)),
                     scales, of_block, lane, 0, 0, 0};
    wait_for_previous();
    consume(self, count, sum);
    asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory");  // every warp has read its last tile
    spill(sums, sum);
  }
  __syncthreads();
  if (kSplit > 1) cluster_sync();
  if (threadIdx.x < kConsumers) reduce(sums, bias, out, m, n, here);
  if (kSplit > 1) cluster_leave();  // not while others read its sums
}
