// Block-scaled FP8 product for SM90 and a few rows of the input, which is quantized on the way: one launch a call.
//
//   out[m, n] = round(sum over blocks b of 128 columns: (q[m, b] . w[n, b]) * q_scale[b, m] * w_scale[n / 128, b]
//                     + bias[n])
//
// where q and q_scale are the bytes that quantize_block.cu makes of x. The sums are those of hopper_fp8_block_stream.cu
// with the same numbers, bit for bit. One warp copies the weight, KT_QUANTIZERS warps quantize, a warpgroup
// multiplies. Every block quantizes its part of k for itself: m rows of it are little beside the
// weight.
//
// m is at most KT_COLUMNS; k is a multiple of 16, and x and its rows begin at multiples of 16 bytes.
// Compile-time: the numbers of hopper_stream.cuh (KT_COLUMNS 8, or 16 for 16-bit inputs), KT_IN, KT_WIDTH
// (quantize_tile.cuh), KT_QUANTIZERS.
constexpr int kGiving = 32;  // lanes of a warp that give a stage back: all that read it

#include "hopper_stream.cuh"
#include "numbers.cuh"
#include "quantize_tile.cuh"

constexpr int kQuantizers = KT_QUANTIZERS, kAll = kConsumers + 32 + 32 * kQuantizers;
static_assert(kColumns / kTogether <= kQuantizers * kVectors, "a warp has one share of a tile, and arrives for it once");

// One lane keeps the copies of up to kStages tiles of the weight in flight.
__device__ void produce(const Pipeline& at, const TensorMap* weight, const Place& here, int first, int count) {
  auto fetch = [&](int i) {
    const int stage = i % kStages;
    barrier_expect(at.full + stage * 8, kWeightBytes);
    copy_tile(at.weight + stage * kWeightBytes, weight, (first + i) * kDepth, here.row, at.full + stage * 8);
  };
  const int early = min(count, kStages);
  for (int i = 0; i < early; ++i) fetch(i);  // it was there before the kernel that makes the input
  wait_for_previous();
  let_next_start();
  for (int i = early; i < count; ++i) {
    barrier_wait(at.empty + i % kStages * 8, (i / kStages - 1) & 1);
    fetch(i);
  }
}

// The input's tiles of the stages, as quantize_rows asks for them.
//
// Every warp that quantizes arrives once for every tile, in order, also for those that others fill: so none is ever two
// rounds of the stages ahead, which the one bit of a barrier's phase could not tell from one.
struct InputTiles {
  const Memory& memory;
  int passed = 0;  // tiles that this warp has arrived for

  __device__ __forceinline__ uint8_t* tile(int i) const {
    return reinterpret_cast<uint8_t*>(memory.tiles + kStages * kWeightBytes + i % kStages * kInputBytes);
  }
  __device__ __forceinline__ float* scales(int i) const {
    return reinterpret_cast<float*>(memory.scales + i % kStages * kScaleSlot);
  }
  __device__ __forceinline__ void wait(int i) const {
    if (i >= kStages) barrier_wait(memory.at.empty + i % kStages * 8, (i / kStages - 1) & 1);
    __syncwarp();
  }
  __device__ __forceinline__ void arrive(int i) {
    barrier_arrive(memory.at.full + i % kStages * 8);
    passed = i + 1;
  }
  __device__ __forceinline__ void pass(int until) {
    while (passed < until) wait(passed), arrive(passed);
  }
  __device__ __forceinline__ void empty(int i) { pass(i), wait(i); }
  __device__ __forceinline__ void filled(int i) {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // products read past the cache of plain stores
    __syncwarp();
    arrive(i);
  }
  // Rows that no input is written to become 0, once: by all warps that quantize, before the first of them fills a tile.
  __device__ __forceinline__ void clear(int covered, int thread) const {
    constexpr int kPieces = kColumns * 8;  // of 16 bytes, of a tile
    for (int i = thread; i < kStages * kPieces; i += 32 * kQuantizers) {
      const int piece = i % kPieces;
      if (piece / 8 < covered) continue;
      reinterpret_cast<uint4*>(tile(i / kPieces))[piece] = make_uint4(0, 0, 0, 0);
      scales(i / kPieces)[piece / 8] = 0.0f;
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // products read past the cache of plain stores
    asm volatile("bar.sync 2, %0;" ::"n"(32 * kQuantizers) : "memory");
  }
};

__device__ void quantize(InputTiles tiles, const Rows& rows, int warp, int count) {
  tiles.clear(kTogether << rows.shift, warp * 32 + threadIdx.x % 32);
  wait_for_previous();
  const int end = rows.reads();
#pragma unroll 1
  for (int read = warp * kVectors; read < end; read += kQuantizers * kVectors) {
    Vector vector[kVectors];
    rows.get(vector, read);
    quantize_rows(tiles, rows, vector, read);
  }
  tiles.pass(count);
}

extern "C" __global__ void __cluster_dims__(kSplit, 1, 1) __launch_bounds__(kAll, 1024 / kAll)
hopper_fp8_block_fused(const __grid_constant__ TensorMap weight, const In* x, const float* weight_scale,
                       const float* bias, Out* out, int m, int n, int k, int64_t x_step) {
  extern __shared__ char raw[];
  __shared__ alignas(8) uint64_t barriers[2 * kStages];
  const Memory memory(raw, barriers);
  const Place here = place_of_block();
  const int k_blocks = (k + kDepth - 1) / kDepth;
  const int first = k_blocks * here.part / kSplit, count = k_blocks * (here.part + 1) / kSplit - first;

  if (elected_in(kConsumers / 32)) {
    prefetch_map(&weight);
    for (int i = 0; i < kStages; ++i)
      barrier_init(memory.at.full + i * 8, 1 + 32 * kQuantizers),
        barrier_init(memory.at.empty + i * 8, kConsumers / 32 * kGiving);
    barrier_init_fence();
  }
  __syncthreads();

  const int warp = uniform(threadIdx.x / 32) - kConsumers / 32;
  Neighbours neighbours;
  if (warp < 0) {
    const Scales weight_scales = scales_of(weight_scale, here, n, k_blocks, first, count);
    wait_for_previous();
    neighbours = neighbours_of(nullptr, bias, n, here);
    multiply(memory, weight_scales, nothing_of(m));
  } else if (warp == 0) {
    if (elected_in(kConsumers / 32)) produce(memory.at, &weight, here, first, count);
  } else {
    const Rows rows = {x + first * kDepth, x_step, m, min(k - first * kDepth, count * kDepth), shift_of(m)};
    quantize({memory}, rows, warp - 1, count);
  }
  __syncwarp();
  finish(memory, neighbours, out, m, n, here);
}
