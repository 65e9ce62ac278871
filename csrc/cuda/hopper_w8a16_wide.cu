// FP8 weights, 16-bit inputs, many rows, for SM90: what hopper_w8a16.cu computes, from the same packed weight, in tiles
// of 128 rows of the weight and 256 rows of the input.
//
//   out[m, n] = round(sum over k: x[m, k] * w[n, k] * scale + bias[n])
//
// Blocks stay and take one tile after another; while two warpgroups round and store a tile, the copies of the next one
// run, and those of the first weights run while the kernel before this one still does (see overlap.cuh). Stages are 64 of
// k deep, so that many copies are in flight; KT_INPUTS neighbours along n, a cluster, fetch their common input tile
// together. KT_SCALES as in hopper_w8a16.cu: 0 rows, 1 blocks of 128 x 128, 2 a row's 32 columns. Tiles of the last wave
// are divided along k among all blocks, see divided.cuh.
//
// Scales of rows and of 32 columns: one sum stays in the matrix unit, the next stage is widened while one is multiplied.
// Scales of blocks, KT_RESCALE 1: the sum stands in the unit of the block that is multiplied, and is brought from one
// block's unit to the next one's (see Unit for what the scales must be). KT_RESCALE 0, for any scales: each 128 of k
// gives a partial sum, made in two slices of columns so that only a slice of it takes registers beside the whole sum;
// with KT_TURNS the warpgroups issue products in turns, so that one widens and adds while the other multiplies.
//
// Compile-time: KT_INPUTS (1, 2), KT_SCALES, KT_RESCALE (0, 1: with scales of blocks), KT_TURNS (0, 1: with partial
// sums), KT_IN, KT_OUT.
#include "divided.cuh"
#include "hopper_wide.cuh"
#include "store.cuh"

constexpr int kGiven = kPromotes ? 24 : 40, kTaken = kPromotes ? 240 : 232;  // registers: producing, consuming
constexpr int kTurned = 32, kTurnedBytes = kTurned * 64 * 2;  // columns that a warpgroup turns round at a time
constexpr int kTogether = 4;      // tiles of the input that are taken with one tile of the weight

struct Pipeline {
  uint32_t weight, input;  // shared addresses of stage 0
  uint32_t full, empty;    // barriers of stage 0
};

struct Problem : Division {
  int m, n;
};

struct Tile {
  int row, column;
};

// The tiles in the order in which the blocks take them: a few tiles of the input, then the next tile of the weight, so
// that what runs at one time shares both in the L2 cache.
__device__ __forceinline__ Tile tile_at(const Problem& p, int i) {
  const int across = (p.n + kRows * kInputs - 1) / (kRows * kInputs), up = (p.m + kColumns - 1) / kColumns;
  const int first = i / (across * kTogether) * kTogether, within = i % (across * kTogether);
  const int together = min(kTogether, up - first);
  return {(within / together * kInputs + static_cast<int>(blockIdx.x) % kInputs) * kRows,
          (first + within % together) * kColumns};
}

// Where the codes of a tile's first 64 rows of the weight start, and how far behind them those of the second 64 are.
struct Source {
  const char* first;
  int to_second;
};

__device__ __forceinline__ Source source_of(const char* weight, int row, int n, int k_blocks) {
  const int tiles = (n + 63) / 64, tile = min(row / 64, tiles - 1);  // what lies outside the matrix is not stored
  return {weight + static_cast<int64_t>(tile) * k_blocks * kPacked, tile + 1 < tiles ? k_blocks * kPacked : 0};
}

// Half a packed tile of both groups' rows, and the exponents of all of it.
__device__ __forceinline__ void fetch_weight(const Pipeline& at, const Source& from, int part, int slot) {
  const uint32_t full = at.full + slot * 8, to = at.weight + slot * kWeightBytes;
  barrier_expect(full, kWeightBytes + kInputBytes);
#pragma unroll
  for (int group = 0; group < 2; ++group) {
    const char* own = from.first + group * from.to_second + part / 2 * kPacked;
    copy_bytes(to + group * kPart, own + part % 2 * kCodes, kCodes, full);
    if (kExponents > 0) copy_bytes(to + group * kPart + kCodes, own + 2 * kCodes, kExponents, full);
  }
}

// One lane keeps up to kStages stages in flight, over the ends of segments.
__device__ void produce(const Pipeline& at, const char* weight, const TensorMap* input, const Problem& p, int worker) {
  const int share = static_cast<int>(blockIdx.x) % kInputs * (kColumns / kInputs);
  Work work(p, worker);
  Segment s = {};
  bool more = work.next(p, s);
  int early = more ? min(kStages, 2 * s.count) : 0;
  const Source from_first = source_of(weight, tile_at(p, s.tile).row, p.n, p.k_blocks);
  for (int part = 0; part < early; ++part) fetch_weight(at, from_first, 2 * s.first + part, part);
  wait_for_previous();  // it may write the input, but never the weight
  let_next_start();
  int slot = 0, phase = 1;  // nothing has to be given back in the first round
  for (; more; more = work.next(p, s)) {
    const Tile tile = tile_at(p, s.tile);
    const Source from = source_of(weight, tile.row, p.n, p.k_blocks);
#pragma unroll 1
    for (int part = 2 * s.first; part < 2 * (s.first + s.count); ++part) {
      const uint32_t full = at.full + slot * 8, x = at.input + slot * kInputBytes + share * 128;
      barrier_wait(at.empty + slot * 8, phase);
      if (early > 0) --early;
      else fetch_weight(at, from, part, slot);
      if (kInputs == 1) copy_tile(x, input, part * kDepth, tile.column, full);
      else copy_tile_to(x, input, part * kDepth, tile.column + share, full, (1 << kInputs) - 1);
      if (++slot == kStages) slot = 0, phase ^= 1;
    }
  }
}

// What a thread's two rows of the weight are multiplied with, and what is added; adding -0 changes nothing.
struct Finish {
  float scale[2] = {1.0f, 1.0f}, add[2] = {-0.0f, -0.0f};
  __device__ __forceinline__ float operator()(float sum, int half) const { return sum * scale[half] + add[half]; }
};

// Where a warpgroup's part of a tile goes.
struct Target {
  Out* out;     // its first row of the weight, in the first row of the input
  int rows;     // of the weight that are left, at least one
  int columns;  // rows of the input that are left
  int n;
  int group;
};

#if KT_OUT == 2

// Eight lanes hold neighbours in memory.
__device__ void store(char*, const float (&sum)[kColumns / 2], const Finish& finish, const Target& to) {
  const int lane = threadIdx.x % 32, first = threadIdx.x % 128 / 32 * 16 + lane / 4;
#pragma unroll
  for (int j = 0; j < kColumns / 2; ++j) {
    const int column = j / 4 * 8 + lane % 4 * 2 + j % 2, half = j / 2 % 2, row = first + half * 8;
    if (column < to.columns && row < to.rows) to.out[static_cast<int64_t>(column) * to.n + row] = finish(sum[j], half);
  }
}

#else

__device__ __forceinline__ void store_transposed(uint32_t to, const uint32_t (&words)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};"
               ::"r"(to), "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3]) : "memory");
}

// Where eight of a column's 64 results lie in the staging: eight columns, or the 64 of one, touch each bank once.
__device__ __forceinline__ int staged(int column, int eight) { return column * 128 + (eight ^ column % 8) * 16; }

// Turned round in shared memory, kTurned columns at a time, so that what a column has of all four warps leaves as one
// line of 128 bytes: 2 to 10 % of the time of a product, compared with the 32 bytes that a warp has. While one half of
// the staging is read, the other one is filled.
__device__ void store(char* staging, const float (&sum)[kColumns / 2], const Finish& finish, const Target& to) {
  const int thread = threadIdx.x % 128, lane = thread % 32, warp = thread / 32;
  const int column = lane / 16 * 8 + lane % 8, eight = 2 * warp + lane / 8 % 2;  // whose address the lane names
#pragma unroll
  for (int first = 0; first < kColumns; first += kTurned) {
    if (first >= to.columns) break;
    char* half = staging + first / kTurned % 2 * kTurnedBytes;
#pragma unroll
    for (int pair = 0; pair < kTurned / 16; ++pair) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int j = first / 2 + pair * 8 + i * 2;
        words[i] = pack_pair(finish(sum[j], i % 2), finish(sum[j + 1], i % 2));
      }
      store_transposed(shared_address(half + staged(pair * 16 + column, eight)), words);
    }
    group_sync(to.group);
#pragma unroll
    for (int i = 0; i < kTurned / 16; ++i) {
      const int own = i * 16 + thread / 8;
      const uint4 word = *reinterpret_cast<const uint4*>(half + staged(own, thread % 8));
      if (first + own < to.columns && thread % 8 * 8 < to.rows)
        *reinterpret_cast<uint4*>(to.out + static_cast<int64_t>(first + own) * to.n + thread % 8 * 8) = word;
    }
  }
  group_sync(to.group);  // the next tile begins with the first half again
}

#endif

// One warpgroup: its 64 rows of every tile of this block.
__device__ __forceinline__ void work(const Pipeline& at, char* weights, char* staging, const float* weight_scale,
                                     const float* bias, Out* out, const Parts& parts, const Problem& p, int worker) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = uniform(warp) / 4;
  const int own = warp % 4 * 16 + lane / 4;  // of the 64 rows of the weight
  Work work(p, worker);
  Steps self;
  self.full = uniform(at.full), self.empty = uniform(at.empty), self.input = uniform(tile_word(at.input));
  self.lane = lane, self.group = warp / 4;
  self.weights = weights + warp / 4 * kPart + warp % 4 * 512 + lane * 16;
  self.powers = weights + warp / 4 * kPart + kCodes + (warp % 4 * 8 + lane / 4) * 8;
#if KT_SCALES == 1 && !KT_RESCALE
  self.turns = work.left(p) * kSlices;
#endif
  Segment next = {};
  bool more = work.next(p, next);
#if KT_SCALES == 1
  const auto scales_of = [&](const Segment& s) {
    const int row = min(tile_at(p, s.tile).row / 128, (p.n + 127) / 128 - 1);
    return weight_scale + static_cast<int64_t>(row) * p.k_blocks + s.first;
  };
  self.next_scales = scales_of(next);
#endif
  wait_for_previous();  // every thread that reads what was written for this call, and writes, has waited itself
  if (more) self.begin();
  int position = 0;
  while (more) {
    const Segment s = next;
    more = work.next(p, next);
    const Tile tile = tile_at(p, s.tile);
    const int row = tile.row + group * 64;
    self.last_tile = !more, self.k_blocks = s.count;
#if KT_SCALES == 1
    self.scales = self.next_scales, self.next_scales = scales_of(next);
#endif
    sum_tile(self, position);
    Finish finish;
#if KT_SCALES == 1 && KT_RESCALE
    finish.scale[0] = finish.scale[1] = self.last;
#endif
    if (s.tile < p.divided) {
#if KT_SCALES == 1 && KT_RESCALE
#pragma unroll
      for (int j = 0; j < kColumns / 2; ++j) self.sum[j] *= self.last;  // parts have units of their own
      finish.scale[0] = finish.scale[1] = 1.0f;
#endif
      if (s.first > 0) {
        parts.leave(group, self.sum);
        continue;
      }
      parts.add(p, s, worker, kInputs, static_cast<int>(blockIdx.x) % kInputs, group, self.sum);
    }
    if (row >= p.n) continue;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#if KT_SCALES == 0
      finish.scale[half] = __ldg(weight_scale + min(row + own + half * 8, p.n - 1));
#endif
      if (bias != nullptr) finish.add[half] = bias[min(row + own + half * 8, p.n - 1)];
    }
    Out* first = out + static_cast<int64_t>(tile.column) * p.n + row;
    store(staging + group * 2 * kTurnedBytes, self.sum, finish, {first, p.n - row, p.m - tile.column, p.n, group});
  }
}

extern "C" __global__ void __cluster_dims__(kInputs, 1, 1) __launch_bounds__(kConsumers + 128, 1)
hopper_w8a16_wide(const __grid_constant__ TensorMap input, const char* weight, const float* weight_scale,
                  const float* bias, Out* out, float4* part_sums, uint32_t* part_flags, int m, int n, int k_blocks,
                  int divided) {
  extern __shared__ char raw[];
  __shared__ alignas(8) uint64_t barriers[2 * kStages];
  const uint32_t misfit = shared_address(raw) % 1024;
  char* inputs = raw + (misfit == 0 ? 0 : 1024 - misfit);
  char* weights = inputs + kStages * kInputBytes;
  char* staging = weights + kStages * kWeightBytes;
  const Pipeline at = {shared_address(weights), shared_address(inputs), shared_address(barriers),
                       shared_address(barriers + kStages)};
  const int across = (n + kRows * kInputs - 1) / (kRows * kInputs), up = (m + kColumns - 1) / kColumns;
  const Problem p = {{k_blocks, across * up, divided, static_cast<int>(gridDim.x) / kInputs}, m, n};
  const int worker = worker_of_block(p, kInputs);
  if (elected_in(kConsumers / 32)) {
    prefetch_map(&input);
    for (int i = 0; i < kStages; ++i)
      barrier_init(at.full + i * 8, 1), barrier_init(at.empty + i * 8, kConsumers + kWarps * (kInputs - 1));
    barrier_init_fence();
  }
  __syncthreads();
  if (kInputs > 1) cluster_sync();  // the barriers of the others are ready too
  if (threadIdx.x >= kConsumers) {
    give_registers<kGiven>();
    if (elected_in(kConsumers / 32)) produce(at, weight, &input, p, worker);
    __syncwarp();
  } else {
    take_registers<kTaken>();
    work(at, weights, staging, weight_scale, bias, out, {part_sums, part_flags}, p, worker);
    __syncwarp();
  }
  if (kInputs > 1) cluster_end();  // nobody leaves while others give stages back to it
}
