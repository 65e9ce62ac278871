// FP8 weights, 16-bit inputs, from SM80 on: the weight's codes are widened in registers and multiplied with `mma.sync`.
//
//   out[m, n] = round(sum over k: x[m, k] * w[n, k] * scale + bias[n])
//
// KT_SCALES names what a scale covers: 0 a row of the weight (float32, applied to the sum), 1 a block of 128 x 128
// (float32, applied to the partial sum of each step along k), 2 a row's 32 columns (e8m0, applied to the widened
// weight, exactly). The weight is packed in tiles of 64 rows and 128 columns, in the order in which a thread needs its
// codes (ops/fragment_tiles.py): 16 bytes of a lane are its fragments of 16 rows and 32 columns, nothing is shuffled.
//
// The weight's rows are the rows of the matrix instruction and the input's rows its columns. A block of threads
// computes kRows of the weight by kColumns of the input. It has KT_GROUPS groups, which take the steps along k in turn,
// each with its own stages of shared memory and its own barrier, and add their sums at the end, in order. A group has
// KT_DOWN warps over the rows by KT_ACROSS over the columns, and a warp KT_STRIPS times 16 rows. The grid may split k
// as well (gridDim.z): then partial sums go to memory, and add_parts.cu adds them in order.
//
// Compile-time: KT_STRIPS, KT_DOWN, KT_ACROSS, KT_GROUPS, KT_COLUMNS (8 to 128), KT_DEPTH (of a step along k: 64 or
// 128), KT_STAGES, KT_BLOCKS (that should share a multiprocessor), KT_SCALES, KT_IN, KT_OUT.
#include "mma.cuh"
#include "store.cuh"
#include "widen.cuh"

constexpr int kStrips = KT_STRIPS, kDown = KT_DOWN, kAcross = KT_ACROSS, kGroups = KT_GROUPS;
constexpr int kColumns = KT_COLUMNS, kDepth = KT_DEPTH, kStages = KT_STAGES;
constexpr bool kHalf = KT_IN == 1;

constexpr int kAllStrips = kStrips * kDown, kRows = 16 * kAllStrips, kOwnColumns = kColumns / kAcross;
constexpr int kWarps = kDown * kAcross, kGroupThreads = 32 * kWarps, kThreads = kGroupThreads * kGroups;
constexpr int kPairs = kOwnColumns == 8 ? 1 : kOwnColumns / 16;  // loads of matrices that cover a warp's columns
constexpr int kStepsOfBlock = 128 / kDepth, kQuarters = kDepth / 32;
constexpr int kTileBytes = 64 * 128 + (KT_SCALES == 2 ? 64 * 4 : 0);
constexpr int kInputBytes = kColumns * kDepth * 2, kWeightBytes = kRows * kDepth;
constexpr int kExponentBytes = KT_SCALES == 2 ? kRows * 4 : 0;
constexpr int kStageBytes = kInputBytes + kWeightBytes + kExponentBytes;
constexpr int kPitch = kRows + 4;  // floats of one column of sums: 16-byte aligned, spread over the banks

static_assert(kDepth == 64 || kDepth == 128, "a step is half a tile or a tile");
static_assert((kAllStrips & (kAllStrips - 1)) == 0, "tiles of 64 rows hold a whole number of blocks, or the other way");
static_assert(kOwnColumns == 8 || kOwnColumns % 16 == 0, "a load of matrices takes 8 columns or 16");

using Sums = float[kStrips][kOwnColumns / 8][4];

// What a block of threads computes, and from what.
struct Work {
  const uint16_t* input;  // its first row
  int64_t stride;         // numbers from one row to the next
  int rows, k;            // rows that exist from here on; numbers in a row
  const char* weight;     // its first tile
  int tile, tiles;        // bytes from one tile of rows to the next; tiles that exist from here on
  int strip;              // of the first tile, where it begins
};

__device__ __forceinline__ void group_sync(int group) {
  if (kGroupThreads == 32) __syncwarp();
  else if (kGroups == 1) __syncthreads();
  else sync_some<kGroupThreads>(group + 1);
}

// Starts the copies of one step along k. A chunk is 16 bytes.
__device__ __forceinline__ void fetch(const Work& work, int step, uint32_t stage, int thread) {
  constexpr int kRowChunks = kDepth / 8, kInputs = kColumns * kRowChunks;
#pragma unroll
  for (int i = 0; i < (kInputs + kGroupThreads - 1) / kGroupThreads; ++i) {
    const int chunk = (thread + i * kGroupThreads) % kRowChunks, column = (thread + i * kGroupThreads) / kRowChunks;
    if (kInputs % kGroupThreads != 0 && column >= kColumns) break;
    const int k = step * kDepth + chunk * 8;
    const bool there = column < work.rows && k < work.k;
    const uint32_t to = stage + ((chunk / 8) * kColumns + column) * 128 + ((chunk ^ column) % 8) * 16;
    copy_16(to, there ? work.input + column * work.stride + k : work.input, there ? 16 : 0);
  }
  const char* block = work.weight + static_cast<int64_t>(step / kStepsOfBlock) * kTileBytes;
  const char* codes = block + step % kStepsOfBlock * (kQuarters * 2048) + thread % 32 * 16;
  constexpr int kPieces = kQuarters * kAllStrips;  // of 512 bytes: what a warp multiplies with 32 columns
#pragma unroll
  for (int i = 0; i < (kPieces + kWarps - 1) / kWarps; ++i) {
    const int piece = thread / 32 + i * kWarps, strip = piece % kAllStrips + work.strip, quarter = piece / kAllStrips;
    if (kPieces % kWarps != 0 && piece >= kPieces) break;
    const int tile = kRows > 64 ? min(strip / 4, work.tiles - 1) : 0;
    copy_16(stage + kInputBytes + piece * 512 + thread % 32 * 16,
            codes + tile * work.tile + quarter * 2048 + strip % 4 * 512, 16);
  }
#if KT_SCALES == 2
  for (int chunk = thread; chunk < kAllStrips * 4; chunk += kGroupThreads) {
    const int strip = chunk / 4 + work.strip, tile = kRows > 64 ? min(strip / 4, work.tiles - 1) : 0;
    copy_16(stage + kInputBytes + kWeightBytes + chunk * 16,
            block + tile * work.tile + 8192 + strip % 4 * 64 + chunk % 4 * 16, 16);
  }
#endif
}

// Where in a stage this warp and this lane read.
struct Lane {
  uint32_t codes;      // of the warp's first strip
  uint32_t exponents;  // of this lane's row there
  uint32_t matrices;   // the row of the input that this lane names to load_matrices, in the warp's first columns
  uint32_t turn;       // by which its chunks are exchanged
};

// One step along k, 32 columns at a time. A chunk's place is its number xor its row. The number is one that is known
// here plus the lane's own, and their bits do not overlap, so that one xor serves.
__device__ __forceinline__ void multiply(uint32_t stage, const Lane& at, int step, Sums& sums) {
#if KT_SCALES == 2
  uint32_t exponents[kStrips][2];
#pragma unroll
  for (int s = 0; s < kStrips; ++s) {
    const uint32_t from = stage + at.exponents + s * 64 + step % kStepsOfBlock * 4;
    exponents[s][0] = load_4(from);
    if (kDepth == 128) exponents[s][1] = load_4(from + 4);
  }
#endif
#pragma unroll
  for (int quarter = 0; quarter < kQuarters; ++quarter) {
    uint32_t a[kStrips][8];
#pragma unroll
    for (int s = 0; s < kStrips; ++s) {
      const uint4 codes = load_16(stage + at.codes + (quarter * kAllStrips + s) * 512);
#if KT_SCALES == 2
      const uint32_t four = exponents[s][quarter / 2];
      const int upper = quarter % 2 * 2;
      widen_16(a[s], codes, widening_power_of(four, upper), widening_power_of(four, upper + 1));
#else
      widen_16(a[s], codes, kWiden, kWiden);
#endif
    }
    const uint32_t half = stage + at.matrices + quarter / 2 * (kColumns * 128);
    uint32_t b[4];
    if constexpr (kOwnColumns == 8) {
      load_matrices(b, half + ((quarter % 2 * 64) ^ at.turn));
#pragma unroll
      for (int s = 0; s < kStrips; ++s)
        multiply_16<kHalf>(sums[s][0], a[s], b[0], b[1]), multiply_16<kHalf>(sums[s][0], a[s] + 4, b[2], b[3]);
    } else {
#pragma unroll
      for (int i = 0; i < 2 * kPairs; ++i) {
        const int instruction = i / kPairs, pair = i % kPairs;
        load_matrices(b, half + pair * 2048 + ((quarter % 2 * 64 + instruction * 32) ^ at.turn));
#pragma unroll
        for (int s = 0; s < kStrips; ++s) {
          multiply_16<kHalf>(sums[s][2 * pair], a[s] + 4 * instruction, b[0], b[1]);
          multiply_16<kHalf>(sums[s][2 * pair + 1], a[s] + 4 * instruction, b[2], b[3]);
        }
      }
    }
  }
}

// With scales of blocks a step is a partial sum of its own, which is added with its scale.
__device__ __forceinline__ void multiply_scaled(uint32_t stage, const Lane& at, int step, float scale, Sums& sums) {
  Sums part;
#pragma unroll
  for (int i = 0; i < kStrips * kOwnColumns / 2; ++i) (&part[0][0][0])[i] = 0.0f;
  multiply(stage, at, step, part);
#pragma unroll
  for (int i = 0; i < kStrips * kOwnColumns / 2; ++i)
    (&sums[0][0][0])[i] = fmaf((&part[0][0][0])[i], scale, (&sums[0][0][0])[i]);
}

// The steps first, first + kGroups, ... below last: kStages of them are under way or in use at a time.
__device__ __forceinline__ void run(const Work& work, const Lane& at, const float* scale, uint32_t stages, int group,
                                    int first, int last, Sums& sums) {
  const int thread = threadIdx.x % kGroupThreads;
  int ahead = first, into = 0, from = 0;
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i, ahead += kGroups, ++into) {
    if (ahead < last) fetch(work, ahead, stages + into * kStageBytes, thread);
    copy_commit();
  }
  for (int step = first; step < last; step += kGroups, ahead += kGroups) {
#if KT_SCALES == 1
    const float factor = __ldg(scale + step / kStepsOfBlock);
#endif
    copy_wait<kStages - 2>();
    group_sync(group);  // the copies of all are there, and all have used the stage that is filled next
    if (ahead < last) fetch(work, ahead, stages + into * kStageBytes, thread);
    copy_commit();
#if KT_SCALES == 1
    multiply_scaled(stages + from * kStageBytes, at, step, factor, sums);
#else
    multiply(stages + from * kStageBytes, at, step, sums);
#endif
    into = into + 1 == kStages ? 0 : into + 1, from = from + 1 == kStages ? 0 : from + 1;
  }
}

// A warp's sums to shared memory, column by column, so that neighbours along n are neighbours in memory.
__device__ __forceinline__ void spill(float* to, const Sums& sums, int row, int column) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int s = 0; s < kStrips; ++s)
#pragma unroll
    for (int j = 0; j < kOwnColumns / 8; ++j) {
      float* at = to + (column + 8 * j + 2 * (lane % 4)) * kPitch + row + 16 * s + lane / 4;
      at[0] = sums[s][j][0], at[kPitch] = sums[s][j][1], at[8] = sums[s][j][2], at[kPitch + 8] = sums[s][j][3];
    }
}

// Adds the groups' sums in order, and stores them: rounded, or as this block's part of a split k.
__device__ __forceinline__ void finish(const float* sums, const float* row_scale, const float* bias, Out* out,
                                       float* parts, int m, int n, int first_row, int first_column) {
  for (int v = threadIdx.x; v < kColumns * kRows / 4; v += kThreads) {
    const int column = v / (kRows / 4), row = v % (kRows / 4) * 4;
    if (first_column + column >= m || first_row + row >= n) continue;
    const float* own = sums + column * kPitch + row;
    float4 total = *reinterpret_cast<const float4*>(own);
#pragma unroll
    for (int part = 1; part < kGroups; ++part) {
      const float4 more = *reinterpret_cast<const float4*>(own + part * kColumns * kPitch);
      total.x += more.x, total.y += more.y, total.z += more.z, total.w += more.w;
    }
#if KT_SCALES == 0
    const float* scale = row_scale + first_row + row;
    total.x *= scale[0], total.y *= scale[1], total.z *= scale[2], total.w *= scale[3];
#endif
    const int64_t at = static_cast<int64_t>(first_column + column) * n + first_row + row;
    if (parts != nullptr) {
      *reinterpret_cast<float4*>(parts + static_cast<int64_t>(blockIdx.z) * m * n + at) = total;
      continue;
    }
    if (bias != nullptr) {
      const float* b = bias + first_row + row;
      total.x += b[0], total.y += b[1], total.z += b[2], total.w += b[3];
    }
    store_four(out + at, total);
  }
}

// parts: null, or [gridDim.z, m, n] float32, which then is written in place of out.
extern "C" __global__ void __launch_bounds__(kThreads, KT_BLOCKS)
marlin_w8a16(const uint16_t* input, const char* weight, const float* scale, const float* bias, Out* out, float* parts,
             int m, int n, int k, int stride) {
  extern __shared__ __align__(128) char shared[];
  const int k_blocks = (k + 127) / 128, steps = k_blocks * kStepsOfBlock;
  const int first_row = blockIdx.x * kRows, first_column = blockIdx.y * kColumns;
  const int warp = threadIdx.x / 32 % kWarps, lane = threadIdx.x % 32, group = threadIdx.x / kGroupThreads;
  const int down = warp % kDown, across = warp / kDown;

  Work work;
  work.input = input + static_cast<int64_t>(first_column) * stride, work.stride = stride;
  work.rows = m - first_column, work.k = k;
  work.tile = k_blocks * kTileBytes, work.tiles = (n + 63) / 64 - first_row / 64;
  work.weight = weight + static_cast<int64_t>(first_row / 64) * work.tile, work.strip = first_row % 64 / 16;

  const int column = lane % 8 + (kOwnColumns == 8 ? 0 : lane / 16 * 8);
  const int chunk = kOwnColumns == 8 ? lane / 8 : lane / 8 % 2;
  Lane at;
  at.codes = kInputBytes + down * kStrips * 512 + lane * 16;
  at.exponents = kInputBytes + kWeightBytes + down * kStrips * 64 + lane / 4 * 8;
  at.matrices = (across * kOwnColumns + column) * 128, at.turn = (chunk ^ lane % 8) * 16;

  Sums sums = {};
#if KT_SCALES == 1
  scale += static_cast<int64_t>(min(first_row + down * kStrips * 16, n - 1) / 128) * k_blocks;
#endif
  const int first = steps * blockIdx.z / gridDim.z, last = steps * (blockIdx.z + 1) / gridDim.z;
  run(work, at, scale, shared_offset(shared) + group * kStages * kStageBytes, group, first + group, last, sums);
  // A group with a step less passes as many barriers as the others: by their number racecheck tells what came first.
  if (group >= (last - first) % kGroups && (last - first) % kGroups != 0) group_sync(group);

  __syncthreads();  // nobody reads a stage any more
  float* all = reinterpret_cast<float*>(shared);
  spill(all + group * kColumns * kPitch, sums, down * kStrips * 16, across * kOwnColumns);
  __syncthreads();
  finish(all, scale, bias, out, parts, m, n, first_row, first_column);
}
