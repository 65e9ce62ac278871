// Block-scaled FP8 product with mma.sync, for SM89 and SM12x; other chips from SM90 on run it on their 16-bit units.
//
//   out[m, n] = round(sum over blocks b of 128 columns: (x[m, b] . w[n, b]) * x_scale[b, m] * w_scale[n / 128, b] + bias[n])
//
// A block of threads computes KT_ROWS x KT_COLUMNS outputs from a ring of stages in shared memory. A stage is KT_WARPS_K
// blocks of 128 columns, a block of k to each of so many groups of warps: few outputs still keep many warps busy, and
// neighbouring blocks of a row are fetched together. The tensor cores keep about 14 bits of an FP8 sum, so every 128
// columns are promoted to float32 with their scales. The groups' sums, then the bias, are added in order. With more than
// one part (gridDim.y), k is split further: the sums go to parts[part, m, n], which add_parts.cu adds in order.
//
// Rows of 128 bytes lie in shared memory with their 16-byte chunks permuted, chunk ^ (row % 8): the eight rows that a
// matrix of ldmatrix consists of then lie in different banks. Rows beyond m or n are not copied: they only reach outputs
// that are not stored. Columns beyond k arrive as zeros.
//
// Compile-time: KT_ROWS, KT_COLUMNS (16 to 128, powers of two), KT_WARPS_M, KT_WARPS_N, KT_WARPS_K, KT_STAGES, KT_OUT.
#include "mma.cuh"
#include "store.cuh"

constexpr int kRows = KT_ROWS, kColumns = KT_COLUMNS, kDepth = 128, kStages = KT_STAGES;
constexpr int kWarpsM = KT_WARPS_M, kWarpsN = KT_WARPS_N, kWarpsK = KT_WARPS_K;
constexpr int kThreads = 32 * kWarpsM * kWarpsN * kWarpsK;
constexpr int kWarpRows = kRows / kWarpsM, kWarpColumns = kColumns / kWarpsN;
constexpr int kTall = kWarpRows / 16, kWide = kWarpColumns / 8;  // fragments of a warp's outputs
constexpr int kInputBytes = kRows * kDepth, kWeightBytes = kColumns * kDepth, kBlockBytes = kInputBytes + kWeightBytes;
constexpr int kScaleBytes = kRows * 4 + 16;  // of the input's rows, then of the weight
constexpr int kChunks = 8 * kWarpsK, kStep = kThreads / kChunks;  // a row of a stage in 16 bytes; rows copied at once
constexpr int kPitch = kColumns + 8;  // floats of a row of sums: four rows of eight columns lie in different banks
constexpr int kGroup = 8;             // row tiles that share a walk over n

static_assert(kWarpRows % 16 == 0 && kWarpColumns % 16 == 0, "a warp computes whole fragments");
static_assert(128 % kColumns == 0, "the columns of a tile share their weight scales");
static_assert(kRows * kWarpsK <= kThreads, "one copy a thread fetches the scales");

struct Tile {
  int row, column;
};

// Row tiles in groups of kGroup, so that the blocks that run together share their inputs in the L2 cache.
__device__ __forceinline__ Tile tile_at(int index, int m, int n) {
  const int tall = (m + kRows - 1) / kRows, wide = (n + kColumns - 1) / kColumns;
  const int first = index / (kGroup * wide) * kGroup, inside = index - first * wide;
  const int height = tall - first < kGroup ? tall - first : kGroup;
  return {(first + inside % height) * kRows, inside / height * kColumns};
}

// One matrix of codes as a thread copies it: always the same chunk of the rows of a stage, kStep rows apart.
template <int kTileRows>
struct Copier {
  const char* from;  // the thread's chunk of its first row, in the first stage
  int64_t step;      // bytes from one of its rows to the next
  int rows;          // of the tile that exist, counted from the thread's first

  __device__ __forceinline__ Copier(const char* matrix, int row, int end, int k, int first_block) {
    const int mine = threadIdx.x / kChunks;
    from = matrix + static_cast<int64_t>(row + mine) * k + first_block * kDepth + threadIdx.x % kChunks * 16;
    step = static_cast<int64_t>(kStep) * k;
    rows = (end - row < kTileRows ? end - row : kTileRows) - mine;
  }

  // `bytes` is 16, or 0 for a chunk beyond k.
  __device__ __forceinline__ void copy(uint32_t to, int64_t column, int bytes) const {
    const int row = threadIdx.x / kChunks, chunk = threadIdx.x % kChunks;
    to += chunk / 8 * kBlockBytes;
#pragma unroll
    for (int i = 0; i < (kTileRows + kStep - 1) / kStep; ++i) {
      const int at = row + i * kStep;
      if (i * kStep < rows)
        copy_16(to + at * kDepth + ((chunk % 8) ^ (at % 8)) * 16, from + i * step + (bytes == 0 ? 0 : column), bytes);
    }
  }
};

// The blocks of k of this part, and where their stages lie.
struct Work {
  const float* x_scale;  // of the tile's first row, in the part's first block
  const float* w_scale;
  int scale_stride, x_rows;
  int count, steps;  // blocks of k; stages
  int columns;       // of k, from the part's first block on
  uint32_t tiles, scales;
};

__device__ __forceinline__ void fetch(const Work& work, const Copier<kRows>& input, const Copier<kColumns>& weight,
                                      int step) {
  if (step < work.steps) {
    const int slot = step % kStages, chunk = threadIdx.x % kChunks, block = step * kWarpsK + chunk / 8;
    const int64_t column = static_cast<int64_t>(step) * kWarpsK * kDepth;
    if (block < work.count) {
      const int bytes = column + chunk * 16 < work.columns ? 16 : 0;
      const uint32_t to = work.tiles + slot * kWarpsK * kBlockBytes;
      input.copy(to, column, bytes);
      weight.copy(to + kInputBytes, column, bytes);
    }
    const uint32_t scales = work.scales + slot * kWarpsK * kScaleBytes;
    const int group = threadIdx.x / kRows, row = threadIdx.x % kRows;
    if (group < kWarpsK && step * kWarpsK + group < work.count && row < work.x_rows)
      copy_4(scales + group * kScaleBytes + row * 4,
             work.x_scale + static_cast<int64_t>(step * kWarpsK + group) * work.scale_stride + row);
    if (threadIdx.x < kWarpsK && step * kWarpsK + static_cast<int>(threadIdx.x) < work.count)
      copy_4(scales + threadIdx.x * kScaleBytes + kRows * 4, work.w_scale + step * kWarpsK + threadIdx.x);
  }
  copy_commit();  // an empty group too, so that the number of pending groups is the number of stages
}

// A warp's place: its lane, and which rows, columns and blocks of k are its own.
struct Place {
  int lane, m, n, k;
};

// One block of 128 columns: products in the tensor cores' own sums, then promoted.
__device__ __forceinline__ void multiply(uint32_t tile, const float* scales, const Place& at,
                                         float (&sum)[kTall][kWide][4]) {
  float part[kTall][kWide][4] = {};
  const int eighth = at.lane % 8, quarter = at.lane / 8;
  const uint32_t input = tile + (at.m * kWarpRows + eighth + quarter % 2 * 8) * kDepth;
  const uint32_t weight = tile + kInputBytes + (at.n * kWarpColumns + eighth + quarter / 2 * 8) * kDepth;
#pragma unroll
  for (int s = 0; s < kDepth / 32; ++s) {
    const int of_input = ((2 * s + quarter / 2) ^ eighth) * 16, of_weight = ((2 * s + quarter % 2) ^ eighth) * 16;
    uint32_t a[kTall][4];
#pragma unroll
    for (int i = 0; i < kTall; ++i) load_matrices(a[i], input + i * 16 * kDepth + of_input);
#pragma unroll
    for (int j = 0; j < kWide; j += 2) {
      uint32_t b[4];
      load_matrices(b, weight + j * 8 * kDepth + of_weight);
#pragma unroll
      for (int i = 0; i < kTall; ++i) {
        multiply_e4m3(part[i][j], a[i], b[0], b[1]);
        multiply_e4m3(part[i][j + 1], a[i], b[2], b[3]);
      }
    }
  }
  const float of_weight = scales[kRows];
#pragma unroll
  for (int i = 0; i < kTall; ++i) {
    const float* of_input = scales + at.m * kWarpRows + i * 16 + at.lane / 4;
    const float upper = of_input[0] * of_weight, lower = of_input[8] * of_weight;
#pragma unroll
    for (int j = 0; j < kWide; ++j) {
      sum[i][j][0] = fmaf(part[i][j][0], upper, sum[i][j][0]);
      sum[i][j][1] = fmaf(part[i][j][1], upper, sum[i][j][1]);
      sum[i][j][2] = fmaf(part[i][j][2], lower, sum[i][j][2]);
      sum[i][j][3] = fmaf(part[i][j][3], lower, sum[i][j][3]);
    }
  }
}

// The sums of a warp to [group of k, row, column] in shared memory.
__device__ __forceinline__ void spill(float* sums, const Place& at, const float (&sum)[kTall][kWide][4]) {
  float* mine = sums + (at.k * kRows + at.m * kWarpRows + at.lane / 4) * kPitch + at.n * kWarpColumns + at.lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < kTall; ++i)
#pragma unroll
    for (int j = 0; j < kWide; ++j) {
      float* to = mine + i * 16 * kPitch + j * 8;
      *reinterpret_cast<float2*>(to) = make_float2(sum[i][j][0], sum[i][j][1]);
      *reinterpret_cast<float2*>(to + 8 * kPitch) = make_float2(sum[i][j][2], sum[i][j][3]);
    }
}

// Four neighbours a thread, over the groups of k in order; rows leave in whole lines.
__device__ __forceinline__ void store(const float* sums, const float* bias, Out* out, float* parts, const Tile& tile,
                                      int m, int n) {
  for (int v = threadIdx.x; v < kRows * kColumns / 4; v += kThreads) {
    const int row = v / (kColumns / 4), column = v % (kColumns / 4) * 4;
    if (tile.row + row >= m || tile.column + column >= n) continue;
    const float* from = sums + row * kPitch + column;
    float4 total = *reinterpret_cast<const float4*>(from);
#pragma unroll
    for (int group = 1; group < kWarpsK; ++group) {
      const float4 more = *reinterpret_cast<const float4*>(from + group * kRows * kPitch);
      total.x += more.x, total.y += more.y, total.z += more.z, total.w += more.w;
    }
    const int64_t place = static_cast<int64_t>(tile.row + row) * n + tile.column + column;
    if (gridDim.y > 1) {
      *reinterpret_cast<float4*>(parts + static_cast<int64_t>(blockIdx.y) * m * n + place) = total;
      continue;
    }
    if (bias != nullptr) {
      const float* b = bias + tile.column + column;
      total.x += b[0], total.y += b[1], total.z += b[2], total.w += b[3];
    }
    store_four(out + place, total);
  }
}

extern "C" __global__ void __launch_bounds__(kThreads)
mma_fp8_block(const char* x, const float* x_scale, const char* w, const float* w_scale, const float* bias, Out* out,
              float* parts, int m, int n, int k, int scale_stride) {
  extern __shared__ __align__(128) char shared[];
  const int warp = threadIdx.x / 32, blocks = (k + kDepth - 1) / kDepth;
  const Place at = {static_cast<int>(threadIdx.x % 32), warp % kWarpsM, warp / kWarpsM % kWarpsN,
                    warp / (kWarpsM * kWarpsN)};
  const Tile tile = tile_at(blockIdx.x, m, n);
  const int first = static_cast<int>(static_cast<int64_t>(blocks) * blockIdx.y / gridDim.y);
  const int count = static_cast<int>(static_cast<int64_t>(blocks) * (blockIdx.y + 1) / gridDim.y) - first;
  char* scales = shared + kStages * kWarpsK * kBlockBytes;
  const Work work = {x_scale + static_cast<int64_t>(first) * scale_stride + tile.row,
                     w_scale + static_cast<int64_t>(tile.column / 128) * blocks + first,
                     scale_stride, m - tile.row, count, (count + kWarpsK - 1) / kWarpsK, k - first * kDepth,
                     shared_offset(shared), shared_offset(scales)};
  const Copier<kRows> input(x, tile.row, m, k, first);
  const Copier<kColumns> weight(w, tile.column, n, k, first);

  float sum[kTall][kWide][4] = {};
  for (int step = 0; step < kStages - 1; ++step) fetch(work, input, weight, step);
  for (int step = 0; step < work.steps; ++step) {
    copy_wait<kStages - 2>();
    __syncthreads();  // every thread's copies are there, and nobody reads the slot that is filled next
    fetch(work, input, weight, step + kStages - 1);
    const int block = step % kStages * kWarpsK + at.k;
    if (step * kWarpsK + at.k < count)
      multiply(work.tiles + block * kBlockBytes, reinterpret_cast<const float*>(scales + block * kScaleBytes), at, sum);
  }
  copy_wait<0>();
  __syncthreads();
  float* sums = reinterpret_cast<float*>(shared);
  spill(sums, at, sum);
  __syncthreads();
  store(sums, bias, out, parts, tile, m, n);
}
